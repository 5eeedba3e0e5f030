"""Resuming: a trainer that continues an interrupted run at the same row, and refuses to continue another run."""

import json
import math
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import DPOTrainer

from ..config import option
from . import checkpoints
from .distributed import check_checkpoint_kind, forget_evaluation
from .run_record import check_record, describe_rows, describe_run, write_record


class ResumableTrainer(DPOTrainer):
    """`DPOTrainer` that resumes from whole checkpoints of the same run.

    A subclass sets `_models`, where `args.should_save`, to what [`describe_models`] returns for the initial models,
    and `_reference_is_given` to whether the reference's log-probs came with the training dataset, and are used; or to
    a text that says what they are of, where they are computed anew for each start of a run.
    """

    args: Any
    state: Any
    _models: dict[str, dict[str, Any]]
    _reference_is_given: bool | str

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as [`~transformers.Trainer.train`] does; `True` resumes from the last whole checkpoint."""
        output_dir = self.args.output_dir
        checkpoint = checkpoints.checkpoint_to_resume(output_dir, resume_from_checkpoint, self.args.sync_ref_model)
        if checkpoint is not None:
            check_checkpoint_kind(checkpoint, self.accelerator)
            record = self._run_record if self.accelerator.is_main_process else None
            allow_changed = option(self.args, "allow_changed_run")
            check_record(record, checkpoint, self.accelerator, allow_changed=allow_changed)
        self.accelerator.wait_for_everyone()  # all have chosen among the same folders
        if self.args.should_save:
            checkpoints.set_incomplete_aside(output_dir)
        self.accelerator.wait_for_everyone()
        forget_evaluation(self.model, self.accelerator)
        return super().train(checkpoint, *args, **kwargs)

    @property
    def _run_record(self) -> dict[str, Any]:
        """Return what makes this run."""
        return describe_run(self.args, self._models, self._rows, self.get_total_train_batch_size(self.args))

    @cached_property
    def _rows(self) -> dict[str, Any]:
        return describe_rows(self.train_dataset, has_reference=self._reference_is_given)

    def _init_training_state(
        self, max_steps: int, steps_per_epoch: int, num_epochs: int, checkpoint: str | None, *args: Any
    ) -> tuple[int, int]:
        """Return the epoch to go on with and the number of its batches that are done."""
        start = super()._init_training_state(max_steps, steps_per_epoch, num_epochs, checkpoint, *args)
        if checkpoint is None:
            return start
        done = self.state.global_step
        if done > max_steps:
            raise ValueError(
                f"The checkpoint {checkpoint} has made {done} steps, and this run ends after {max_steps}: raise "
                "`max_steps` (or `num_train_epochs`), or name an earlier checkpoint."
            )
        if done == max_steps:
            return num_epochs, 0  # the parent would make a step more
        if isinstance(self.train_dataset, Dataset) or self.args.ignore_data_skip:
            return start
        # The parent takes a stream for one epoch of `max_steps` steps, however often it began anew, and writes the
        # epoch by that measure: passes before this one, and this one's batches as a share of all
        state = json.loads(Path(checkpoint, checkpoints.STATE).read_text(encoding="utf-8"))
        passes = math.ceil(state["epoch"]) - 1  # of which a checkpoint has seen a batch at least
        share = state["epoch"] - passes
        return passes, round(share * state["max_steps"] * self.args.gradient_accumulation_steps)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.args.should_save:
            checkpoints.mark_incomplete(f"{self._get_output_dir(trial)}/checkpoint-{self.state.global_step}")
        super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # every process writes a file of its own
        if self.args.should_save:
            write_record(self._run_record, output_dir)
            checkpoints.write_file_list(output_dir)
