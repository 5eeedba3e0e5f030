"""A search for options of training: a study of Optuna's, one trainer for each trial.

Why not `Trainer.hyperparameter_search`: it exchanges the model of one trainer and sets `args`, and `DPOTrainer` takes
no `model_init`, and has read beta and losses, tokenised the rows and made the reference when it was constructed.
"""

from __future__ import annotations

import csv
import gc
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
import torch
import yaml
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, Trial, TrialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..trainer import DMPOTrainer
from ..writing import check_file, new_file
from ._search import Space

STUDY, BEST, TABLE = "study.sqlite", "best.yaml", "trials.csv"
_NAME = "dmpo-trl tune"
_PROBLEM = "problem"  # why a trial had no end
_DONE = (TrialState.COMPLETE, TrialState.PRUNED)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes from the study of a folder.

    Args:
        folder: The folder.

    Raises:
        BlockingIOError: Another process has it.
    """
    lock = FileLock(folder / f"{STUDY}.lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise BlockingIOError(f"Another process is tuning in {folder}.") from None
    try:
        yield
    finally:
        lock.release()


class Study:
    """The trials of a folder, which can be gone on with after an interruption.

    A trial that was interrupted is begun again with the same values: what is drawn depends on the seed and on the
    trials that were finished, not on the runs it took to finish them. The folder is [`held`] meanwhile.

    Args:
        folder: Of the study's file and of what is made of it.
        settings: All that decides what a trial is, as JSON has it.
        space: What may be drawn.
        metric: What is maximised, for the reports.
        startup: Number of trials at the beginning that are drawn at random, and never stopped early.
        seed: Of the draws.

    Raises:
        ValueError: The folder's study has other settings.
        OSError: The folder holds files of these names that no study wrote.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], space: Space, *, metric: str, startup: int, seed: int
    ) -> None:
        self.folder, self.space, self.metric = folder, space, metric
        self._startup, self._seed = startup, seed
        if not (folder / STUDY).exists():
            for name in (BEST, TABLE):
                check_file(folder / name, overwrite=False)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = _open(folder / STUDY, startup)
        given, before = json.loads(json.dumps(settings)), self._study.user_attrs.get("settings")
        if before is None:
            self._study.set_user_attr("settings", given)
        elif before != given:
            names = sorted(name for name in before | given if before.get(name) != given.get(name))
            raise ValueError(
                f"The study in {folder} was begun with other settings ({', '.join(names)}): a trial can only be "
                "compared with its like. Give those again, or choose another --output_dir."
            )
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._study.tell(trial.number, state=TrialState.FAIL)

    @property
    def done(self) -> list[FrozenTrial]:
        """The trials that came to an end, or were stopped early, in their order."""
        return self._study.get_trials(deepcopy=False, states=_DONE)

    @property
    def best(self) -> FrozenTrial | None:
        """The trial with the highest value; the first of those, and None where none has come to an end."""
        return _best(self.done)

    def run(self, objective: Callable[[Trial, dict[str, Any]], float]) -> FrozenTrial:
        """Draw values and run one trial with them.

        Args:
            objective: Gives the trial's value, from the trial and what was drawn for it.

        Returns:
            The trial as it ended. One whose loss is no number, or for which the memory is not enough, counts as
            stopped early.
        """
        self._study.sampler = optuna.samplers.TPESampler(
            seed=self._seed + len(self.done), n_startup_trials=self._startup
        )
        trial = self._study.ask()
        drawn = {name: own.draw(trial, name) for name, own in self.space.items()}
        try:
            self._study.tell(trial, objective(trial, drawn))
        except optuna.TrialPruned:
            self._study.tell(trial, state=TrialState.PRUNED)
        except (FloatingPointError, torch.OutOfMemoryError) as error:  # again drawn it would end so again
            trial.set_user_attr(_PROBLEM, str(error).partition("\n")[0])
            self._study.tell(trial, state=TrialState.PRUNED)
        return self.done[-1]

    def check_files(self, text: Callable[[Sequence[FrozenTrial]], str]) -> None:
        """Check that the files were not changed since the study wrote them.

        Args:
            text: What stands in `best.yaml` after some trials.

        Raises:
            FileExistsError: One was.
        """
        for name, make in ((BEST, text), (TABLE, table)):
            path, trials = self.folder / name, self.done
            if path.exists() and not any(
                path.read_text(encoding="utf-8") == make(trials[:count]) for count in range(len(trials) + 1)
            ):
                raise FileExistsError(f"{path} is not as `dmpo-trl tune` wrote it. Move it away, and run again.")

    def write(self, text: Callable[[Sequence[FrozenTrial]], str]) -> None:
        """Write the best options and the table of trials; see [`check_files`]."""
        trials = self.done
        for name, content in ((TABLE, table(trials)), (BEST, text(trials))):
            if content:
                with new_file(self.folder / name, overwrite=True) as file:
                    file.write_text(content, encoding="utf-8")


