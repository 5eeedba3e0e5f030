"""Evaluation: candidate ranking with metrics and tests, free generation, and ranking during training."""

from ..work import ResultParts
from .beyond_accuracy import beyond_accuracy, coverage, long_tail_share, recommendation_popularity
from .callback import RankingCallback
from .fusion import choose_weight, fuse
from .generation import GenerationResult, generate_items
from .groups import cold_start_groups, group_intervals, history_groups, popularity_groups
from .intervals import Difference, Interval, bootstrap_mean, paired_difference
from .item_knn import ItemKNN, rank_by_item_knn
from .metrics import METRICS, Ranks, auc, hit_rate, ndcg, pooled_auc, reciprocal_rank
from .no_history import NO_HISTORY_WEIGHTS, NoHistoryRanker, reference_without_history
from .ranking import (
    full_catalogue,
    rank_at_random,
    rank_by_log_prob,
    rank_by_popularity,
    rank_with_model,
    score_candidates,
)
from .report import evaluate_model, load_for_ranking, rank_beside_baselines
from .result import RankingResult
from .score_file import rank_by_file
from .tables import figures_frame, markdown_table, text_table, verdict

__all__ = [
    "METRICS",
    "NO_HISTORY_WEIGHTS",
    "Difference",
    "GenerationResult",
    "Interval",
    "ItemKNN",
    "NoHistoryRanker",
    "RankingCallback",
    "RankingResult",
    "Ranks",
    "ResultParts",
    "auc",
    "beyond_accuracy",
    "bootstrap_mean",
    "choose_weight",
    "cold_start_groups",
    "coverage",
    "evaluate_model",
    "figures_frame",
    "full_catalogue",
    "fuse",
    "generate_items",
    "group_intervals",
    "history_groups",
    "hit_rate",
    "load_for_ranking",
    "long_tail_share",
    "markdown_table",
    "ndcg",
    "paired_difference",
    "pooled_auc",
    "popularity_groups",
    "rank_at_random",
    "rank_beside_baselines",
    "rank_by_file",
    "rank_by_item_knn",
    "rank_by_log_prob",
    "rank_by_popularity",
    "rank_with_model",
    "reciprocal_rank",
    "recommendation_popularity",
    "reference_without_history",
    "score_candidates",
    "text_table",
    "verdict",
]
