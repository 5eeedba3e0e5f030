"""Largest number of negatives, and of examples per batch, whose step fits a limit on memory.

    python benchmarks/fit.py --shape llama-8b --lora --device cuda --dtype bfloat16 --bounds 24 48 80

For each side and limit the script finds the largest N of one example, and the largest batch of examples with
`--negatives` each, by measurement and by the formula of docs/cost.md, which does not describe full logits. On CUDA the
limit is set on torch's allocator, and a step that runs out of memory does not fit; models and the state of AdamW are
allocated before, as in training. A limit above the GPU's own memory is left out, with a note. On the CPU, which serves
to try the script, a step fits if its resident memory stays below the limit.
"""

import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import report
import torch
from cases import TITLE_LENGTH, Examples, fit_prompt, random_examples
from machine import PeakMemory, describe
from measure import run_or_none
from models import LORA, SHAPES, Models, ModelSettings, load_models
from sides import BASELINE, make_sides
from transformers import HfArgumentParser

from dmpo_trl.modeling.row_plan import plan_for
from dmpo_trl.training.cost import BatchSize, ModelSize, TrainingOptions, largest, step_cost

COLUMNS = ["side", "bound_gb", "largest N, batch 1", "N by formula", "largest batch", "batch by formula"]
COLUMNS += ["N of the batch"]


@dataclass
class Settings(ModelSettings):
    bounds: list[float] = field(default_factory=lambda: [24.0, 48.0, 80.0], metadata={"help": "GB (10^9 bytes)."})
    prompt_length: int = field(default=270, metadata={"help": "Tokens."})
    negatives: int = field(default=7, metadata={"help": "N of the examples in the largest batch."})
    most: int = field(default=1024, metadata={"help": "Upper end of the search, for N and for the batch."})
    sides: list[str] = field(default_factory=lambda: ["full logits", "trl fused, checkpointing", "copies", "trie"])
    output: Path | None = field(default=None, metadata={"help": "Folder for the CSV file; rows are appended."})
    name: str = field(default="fit", metadata={"help": "Beginning of the file names in --output."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shape is None:
            raise ValueError("fit.py measures random weights: name a --shape.")


def make_batch(settings: Settings, size: int, negatives: int) -> Examples:
    examples = random_examples(size, negatives, SHAPES[settings.shape].vocab_size)
    return [row | {"prompt_ids": fit_prompt(row["prompt_ids"], settings.prompt_length)} for row in examples]


def search_both(settings: Settings, fits: Callable[[int, int], bool]) -> tuple[int, int]:
    """Return the largest N of one example and the largest batch for which `fits(examples, negatives)` is true."""
    return largest(lambda n: fits(1, n), settings.most), largest(lambda b: fits(b, settings.negatives), settings.most)


def search(settings: Settings, side_name: str, bound_gb: float) -> tuple[int, int]:
    """Measure the largest N of one example and the largest batch, in a process that the limit applies to."""
    on_gpu = settings.device != "cpu"
    if on_gpu:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, bound_gb * 1e9 / total))
    try:
        models = load_models(settings)
        allocate_optimizer(models)
    except torch.OutOfMemoryError:
        return 0, 0

    def fits(size: int, negatives: int) -> bool:
        sequences = 2 * size * negatives  # all at once, pairs too: nothing is added up over several forwards
        sides = make_sides(
            models.policy.config.hidden_size,
            device=settings.device,
            copies_at_once=sequences,
            several=True,
            compiled=False,
        )
        with PeakMemory(settings.device) as memory:
            outcome = run_or_none(sides[side_name], models, [make_batch(settings, size, negatives)])
        return outcome is not None and (on_gpu or memory.peak_gb <= bound_gb)

    return search_both(settings, fits)


def predict(settings: Settings, side_name: str, bound_gb: float) -> tuple[float, float]:
    """Compute the same two numbers with `dmpo_trl.training.cost`; NaN for a side that it does not describe."""
    if side_name == BASELINE:
        return math.nan, math.nan
    config = SHAPES[settings.shape]
    size = ModelSize.from_config(config, LORA if settings.lora else None)
    options = TrainingOptions(
        weight_bytes=settings.torch_dtype.itemsize,
        half_precision=settings.torch_dtype.itemsize == 2,
        gradient_checkpointing="checkpointing" in side_name,
        load_in_4bit=settings.four_bit,
    )

    attention = "trie_sdpa_blocks" if "FlexAttention" in side_name else "trie_sdpa"
    # A CPU's packed rows are counted as padded ones
    plan = plan_for(torch.device(settings.device).type, [attention], config, compiles=True)

    def fits(examples: int, negatives: int) -> bool:
        lengths = [(settings.prompt_length, [TITLE_LENGTH] * (negatives + 1))] * examples
        layout = BatchSize.trie(lengths, plan) if side_name.startswith("trie") else BatchSize.copies(lengths)
        return step_cost(size, layout, options).memory <= bound_gb * 1e9

    return search_both(settings, fits)


def allocate_optimizer(models: Models) -> None:
    """Allocate AdamW's state, which the policy keeps alive."""
    trained = [weight for weight in models.policy.parameters() if weight.requires_grad]
    for weight in trained:
        weight.grad = torch.zeros_like(weight)
    models.policy.optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0)
    models.policy.optimizer.step()
    models.policy.zero_grad(set_to_none=True)


def main(arguments: list[str] | None = None) -> None:
    (settings,) = HfArgumentParser(Settings).parse_args_into_dataclasses(arguments)
    header = describe("trl", "peft", device=settings.device) | settings.describe()
    header |= {"prompts": f"{settings.prompt_length} tokens", "searched up to": str(settings.most)}
    bounds = settings.bounds
    if settings.device != "cpu":
        total = torch.cuda.get_device_properties(0).total_memory / 1e9
        if beyond := [bound for bound in bounds if bound > total]:
            header["not measured"] = f"{beyond} GB, since the GPU has {total:.1f}"
        bounds = [bound for bound in bounds if bound <= total]
    print(f"{report.head(header)}\n\n{report.table_head(COLUMNS)}", flush=True)
    rows: list[report.Row] = []
    for bound in bounds:
        for side in settings.sides:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                n, batch = process.submit(search, settings, side, bound).result()
            by_formula, batch_by_formula = predict(settings, side, bound)
            values = (side, bound, n, by_formula, batch, batch_by_formula, settings.negatives)
            rows.append(dict(zip(COLUMNS, values, strict=True)))
            print(report.table_row(rows[-1], COLUMNS), flush=True)
    if settings.output is not None:
        command = report.command("fit", arguments)
        report.add_rows(settings.output, settings.name, command, header, rows)


if __name__ == "__main__":
    main()
