"""Accuracy metrics of a ranking with one relevant item per user.

Where candidates have equal scores, a value is the expectation over all orders of the tied ones: a model that cannot
tell the candidates apart gets exactly what guessing gets, neither the best nor the worst case. That is why the
metrics are written here: libraries of ranking metrics take an order, and break the ties of scores by position.
scikit-learn's `ndcg_score` and `roc_auc_score` do average over ties; the tests hold ours against them.

With one relevant item, other names mean the same: Recall@k and Hit@k are HR@k (`recall@k` and `hr@k` are the same
function), Precision@k is `hr@k / k`, and MAP@k is `mrr@k`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

METRICS = ("hr@1", "hr@5", "ndcg@5", "mrr", "auc")
"""The metrics reported by default."""

POOLED_AUC = "pooled_auc"


@dataclass(frozen=True)
class Ranks:
    """Position of the relevant item of each user.

    Args:
        better: Number of candidates with a higher score than the relevant item, (U,).
        tied: Number of other candidates with the same score, (U,).
        candidates: Number of candidates, including the relevant item, (U,).

    Example:
        The relevant item stands second of three; then second or third of three.

        >>> Ranks.from_scores([np.array([3.0, 1.0, 2.0]), np.array([0.5, 0.5, 1.0])], positives=[2, 0])
        Ranks(better=array([1, 1]), tied=array([0, 1]), candidates=array([3, 3]))
    """

    better: np.ndarray
    tied: np.ndarray
    candidates: np.ndarray

    @property
    def places(self) -> np.ndarray:
        """Place of the relevant item, from 1; where it is tied, the mean of those that it may have, (U,)."""
        return 1 + self.better + self.tied / 2

    @classmethod
    def from_scores(cls, scores: Sequence[np.ndarray], positives: Sequence[int]) -> Ranks:
        """Rank the candidate at `positives[u]` among `scores[u]`.

        Args:
            scores: One score per candidate, the higher the better, (candidates,) for each user.
            positives: Index of the relevant candidate of each user.

        Raises:
            ValueError: There are no users, a user has fewer than two candidates, a score is NaN, or an index is out of
                range.
        """
        check_scores(scores, positives)
        relevant = [values[positive] for values, positive in zip(scores, positives, strict=True)]
        return cls(
            np.array([np.sum(values > one) for values, one in zip(scores, relevant, strict=True)]),
            np.array([np.sum(values == one) - 1 for values, one in zip(scores, relevant, strict=True)]),
            np.array([len(values) for values in scores]),
        )


def check_scores(scores: Sequence[np.ndarray], positives: Sequence[int], users: Sequence[str] | None = None) -> None:
    """Check that each user's candidates can be ranked.

    Args:
        scores: One score per candidate, (candidates,) for each user.
        positives: Index of the relevant candidate of each user.
        users: Names of the users for the messages, by default their row.

    Raises:
        ValueError: As in [`Ranks.from_scores`].
    """
    if len(scores) == 0:
        raise ValueError("There are no users to rank.")
    for row, (values, positive) in enumerate(zip(scores, positives, strict=True)):
        who = f"Row {row}" if users is None else f"User {users[row]!r}"
        if len(values) < 2:
            raise ValueError(f"{who}: a ranking needs at least two candidates, there are {len(values)}.")
        if not 0 <= positive < len(values):
            raise ValueError(
                f"{who}: `positive` is {positive}, it must be an index of the {len(values)} candidates, from 0."
            )
        if np.isnan(values).any():
            raise ValueError(
                f"{who}: the score of candidate {int(np.isnan(values).argmax())} is NaN, so the candidates have no "
                "order; a model with such scores may need another dtype, for instance float32."
            )


def hit_rate(ranks: Ranks, k: int) -> np.ndarray:
    """Return HR@k of each user, the probability that the relevant item is among the first `k`.

    `HR@k = 1[rank <= k]`, in expectation over ties. With one relevant item it is also Recall@k.

    Args:
        ranks: Positions of the relevant items.
        k: Length of the recommendation.

    Returns:
        One value per user, (U,).

    Example:
        Rank 2, then rank 2 or 3 with equal probability.

        >>> ranks = Ranks.from_scores([np.array([3.0, 1.0, 2.0]), np.array([0.5, 0.5, 1.0])], positives=[2, 0])
        >>> hit_rate(ranks, k=2)
        array([1. , 0.5])
    """
    return np.clip((k - ranks.better) / (ranks.tied + 1), 0, 1)


def ndcg(ranks: Ranks, k: int) -> np.ndarray:
    """Return NDCG@k of each user.

    `NDCG@k = 1[rank <= k] / log2(1 + rank)` with one relevant item, in expectation over ties.

    Args:
        ranks: Positions of the relevant items.
        k: Length of the recommendation.

    Returns:
        One value per user, (U,).

    Example:
        `1 / log2(3) = 0.631` for rank 2, and half of it where the other half of the time the rank is 3.

        >>> ranks = Ranks.from_scores([np.array([3.0, 1.0, 2.0]), np.array([0.5, 0.5, 1.0])], positives=[2, 0])
        >>> ndcg(ranks, k=2).round(3)
        array([0.631, 0.315])
    """
    positions = np.arange(1, ranks.candidates.max() + 1)
    return _mean_over_ties(ranks, np.where(positions <= k, 1 / np.log2(1 + positions), 0))


def reciprocal_rank(ranks: Ranks, k: int | None = None) -> np.ndarray:
    """Return the reciprocal rank of each user's relevant item; its mean is the MRR.

    `RR@k = 1[rank <= k] / rank`, in expectation over ties. With one relevant item it is also the average precision.

    Args:
        ranks: Positions of the relevant items.
        k: Length of the recommendation; None for all candidates.

    Returns:
        One value per user, (U,).

    Example:
        `1 / 2` for rank 2, and `(1 / 2 + 1 / 3) / 2 = 0.417` for rank 2 or 3.

        >>> ranks = Ranks.from_scores([np.array([3.0, 1.0, 2.0]), np.array([0.5, 0.5, 1.0])], positives=[2, 0])
        >>> reciprocal_rank(ranks).round(3)
        array([0.5  , 0.417])
        >>> reciprocal_rank(ranks, k=2)
        array([0.5 , 0.25])
    """
    positions = np.arange(1, ranks.candidates.max() + 1)
    return _mean_over_ties(ranks, np.where(positions <= (len(positions) if k is None else k), 1 / positions, 0))


def auc(ranks: Ranks) -> np.ndarray:
    """Return the AUC of each user, the share of the other candidates that the relevant item is above.

    `AUC = 1 - (better + tied / 2) / (candidates - 1)`: a tie counts one half.

    Args:
        ranks: Positions of the relevant items.

    Returns:
        One value per user, (U,).

    Example:
        One of the two others is better; then one is better and one tied, `1 - 1.5 / 2`.

        >>> ranks = Ranks.from_scores([np.array([3.0, 1.0, 2.0]), np.array([0.5, 0.5, 1.0])], positives=[2, 0])
        >>> auc(ranks)
        array([0.5 , 0.25])
    """
    return 1 - (ranks.better + ranks.tied / 2) / (ranks.candidates - 1)


_AT_K = {"hr": hit_rate, "recall": hit_rate, "ndcg": ndcg, "mrr": reciprocal_rank}


def per_user(ranks: Ranks, metric: str) -> np.ndarray:
    """Return the values of a metric given by its name: `hr@k`, `recall@k`, `ndcg@k`, `mrr@k`, `mrr` or `auc`.

    Args:
        ranks: Positions of the relevant items.
        metric: The name.

    Returns:
        One value per user, (U,).

    Raises:
        ValueError: For any other name.
    """
    return _function(metric)(ranks)


def check_metrics(names: Iterable[str]) -> None:
    """Check the names of metrics, `pooled_auc` included.

    Raises:
        ValueError: There is no metric of such a name.
    """
    for name in names:
        if name != POOLED_AUC:
            _function(name)


def _function(metric: str) -> Callable[[Ranks], np.ndarray]:
    if metric == POOLED_AUC:
        raise ValueError(f"{POOLED_AUC!r} is one figure of all users together: no user has a value of it.")
    if metric == "mrr":
        return reciprocal_rank
    if metric == "auc":
        return auc
    if match := re.fullmatch(rf"({'|'.join(_AT_K)})@([1-9]\d*)", metric):
        return partial(_AT_K[match[1]], k=int(match[2]))
    raise ValueError(
        f"Unknown metric {metric!r}; there are hr@k, recall@k, ndcg@k, mrr@k, mrr, auc and {POOLED_AUC}. With one "
        "relevant item precision@k is hr@k / k and map@k is mrr@k."
    )


def pooled_auc(scores: Sequence[np.ndarray], positives: Sequence[int]) -> float:
    """Return the AUC over the candidates of all users together, as in the DMPO authors' notebook.

    It compares each relevant item with the other candidates of every user, so it also asks whether scores mean the
    same for different users, which ranking does not need. `auc` compares within a user.

    Args:
        scores: One score per candidate, (candidates,) for each user.
        positives: Index of the relevant candidate of each user.

    Raises:
        ValueError: As in [`Ranks.from_scores`].

    Example:
        Of the pairs of a relevant item (2, 12) and another (1, 11), only 2 and 11 are in the wrong order.

        >>> pooled_auc([np.array([2.0, 1.0]), np.array([12.0, 11.0])], positives=[0, 0])
        0.75
    """
    return pooled_auc_of_sample(scores, positives)(np.arange(len(scores)))


def pooled_auc_of_sample(scores: Sequence[np.ndarray], positives: Sequence[int]) -> Callable[[np.ndarray], float]:
    """Return the pooled AUC as a function of the users drawn, by index; the scores are sorted once for all draws."""
    check_scores(scores, positives)
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
    """Return the mean of `gain[position - 1]` over the positions that the relevant item shares with those tied."""
    total = np.concatenate([[0.0], np.cumsum(gain)])
    return (total[ranks.better + ranks.tied + 1] - total[ranks.better]) / (ranks.tied + 1)
