"""What a recommender recommends, apart from whether it is right: coverage and popularity bias of the top k.

As in `metrics`, ties count with their expectation: a candidate that is tied at the edge of the top k belongs to it
with the probability that a random order puts it there. RecTools, Elliot and RecBole have these metrics, but take an
order, so that a ranker full of ties (popularity, random) would get figures of whatever breaks them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.stats import rankdata

from .result import RankingResult

HEAD_SHARE = 0.8


def coverage(result: RankingResult, k: int) -> float:
    """Share of the items that come up in the top k of at least one user.

    Catalogue coverage of Ge, Delgado-Battenfeld and Jannach (RecSys 2010, "Beyond Accuracy"). The whole is the items
    that are a candidate of some user: the catalogue where the whole of it is ranked, fewer with sampled candidates.
    """
    missed: dict[str, float] = {}  # probability that no user gets the item
    for items, chances in zip(result.items, _top_k(result, k), strict=True):
        for item, chance in zip(items, chances.tolist(), strict=True):
            missed[item] = missed.get(item, 1.0) * (1 - chance)
    return 1 - sum(missed.values()) / len(missed)


def recommendation_popularity(result: RankingResult, popularity: Mapping[str, float], k: int) -> np.ndarray:
    """Mean popularity of each user's top k, (U,); its mean is the average recommendation popularity (ARP).

    Yin, Cui, Li, Yao and Chen (VLDB 2012, "Challenging the Long Tail Recommendation").

    Args:
        result: the ranking.
        popularity: count by item; what is not there counts 0.
        k: length of the recommendation.
    """
    return _mean_over_top_k(result, {item: popularity.get(item, 0.0) for items in result.items for item in items}, k)


def long_tail_share(result: RankingResult, popularity: Mapping[str, float], k: int) -> np.ndarray:
    """Share of long-tail items in each user's top k, (U,); its mean is the APLT.

    Average percentage of long-tail items of Abdollahpouri, Burke and Mobasher (RecSys 2017, "Controlling Popularity
    Bias in Learning-to-Rank Recommendation"). The short head are the most popular items that together have 80% of the
    interactions; all others are the long tail.

    Args:
        result: the ranking.
        popularity: count by item, over the whole catalogue; what is not there counts 0.
        k: length of the recommendation.
    """
    return _mean_over_top_k(result, _long_tail(result, popularity), k)


def beyond_accuracy(result: RankingResult, popularity: Mapping[str, float], k: int) -> dict[str, float]:
    """Coverage and popularity bias of the top k, beside the same of what the users chose themselves.

    Args:
        result: the ranking.
        popularity: count by item, over the whole catalogue; what is not there counts 0.
        k: length of the recommendation.

    Returns:
        `coverage@k`, `popularity@k`, `long_tail@k`; `target_popularity` and `target_long_tail`, of the users' relevant
        items; and `popularity_lift@k`, by how much of the latter the former is more popular: 0 is no bias, 1 twice as
        popular (Abdollahpouri et al., RMSE 2019, "The Unfairness of Popularity Bias in Recommendation", with the
        target in the place of the user's profile).
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
    """1 for items of the long tail, 0 for those of the short head. Equally popular items are on the same side."""
    counts = np.sort(np.fromiter(popularity.values(), dtype=float))[::-1]
    before = np.cumsum(counts) - counts  # interactions with items that stand before
    head = counts[before < HEAD_SHARE * counts.sum()]
    least = head.min() if len(head) else np.inf
    return {item: float(popularity.get(item, 0.0) < least) for items in result.items for item in items}


def _top_k(result: RankingResult, k: int) -> list[np.ndarray]:
    """Probability of each candidate to stand in its user's top k, (candidates,) for each user."""
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
