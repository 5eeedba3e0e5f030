"""Ranks the candidates of each user with a model, and with what every model has to beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from .metrics import METRICS, Interval, Ranks, bootstrap_mean, per_user

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class RankingResult:
    """One ranker's scores for the candidates of every user.

    Args:
        name: of the ranker.
        users: their identifiers, in the order of the other fields.
        scores: a score a candidate, the higher the better, (candidates,) for each user.
        positives: index of the relevant candidate of each user.
    """

    name: str
    users: list[str]
    scores: list[np.ndarray]
    positives: list[int]

    @property
    def ranks(self) -> Ranks:
        """Where the relevant candidates stand."""
        return Ranks.from_scores(self.scores, self.positives)

    def per_user(self, metric: str) -> np.ndarray:
        """The metric's value of each user, (U,)."""
        return per_user(self.ranks, metric)

    def metrics(self, names: Sequence[str] = METRICS) -> dict[str, float]:
        """Means over the users, by metric."""
        return {name: float(self.per_user(name).mean()) for name in names}

    def intervals(self, names: Sequence[str] = METRICS, *, confidence: float = 0.95) -> dict[str, Interval]:
        """Means over the users with bootstrap confidence intervals, by metric."""
        return {name: bootstrap_mean(self.per_user(name), confidence=confidence) for name in names}

    def minus(
        self, other: RankingResult, names: Sequence[str] = METRICS, *, confidence: float = 0.95
    ) -> dict[str, Interval]:
        """Mean difference to another ranker with the paired bootstrap interval, by metric.

        Raises:
            ValueError: where the other ranker ranked other users.
        """
        if self.users != other.users:
            raise ValueError(
                f"{self.name} and {other.name} ranked different users; a paired difference needs the same"
            )
        return {
            name: bootstrap_mean(self.per_user(name) - other.per_user(name), confidence=confidence) for name in names
        }


def rank_with_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    *,
    score: Literal["sum", "mean"],
    name: str,
    tokens_per_batch: int = 4096,
) -> RankingResult:
    """Ranks candidates by their log-probability after the prompt.

    Args:
        model: a causal language model.
        tokenizer: the model's.
        dataset: columns of [`ranking_dataset`].
        score: `"sum"` ranks by the log-probability of the whole completion, `"mean"` by that of its average token. The
            sum is the probability of the item itself and favours short titles, the mean does not; state which one a
            figure was made with.
        name: of the result, also shown at the progress bar.
        tokens_per_batch: as in [`score_completions`].
    """
    if score not in ("sum", "mean"):
        raise ValueError(f"score must be 'sum' or 'mean', not {score!r}")
    # Imported here because this module's other rankers do without torch.
    from ..scoring import score_completions

    scored = score_completions(
        model,
        tokenizer,
        dataset["prompt"][:],
        dataset["candidates"][:],
        tokens_per_batch=tokens_per_batch,
        progress=name,
    )
    scores = [one.logps / one.lengths if score == "mean" else one.logps for one in scored]
    return RankingResult(name, dataset["user"][:], scores, dataset["positive"][:])


def rank_at_random(dataset: Dataset) -> RankingResult:
    """Choosing blindly: all candidates are tied, so every metric is its exact expectation."""
    return RankingResult(
        "random", dataset["user"][:], [np.zeros(len(items)) for items in dataset["items"]], dataset["positive"][:]
    )


def rank_by_popularity(dataset: Dataset, popularity: Mapping[str, float]) -> RankingResult:
    """Ranks by how often an item was had, without a look at the user.

    Args:
        dataset: columns of [`ranking_dataset`].
        popularity: count by item; what is not there counts 0. Count other users' interactions: with a user's own,
            the held-out item would be counted too.
    """
    scores = [np.array([popularity.get(item, 0) for item in items], dtype=float) for items in dataset["items"]]
    return RankingResult("popularity", dataset["user"][:], scores, dataset["positive"][:])
