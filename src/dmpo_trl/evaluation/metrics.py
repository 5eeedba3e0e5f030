"""Ranking metrics of one relevant item among candidates, a value a user.

Where candidates have equal scores, a value is the expectation over all orders of the tied ones: a model that cannot
tell the candidates apart gets exactly what guessing gets, neither the best nor the worst case.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

METRICS = ("hr@1", "hr@5", "ndcg@5", "mrr", "auc")
"""The metrics reported where nothing else is asked for."""


@dataclass(frozen=True)
class Ranks:
    """Where the relevant item of each user stands.

    Args:
        better: candidates with a higher score than the relevant item, (U,).
        tied: other candidates with the same score, (U,).
        candidates: number of candidates, the relevant item among them, (U,).
    """

    better: np.ndarray
    tied: np.ndarray
    candidates: np.ndarray

    @classmethod
    def from_scores(cls, scores: Sequence[np.ndarray], positives: Sequence[int]) -> Ranks:
        """Ranks the candidate at `positives[u]` among `scores[u]`, the higher the better.

        Raises:
            ValueError: for fewer than two candidates, a score that is not a number or an index out of range.
        """
        better, tied = [], []
        for user, (values, positive) in enumerate(zip(scores, positives, strict=True)):
            if len(values) < 2 or not 0 <= positive < len(values):
                raise ValueError(f"row {user}: positive {positive} among {len(values)} candidates cannot be ranked")
            if np.isnan(values).any():
                raise ValueError(
                    f"row {user}: the score of candidate {int(np.isnan(values).argmax())} is not a number"
                )
            better.append(np.sum(values > values[positive]))
            tied.append(np.sum(values == values[positive]) - 1)
        return cls(np.array(better), np.array(tied), np.array([len(values) for values in scores]))


def hit_rate(ranks: Ranks, k: int) -> np.ndarray:
    """HR@k: 1 where the relevant item is among the first `k`, else 0, (U,)."""
    return np.clip((k - ranks.better) / (ranks.tied + 1), 0, 1)


def ndcg(ranks: Ranks, k: int) -> np.ndarray:
    """NDCG@k of one relevant item: `1 / log2(1 + rank)` within the first `k`, else 0, (U,)."""
    positions = np.arange(1, ranks.candidates.max() + 1)
    return _mean_over_ties(ranks, np.where(positions <= k, 1 / np.log2(1 + positions), 0))


def reciprocal_rank(ranks: Ranks) -> np.ndarray:
    """`1 / rank` of the relevant item, (U,); its mean is the MRR."""
    return _mean_over_ties(ranks, 1 / np.arange(1, ranks.candidates.max() + 1))


def auc(ranks: Ranks) -> np.ndarray:
    """Share of the other candidates that stand below the relevant item, a tie counts one half, (U,)."""
    return 1 - (ranks.better + ranks.tied / 2) / (ranks.candidates - 1)


def per_user(ranks: Ranks, metric: str) -> np.ndarray:
    """The metric by its name, `hr@k`, `ndcg@k`, `mrr` or `auc`, (U,).

    Raises:
        ValueError: for any other name.
    """
    if metric == "mrr":
        return reciprocal_rank(ranks)
    if metric == "auc":
        return auc(ranks)
    if match := re.fullmatch(r"(hr|ndcg)@([1-9]\d*)", metric):
        return {"hr": hit_rate, "ndcg": ndcg}[match[1]](ranks, int(match[2]))
    raise ValueError(f"Unknown metric {metric!r}; there are hr@k, ndcg@k, mrr and auc")


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """The mean and, in brackets, the interval."""
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap_mean(
    values: np.ndarray, *, confidence: float = 0.95, n_resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of the mean over users.

    For two models on the same users, pass the differences of their per-user values: that is the paired bootstrap.

    Args:
        values: a value a user, (U,).
        confidence: of the interval.
        n_resamples: resamples of the users.
        seed: of the resampling.
    """
    result = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=confidence,
        n_resamples=n_resamples,
        batch=1_000,  # bounds the memory: 1,000 x U values at a time
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return Interval(float(np.mean(values)), float(low), float(high))


def _mean_over_ties(ranks: Ranks, gain: np.ndarray) -> np.ndarray:
    """Mean of `gain[position - 1]` over the positions that the relevant item shares with those tied with it."""
    total = np.concatenate([[0.0], np.cumsum(gain)])
    return (total[ranks.better + ranks.tied + 1] - total[ranks.better]) / (ranks.tied + 1)
