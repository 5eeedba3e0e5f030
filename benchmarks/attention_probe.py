"""What a device does with the attention of shared prefixes: kernels, times, gradients, compilations.

    python benchmarks/attention_probe.py --device cuda --output DIR

For each length, a row of several trees, in heads of the shape of llama-8b's (`--tiny`: of a toy's). Columns:

    kernel           the kernel that took most time, by the profiler
    first_ms, ms     the first forward and backward pass (compilations, plans), and the median of those after
    error            of output and gradients, relative to float64 on the CPU, the worst; in blocks on a CPU, where they
                     have no backward pass, of the output alone
    compilations     graphs that torch compiled for FlexAttention so far: it must stop growing after the second length
    note             what failed. `NaN` in the row of cuDNN at 704 (64 modulo 128) is pytorch#196678
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import report
import torch
from machine import describe, synchronize
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import HfArgumentParser

from dmpo_trl.modeling.block_attention import attend, block_mask

# Each of SDPA's kernels that takes a mask, and what training uses
WAYS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
    "blocks": None,
}
COLUMNS = ["length", "way", "kernel", "first_ms", "ms", "error", "compilations", "note"]


@dataclass
class Settings:
    device: str = "cpu"
    tiny: bool = field(default=False, metadata={"help": "Small heads and short rows, to try the script."})
    lengths: list[int] = field(default_factory=lambda: [414, 703, 704, 768, 2304, 2432])
    rounds: int = 9
    output: Path | None = field(default=None, metadata={"help": "Folder for the CSV file; rows are appended."})


def trees(length: int) -> torch.Tensor:
    """`subtree_end` of trees of a prompt and nine branches each, (1, length)."""
    ends: list[int] = []
    while len(ends) < length:
        start, size = len(ends), min(300, length - len(ends))
        trunk = size - 9 * (size // 15)
        ends += [start + size] * trunk
        for _ in range(9):
            branch = len(ends) + size // 15
            ends += [branch] * (size // 15)
    return torch.tensor([ends[:length]])


def states(settings: Settings, length: int) -> list[torch.Tensor]:
    """Queries, keys and values with scores so low that cuDNN's bug shows, and the gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    heads, groups, size = (4, 2, 16) if settings.tiny else (32, 8, 128)
    query, key, value, gradient = (
        torch.randn(1, number, length, size, generator=generator) for number in (heads, groups, groups, heads)
    )
    # Scores of about -100: all queries point away from all keys
    direction = torch.zeros(size)
    direction[0] = (100.0 * size**0.5) ** 0.5
    return [query + direction, key - direction, value, gradient]


def exact(inputs: list[torch.Tensor], mask: torch.Tensor) -> list[torch.Tensor]:
    """Output and gradients in float64 on the CPU, from what the device rounds its inputs to."""
    *leaves, gradient = (one.cpu().double() for one in inputs)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    output = scaled_dot_product_attention(*leaves, attn_mask=mask, enable_gqa=True)
    output.backward(gradient)
    return [output.detach(), *(leaf.grad for leaf in leaves)]


def run(settings: Settings, way: str, ends: torch.Tensor, mask: torch.Tensor, inputs: list[torch.Tensor]) -> list:
    """One forward and backward pass; output and gradients, without those where there is no backward pass."""
    *leaves, gradient = inputs
    backward = way != "blocks" or settings.device != "cpu"
    leaves = [leaf.detach().requires_grad_(backward) for leaf in leaves]
    if way == "blocks":
        blocks = block_mask(ends, lambda b, h, q, k: (k <= q) & (q < ends[b, k]), ancestors_only=True)
        output = attend(*leaves, blocks)[0].transpose(1, 2)
    else:
        query, key, value = leaves
        repeats = query.shape[1] // key.shape[1]  # as transformers does where there is a mask
        with sdpa_kernel(WAYS[way]):
            output = scaled_dot_product_attention(
                query, key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1), attn_mask=mask
            )
            output.backward(gradient)
    if backward and way == "blocks":
        output.backward(gradient)
    return [output.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def kernel_of(step: Callable[[], object], device: str) -> str:
    with torch.profiler.profile() as profiler:
        step()
    name = "cpu" if device == "cpu" else "device"
    return max(profiler.key_averages(), key=lambda event: getattr(event, f"self_{name}_time_total")).key


def measure(settings: Settings, length: int, way: str) -> report.Row:
    device, dtype = settings.device, torch.float32 if settings.device == "cpu" else torch.bfloat16
    inputs = [one.to(device, dtype) for one in states(settings, length)]
    ends = trees(length).to(device)
    place = torch.arange(length, device=device)
    mask = (place <= place[:, None]) & (place[:, None] < ends[0])

    def step() -> list:
        return run(settings, way, ends, mask, inputs)

    row: report.Row = dict.fromkeys(COLUMNS) | {"length": length, "way": way}
    times = []
    for _ in range(settings.rounds + 1):
        synchronize(device)
        start = time.perf_counter()
        found = step()
        synchronize(device)
        times.append(1e3 * (time.perf_counter() - start))
    row |= {"first_ms": times[0], "ms": statistics.median(times[1:] or times), "kernel": kernel_of(step, device)}
    row["compilations"] = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    row["note"] = "" if all(one.isfinite().all() for one in found) else "NaN"
    expected = exact(inputs, mask.cpu())
    errors = [(one.cpu().double() - own).norm() / own.norm() for one, own in zip(found, expected, strict=False)]
    row["error"] = float(max(errors))
    return row


def main(arguments: list[str] | None = None) -> None:
    (settings,) = HfArgumentParser(Settings).parse_args_into_dataclasses(arguments)
    header = describe("trl", device=settings.device)
    if settings.device != "cpu":
        header["versions"] += f", cuDNN {torch.backends.cudnn.version()}"
    print(f"{report.head(header)}\n\n{report.table_head(COLUMNS)}", flush=True)
    for length in settings.lengths:
        for way in WAYS:
            if way == "blocks" and length % 128:
                continue
            try:
                row = measure(settings, length, way)
            except RuntimeError as error:  # no such kernel here
                row = dict.fromkeys(COLUMNS) | {"length": length, "way": way, "note": str(error).splitlines()[0]}
            print(report.table_row(row, COLUMNS), flush=True)
            if settings.output is not None:
                command = report.command("attention_probe", arguments)
                report.add_rows(settings.output, "attention", command, header, [row])


if __name__ == "__main__":
    main()
