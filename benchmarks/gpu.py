"""Everything about a GPU in ten minutes: correctness first, then the figures. Needs no network and no build.

    python3 benchmarks/gpu.py --wheels FOLDER --output benchmarks/results/gpu

Each line is a process of its own with its own limit of time, and what it writes is there as it comes: a line that
fails, hangs or runs out of memory costs its own figures only. `--wheels` is a folder of what the machine's Python
lacks (trl, datasets, hypothesis and what they need; polars where it is to be tested too), which goes into the output
folder. `--device cpu --tiny` tries the script itself. The output folder gets

    lines.csv        what ran, its exit status (124: out of time) and seconds
    NN-NAME.log      what it printed
    *.csv            the figures: attention, positions, step-..., heads

The exit status is 1 if a test of correctness failed or a line could not run.
"""

import csv
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser

ROOT = Path(__file__).parents[1]
OUT_OF_TIME = 124
_PATIENCE_ON_CPU = 10  # a busy machine takes half a minute to import torch


@dataclass
class Settings:
    output: Path = field(default=Path("gpu"), metadata={"help": "Folder for logs and figures."})
    device: str = "cuda"
    tiny: bool = field(default=False, metadata={"help": "A toy's shapes, to try the script."})
    wheels: Path | None = field(default=None, metadata={"help": "Folder of wheels to install beside the output."})
    only: list[str] | None = field(default=None, metadata={"help": "Only the lines of these names."})


@dataclass(frozen=True)
class Line:
    """One line of the script: a command of this Python, from the repository's root, and its limit in seconds."""

    name: str
    seconds: int
    command: list[str]


def lines(settings: Settings) -> Iterator[Line]:
    """Yield the lines in their order: ten minutes at most on a GPU, and one for the wheels."""
    on_cpu, out = settings.device == "cpu", ["--output", str(settings.output.resolve())]
    device = ["--device", settings.device]
    dtype = ["--dtype", "float32" if on_cpu else "bfloat16"]
    pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not gpu" if on_cpu else "gpu"]
    if settings.wheels is not None:
        files = [str(file) for file in sorted(settings.wheels.glob("*.whl"))]
        target = str(settings.output.resolve() / "site")
        yield Line("wheels", 60, ["-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", target, *files])
    versions = "import torch, trl, transformers, dmpo_trl; print(torch.__version__, torch.version.cuda, "
    versions += "torch.backends.cudnn.version(), transformers.__version__, trl.__version__)"
    yield Line("versions", 30, ["-c", versions])

    lengths = ["200", "256", "384"] if settings.tiny else ["414", "703", "704", "768", "2304", "2432"]
    tiny, rounds = (["--tiny"], "1") if settings.tiny else ([], "2")
    probe = ["benchmarks/attention_probe.py", "--lengths", *lengths, "--rounds", rounds]
    yield Line("attention", 50, [*probe, *tiny, *device, *out])
    # What compiles kernels comes after, in a line of its own: compilations take most of its time
    compiled = "sdpa_blocks or recompiles or no_gradient_is_nan"
    chosen = {"correctness": f"not four_bit and not flex_attention and not ({compiled})"}
    chosen["correctness-blocks"] = "sdpa_blocks and llama and bfloat16 or recompiles or no_gradient_is_nan"
    if settings.tiny:
        chosen = {"correctness": "test_a_training_step"}
    for name, seconds in zip(chosen, (55, 115), strict=False):
        yield Line(name, seconds, [*pytest, "tests/test_on_gpu.py", "-k", chosen[name]])

    full, varlen, tree, pairs = "full logits", "copies, one varlen row", "trl tree", "trl pairs"
    frugal = f"{varlen}, checkpointing"

    def step(name: str, seconds: int, shape: str, *arguments: str, sides: list[str]) -> Line:
        # FlexAttention's kernels are for GPUs
        sides = [side for side in sides if not (on_cpu and "FlexAttention" in side)]
        model = tiny or ["--shape", shape, *(["--lora"] if shape == "llama-8b" else [])]
        slow = [side for side in sides if side in (full, pairs, frugal)]  # each as long as all others together
        baseline = [] if full in sides else ["--no_baseline"]
        figures = ["--rounds", rounds, *baseline, "--name", name, "--sides", *sides, "--once", *slow]
        return Line(name, seconds, ["benchmarks/step.py", *model, *arguments, *figures, *device, *dtype, *out])

    ours, anchors = ["trie", "trie, FlexAttention"], [varlen, tree, pairs]
    few, many = (["1", "2"], "3") if settings.tiny else (["1", "16"], "15")
    yield step("step-1b", 55, "llama-1b", "--negatives", many, "--batch_sizes", *few, sides=[*anchors, *ours])
    some = ["1", "2"] if settings.tiny else ["4", "8"]
    all_sides = [*anchors, *ours, "trie, precomputed reference"]
    yield step("step-8b-lora", 110, "llama-8b", "--negatives", many, "--batch_sizes", *some, sides=all_sides)
    # One example: its copies have 66,000 tokens, which fit with checkpointing alone
    long = ["--negatives", "3" if settings.tiny else "31", "--prompt_lengths", "64" if settings.tiny else "2048"]
    yield step("step-8b-long", 75, "llama-8b", *long, "--batch_sizes", "1", sides=[frugal, *ours])
    grown = ["--positions", "3" if settings.tiny else "10", "--batch_sizes", "1" if settings.tiny else "2"]
    each = [full, *anchors, "trie, one at a time", *ours]
    yield step("positions", 80, "llama-1b", "--negatives", "3", "7", "15", *grown, sides=each)
    sizes = ["--hidden", "64", "--vocabulary", "1024", "--tokens", "16"]
    if not settings.tiny:
        sizes = ["--hidden", "4096", "--vocabulary", "131072", "--tokens", "144", "2048"]
    yield Line("heads", 30, ["benchmarks/heads.py", *sizes, "--rounds", rounds, *device, *dtype, *out])


