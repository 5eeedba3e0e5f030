"""Beyond-accuracy metrics: coverage and popularity bias of the top k.

As in `metrics`, ties count with their expectation: a candidate that is tied at the edge of the top k belongs to it
with the probability that a random order puts it there. RecTools, Elliot and RecBole have these metrics, but take an
order, so that the figures of a ranker with many ties (popularity, random) would depend on how the ties are broken.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.stats import rankdata

from .result import RankingResult

HEAD_SHARE = 0.8


def coverage(result: RankingResult, k: int) -> float:
    """Return the share of the items that are in the top k of at least one user.

    Catalogue coverage of Ge, Delgado-Battenfeld and Jannach (RecSys 2010, "Beyond Accuracy"):
    `|union over users of top_k(u)| / |items|`. The items are those that are a candidate of some user: the catalogue
    where the whole of it is ranked, fewer with sampled candidates.

    Args:
        result: The ranking.
        k: Length of the recommendation.

    Returns:
        The share, from 0 to 1.

    Raises:
        ValueError: `k` is below 1.

    Example:
        Both users get a first; then one gets b and the other c.

        >>> scores, items = [np.array([2.0, 1.0, 0.0]), np.array([2.0, 0.0, 1.0])], [["a", "b", "c"]] * 2
        >>> result = RankingResult("model", ["u1", "u2"], scores, positives=[0, 1], items=items)
        >>> round(coverage(result, k=1), 3), coverage(result, k=2)
        (0.333, 1.0)
    """
    missed: dict[str, float] = {}  # probability that no user gets the item
    for items, chances in zip(result.items, _top_k(result, k), strict=True):
        for item, chance in zip(items, chances.tolist(), strict=True):
            missed[item] = missed.get(item, 1.0) * (1 - chance)
    return 1 - sum(missed.values()) / len(missed)


def recommendation_popularity(result: RankingResult, popularity: Mapping[str, float], k: int) -> np.ndarray:
    """Return the mean popularity of each user's top k; its mean is the average recommendation popularity (ARP).

    Yin, Cui, Li, Yao and Chen (VLDB 2012, "Challenging the Long Tail Recommendation").

    Args:
        result: The ranking.
        popularity: Count by item; an item without one counts 0.
        k: Length of the recommendation.

    Returns:
        One value per user, (U,).

    Raises:
        ValueError: `k` is below 1.

    Example:
        One user gets a and b, `(60 + 30) / 2`; the other a and c, `(60 + 10) / 2`.

        >>> scores, items = [np.array([2.0, 1.0, 0.0]), np.array([2.0, 0.0, 1.0])], [["a", "b", "c"]] * 2
        >>> result = RankingResult("model", ["u1", "u2"], scores, positives=[0, 1], items=items)
        >>> recommendation_popularity(result, {"a": 60, "b": 30, "c": 10}, k=2)
        array([45., 35.])
    """
    return _mean_over_top_k(result, {item: popularity.get(item, 0.0) for items in result.items for item in items}, k)


def long_tail_share(result: RankingResult, popularity: Mapping[str, float], k: int) -> np.ndarray:
    """Return the share of long-tail items in each user's top k; its mean is the APLT.

    Average percentage of long-tail items of Abdollahpouri, Burke and Mobasher (RecSys 2017, "Controlling Popularity
    Bias in Learning-to-Rank Recommendation"). The short head is the most popular items that together have 80% of the
    interactions; all others are the long tail.

    Args:
        result: The ranking.
        popularity: Count by item, over the whole catalogue; an item without one counts 0.
        k: Length of the recommendation.

    Returns:
        One value per user, (U,).

    Raises:
        ValueError: `k` is below 1.

    Example:
        a and b have 90 of 100 interactions, so c is the long tail; the second user gets it beside a.

        >>> scores, items = [np.array([2.0, 1.0, 0.0]), np.array([2.0, 0.0, 1.0])], [["a", "b", "c"]] * 2
        >>> result = RankingResult("model", ["u1", "u2"], scores, positives=[0, 1], items=items)
        >>> long_tail_share(result, {"a": 60, "b": 30, "c": 10}, k=2)
        array([0. , 0.5])
    """
    return _mean_over_top_k(result, _long_tail(result, popularity), k)


def beyond_accuracy(result: RankingResult, popularity: Mapping[str, float], k: int) -> dict[str, float]:
    """Return coverage and popularity bias of the top k, with the popularity of what the users chose themselves.

    Args:
        result: The ranking.
        popularity: Count by item, over the whole catalogue; an item without one counts 0.
        k: Length of the recommendation.

    Returns:
        `coverage@k`, `popularity@k`, `long_tail@k`; `target_popularity` and `target_long_tail`, of the users' relevant
        items; and `popularity_lift@k`, `popularity@k / target_popularity - 1`: 0 is no bias, 1 twice as popular
        (Abdollahpouri et al., RMSE 2019, "The Unfairness of Popularity Bias in Recommendation", with the target in
        place of the user's profile). The lift is NaN where the targets have no popularity.

    Raises:
        ValueError: `k` is below 1.

    Example:
        Both users get a, with 60 interactions; they chose a and b, with 60 and 30.

        >>> scores, items = [np.array([2.0, 1.0, 0.0]), np.array([2.0, 0.0, 1.0])], [["a", "b", "c"]] * 2
        >>> result = RankingResult("model", ["u1", "u2"], scores, positives=[0, 1], items=items)
        >>> figures = beyond_accuracy(result, {"a": 60, "b": 30, "c": 10}, k=1)
        >>> figures["popularity@1"], figures["target_popularity"], round(figures["popularity_lift@1"], 3)
        (60.0, 45.0, 0.333)
    """
    targets = [items[positive] for items, positive in zip(result.items, result.positives, strict=True)]
    tail = _long_tail(result, popularity)
    recommended = float(recommendation_popularity(result, popularity, k).mean())
    chosen = float(np.mean([popularity.get(item, 0.0) for item in targets]))
    return {
        f"coverage@{k}": coverage(result, k),
        f"popularity@{k}": recommended,
        "target_popularity": chosen,
        f"popularity_lift@{k}": recommended / chosen - 1 if chosen else float("nan"),
        f"long_tail@{k}": float(_mean_over_top_k(result, tail, k).mean()),
        "target_long_tail": float(np.mean([tail[item] for item in targets])),
    }


def _long_tail(result: RankingResult, popularity: Mapping[str, float]) -> dict[str, float]:
    """Return 1 for items of the long tail, 0 for the short head. Equally popular items are on the same side."""
    counts = np.sort(np.fromiter(popularity.values(), dtype=float))[::-1]
    before = np.cumsum(counts) - counts  # interactions of the more popular items
    head = counts[before < HEAD_SHARE * counts.sum()]
    least = head.min() if len(head) else np.inf
    return {item: float(popularity.get(item, 0.0) < least) for items in result.items for item in items}


def _top_k(result: RankingResult, k: int) -> list[np.ndarray]:
    """Return the probability of each candidate to be in its user's top k, (candidates,) for each user."""
    if k < 1:
        raise ValueError(f"k must be at least 1, it is {k}.")
    chances = []
    for scores in result.scores:
        first, last = (rankdata(-scores, method) for method in ("min", "max"))
        chances.append(np.clip((k - first + 1) / (last - first + 1), 0, 1))
    return chances


def _mean_over_top_k(result: RankingResult, value: Mapping[str, float], k: int) -> np.ndarray:
    return np.array(
        [
            np.average([value[item] for item in items], weights=chances)
            for items, chances in zip(result.items, _top_k(result, k), strict=True)
        ]
    )
