"""Ranks held-out users during training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from datasets import Dataset
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ..modeling.attention import attention_restored
from ..modeling.loading import base_model_of
from .metrics import METRICS
from .ranking import rank_by_log_prob, score_candidates
from .result import RankingResult


class RankingCallback(TrainerCallback):
    """Ranks users at each evaluation and adds the metrics to the evaluation's own, as `eval_hr@1`, `eval_ndcg@5`, ...

    So `metric_for_best_model="eval_ndcg@5"` with `greater_is_better=True` and `load_best_model_at_end=True` keeps the
    checkpoint that ranks best. Works with every `Trainer` of a causal language model: `DMPOTrainer`, `SFTTrainer`,
    wrapped models and adapters; several processes share the users out. The model ranks in the precision of its
    weights, without the trainer's autocast.

    The figures stand in `trainer.state.log_history` with the evaluation's. A callback does not know its trainer, whose
    reports (`report_to`) are out by then; give it the trainer, and they are logged through it:

        >>> trainer.add_callback(RankingCallback(users, score="mean", trainer=trainer))

    With several evaluation datasets the users are ranked after each of them.

    Args:
        dataset: columns of [`ranking_dataset`]; at most a few hundred users keep evaluations short.
        score: see [`rank_by_log_prob`].
        metrics: names of the metrics, see [`RankingResult.metrics`].
        trainer: to log through.
        tokens_per_batch: as in [`score_completions`].

    Attributes:
        result: the latest evaluation's [`RankingResult`], with every user's values; None before the first.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        score: Literal["sum", "mean"],
        metrics: Sequence[str] = METRICS,
        trainer: Trainer | None = None,
        tokens_per_batch: int = 4096,
    ) -> None:
        if len(dataset) == 0:
            raise ValueError("The dataset has no users to rank")
        self.dataset = dataset
        self.score = score
        self.metrics = metrics
        self.trainer = trainer
        self.tokens_per_batch = tokens_per_batch
        self.result: RankingResult | None = None

    def on_evaluate(  # type: ignore[override]  # names what the parent leaves in `kwargs`
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        metrics: dict[str, float],
        model: Any,
        processing_class: PreTrainedTokenizerBase,
        **kwargs: Any,
    ) -> None:
        """Ranks the users and adds the figures to `metrics`."""
        # Training goes on as it began: with packed sequences FlashAttention cannot be exchanged for sdpa
        with attention_restored(base_model_of(model)):
            scored = score_candidates(
                model,
                processing_class,
                self.dataset,
                tokens_per_batch=self.tokens_per_batch,
                progress=None if args.disable_tqdm else "Ranking",
            )
        self.result = rank_by_log_prob(self.dataset, scored, score=self.score, name="model")
        figures = {f"eval_{name}": value for name, value in self.result.metrics(self.metrics).items()}
        metrics |= figures
        if self.trainer is not None:
            self.trainer.log(figures)
        else:
            state.log_history[-1] |= figures
