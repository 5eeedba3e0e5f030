"""Ranking during training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

from ..config import option
from ..modeling.attention import attention_restored
from ..modeling.loading import base_model_of
from ..preprocessing.tokenize import tokenizer_of
from ..scoring import check_score, check_tokens_per_batch
from .metrics import METRICS, check_metrics
from .ranking import rank_by_log_prob, score_candidates
from .result import RankingResult
from .tables import markdown_table


class RankingCallback(TrainerCallback):
    """Ranks users at each evaluation and adds the metrics to the evaluation's own, as `eval_hr@1`, `eval_ndcg@5`, ...

    So `metric_for_best_model="eval_ndcg@5"` with `greater_is_better=True` and `load_best_model_at_end=True` keeps the
    checkpoint that ranks best. Works with every `Trainer` of a causal language model: `DMPOTrainer`, `SFTTrainer`,
    wrapped models and adapters; several processes share the users. The model ranks in the precision of its weights,
    without the trainer's autocast.

    The metrics are written to `trainer.state.log_history`, next to the evaluation's. A callback does not know its
    trainer, which has sent the evaluation to its integrations (`report_to`) by then; pass `trainer`, and the metrics
    are logged through it, and `EarlyStoppingCallback` finds them whichever of the two callbacks was added first. With
    several evaluation datasets the users are ranked after each of them.

    Args:
        dataset: Columns of [`ranking_dataset`]; at most a few hundred users keep evaluations short.
        score: See [`rank_by_log_prob`].
        metrics: Names of the metrics, see [`RankingResult.metrics`].
        trainer: The trainer to log through.
        tokens_per_batch: See [`score_completions`].
        special_tokens_in_text: See [`score_completions`]; by default that of the trainer's `DMPOConfig`.

    Attributes:
        result: The latest evaluation's [`RankingResult`], with the values of every user; None before the first.

    Raises:
        ValueError: There are no users, `score` is neither `"sum"` nor `"mean"`, there is no metric of a name, or
            `tokens_per_batch` is below 1.

    Example:
        >>> callback = RankingCallback(users, score="mean")  # doctest: +SKIP
        >>> trainer = DMPOTrainer(model, args=args, ..., callbacks=[callback])  # doctest: +SKIP

        Or with metrics that TensorBoard, Weights & Biases and the like receive:

        >>> trainer.add_callback(RankingCallback(users, score="mean", trainer=trainer))  # doctest: +SKIP
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        score: Literal["sum", "mean"],
        metrics: Sequence[str] = METRICS,
        trainer: Trainer | None = None,
        tokens_per_batch: int = 4096,
        special_tokens_in_text: bool | None = None,
    ) -> None:
        if len(dataset) == 0:
            raise ValueError("The dataset has no users to rank.")
        check_score(score)
        check_metrics(metrics)
        check_tokens_per_batch(tokens_per_batch)
        self.dataset = dataset
        self.score = score
        self.metrics = metrics
        self.trainer = trainer
        self.tokens_per_batch = tokens_per_batch
        self.special_tokens_in_text = special_tokens_in_text
        self.result: RankingResult | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Go before the other callbacks, where the trainer is known: `EarlyStoppingCallback` looks for the metrics."""
        if self.trainer is not None:
            callbacks = self.trainer.callback_handler.callbacks
            callbacks.insert(0, callbacks.pop(callbacks.index(self)))  # those behind keep their places

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
        """Rank the users and add the figures to `metrics`."""
        in_text = self.special_tokens_in_text
        if in_text is None:
            in_text = option(args, "special_tokens_in_text")
        # Training goes on as it began: with packed sequences FlashAttention cannot be exchanged for sdpa
        with attention_restored(base_model_of(model)):
            scored = score_candidates(
                model,
                tokenizer_of(processing_class),
                self.dataset,
                tokens_per_batch=self.tokens_per_batch,
                special_tokens_in_text=in_text,
                progress=None if args.disable_tqdm else "Ranking",
            )
        self.result = rank_by_log_prob(self.dataset, scored, score=self.score, name="model")
        figures = {f"eval_{name}": value for name, value in self.result.metrics(self.metrics).items()}
        metrics |= figures
        if self.trainer is not None:
            self.trainer.log(figures)
        else:
            state.log_history[-1] |= figures

    def card_section(
        self, log_history: Sequence[Mapping[str, Any]], best_step: int | None, metric_for_best_model: str | None
    ) -> str:
        """Return a model card's section on the ranking at the best and at the last step.

        Args:
            log_history: The trainer's `state.log_history`.
            best_step: Its `state.best_global_step`; None where there is none.
            metric_for_best_model: Its `args.metric_for_best_model`.

        Returns:
            Markdown with the heading "## Ranking"; empty when nothing was ranked.

        Example:
            >>> user = {"user": "u1", "items": ["a", "b"], "candidates": ["Alien", "Babe"], "positive": 0}
            >>> callback = RankingCallback(Dataset.from_list([user]), score="mean", metrics=["hr@1"])
            >>> print(callback.card_section([{"step": 10, "eval_hr@1": 0.25}], None, None))
            ## Ranking
            <BLANKLINE>
            1 user was ranked during training among 2 candidates, by log-prob (mean per token).
            <BLANKLINE>
            |  | hr@1 |
            | --- | --- |
            | last, step 10 | 0.250 |
        """
        names = {f"eval_{name}": name for name in self.metrics}
        steps = {
            entry["step"]: {name: entry[key] for key, name in names.items()}
            for entry in log_history
            if names.keys() <= entry.keys()
        }
        if not steps:
            return ""
        last = max(steps)
        rows, note = {f"last, step {last:,}": steps[last]}, ""
        if best_step is not None and best_step in steps and best_step != last:
            rows = {f"best, step {best_step:,}": steps[best_step]} | rows
            note = f" The best step is that of `{metric_for_best_model}`."
        users, sizes = len(self.dataset), sorted({len(candidates) for candidates in self.dataset["candidates"]})
        return (
            f"## Ranking\n\n{users:,} {'user was' if users == 1 else 'users were'} ranked during training among "
            f"{' to '.join(f'{size:,}' for size in dict.fromkeys((sizes[0], sizes[-1])))} candidates, by log-prob "
            f"({'sum' if self.score == 'sum' else 'mean per token'}).{note}\n\n{markdown_table(rows)}"
        )
