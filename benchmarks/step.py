"""Benchmark of one DMPO training step: reference forward, policy forward and backward, computed in several ways.

    OMP_NUM_THREADS=2 python benchmarks/step.py --negatives 1 3 7 15 --memory --output benchmarks/results

The ways are the "sides" of `sides.py`. They take turns inside one process for several rounds. Where two of them
disagree in loss or gradient norm, the rows of the later one say so and the run fails at its end. By default a batch is
one MovieLens 100K example, and the model is SmolLM2-135M in float32 on the CPU. `--prompt_lengths` and `--batch_sizes`
sweep over these quantities. `--rows` takes the DMPO authors' pairs instead, in batches of ten rows in their order, and
`--user_positions` a MovieLens user's examples, whose histories grow inside one another. `--shape` takes random weights
in the shape of a known model and random tokens, for a GPU; with `--positions` each user of a batch has that many
examples, whose prompts grow inside one another. Copies with full logits take about 2.3 GB per thousand tokens
(SmolLM2); `--copies_at_once` limits them. `--once` gives slow sides one turn, in the first round; ratios to a baseline
among them are of that round alone.

Columns of the result:

    tokens, padded     tokens of the batch without and with padding
    seconds            median over the rounds
    seconds ratio      the baseline's seconds divided by the side's: median, lowest and highest over the rounds
    cpu_seconds        median over the rounds
    gflop              GFLOPs that the step needs (`models.py` says what is counted)
    rate share         FLOPs per second, as a share of the rate of a product of large matrices, which is measured in
                       each round with the same dtype and number of threads
    peak_gb            peak memory above the loaded models, gradients included
    peak share         the side's peak memory divided by the baseline's
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
from cases import (
    Case,
    authors_rows,
    growing_cases,
    movielens_examples,
    position_examples,
    random_examples,
    sweep,
    tiny_examples,
)
from machine import PeakMemory, describe, matmul_rate
from measure import Outcome, Outcomes, disagreements, run_or_none, run_step
from models import SHAPES, Models, ModelSettings, load_models
from sides import BASELINE, Side, make_sides
from transformers import HfArgumentParser

MEASURES = ["tokens", "tokens ratio", "padded", "seconds", "seconds ratio", "lowest", "highest", "cpu_seconds"]
MEASURES += ["gflop", "rate share", "peak_gb", "peak share"]
TIMES = ("seconds", "seconds ratio", "lowest", "highest", "cpu_seconds", "rate share")
COLUMNS = ["case", "side", *MEASURES, "note"]


@dataclass
class Settings(ModelSettings):
    negatives: list[int] = field(default_factory=lambda: [1, 3, 7, 15])
    prompt_lengths: list[int] | None = field(default=None, metadata={"help": "Cut or extend prompts to these."})
    batch_sizes: list[int] = field(default_factory=lambda: [1], metadata={"help": "Examples per batch."})
    user_positions: list[int] | None = field(
        default=None, metadata={"help": "Examples of a MovieLens user whose histories grow, as a batch."}
    )
    positions: int = field(
        default=1, metadata={"help": "Examples per user, with prompts that grow inside one another; with --shape."}
    )
    baseline: bool = field(default=True, metadata={"help": "Copies with full logits, whichever --sides."})
    rows: Path | None = field(default=None, metadata={"help": "JSON file of the DMPO authors' pairs, to be used."})
    batch_rows: int = field(default=10, metadata={"help": "Rows of --rows per batch."})
    batches: int = field(default=3, metadata={"help": "Batches of --rows to take."})
    sides: list[str] | None = field(default=None, metadata={"help": "Only these, by name, and the baseline."})
    once: list[str] | None = field(default=None, metadata={"help": "Slow sides, by name, that take one turn only."})
    copies_at_once: int = field(default=16, metadata={"help": "Most sequences in a forward of sides with copies."})
    rounds: int = field(default=3, metadata={"help": "Turns of each side; 0 with --memory for memory alone."})
    compile: bool = field(default=False, metadata={"help": "The trie through torch.compile as well."})
    memory: bool = field(
        default=False, metadata={"help": "Peak memory on the CPU: one step per side, each in a fresh process."}
    )
    profile: bool = field(default=False, metadata={"help": "Where the trie's step of the last case spends its time."})
    output: Path | None = field(default=None, metadata={"help": "Folder for the CSV file; rows are appended."})
    plot: Path | None = field(default=None, metadata={"help": "Folder for pictures of what was swept."})
    name: str = field(default="step", metadata={"help": "Beginning of the file names in --output and --plot."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positions > 1 and (self.shape is None or self.prompt_lengths is not None or self.rows is not None):
            raise ValueError("--positions makes random tokens of its own: it goes with --shape or --tiny alone.")
        if self.sides is not None and (unknown := set(self.once or ()) - {BASELINE, *self.sides}):
            raise ValueError(f"--once names {sorted(unknown)}, which --sides does not.")
        if self.rounds < 1 and not self.memory:
            raise ValueError("--rounds 0 measures nothing; with --memory it measures memory alone.")


def make_cases(settings: Settings) -> list[Case]:
    if settings.rows is not None:
        return [authors_rows(settings.rows, settings.model, settings.batch_rows, settings.batches)]
    if settings.user_positions is not None:
        return list(growing_cases(settings.model, settings.user_positions, settings.negatives))
    count, most = max(settings.batch_sizes), max(settings.negatives)
    if settings.positions > 1:
        source = position_examples(count, settings.positions, most, SHAPES[settings.shape].vocab_size)
        sizes = [settings.positions * users for users in settings.batch_sizes]
        return list(sweep(source, settings.negatives, None, sizes))
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
        baseline=settings.baseline,
        only=settings.sides,
    )


def time_sides(settings: Settings, models: Models, case: Case) -> tuple[list[Outcomes], dict[str, str]]:
    """Return the outcomes of the sides, one dictionary per round, and what is wrong with sides that disagree."""
    sides = sides_of(settings, models.policy.config.hidden_size, case)
    size = 256 if settings.tiny else 2048 if settings.device == "cpu" else 8192
    for name, side in sides.items():
        # Compiling and picking kernels belong to a run, not to a step; on the CPU a short step starts the threads
        if side.compiled or settings.device != "cpu" or name == "trie":
            run_or_none(side, models, [side.split(batch)[0] for batch in case.batches])
    rounds, wrong = [], {}
    for _ in range(settings.rounds):
        if rounds:
            sides = {name: side for name, side in sides.items() if name not in (settings.once or ())}
        rate = matmul_rate(settings.device, settings.torch_dtype, size, 0.02 if settings.tiny else 1.0)
        rounds.append({name: run_or_none(side, models, case.batches) for name, side in sides.items()})
        for outcome in filter(None, rounds[-1].values()):
            outcome.rate_share = outcome.flops / outcome.seconds / rate
        wrong |= disagreements(sides, rounds[-1], settings.torch_dtype)
    return rounds, wrong


def memory_of_sides(settings: Settings, case: Case) -> tuple[Outcomes, dict[str, str]]:
    """Run one step of each side, each in a fresh process; return also what is wrong with sides that disagree."""
    outcomes: Outcomes = {}
    sides = sides_of(settings, 1, case)
    for name, side in sides.items():
        if side.absent:
            outcomes[name] = None
            continue
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh_process:
            outcomes[name] = fresh_process.submit(measure_memory, settings, name, case).result()
    return outcomes, disagreements(sides, outcomes, settings.torch_dtype)


def measure_memory(settings: Settings, name: str, case: Case) -> Outcome:
    models = load_models(settings)
    side = sides_of(settings, models.policy.config.hidden_size, case)[name]
    with PeakMemory(settings.device) as memory:
        outcome = run_step(side, models, case.batches)
    outcome.peak_gb = memory.above_start_gb
    return outcome


def summarize(case: Case, rounds: list[Outcomes], memory: Outcomes, notes: dict[str, str]) -> Iterator[report.Row]:
    """Yield one row per side, with the columns that the module's docstring explains."""
    for side in rounds[0]:
        row: report.Row = {
            "case": case.label,
            "side": side,
            "negatives": case.negatives,
            "prompt": case.prompt_length,
            "batch": case.batch_size,
        }
        pairs = [(outcomes.get(BASELINE), outcomes[side]) for outcomes in rounds if outcomes.get(side)]
        if not pairs:
            yield row | dict.fromkeys(MEASURES, math.nan) | {"note": notes.get(side, "out of memory")}
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
        yield row | {"note": notes.get(side, "")}


