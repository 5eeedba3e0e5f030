"""Time of the log-prob gather, forward and backward: ours, TRL's function, and log-softmax over whole logits.

    python benchmarks/heads.py --tokens 36 144 1024 --hidden 576 --vocabulary 49152 --threads 2

Every round runs all contenders one after another, so that what else the machine does hits them alike.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from unittest import mock

import torch
import trl
from trl.kernels import ChunkedLogProbFunction

from dmpo_trl import logprobs

TRL_CHUNK = 32768  # vocabulary entries a tile in TRL's own trainers


def full_logits(hidden, weight, targets):
    return torch.log_softmax((hidden @ weight.T).float(), dim=-1).gather(1, targets.unsqueeze(1)).squeeze(1)


def trl_function(hidden, weight, targets):
    return ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, TRL_CHUNK, None, 1.0, ())[0]


def ours(hidden, weight, targets):
    return logprobs.gather_logprobs(hidden, weight, targets).log_probs


def ours_recompute(hidden, weight, targets):
    with mock.patch.object(logprobs, "MAX_KEPT_SOFTMAX", 0):
        return ours(hidden, weight, targets)


def ours_keep_softmax(hidden, weight, targets):
    with mock.patch.object(logprobs, "MAX_KEPT_SOFTMAX", 2**40):
        return ours(hidden, weight, targets)


COMMON = {"full logits": full_logits, "TRL": trl_function}
# what needs a gradient (hidden states, head) -> contenders
CASES = {
    "none": ((False, False), {**COMMON, "ours": ours}),
    "head frozen": ((True, False), {**COMMON, "ours": ours}),
    "head trainable": (
        (True, True),
        {**COMMON, "ours, recompute": ours_recompute, "ours, softmax kept": ours_keep_softmax},
    ),
}


def seconds(function: Callable, leaves: list, targets: torch.Tensor) -> float:
    hidden, weight = leaves
    hidden.grad = weight.grad = None
    synchronize(hidden.device)
    start = time.perf_counter()
    log_probs = function(hidden, weight, targets)
    if log_probs.requires_grad:
        log_probs.sum().backward()
    synchronize(hidden.device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[36, 144, 1024])
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    machine = torch.cuda.get_device_name() if args.device == "cuda" else f"{platform.machine()} {platform.processor()}"
    print(
        f"{machine}, {args.threads} threads; Python {platform.python_version()}, torch {torch.__version__},", end=" "
    )
    print(f"TRL {trl.__version__}; H = {args.hidden}, V = {args.vocabulary}, {args.dtype}")
    print(f"Median of {args.rounds} alternating rounds, forward and backward.\n")
    print("| gradient | tokens | head | ms | vs full logits | vs TRL |\n|---|---:|---|---:|---:|---:|")
    factory = {"device": args.device, "dtype": getattr(torch, args.dtype)}
    for S in args.tokens:
        hidden, weight = torch.randn(S, args.hidden, **factory), torch.randn(args.vocabulary, args.hidden, **factory)
        weight *= args.hidden**-0.5
        targets = torch.randint(0, args.vocabulary, (S,), device=args.device)
        for case, (needs_grad, contenders) in CASES.items():
            leaves = [
                x.detach().requires_grad_(needed) for x, needed in zip((hidden, weight), needs_grad, strict=True)
            ]
            times: dict[str, list[float]] = {name: [] for name in contenders}
            for i in range(args.rounds + 1):
                for name, function in contenders.items():
                    elapsed = seconds(function, leaves, targets)
                    if i > 0:  # the first round warms up
                        times[name].append(elapsed)
            medians = {name: statistics.median(values) for name, values in times.items()}
            for name, median in medians.items():
                ratios = f"{median / medians['full logits']:.2f} | {median / medians['TRL']:.2f}"
                print(f"| {case} | {S:,} | {name} | {median * 1e3:.1f} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
