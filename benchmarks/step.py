"""One DMPO training step: reference forward, policy forward, backward. Ours against the other ways to compute it.

    OMP_NUM_THREADS=2 python benchmarks/step.py --negatives 1 3 7 15 --memory --output benchmarks/results

What the sides are: `sides.py`. They take turns inside one process, for several rounds; a run in which they disagree
in loss or gradient norm stops. By default a batch is one MovieLens 100K example and the model SmolLM2-135M in float32
on the CPU. `--prompt_lengths` and `--batch_sizes` sweep over these; `--rows` takes the DMPO authors' pairs instead,
batches of ten rows in the file's order; `--shape` random weights in the shape of a known model and random tokens, for
a GPU. Copies with full logits take about 2.3 GB for every thousand tokens (SmolLM2): `--copies_at_once` bounds them.

Columns: tokens without and with padding; seconds, the median of the rounds; its ratio, how many times the baseline's
it goes into: the median over the rounds, the lowest and the highest; CPU seconds; GFLOPs that the step needs
(`models.py` says which count), and at which share of the rate of a product of large matrices, measured in every round
in the same dtype and threads, it went through them; peak memory above the loaded models (gradients included), and its
share of the baseline's.
"""

import math
import statistics
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import report
import torch
from cases import Case, authors_rows, movielens_examples, random_examples, sweep, tiny_examples
from machine import PeakMemory, describe, matmul_rate
from measure import Outcome, Outcomes, check_agreement, run_or_none, run_step
from models import SHAPES, Models, ModelSettings, load_models
from sides import BASELINE, Side, make_sides
from transformers import HfArgumentParser

MEASURES = ["tokens", "tokens ratio", "padded", "seconds", "seconds ratio", "lowest", "highest", "cpu_seconds"]
MEASURES += ["gflop", "rate share", "peak_gb", "peak share"]
COLUMNS = ["case", "side", *MEASURES, "note"]


