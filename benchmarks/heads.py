"""Benchmark of scoring heads without a model: log-probs of given tokens from hidden states, forward and backward.

    OMP_NUM_THREADS=2 python benchmarks/heads.py --tokens 36 144 1024 --vocabulary 32768 49152 131072 262144

    full logits         log-softmax over whole logits, in float32
    TRL                 the function behind TRL's fused head
    ours                `dmpo_trl.modeling.logprobs`; with a trainable head both of its methods, and the one it chooses
    cut-cross-entropy   Apple's kernel; Triton, hence CUDA only
    Liger               fused linear cross-entropy; Triton, CUDA only. It returns the sum over the tokens and not one
                        log-prob per token, so a preference loss cannot use it

Every round runs all heads one after another, so that other load on the machine affects them alike. A head whose sum of
log-probs or gradient norm differs from that of full logits stops the run. A head that cannot run here has a row that
says why.
"""

import importlib.util
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import report
import torch
from machine import describe, synchronize
from torch import Tensor
from transformers import HfArgumentParser

from dmpo_trl.modeling import logprobs

TRL_CHUNK = 32768  # vocabulary entries per tile in TRL's own trainers
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 3e-2}  # relative
COLUMNS = ["vocabulary", "tokens", "gradient", "head", "ms", "times faster than full logits", "lowest", "highest"]
COLUMNS += ["times faster than TRL", "note"]
# what needs a gradient: hidden states, head
GRADIENTS = {"none": (False, False), "head frozen": (True, False), "head trainable": (True, True)}

Head = Callable[[Tensor, Tensor, Tensor], Tensor]  # hidden, weight, targets -> one log-prob per token, or their sum


@dataclass
class Settings:
    tokens: list[int] = field(default_factory=lambda: [36, 144, 1024], metadata={"help": "Scored positions."})
    hidden: int = 576
    vocabulary: list[int] = field(default_factory=lambda: [32768, 49152, 131072, 262144])
    rounds: int = field(default=7, metadata={"help": "Turns of each head; the median is reported."})
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    dtype: str = "float32"
    output: Path | None = field(default=None, metadata={"help": "Folder for the CSV file; rows are appended."})
    plot: Path | None = field(default=None, metadata={"help": "Folder for the pictures."})
    name: str = field(default="heads", metadata={"help": "Beginning of the file names in --output and --plot."})