def profile(settings: Settings, models: Models, case: Case) -> list[report.Row]:
    """Print and return the operations that the trie's step spends most time in."""
    side = sides_of(settings, models.policy.config.hidden_size, case)["trie"]
    run_step(side, models, case.batches)  # warms up
    with torch.profiler.profile() as profiler:
        run_step(side, models, case.batches)
    device = "cpu" if settings.device == "cpu" else "device"
    averages = profiler.key_averages()
    total = sum(getattr(event, f"self_{device}_time_total") for event in averages)
    rows: list[report.Row] = [
        {
            "case": case.label,
            "operation": event.key,
            "share": getattr(event, f"self_{device}_time_total") / total,
            "seconds": getattr(event, f"self_{device}_time_total") / 1e6,
            "share with callees": getattr(event, f"{device}_time_total") / total,
            "seconds with callees": getattr(event, f"{device}_time_total") / 1e6,
            "calls": event.count,
        }
        for event in averages
    ]
    rows = sorted(rows, key=lambda row: -row["seconds"])[:15]
    print(f"\n{report.table_head(list(rows[0]))}")
    for row in rows:
        print(report.table_row(row, list(row)), flush=True)
    return rows


def main(arguments: list[str] | None = None) -> None:
    (settings,) = HfArgumentParser(Settings).parse_args_into_dataclasses(arguments)
    command = report.command("step", arguments)
    header = describe("trl", "peft", device=settings.device) | settings.describe()
    header |= {"rounds": str(settings.rounds or "memory alone, a fresh process per side")}
    print(f"{report.head(header)}\n\n{report.table_head(COLUMNS)}", flush=True)
    cases = make_cases(settings)
    # Before the models are loaded here, so that both fit
    memory = [memory_of_sides(settings, case) if settings.memory else ({}, {}) for case in cases]
    models = load_models(settings) if settings.rounds or settings.profile else None
    rows, problems = [], []
    for case, (peaks, wrong) in zip(cases, memory, strict=True):
        rounds = [peaks]
        if settings.rounds:
            rounds, of_rounds = time_sides(settings, models, case)
            wrong = wrong | of_rounds
        problems += [f"{case.label}: {problem}" for problem in wrong.values()]
        absent = {name: side.absent for name, side in sides_of(settings, 1, case).items() if side.absent}
        of_case = list(summarize(case, rounds, peaks, absent | wrong))
        if not settings.rounds:
            of_case = [row | dict.fromkeys(TIMES, math.nan) for row in of_case]
        rows += of_case
        for row in of_case:
            print(report.table_row(row, COLUMNS), flush=True)
        if settings.output is not None:  # as it comes: a run that is stopped has what it measured
            report.add_rows(settings.output, settings.name, command, header, of_case)
    if settings.plot is not None:
        report.draw_sweeps(settings.plot, settings.name, header, rows, BASELINE)
    if settings.profile:
        operations = profile(settings, models, cases[-1])
        if settings.output is not None:
            report.add_rows(settings.output, f"{settings.name}-profile", command, header, operations)
    if problems:
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    main()