@dataclass
class Settings(ModelSettings):
    negatives: list[int] = field(default_factory=lambda: [1, 3, 7, 15])
    prompt_lengths: list[int] | None = field(default=None, metadata={"help": "Cut or extend prompts to these."})
    batch_sizes: list[int] = field(default_factory=lambda: [1], metadata={"help": "Examples a batch."})
    rows: Path | None = field(default=None, metadata={"help": "JSON file of the DMPO authors' pairs, to be used."})
    batch_rows: int = field(default=10, metadata={"help": "Rows of --rows a batch."})
    batches: int = field(default=3, metadata={"help": "Batches of --rows to take."})
    sides: list[str] | None = field(default=None, metadata={"help": "Only these, by name, and the baseline."})
    copies_at_once: int = field(default=16, metadata={"help": "Most sequences in a forward of sides with copies."})
    rounds: int = field(default=3, metadata={"help": "Turns of each side; 0 with --memory for memory alone."})
    compile: bool = field(default=False, metadata={"help": "The trie through torch.compile as well."})
    memory: bool = field(default=False, metadata={"help": "Peak memory on the CPU: a step a side in a fresh process."})
    profile: bool = field(default=False, metadata={"help": "Where the trie's step of the last case spends its time."})
    output: Path | None = field(default=None, metadata={"help": "Folder for the table, the CSV and the plots."})
    name: str = field(default="step", metadata={"help": "Beginning of the file names in --output."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds < 1 and not self.memory:
            raise ValueError("--rounds 0 measures nothing; with --memory it measures memory alone.")


def make_cases(settings: Settings) -> list[Case]:
    if settings.rows is not None:
        return [authors_rows(settings.rows, settings.model, settings.batch_rows, settings.batches)]
    count, most = max(settings.batch_sizes), max(settings.negatives)
    if settings.tiny:
        source = tiny_examples(count, most)
    elif settings.shape is not None:
        source = random_examples(count, most, SHAPES[settings.shape].vocab_size)
    else:
        source = movielens_examples(settings.model, count, most)
    return list(sweep(source, settings.negatives, settings.prompt_lengths, settings.batch_sizes))


def sides_of(settings: Settings, hidden_size: int, case: Case) -> dict[str, Side]:
    return make_sides(
        hidden_size,
        device=settings.device,
        copies_at_once=settings.copies_at_once,
        several=case.batch_size > 1,
        compiled=settings.compile,
        only=settings.sides,
    )


def time_sides(settings: Settings, models: Models, case: Case) -> list[Outcomes]:
    """The outcomes of the sides, a dictionary a round."""
    sides = sides_of(settings, models.policy.config.hidden_size, case)
    size = 256 if settings.tiny else 2048 if settings.device == "cpu" else 8192
    for name, side in sides.items():
        # Compiling and picking kernels belong to a run, not to a step; on the CPU a short step starts the threads
        if side.compiled or settings.device != "cpu" or name == "trie":
            run_or_none(side, models, case.batches)
    rounds = []
    for _ in range(settings.rounds):
        rate = matmul_rate(settings.device, settings.torch_dtype, size, 0.02 if settings.tiny else 1.0)
        rounds.append({name: run_or_none(side, models, case.batches) for name, side in sides.items()})
        for outcome in filter(None, rounds[-1].values()):
            outcome.rate_share = outcome.flops / outcome.seconds / rate
        check_agreement(sides, rounds[-1], settings.torch_dtype)
    return rounds


def memory_of_sides(settings: Settings, case: Case) -> Outcomes:
    """A step of each side, in a fresh process each."""
    outcomes: Outcomes = {}
    sides = sides_of(settings, 1, case)
    for name in sides:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh_process:
            outcomes[name] = fresh_process.submit(measure_memory, settings, name, case).result()
    check_agreement(sides, outcomes, settings.torch_dtype)
    return outcomes


def measure_memory(settings: Settings, name: str, case: Case) -> Outcome:
    models = load_models(settings)
    side = sides_of(settings, models.policy.config.hidden_size, case)[name]
    with PeakMemory(settings.device) as memory:
        outcome = run_step(side, models, case.batches)
    outcome.peak_gb = memory.above_start_gb
    return outcome


def summarize(case: Case, rounds: list[Outcomes], memory: Outcomes) -> Iterator[report.Row]:
    """A row a side; see the module."""
    for side in rounds[0]:
        row: report.Row = {
            "case": case.label,
            "side": side,
            "negatives": case.negatives,
            "prompt": case.prompt_length,
            "batch": case.batch_size,
        }
        pairs = [(outcomes[BASELINE], outcomes[side]) for outcomes in rounds if outcomes[side]]
        if not pairs:
            yield row | dict.fromkeys(MEASURES, math.nan) | {"note": "out of memory"}
            continue
        own = [outcome for _, outcome in pairs]
        first = [outcome for outcome, _ in pairs if outcome and side != "sft"]  # which does another job
        ratios = [a.seconds / b.seconds for a, b in zip(first, own, strict=False)] or [math.nan]
        peak, first_peak = (
            (memory[name] if memory else outcomes[0]).peak_gb if outcomes else math.nan
            for name, outcomes in ((side, own), (BASELINE, first))
        )
        row |= {
            "tokens": own[0].tokens,
            "tokens ratio": first[0].tokens / own[0].tokens if first else math.nan,
            "padded": own[0].padded,
            "seconds": statistics.median(outcome.seconds for outcome in own),
            "seconds ratio": statistics.median(ratios),
            "lowest": min(ratios),
            "highest": max(ratios),
            "cpu_seconds": statistics.median(outcome.cpu_seconds for outcome in own),
            "gflop": own[0].flops / 1e9,
            "rate share": statistics.median(outcome.rate_share for outcome in own),
            "peak_gb": peak,
            "peak share": peak / first_peak,
        }
        yield row | {"note": ""}


def write_profile(settings: Settings, models: Models, case: Case, header: dict[str, str]) -> None:
    """The operations that the trie's step spends most time in."""
    side = sides_of(settings, models.policy.config.hidden_size, case)["trie"]
    run_step(side, models, case.batches)  # warms up
    with torch.profiler.profile() as profiler:
        run_step(side, models, case.batches)
    order = "self_cpu_time_total" if settings.device == "cpu" else "self_device_time_total"
    table = profiler.key_averages().table(sort_by=order, row_limit=15, max_name_column_width=40)
    text = f"# Where the trie's step spends its time: {case.label}\n\n{report.head(header)}\n\n```\n{table}```\n"
    print(text, flush=True)
    if settings.output is not None:
        settings.output.mkdir(parents=True, exist_ok=True)
        (settings.output / f"{settings.name}-profile.md").write_text(text)


def main(arguments: list[str] | None = None) -> None:
    (settings,) = HfArgumentParser(Settings).parse_args_into_dataclasses(arguments)
    header = describe("trl", "peft", device=settings.device) | settings.describe()
    header |= {"rounds": str(settings.rounds or "1, a fresh process a side")}
    print(f"{report.head(header)}\n\n{report.table_head(COLUMNS)}", flush=True)
    cases = make_cases(settings)
    # Before the models are loaded here, so that both fit
    memory = [memory_of_sides(settings, case) if settings.memory else {} for case in cases]
    models = load_models(settings) if settings.rounds or settings.profile else None
    rows = []
    for case, peaks in zip(cases, memory, strict=True):
        rounds = time_sides(settings, models, case) if settings.rounds else [peaks]
        for row in summarize(case, rounds, peaks):
            rows.append(row)
            print(report.table_row(row, COLUMNS), flush=True)
    if settings.output is not None:
        command = report.command("step", arguments)
        title = f"One DMPO training step on the {'CPU' if settings.device == 'cpu' else 'GPU'}"
        report.write_table(settings.output, settings.name, title, command, header, rows, COLUMNS)
        report.draw_sweeps(settings.output, settings.name, header, rows, BASELINE)
    if settings.profile:
        write_profile(settings, models, cases[-1], header)


if __name__ == "__main__":
    main()
