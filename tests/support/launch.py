"""Scripts of `SCRIPTS` as several processes on CPUs: `torch.distributed.run`, or `accelerate launch` with a config."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from .scripts import ROOT, SCRIPTS, cpu_environment

CONFIGS = ROOT / "examples" / "accelerate_configs"


def two_processes(script: str, *arguments: object) -> str:
    """Run a script of `SCRIPTS` as two processes that know of each other; return what both print."""
    launcher = [sys.executable, *["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]]
    run = subprocess.run(
        [*launcher, str(SCRIPTS / script), *map(str, arguments)],
        env=cpu_environment(),
        capture_output=True,
        text=True,
        timeout=300,  # a hang
        check=False,
    )
    assert run.returncode == 0, run.stderr[-5000:]
    return run.stdout


def launch(
    folder: Path, config: str, runs: dict[str, dict[str, Any]], processes: int = 2, *, killed: bool = False
) -> list[dict[str, Any]]:
    """Run `runs` (names and keyword arguments of `training.train`); return what each process found.

    With `killed`, a process dies by SIGKILL, the launch has to end nevertheless, and nothing is found.
    """
    # What a machine without GPUs needs; the rest is what users get. FSDP and DeepSpeed know no `use_cpu`
    on_cpu = {"use_cpu": config == "ddp", "ddp_backend": "gloo"}
    (folder / "runs.json").write_text(json.dumps({name: on_cpu | options for name, options in runs.items()}))
    settings = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text())
    settings |= {"num_processes": processes, "mixed_precision": "no"}
    (folder / "accelerate.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    command += ["--config_file", str(folder / "accelerate.yaml"), str(SCRIPTS / "launched_training.py")]
    run = subprocess.run(
        [*command, str(folder)],
        env=cpu_environment() | {"ACCELERATE_TORCH_DEVICE": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,  # a hang
        check=False,
    )
    if killed:
        assert "Signal 9 (SIGKILL) received" in run.stderr, run.stderr[-5000:]
        return []
    assert run.returncode == 0, run.stderr[-5000:]
    return [json.loads((folder / f"found{process}.json").read_text()) for process in range(processes)]
