"""Fusion: ranking by two rankers' scores together, such as a model's and counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .result import RankingResult

WEIGHTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
ROUNDING = 1e-12
"""A user's scores that differ by less than this share of the largest are equal."""


def fuse(model: RankingResult, other: RankingResult, weight: float, *, name: str | None = None) -> RankingResult:
    """Rank by `z(model) + weight * z(other)`, with z the score in standard deviations from the user's mean.

    Args:
        model: One ranker's scores.
        other: Another's, of the same users and candidates.
        weight: Weight of the other; 0 ranks by the model alone.
        name: Name of the result; by default both names.

    Returns:
        The ranking.

    Raises:
        ValueError: They ranked other users or candidates, a user has another relevant item in the other, a score is
            not finite, or the weight is not a number of at least 0.

    Example:
        >>> users, items = ["u1"], [["a", "b", "c"]]
        >>> model = RankingResult("model", users, [np.array([3.0, 2.0, 1.0])], [1], items)
        >>> counts = RankingResult("counts", users, [np.array([0.0, 9.0, 0.0])], [1], items)
        >>> fuse(model, counts, 1.0).metrics(["hr@1"])
        {'hr@1': 1.0}
    """
    check_weight(weight)
    scores = [
        _fuse_user(user, own, others, weight)
        for user, own, others in zip(model.users, model.scores, aligned(other, model).scores, strict=True)
    ]
    name = name or f"{model.name} + {other.name}"
    return RankingResult(name, model.users, scores, model.positives, model.items)


def fuse_scores(model: np.ndarray, other: np.ndarray, weight: float) -> np.ndarray:
    """Return `z(model) + weight * z(other)` of one user's candidates, (candidates,).

    Where all scores of a ranker are equal, its z is 0 and the other one decides.

    Args:
        model: One ranker's scores, (candidates,).
        other: Another's, (candidates,).
        weight: Weight of the other.

    Raises:
        ValueError: The weight is not a number of at least 0, or a score is not finite.

    Example:
        >>> fuse_scores(np.array([3.0, 1.0]), np.array([0.0, 9.0]), 2.0)
        array([-1.,  1.])
    """
    check_weight(weight)
    return _standardised(model) + weight * _standardised(other)


def check_weight(weight: float) -> None:
    """Refuse a weight that is not a number of at least 0.

    Raises:
        ValueError: It is not.

    Example:
        >>> check_weight(-1.0)
        Traceback (most recent call last):
        ...
        ValueError: The weight must be a number of at least 0, it is -1.0.
    """
    if not (np.isfinite(weight) and weight >= 0):
        raise ValueError(f"The weight must be a number of at least 0, it is {weight}.")


def choose_weight(
    model: RankingResult, other: RankingResult, *, metric: str = "ndcg@5", weights: Sequence[float] = WEIGHTS
) -> float:
    """Choose the weight of `fuse` that ranks best; to be called with validation users, not with test users.

    Args:
        model: One ranker's scores.
        other: Another's, of the same users and candidates.
        metric: What is to be best; see [`RankingResult.per_user`].
        weights: To choose among. Of equally good ones the first is taken.

    Returns:
        The weight.

    Raises:
        ValueError: There are no weights; see also [`fuse`].

    Example:
        >>> users, items = ["u1"], [["a", "b", "c"]]
        >>> model = RankingResult("model", users, [np.array([3.0, 2.0, 1.0])], [1], items)
        >>> counts = RankingResult("counts", users, [np.array([0.0, 9.0, 0.0])], [1], items)
        >>> choose_weight(model, counts, metric="hr@1")
        1.0
    """
    if len(weights) == 0:
        raise ValueError("There are no weights to choose among.")
    values = [fuse(model, other, weight).per_user(metric).mean() for weight in weights]
    return float(weights[int(np.argmax(values))])


def aligned(result: RankingResult, like: RankingResult) -> RankingResult:
    """Return the result with its users and candidates in the order of another.

    Args:
        result: The result.
        like: Of the same users, candidates and relevant items.

    Raises:
        ValueError: A user or a candidate of one is not in the other, or a user has another relevant item.
    """
    if (result.users, result.items, result.positives) == (like.users, like.items, like.positives):
        return result
    place = {user: row for row, user in enumerate(result.users)}
    if result.users != like.users and (len(place) != len(result.users) or set(place) != set(like.users)):
        raise ValueError(f"{result.name} and {like.name} ranked different users.")
    rows = range(len(result.users)) if result.users == like.users else [place[user] for user in like.users]
    scores = []
    for row, user, items, positive in zip(rows, like.users, like.items, like.positives, strict=True):
        own = dict(zip(result.items[row], result.scores[row], strict=True))
        if set(own) != set(items):
            raise ValueError(f"{result.name} and {like.name} ranked different candidates of user {user!r}.")
        if (relevant := result.items[row][result.positives[row]]) != items[positive]:
            raise ValueError(
                f"User {user!r}: the relevant item is {relevant!r} in {result.name}, but {items[positive]!r} in "
                f"{like.name}. Rank the same data with both."
            )
        scores.append(np.array([own[item] for item in items]))
    return RankingResult(result.name, like.users, scores, like.positives, like.items)


def _fuse_user(user: str, model: np.ndarray, other: np.ndarray, weight: float) -> np.ndarray:
    try:
        return fuse_scores(model, other, weight)
    except ValueError as error:
        raise ValueError(f"User {user!r}: {error}") from error


def _standardised(scores: np.ndarray) -> np.ndarray:
    finite = np.isfinite(scores)
    if not finite.all():
        place = int(finite.argmin())
        raise ValueError(f"Only finite scores can be fused; that of candidate {place} is {scores[place]}.")
    spread = scores.std()
    if spread <= ROUNDING * np.abs(scores).max():  # 0.1 + 0.2 and 0.3 are one score
        return np.zeros(len(scores))
    return (scores - scores.mean()) / spread