def full_logits(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return torch.log_softmax((hidden @ weight.T).float(), dim=-1).gather(1, targets.unsqueeze(1)).squeeze(1)


def trl_function(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from trl.kernels import ChunkedLogProbFunction

    return ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, TRL_CHUNK, None, 1.0, ())[0]


def ours(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return logprobs.gather_logprobs(hidden, weight, targets).log_probs


def ours_recompute(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    with mock.patch.object(logprobs, "MAX_KEPT_SOFTMAX", 0):
        return ours(hidden, weight, targets)


def ours_keep_softmax(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    with mock.patch.object(logprobs, "MAX_KEPT_SOFTMAX", 2**40):
        return ours(hidden, weight, targets)


def cut_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    return -linear_cross_entropy(hidden, weight, targets, reduction="none")


def liger(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return -LigerFusedLinearCrossEntropyLoss(reduction="sum")(weight, hidden, targets)


def heads_for(gradient: str, device: str) -> dict[str, Head | str]:
    """Return the heads by name; in place of a head that cannot run, the reason."""
    needs_triton = logprobs.KERNEL_NEEDS_TRITON and device == "cpu"
    trl = "not run: this release's kernel needs Triton and CUDA" if needs_triton else trl_function
    heads: dict[str, Head | str] = {"full logits": full_logits, "TRL": trl, "ours": ours}
    if gradient == "head trainable" and device == "cpu":
        heads |= {"ours, recompute": ours_recompute, "ours, softmax kept": ours_keep_softmax}
    for name, package, head in (
        ("cut-cross-entropy", "cut_cross_entropy", cut_cross_entropy),
        ("Liger", "liger_kernel", liger),
    ):
        if device == "cpu":
            heads[name] = "not run: needs CUDA"
        elif importlib.util.find_spec(package) is None:
            heads[name] = f"not run: {package} is not installed"
        else:
            heads[name] = head
    return heads


def run(head: Head, hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[float, list[float]]:
    """Return the seconds, and a list of the sum of the log-probs and the norm of each gradient."""
    hidden.grad = weight.grad = None
    synchronize(hidden.device)
    start = time.perf_counter()
    total = head(hidden, weight, targets).sum()
    if total.requires_grad:
        total.backward()
    synchronize(hidden.device)
    seconds = time.perf_counter() - start
    norms = [float(x.grad.float().norm()) for x in (hidden, weight) if x.grad is not None]
    return seconds, [float(total.detach()), *norms]


def check_agreement(name: str, values: list[float], expected: list[float], dtype: torch.dtype) -> None:
    for own, other in zip(values, expected, strict=True):
        if not abs(own - other) <= TOLERANCES[dtype] * abs(other):
            raise SystemExit(f"'{name}' disagrees with 'full logits': {values} against {expected}.")


def measure(settings: Settings, vocabulary: int, tokens: int, gradient: str) -> list[report.Row]:
    dtype = getattr(torch, settings.dtype)
    hidden, weight = (torch.randn(n, settings.hidden, device=settings.device) for n in (tokens, vocabulary))
    weight *= settings.hidden**-0.5
    targets = torch.randint(0, vocabulary, (tokens,), device=settings.device)
    leaves = [
        x.to(dtype).requires_grad_(needed) for x, needed in zip((hidden, weight), GRADIENTS[gradient], strict=True)
    ]
    heads = heads_for(gradient, settings.device)
    seconds: dict[str, list[float]] = {name: [] for name, head in heads.items() if callable(head)}
    for place in range(settings.rounds + 1):
        expected = None
        for name in seconds:
            elapsed, values = run(heads[name], *leaves, targets)
            expected = values if expected is None else expected
            check_agreement(name, values, expected, dtype)
            if place > 0:  # the first round warms up
                seconds[name].append(elapsed)
    rows = []
    for name, head in heads.items():
        row: report.Row = {"vocabulary": vocabulary, "tokens": tokens, "gradient": gradient, "head": name}
        if name not in seconds:
            rows.append(row | dict.fromkeys(COLUMNS[4:-1], math.nan) | {"note": head})
            continue
        full, trl = (
            [a / b for a, b in zip(seconds.get(other, [math.nan] * settings.rounds), seconds[name], strict=True)]
            for other in ("full logits", "TRL")
        )
        values = (statistics.median(seconds[name]) * 1e3, statistics.median(full), min(full), max(full))
        rows.append(row | dict(zip(COLUMNS[4:], (*values, statistics.median(trl), ""), strict=True)))
    return rows


def main(arguments: list[str] | None = None) -> None:
    (settings,) = HfArgumentParser(Settings).parse_args_into_dataclasses(arguments)
    torch.manual_seed(0)
    header = describe("trl", device=settings.device)
    header |= {"heads": f"hidden size {settings.hidden}, {settings.dtype}", "rounds": str(settings.rounds)}
    print(f"{report.head(header)}\n\n{report.table_head(COLUMNS)}", flush=True)
    rows = []
    for vocabulary in settings.vocabulary:
        for tokens in settings.tokens:
            for gradient in GRADIENTS:
                for row in measure(settings, vocabulary, tokens, gradient):
                    rows.append(row)
                    print(report.table_row(row, COLUMNS), flush=True)
    if settings.output is not None:
        command = report.command("heads", arguments)
        report.add_rows(settings.output, settings.name, command, header, rows)
    if settings.plot is not None:
        settings.plot.mkdir(parents=True, exist_ok=True)
        for tokens in settings.tokens:
            drawn = [row for row in rows if row["tokens"] == tokens and not row["note"] and row["gradient"] != "none"]
            report.draw(
                settings.plot / f"{settings.name}-{tokens}-tokens.svg",
                header | {"tokens": str(tokens)},
                drawn,
                "vocabulary",
                "ms",
                lambda row: f"{row['head']}, {row['gradient']}",
                "vocabulary",
                "ms, forward and backward",
            )


if __name__ == "__main__":
    main()
