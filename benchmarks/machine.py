"""Machine of a benchmark: its description, its rate of matrix products, its memory in use."""

import ctypes
import gc
import os
import platform
import subprocess
import sys
import time
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]


def describe(*packages: str, device: str = "cpu") -> dict[str, str]:
    """Return machine, versions (torch, transformers and `packages`) and commit, for the head of a report."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    cpu = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())
    machine = f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used"
    if device != "cpu":
        machine = f"{torch.cuda.get_device_name()} (CUDA {torch.version.cuda}); {machine}"
    versions = [f"{name} {version(name)}" for name in ("torch", "transformers", *packages)]
    return {"machine": machine, "versions": f"Python {platform.python_version()}, {', '.join(versions)}"} | _commit()


def _commit() -> dict[str, str]:
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changes = subprocess.run(
        [*git, "status", "--porcelain", "src", "benchmarks", ":!benchmarks/results"],
        capture_output=True,
        text=True,
        check=False,
    )
    changed = " with uncommitted changes" if changes.stdout.strip() else ""
    return {"commit": f"{commit.stdout.strip() or 'unknown'}{changed}"}


def synchronize(device: str | torch.device) -> None:
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize()


def matmul_rate(device: str, dtype: torch.dtype, size: int, seconds: float) -> float:
    """Return the FLOPs per second of the product of two square matrices, repeated for about `seconds`."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = a @ b  # warms up
    synchronize(device)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        torch.mm(a, b, out=out)
        synchronize(device)
        count += 1
    return count * 2 * size**3 / (time.perf_counter() - start)


@cache
def fast_dtype() -> torch.dtype:
    """Return bfloat16 where this machine multiplies matrices faster in it than in float32, else float32.

    It is measured once: under load a second measurement could say otherwise.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rates = {dtype: matmul_rate(device, dtype, 512, 0.1) for dtype in (torch.float32, torch.bfloat16)}
    return max(rates, key=rates.__getitem__)


class PeakMemory:
    """Memory in use at the start of a block and its peak within, in GB.

    On CUDA this is what torch has allocated. On the CPU it is the resident memory of the process. That is meaningful
    in a fresh process only, because the allocator keeps what earlier work left; it is NaN on systems without /proc.
    """

    def __init__(self, device: str) -> None:
        self.on_gpu = torch.device(device).type == "cuda"

    def __enter__(self) -> "PeakMemory":
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
            self.start_gb = torch.cuda.memory_allocated() / 1e9
        else:
            return_freed_memory()
            self.start_gb = resident_gb("VmRSS")
            if sys.platform == "linux":
                Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        return self

    def __exit__(self, *_: object) -> None:
        self.peak_gb = torch.cuda.max_memory_allocated() / 1e9 if self.on_gpu else resident_gb("VmHWM")

    @property
    def above_start_gb(self) -> float:
        return self.peak_gb - self.start_gb


def return_freed_memory() -> None:
    """Return freed memory to the system: while the allocator keeps it, it counts as in use."""
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc
        libc.malloc_trim(0)


def resident_gb(entry: str) -> float:
    """Return an entry of /proc/self/status: VmRSS is the present value, VmHWM the highest so far."""
    if sys.platform != "linux":
        return float("nan")
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(entry))
    return int(line.split()[1]) * 1024 / 1e9