class Reports(TrainerCallback):
    """Reports to a study what an evaluation found, and stops a trial that is worse than the others were by then."""

    def __init__(self, trial: Trial, metric: str) -> None:
        self.trial, self.metric, self.values = trial, metric, dict[int, float]()

    def on_evaluate(  # type: ignore[override]  # names what the parent leaves in `kwargs`
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        """Report, and stop the trial where the study says so, unless it is at its end."""
        self.values[state.global_step] = metrics[f"eval_{self.metric}"]
        self.trial.report(metrics[f"eval_{self.metric}"], len(self.values))
        if state.global_step < state.max_steps and self.trial.should_prune():
            raise optuna.TrialPruned


def value_of(make_trainer: Callable[[], DMPOTrainer], trial: Trial, metric: str) -> float:
    """Train, and return the metric of the trained model.

    Args:
        make_trainer: Makes a trainer that ranks users at each evaluation.
        trial: For what is found on the way.
        metric: Of the ranking.

    Raises:
        TrialPruned: The trial was stopped early.
        FloatingPointError: The loss is no number.
    """
    trainer = make_trainer()
    reports = Reports(trial, metric)
    trainer.add_callback(reports)
    try:
        trainer.train()
        if trainer.state.global_step not in reports.values:
            trainer.evaluate()
        return reports.values[trainer.state.global_step]
    finally:
        with suppress(OSError):  # trackers may have written to it
            Path(str(trainer.args.output_dir)).rmdir()
        trainer.accelerator.free_memory()
        del trainer
        gc.collect()
        torch.cuda.empty_cache()


def best_yaml(trials: Sequence[FrozenTrial], options: Callable[[FrozenTrial], dict[str, Any]], about: str) -> str:
    """Return the best trial's options for `dmpo-trl train --config`; empty where no trial came to an end.

    Args:
        trials: Those that are done.
        options: Gives all options of a trial.
        about: What was maximised, in words.
    """
    best = _best(trials)
    if best is None:
        return ""
    return (
        f"# The best of {len(trials)} trials of `dmpo-trl tune`, number {best.number}: {about} {best.value:.4f}.\n"
        "# The best of many is partly luck: these users flatter it. Evaluate what it trains on the test users.\n"
        f"{yaml.safe_dump(options(best), sort_keys=False, allow_unicode=True)}"
    )


def table(trials: Sequence[FrozenTrial]) -> str:
    """Return trials as CSV: number, how it ended, value, evaluations, and what was drawn."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "ended", "value", "evaluations", *names])
    for trial in trials:
        ended = trial.user_attrs.get(_PROBLEM, "whole" if trial.state == TrialState.COMPLETE else "stopped early")
        drawn = [trial.params.get(name) for name in names]
        writer.writerow([trial.number, ended, trial.value, len(trial.intermediate_values), *drawn])
    return text.getvalue()


def sentence(trial: FrozenTrial, metric: str) -> str:
    """Return in one line how a trial ended."""
    drawn = ", ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
                      for name, value in trial.params.items())  # fmt: skip
    if trial.state == TrialState.COMPLETE:
        return f"trial {trial.number}: {metric} {trial.value:.4f} ({drawn})"
    reached = [value for _, value in sorted(trial.intermediate_values.items())]
    at = f" at {metric} {reached[-1]:.4f}" if reached else ""
    return f"trial {trial.number}: {trial.user_attrs.get(_PROBLEM, f'stopped early{at}')} ({drawn})"


def _open(file: Path, startup: int) -> optuna.Study:
    """Return the study in a file, a new one where there is none."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return optuna.create_study(
            storage=f"sqlite:///{file.resolve()}",
            study_name=_NAME,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=startup),
        )
    except (SQLAlchemyError, RuntimeError) as error:
        raise OSError(f"{file} cannot be read as a study of Optuna's: {error}. Move it away.") from error


def _best(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    whole = [trial for trial in trials if trial.state == TrialState.COMPLETE and trial.value is not None]
    return max(whole, key=lambda trial: trial.value or 0.0, default=None)
