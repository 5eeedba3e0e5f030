"""Effect of `train_sampling_strategy="group_by_prompt"` on learning: DMPO with random and with grouped batches.

    python benchmarks/grouping.py --file FOLDER/rec_data_ml_1m_dpo_ranking_5.json

The DMPO authors' files have five pairs per history. For each seed, an adapter is trained with either sampler on all
pairs of some histories, and evaluated on all pairs of other histories: loss, share of pairs whose chosen item gains
more than the rejected one, and margin. The last row is the mean over seeds of grouped minus random, with the standard
error of the paired differences. `batches.py` counts the tokens that grouping saves.
"""

import statistics
import tempfile
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import report
import torch
from cases import read_authors_pairs
from datasets import Dataset
from machine import describe
from models import default_model
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser

from dmpo_trl import DMPOConfig, DMPOTrainer
from dmpo_trl.batching.sampler import group_by_prompt

STRATEGIES = {"random": "random", "grouped": "group_by_prompt"}
MEASURES = {"loss": "eval_loss", "accuracy": "eval_rewards/accuracies", "margin": "eval_rewards/margins"}
COLUMNS = ["seed", "batches", *MEASURES, "training loss"]


@dataclass
class Settings:
    file: Path = field(metadata={"help": "JSON file of the DMPO authors' pairs, several per history."})
    model: str | None = field(default=None, metadata={"help": "Folder. Default: the quickstart's SmolLM2-135M."})
    histories: int = field(default=40, metadata={"help": "Histories to train on, the first of the file."})
    held_out: int = field(default=20, metadata={"help": "Histories to evaluate on, the last of the file."})
    batch_size: int = 10
    epochs: float = 1.0
    learning_rate: float = 2e-4
    beta: float = 0.1
    seeds: int = 3
    output: Path | None = field(default=None, metadata={"help": "Folder for the CSV file; rows are appended."})
    name: str = field(default="grouping", metadata={"help": "Beginning of the file names in --output."})


def split_rows(settings: Settings, tokenizer: Any) -> tuple[Dataset, Dataset]:
    """Return the pairs to train on and those held out; no history is in both."""
    rows = read_authors_pairs(settings.file)
    groups = sorted(map(sorted, group_by_prompt([tokenizer(row["prompt"])["input_ids"] for row in rows])))
    if len(groups) < settings.histories + settings.held_out:
        raise SystemExit(f"{settings.file.name} has {len(groups)} histories: ask for fewer.")
    parts = groups[: settings.histories], groups[-settings.held_out :]
    train, held_out = (Dataset.from_list([rows[i] for i in chain.from_iterable(part)]) for part in parts)
    return train, held_out


def run(settings: Settings, train: Dataset, held_out: Dataset, strategy: str, seed: int) -> report.Row:
    torch.manual_seed(seed)
    trainer = DMPOTrainer(
        AutoModelForCausalLM.from_pretrained(settings.model, dtype=torch.float32),
        args=DMPOConfig(
            output_dir=tempfile.mkdtemp(),
            train_sampling_strategy=STRATEGIES[strategy],
            seed=seed,
            beta=settings.beta,
            learning_rate=settings.learning_rate,
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.batch_size,
            per_device_eval_batch_size=settings.batch_size,
            max_length=None,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=AutoTokenizer.from_pretrained(settings.model),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
    )
    outcome = trainer.train()
    logs = trainer.evaluate()
    row: report.Row = {"seed": seed, "batches": strategy, **{name: logs[key] for name, key in MEASURES.items()}}
    return row | {"training loss": outcome.training_loss}


def as_text(row: report.Row) -> report.Row:
    """Format the figures with four digits, which is where the samplers differ."""
    return {name: f"{value:.4f}" if isinstance(value, float) else value for name, value in row.items()}


def difference(rows: list[report.Row]) -> report.Row:
    """Return grouped minus random: the mean over the seeds and, as text, its standard error."""
    row: report.Row = {"seed": "mean", "batches": "grouped - random"}
    for name in COLUMNS[2:]:
        values = [
            next(r[name] for r in rows if (r["seed"], r["batches"]) == (seed, "grouped"))
            - next(r[name] for r in rows if (r["seed"], r["batches"]) == (seed, "random"))
            for seed in dict.fromkeys(row["seed"] for row in rows)
        ]
        error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
        row[name] = f"{statistics.mean(values):.4f} ± {error:.4f}"
    return row


def main(arguments: list[str] | None = None) -> None:
    (settings,) = HfArgumentParser(Settings).parse_args_into_dataclasses(arguments)
    if settings.model is None:
        settings.model = default_model()
    train, held_out = split_rows(settings, AutoTokenizer.from_pretrained(settings.model))
    header = describe("trl", "peft", "datasets") | {
        "model": Path(settings.model).name,
        "pairs": f"{len(train)} of {settings.histories} histories, held out {len(held_out)} of {settings.held_out}",
        "training": f"batches of {settings.batch_size}, {settings.epochs:g} epochs, learning rate "
        f"{settings.learning_rate:g}, beta {settings.beta:g}",
    }
    print(f"{report.head(header)}\n\n{report.table_head(COLUMNS)}", flush=True)
    rows = []
    for seed in range(settings.seeds):
        for strategy in STRATEGIES:
            rows.append(run(settings, train, held_out, strategy, seed))
            print(report.table_row(as_text(rows[-1]), COLUMNS), flush=True)
    rows = [*map(as_text, rows), difference(rows)]
    print(report.table_row(rows[-1], COLUMNS), flush=True)
    if settings.output is not None:
        command = report.command("grouping", arguments)
        report.add_rows(settings.output, settings.name, command, header, rows)


if __name__ == "__main__":
    main()
