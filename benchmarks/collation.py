"""Time on one thread that batches take on a CPU: to lay one out, and to form those of `max_tokens_per_batch`.

    OMP_NUM_THREADS=1 python benchmarks/collation.py

Rows are random tokens in the lengths of MovieLens prompts; nothing is trained. Times are of the process, which other
programs on the machine do not add to, and the least of some rounds. `laid out to count` is how the tokens of a batch
are known without `TokenCounter`; both must count the same. `--many ROWS` forms the batches of a dataset on the disk as
training does, with `--workers` processes, and then once more, from the cache: that is in seconds on the clock.
"""

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets, load_from_disk
from transformers import HfArgumentParser

from dmpo_trl import DataCollatorForMultiPreference
from dmpo_trl.batching.budget import batches_within_budget, form_batches
from dmpo_trl.batching.token_count import TokenCounter

# Prompts of one dataset begin with the same instruction
INSTRUCTION = 40

DISTINCT = 20_000
"""Most different rows of --many; they are repeated up to its number."""


COLLATORS = {
    "packed rows (CPU)": DataCollatorForMultiPreference(0, prefix_sharing=True, packed_length=4096),
    "one row (GPU)": DataCollatorForMultiPreference(
        0, prefix_sharing=True, attention_balance=math.inf, packed_length=2**31, pad_to_multiple_of=128
    ),
}


@dataclass
class Settings:
    examples: list[int] = field(default_factory=lambda: [4, 32], metadata={"help": "Examples of a batch."})
    negatives: list[int] = field(default_factory=lambda: [15, 31])
    prompts: list[int] = field(default_factory=lambda: [300, 2048], metadata={"help": "Tokens of a prompt."})
    rows: int = field(default=2000, metadata={"help": "Rows of which batches are formed."})
    budget: int = field(default=4096, metadata={"help": "Tokens of such a batch."})
    most: int = field(default=32, metadata={"help": "Most examples of such a batch."})
    many: int = field(default=0, metadata={"help": "Rows of a dataset on the disk, of which batches are formed."})
    workers: int = field(default=2, metadata={"help": "Processes for --many."})
    rounds: int = field(default=5)


def make_rows(count: int, negatives: int, prompt: int) -> list[dict[str, Any]]:
    """Make rows whose completions are titles of a catalogue, and begin alike."""
    generator = random.Random(0)

    def tokens(number: int) -> list[int]:
        return [generator.randrange(10, 49152) for _ in range(number)]

    instruction, titles = tokens(INSTRUCTION), [tokens(generator.randint(2, 12)) for _ in range(3000)]
    rows = []
    for _ in range(count):
        length = max(round(generator.gauss(prompt, 0.15 * prompt)), INSTRUCTION + 1)
        chosen, *rejected = ([5, 6, *title, 2] for title in generator.sample(titles, negatives + 1))
        rows.append(
            {
                "prompt_ids": instruction + tokens(length - INSTRUCTION),
                "chosen_ids": chosen,
                "rejected_ids": rejected,
            }
        )
    return rows


def seconds(function: Callable[[], Any], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def time_batches(settings: Settings, rows: list[dict[str, Any]], case: str) -> None:
    for name, collator in COLLATORS.items():
        for examples in settings.examples:
            taken = seconds(partial(collator, rows[:examples]), settings.rounds)
            print(f"{case} {name} | batch of {examples} | {1e3 * taken:.1f} |", flush=True)


def time_forming(settings: Settings, rows: list[dict[str, Any]], case: str) -> None:
    dataset, order, collator = Dataset.from_list(rows), range(len(rows)), COLLATORS["packed rows (CPU)"]
    formed = []

    def form(make_counter: Callable[[], Callable[[Any], int]]) -> None:
        formed.append(batches_within_budget(order, make_counter(), settings.budget, settings.most))

    def laid_out(indices: Any) -> int:
        return int(collator(dataset.__getitems__(list(indices)))["input_ids"].numel())

    ways = {"counted": partial(TokenCounter, collator, dataset, order), "laid out to count": lambda: laid_out}
    for name, way in ways.items():
        taken = seconds(partial(form, way), 1)
        print(f"{case} forming batches | one row, {name} | {1e3 * taken / len(rows):.3f} |", flush=True)
    if formed[0] != formed[1]:
        raise SystemExit("The batches differ.")


def time_many(settings: Settings, rows: list[dict[str, Any]], case: str) -> None:
    order, collator = range(settings.many), COLLATORS["packed rows (CPU)"]
    part = Dataset.from_list(rows)
    dataset = concatenate_datasets([part] * math.ceil(settings.many / len(part))).select(order)
    with TemporaryDirectory() as folder:
        dataset.save_to_disk(folder)
        for name in (f"{settings.workers} workers", "again"):
            start = time.perf_counter()
            form_batches(
                load_from_disk(folder), order, collator, settings.budget, settings.most, num_proc=settings.workers
            )
            taken = time.perf_counter() - start
            print(f"{case} forming batches of {settings.many:,} rows | {name} | {1e3 * taken:.0f} |", flush=True)


def main(arguments: list[str] | None = None) -> None:
    (settings,) = HfArgumentParser(Settings).parse_args_into_dataclasses(arguments)
    torch.set_num_threads(1)
    print("| N | prompt | | what | ms |\n|---|---|---|---|---|")
    for negatives in settings.negatives:
        for prompt in settings.prompts:
            rows = make_rows(max([settings.rows, *settings.examples]), negatives, prompt)
            case = f"| {negatives} | {prompt} |"
            time_batches(settings, rows, case)
            time_forming(settings, rows[: settings.rows], case)
            if settings.many:
                time_many(settings, make_rows(min(settings.many, DISTINCT), negatives, prompt), case)


if __name__ == "__main__":
    main()
