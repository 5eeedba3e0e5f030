"""Accuracy of a ranking with one relevant item among candidates: the metrics, their intervals and paired tests.

Where candidates have equal scores, a value is the expectation over all orders of the tied ones: a model that cannot
tell the candidates apart gets exactly what guessing gets, neither the best nor the worst case. That is why the
metrics are written here: libraries of ranking metrics take an order, and break the ties of scores by place.
scikit-learn's `ndcg_score` and `roc_auc_score` do average over ties; the tests hold ours against them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

METRICS = ("hr@1", "hr@5", "ndcg@5", "mrr", "auc")
"""The metrics reported where nothing else is asked for."""

POOLED_AUC = "pooled_auc"


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
    if metric == POOLED_AUC:
        raise ValueError(f"{POOLED_AUC!r} is one figure of all users together: no user has a value of it")
    if metric == "mrr":
        return reciprocal_rank(ranks)
    if metric == "auc":
        return auc(ranks)
    if match := re.fullmatch(r"(hr|ndcg)@([1-9]\d*)", metric):
        return {"hr": hit_rate, "ndcg": ndcg}[match[1]](ranks, int(match[2]))
    raise ValueError(f"Unknown metric {metric!r}; there are hr@k, ndcg@k, mrr, auc and {POOLED_AUC}")


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """The mean and, in brackets, the interval."""
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Difference(Interval):
    """A mean difference of two rankers, the ends of its confidence interval, and the p-value of no difference."""

    p_value: float


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

    Raises:
        ValueError: for fewer than two users.
    """
    if len(values) < 2:
        raise ValueError("A bootstrap over users needs at least two of them")
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


def paired_difference(
    ours: np.ndarray, theirs: np.ndarray, *, confidence: float = 0.95, n_resamples: int = 9_999, seed: int = 0
) -> Difference:
    """Mean difference of two rankers' values over the same users, its bootstrap interval and permutation test.

    The test asks how often differences with random signs have a mean as far from 0: exactly where the users are so few
    that all signs can be tried, else on `n_resamples` draws, so that no p-value is below `2 / (n_resamples + 1)`.

    Args:
        ours: a value a user, (U,).
        theirs: the other ranker's, (U,).
        confidence: of the interval.
        n_resamples: draws of the test.
        seed: of both.
    """
    differences = ours - theirs
    interval = bootstrap_mean(differences, confidence=confidence, seed=seed)
    test = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",  # of one sample: flips signs
        n_resamples=n_resamples,
        batch=1_000,
        rng=np.random.default_rng(seed),
    )
    return Difference(interval.mean, interval.low, interval.high, float(test.pvalue))


def pooled_auc(scores: Sequence[np.ndarray], positives: Sequence[int]) -> float:
    """AUC over the candidates of all users together, as in the DMPO authors' notebook.

    Compares each relevant item with the other candidates of every user, so it also asks whether scores mean the same
    for different users, which ranking does not need. `auc` compares within a user.

    Args:
        scores: a score a candidate, (candidates,) for each user.
        positives: index of the relevant candidate of each user.
    """
    return _pooled_auc_of_sample(scores, positives)(np.arange(len(scores)))


def bootstrap_pooled_auc(
    scores: Sequence[np.ndarray],
    positives: Sequence[int],
    *,
    confidence: float = 0.95,
    n_resamples: int = 1_000,
    seed: int = 0,
) -> Interval:
    """Pooled AUC with its percentile bootstrap interval over users.

    Args:
        scores: a score a candidate, (candidates,) for each user.
        positives: index of the relevant candidate of each user.
        confidence: of the interval.
        n_resamples: resamples of the users.
        seed: of the resampling.
    """
    statistic = _pooled_auc_of_sample(scores, positives)
    everyone = np.arange(len(scores))
    result = stats.bootstrap(
        (everyone,),
        statistic,
        confidence_level=confidence,
        n_resamples=n_resamples,
        vectorized=False,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return Interval(statistic(everyone), float(low), float(high))


def _pooled_auc_of_sample(scores: Sequence[np.ndarray], positives: Sequence[int]) -> Callable[[np.ndarray], float]:
    """Pooled AUC as a function of the users drawn, by index; sorts the scores once for all draws."""
    users = np.repeat(np.arange(len(scores)), [len(own) for own in scores])
    relevant = np.zeros(len(users), dtype=bool)
    relevant[np.searchsorted(users, np.arange(len(scores))) + np.asarray(positives)] = True
    distinct, level = np.unique(np.concatenate(scores), return_inverse=True)

    def auc_of(sample: np.ndarray) -> float:
        weights = np.bincount(sample, minlength=len(scores))[users]
        above, below = (
            np.bincount(level[kind], weights=weights[kind], minlength=len(distinct)) for kind in (relevant, ~relevant)
        )
        return float(above @ (np.cumsum(below) - below / 2) / (above.sum() * below.sum()))

    return auc_of


def _mean_over_ties(ranks: Ranks, gain: np.ndarray) -> np.ndarray:
    """Mean of `gain[position - 1]` over the positions that the relevant item shares with those tied with it."""
    total = np.concatenate([[0.0], np.cumsum(gain)])
    return (total[ranks.better + ranks.tied + 1] - total[ranks.better]) / (ranks.tied + 1)
