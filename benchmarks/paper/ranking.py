"""What a cell ranks: test users under each protocol, by the model alone and together with counts."""

from typing import Any

import numpy as np
import polars as pl

from dmpo_trl.evaluation import (
    NO_HISTORY_WEIGHTS,
    ItemKNN,
    NoHistoryRanker,
    RankingResult,
    ResultParts,
    choose_weight,
    fuse,
    rank_at_random,
    rank_by_item_knn,
    rank_by_log_prob,
    rank_by_popularity,
    score_candidates,
)
from dmpo_trl.evaluation.fusion import WEIGHTS

from .pairs import PairUsers
from .users import Users

Asked = Users | PairUsers
"""Users of a cell."""

METRICS = ("hr@1", "hr@5", "ndcg@5", "auc")
CHOOSING = 100
"""Validation users who choose the weight of a fusion: enough for that, and half the time of all."""


def rank_by_counts(ranked: Asked, trained: Asked) -> dict[str, RankingResult]:
    """Rank at random and by counts: of what a model sees, and of more that is known."""
    results = {}
    for name, dataset in ranked.questions().items():
        prefix = "" if name == "test" else f"{name} "
        results[f"{prefix}random"] = rank_at_random(dataset)
        for suffix, counted in trained.counted().items():
            popularity = dict(counted.group_by("item").len().iter_rows())
            results[f"{prefix}popularity{suffix}"] = rank_by_popularity(dataset, popularity)
            results[f"{prefix}item knn{suffix}"] = rank_by_item_knn(dataset, ItemKNN(counted))
    return results


def rank_by_model(
    model: Any, tokenizer: Any, users: Asked, shown: pl.DataFrame | None, name: str, parts: ResultParts
) -> dict[str, RankingResult]:
    """Rank by the sum and by the mean of the tokens' log-probs, and by the sum together with other rankers.

    These are what the model says without a history, ItemKNN, and both of them. Pairs, of which no users are for
    validation, are ranked by the sum and the mean alone.

    Args:
        model: What ranks.
        tokenizer: Its tokenizer.
        users: Who is ranked.
        shown: Interactions that the model saw, for ItemKNN; None where they are of other items than are ranked.
        name: Of the method.
        parts: Keeps the log-probs, so that a cell that is killed goes on.
    """
    datasets = users.questions()
    if isinstance(users, Users):
        validation = users.ranking("validation")
        datasets["validation"] = validation.take(min(CHOOSING, len(validation)))
    results: dict[str, RankingResult] = {}
    for kind, dataset in datasets.items():
        scored = score_candidates(model, tokenizer, dataset, parts=parts)
        for score in ("sum", "mean"):
            results[f"{kind} {score}"] = rank_by_log_prob(dataset, scored, score=score, name=name)
    if isinstance(users, PairUsers):
        return results
    anybody = NoHistoryRanker(model, tokenizer, users.source.template, parts=parts)
    unlikely = {kind: anybody.rank(dataset, name="no history") for kind, dataset in datasets.items()}
    fusions: list[tuple[str, dict[str, RankingResult], str, tuple[float, ...]]]
    fusions = [("sum", unlikely, "no history", NO_HISTORY_WEIGHTS)]
    if shown is not None:
        knn = ItemKNN(shown)
        similar = {kind: rank_by_item_knn(dataset, knn, name="item knn") for kind, dataset in datasets.items()}
        fusions += [("sum", similar, "fused", WEIGHTS), ("no history", similar, "all", WEIGHTS)]
    for first, other, both, weights in fusions:
        weight = choose_weight(results[f"validation {first}"], other["validation"], weights=weights)
        for kind, result in other.items():
            own = results[f"{kind} {first}"]
            fused = fuse(own, result, weight, name=f"{own.name} + {weight:g} {result.name}")
            results[f"{kind} {both}"] = fused
    return results


def as_json(results: dict[str, RankingResult]) -> dict[str, Any]:
    """Return metrics, each test user's rank of the target (the mean of its places where it is tied), and the gap."""
    content: dict[str, Any] = {}
    for name, result in results.items():
        pairs = list(zip(result.scores, result.positives, strict=True))
        gaps = [float(own[positive] - np.delete(own, positive).max()) for own, positive in pairs]
        own = {"ranker": result.name, "mean gap to the hardest": float(np.mean(gaps))}
        own |= {metric: float(result.per_user(metric).mean()) for metric in METRICS}
        if not name.startswith("validation"):
            own["ndcg@5 per user"] = result.per_user("ndcg@5").round(4).tolist()
            own["ranks"] = result.ranks.places.tolist()
        content[name] = own
    return content