def run(line: Line, limit: float, log: Path, environment: dict[str, str]) -> tuple[int, float]:
    """Run a line and return its exit status and seconds; what it prints goes to `log` at once."""
    start = time.perf_counter()
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, *line.command],
            cwd=ROOT,
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)  # with what it started, compilers and workers
            process.wait()
            status = OUT_OF_TIME
    return status, time.perf_counter() - start


def main(arguments: list[str] | None = None) -> None:
    (settings,) = HfArgumentParser(Settings).parse_args_into_dataclasses(arguments)
    settings.output.mkdir(parents=True, exist_ok=True)
    paths = [settings.output.resolve() / "site", *(ROOT / name for name in ("src", "benchmarks", "tests"))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "HF_HUB_OFFLINE": "1"}
    if settings.device == "cuda":
        environment.setdefault("CUDA_VISIBLE_DEVICES", "0")
    planned = list(lines(settings))
    if unknown := set(settings.only or ()) - {line.name for line in planned}:
        raise SystemExit(f"No line is called {sorted(unknown)}: there are {[line.name for line in planned]}.")
    failed = []
    with (settings.output / "lines.csv").open("w", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["line", "name", "status", "seconds", "limit"])
        for number, line in enumerate(planned, start=1):
            if settings.only is not None and line.name not in settings.only:
                continue
            log = settings.output / f"{number:02}-{line.name}.log"
            limit = line.seconds * (_PATIENCE_ON_CPU if settings.device == "cpu" else 1)
            status, seconds = run(line, limit, log, environment)
            table.writerow([number, line.name, status, f"{seconds:.1f}", limit])
            stream.flush()
            print(f"{line.name}: status {status} after {seconds:.0f} of {limit} s, {log}", flush=True)
            if status != 0:
                failed.append(line.name)
    if failed:
        raise SystemExit(f"Failed: {', '.join(failed)}. Their logs say why; the others' figures stand.")


if __name__ == "__main__":
    main()
