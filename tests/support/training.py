"""One small training run, the same whether one process takes the batch or several share it."""

import os
import signal
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file

from dmpo_trl import DMPOConfig, DMPOTrainer

from .rows import ragged_examples

# Far from even: rows of 1 and of 40 negatives meet in one step, each in another process
TRAIN_COUNTS = (1, 40, 3, 2, 7, 1, 2, 25, 1, 1, 5, 3, 30, 2, 1, 4)
EVAL_COUNTS = (2, 1, 30, 4, 1, 3, 2, 9, 1)  # no multiple of any batch size


class MortalTrainer(DMPOTrainer):
    """Kills its process: `kill` holds the rank, "step" (before the weights change) or "save" (weights and optimizer
    are written, the rest is not), and the number of the step.
    """

    kill: tuple[int, str, int] | None = None

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self._maybe_die("step", self.state.global_step + 1)
        return loss

    def _save_rng_state(self, output_dir):
        self._maybe_die("save", self.state.global_step)
        super()._save_rng_state(output_dir)

    def _maybe_die(self, *here):
        if self.kill == (self.args.process_index, *here):
            os.kill(os.getpid(), signal.SIGKILL)


def train(
    folder: Path,
    name: str,
    batch_size: int,
    *,
    lora: bool = False,
    eval_rows: int = len(EVAL_COUNTS),
    stream_eval: bool = False,
    evaluate_first: bool = False,
    resume_from: str | bool | None = None,
    kill: list | None = None,
    several_chosen: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Train the model in `folder/model` for an epoch of four steps and evaluate it; weights go to `folder/name`.

    Args:
        batch_size: Rows that each process takes at a time.
        eval_rows: Size of the evaluation.
        stream_eval: Whether the evaluation is a stream.
        evaluate_first: Whether the model is evaluated before it is trained, too.
        resume_from: A checkpoint, by its path in `folder`; `True` for the last whole one of this run.
        kill: Of [`MortalTrainer`].
        several_chosen: Whether every third row has two chosen completions, of unequal levels.

    Returns:
        What was logged at each step, the metrics of the evaluation, and how the model was trained.
    """
    defaults = {
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "num_train_epochs": 1,
        "save_strategy": "no",
        "per_device_train_batch_size": batch_size,
        "per_device_eval_batch_size": batch_size,
        "learning_rate": 1e-3,
        "beta": 0.5,
        "max_length": None,
    }
    rows, evaluated = ragged_examples(0, TRAIN_COUNTS), ragged_examples(1, EVAL_COUNTS[:eval_rows])
    if several_chosen:
        for index, row in enumerate([*rows, *evaluated]):
            first = [row["chosen_ids"]]
            more = row["rejected_ids"][:1] if index % 3 == 0 and len(row["rejected_ids"]) > 1 else []
            row |= {"chosen_ids": first + more, "rejected_ids": row["rejected_ids"][len(more) :]}
            row["chosen_levels"] = [2.0, 1.0][: len(first + more)]
    evaluation = Dataset.from_list(evaluated)
    # Not as new adapters begin, which change next to nothing: two rewards as near as rounding would compare either way
    adapter = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    MortalTrainer.kill = kill and tuple(kill)
    trainer = MortalTrainer(
        str(folder / "model"),
        args=DMPOConfig(str(folder / name), **defaults | options),
        train_dataset=Dataset.from_list(rows),  # in memory: no file to cache beside
        eval_dataset=evaluation.to_iterable_dataset() if stream_eval else evaluation,
        peft_config=adapter if lora else None,
    )
    if evaluate_first:
        trainer.evaluate()
    trainer.train(resume_from_checkpoint=str(folder / resume_from) if isinstance(resume_from, str) else resume_from)
    metrics = trainer.evaluate()
    trainer.save_model()
    return {
        "steps": [entry for entry in trainer.state.log_history if "loss" in entry],
        "eval": metrics,
        "wrapper": type(trainer.model_wrapped).__name__,
        "prefix_sharing": trainer.data_collator.prefix_sharing,
    }


def saved_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights that a run left in `folder`, of the whole model or of the adapter."""
    (file,) = folder.glob("*.safetensors")
    return load_file(file)
