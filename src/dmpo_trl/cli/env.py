"""`dmpo-trl env`: versions and hardware for a bug report."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
from pathlib import Path

from .options import Parser


def make_parser() -> Parser:
    """Return the command's parser."""
    return Parser("env", example="dmpo-trl env")


def run(arguments: list[str]) -> None:
    """Print TRL's list of versions and devices, and what TRL does not ask for below it."""
    make_parser().parse(arguments)

    import torch
    from trl.scripts.env import print_env

    print_env()
    cuda = f"{torch.version.cuda}, driver available: {torch.cuda.is_available()}" if torch.version.cuda else "no"
    details = {
        "dmpo-trl version": _version("dmpo-trl") + _commit(),
        "polars version": _version("polars"),
        "Triton version": _version("triton"),
        "PyTorch built for CUDA": cuda,
        "CPU": f"{_processor()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}",
    }
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        details[f"GPU {number}"] = (
            f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB, compute capability {gpu.major}.{gpu.minor}"
        )
    print("\n".join(f"- {name}: {value}" for name, value in details.items()))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """Return `+` and the commit, where the package is imported from a checkout."""
    package = Path(__file__).parents[1]
    if not (package.parents[1] / ".git").exists():  # that of src/dmpo_trl, not one that an environment lies in
        return ""
    command = ["git", "-C", str(package), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        described = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "+unknown"
    return f"+{described.stdout.strip()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
