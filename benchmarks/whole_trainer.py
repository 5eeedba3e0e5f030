"""Benchmark of `DMPOTrainer.train()`: examples per second, beside the bare step on the same batches.

    OMP_NUM_THREADS=2 python benchmarks/whole_trainer.py --examples 32 --output benchmarks/results

    bare step    collating, reference forward, policy forward and backward of one batch after another (`trie` in
                 `sides.py`)
    DMPOTrainer  `trainer.train()` over one epoch: data loader, metrics, clipping, callbacks and optimizer
    DPOTrainer   with --pairs: TRL's trainer on the same examples as pairs, with all pairs of a batch in one batch;
                 gradient checkpointing off, as for the others

All sides compute the mean of the pairs' sigmoid losses, so that TRL's trainer can be compared. The learning rate is 0,
so that every round meets the same weights. A run in which the mean losses over the epoch differ stops. The optimizer's
steps are timed separately, and the figures are given with and without them; the bare step has no optimizer. The sides
take turns for several rounds. Tokenisation and the probe come before `train()` and are not timed.
"""

import dataclasses
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import report
import torch
from cases import Examples, movielens_examples, random_examples, tiny_examples
from datasets import Dataset
from machine import describe, synchronize
from measure import TOLERANCES, run_step
from models import LORA, SHAPES, Models, ModelSettings, load_models
from sides import Side, by_pairs, make_sides
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, HfArgumentParser, PreTrainedTokenizerFast, TrainerCallback
from trl import DPOConfig, DPOTrainer

from dmpo_trl import DMPOConfig, DMPOTrainer

COLUMNS = ["side", "batch", "examples", "seconds", "optimizer seconds", "examples per second", "without optimizer"]
COLUMNS += ["over bare step", "lowest", "highest"]
BARE = "bare step"


@dataclass
class Settings(ModelSettings):
    examples: int = field(default=32, metadata={"help": "Examples of an epoch, a multiple of --batch_size."})
    negatives: int = 7
    batch_size: int = field(default=1, metadata={"help": "Examples per batch; a step is one batch."})
    precompute: bool = field(default=False, metadata={"help": "Reference log-probs before training."})
    pairs: bool = field(default=False, metadata={"help": "TRL's DPOTrainer on exploded pairs as well."})
    rounds: int = field(default=3, metadata={"help": "Turns of each side; the median is reported."})
    output: Path | None = field(default=None, metadata={"help": "Folder for the CSV file; rows are appended."})
    name: str = field(default="whole-trainer", metadata={"help": "Beginning of the file names in --output."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora and self.pairs:
            raise ValueError("--pairs needs all parameters: two trainers cannot put their adapters on one model.")
        if self.examples % self.batch_size:
            raise ValueError("--examples must be a multiple of --batch_size, or the last batch is another.")


@dataclass
class Outcome:
    loss: float
    seconds: float
    optimizer_seconds: float = 0.0


def make_examples(settings: Settings) -> Examples:
    if settings.tiny:
        return tiny_examples(settings.examples, settings.negatives)
    if settings.shape is not None:
        return random_examples(settings.examples, settings.negatives, SHAPES[settings.shape].vocab_size)
    examples = movielens_examples(str(settings.model), settings.examples, settings.negatives)
    if len(examples) < settings.examples:
        raise SystemExit(f"MovieLens has {len(examples)} such examples: ask for fewer with --examples.")
    return examples


class PairsTrainer(DPOTrainer):
    """TRL's trainer on rows that are token ids already."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset


def make_trainer(settings: Settings, models: Models, examples: Examples, pairs: bool) -> Any:
    """Return TRL's trainer on pairs, or ours; nothing is saved, evaluated or reported."""
    args = (DPOConfig if pairs else DMPOConfig)(
        output_dir=tempfile.mkdtemp(),
        loss_type=["sigmoid"],
        beta=0.1,
        learning_rate=0.0,
        num_train_epochs=1,
        per_device_train_batch_size=settings.batch_size * (settings.negatives if pairs else 1),
        train_sampling_strategy="sequential",
        max_length=None,
        gradient_checkpointing=False,
        precompute_ref_log_probs=settings.precompute,
        bf16=settings.torch_dtype == torch.bfloat16,
        use_cpu=settings.device == "cpu",
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    rows = by_pairs(1, examples) if pairs else [examples]
    options = {"train_dataset": Dataset.from_list(list(chain(*rows))), "processing_class": make_tokenizer(settings)}
    if pairs:
        options["train_dataset"] = options["train_dataset"].map(lambda row: {"rejected_ids": row["rejected_ids"][0]})
        return PairsTrainer(models.policy, models.reference, args, **options)
    if settings.lora:  # given as an adapter it would be trained further, and a copy of it would be the reference
        torch.manual_seed(0)
        return DMPOTrainer(models.policy.unload(), None, args, **options, peft_config=LORA)
    return DMPOTrainer(models.policy, models.reference, args, **options)


def make_tokenizer(settings: Settings) -> Any:
    """Return the model's tokenizer; for random weights one that only pads, since examples are token ids already."""
    if settings.shape is None:
        return AutoTokenizer.from_pretrained(settings.model)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"<pad>": 0, "</s>": 1})), pad_token="<pad>", eos_token="</s>"
    )


