"""Candidate ranking and its metrics."""

from .metrics import METRICS, Interval, Ranks, auc, bootstrap_mean, hit_rate, ndcg, reciprocal_rank
from .ranking import RankingResult, rank_at_random, rank_by_popularity, rank_with_model

__all__ = [
    "METRICS",
    "Interval",
    "RankingResult",
    "Ranks",
    "auc",
    "bootstrap_mean",
    "hit_rate",
    "ndcg",
    "rank_at_random",
    "rank_by_popularity",
    "rank_with_model",
    "reciprocal_rank",
]