class OptimizerClock(TrainerCallback):
    """Callback that adds up the seconds of the optimizer's steps."""

    def __init__(self, device: str) -> None:
        self.device, self.seconds = device, 0.0

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        synchronize(self.device)
        self.seconds -= time.perf_counter()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        synchronize(self.device)
        self.seconds += time.perf_counter()


def run_trainer(settings: Settings, trainer: Any, attention: str) -> Outcome:
    trainer.accelerator.unwrap_model(trainer.model).set_attn_implementation(attention)
    clock = OptimizerClock(settings.device)
    trainer.add_callback(clock)
    synchronize(settings.device)
    start = time.perf_counter()
    loss = trainer.train().training_loss
    synchronize(settings.device)
    seconds = time.perf_counter() - start
    trainer.remove_callback(clock)
    return Outcome(loss, seconds, clock.seconds)


def run_bare(side: Side, models: Models, batches: list[Examples]) -> Outcome:
    steps = [run_step(side, models, [batch]) for batch in batches]
    return Outcome(statistics.mean(step.loss for step in steps), sum(step.seconds for step in steps))


def check_agreement(outcomes: dict[str, Outcome], dtype: torch.dtype) -> None:
    for name, outcome in outcomes.items():
        if not abs(outcome.loss - outcomes[BARE].loss) <= TOLERANCES[dtype][0]:
            raise SystemExit(
                f"'{name}' disagrees with the bare step: mean loss {outcome.loss:.6f} against "
                f"{outcomes[BARE].loss:.6f}. Times would mean nothing."
            )


def main(arguments: list[str] | None = None) -> None:
    (settings,) = HfArgumentParser(Settings).parse_args_into_dataclasses(arguments)
    examples, models = make_examples(settings), load_models(settings)
    runs = {}
    trainer = make_trainer(settings, models, examples, pairs=False)
    if settings.lora:
        models = Models(trainer.model, None)
    runs["DMPOTrainer"] = lambda: run_trainer(settings, trainer, "trie_sdpa")
    if settings.pairs:
        trl_trainer = make_trainer(settings, models, examples, pairs=True)
        runs["DPOTrainer"] = lambda: run_trainer(settings, trl_trainer, "sdpa")
    sides = make_sides(
        models.policy.config.hidden_size, device=settings.device, copies_at_once=1, several=True, compiled=False
    )
    side = dataclasses.replace(sides["trie, sigmoid"], precomputed=settings.precompute)
    batches = [examples[i : i + settings.batch_size] for i in range(0, len(examples), settings.batch_size)]
    runs = {BARE: lambda: run_bare(side, models, batches)} | runs

    run_step(side, models, batches[:1])  # warms up
    rounds: list[dict[str, Outcome]] = []
    for _ in range(settings.rounds):
        rounds.append({name: run() for name, run in runs.items()})
        check_agreement(rounds[-1], settings.torch_dtype)

    rows = [summarize(settings, name, rounds) for name in runs]
    header = describe("trl", "peft", "accelerate", device=settings.device) | settings.describe()
    header |= {"rounds": str(settings.rounds), "rejected completions": str(settings.negatives)}
    print("\n".join([report.head(header), "", report.table_head(COLUMNS)]))
    for row in rows:
        print(report.table_row(row, COLUMNS))
    if settings.output is not None:
        command = report.command("whole_trainer", arguments)
        report.add_rows(settings.output, settings.name, command, header, rows)


def summarize(settings: Settings, name: str, rounds: list[dict[str, Outcome]]) -> report.Row:
    """Return medians over the rounds, and the excess of the time without optimizer over the bare step's."""
    own = [outcomes[name] for outcomes in rounds]
    over = [
        (outcome.seconds - outcome.optimizer_seconds) / outcomes[BARE].seconds - 1
        for outcome, outcomes in zip(own, rounds, strict=True)
    ]
    seconds = statistics.median(outcome.seconds for outcome in own)
    without = statistics.median(outcome.seconds - outcome.optimizer_seconds for outcome in own)
    return {
        "side": name,
        "batch": settings.batch_size,
        "examples": settings.examples,
        "seconds": seconds,
        "optimizer seconds": statistics.median(outcome.optimizer_seconds for outcome in own),
        "examples per second": settings.examples / seconds,
        "without optimizer": settings.examples / without,
        "over bare step": f"{statistics.median(over):.1%}",
        "lowest": f"{min(over):.1%}",
        "highest": f"{max(over):.1%}",
    }


if __name__ == "__main__":
    main()
