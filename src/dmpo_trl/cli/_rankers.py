"""Rankers beside the model: what others liked, and other recommenders' scores."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from datasets import Dataset

from ..data import Prepared
from ..evaluation import (
    ItemKNN,
    NoHistoryRanker,
    RankingResult,
    choose_weight,
    full_catalogue,
    fuse,
    rank_by_file,
    rank_by_item_knn,
    rank_by_log_prob,
    rank_by_popularity,
    score_candidates,
)
from ..evaluation.fusion import WEIGHTS

logger = logging.getLogger(__name__)

Ranker = Callable[[Dataset], RankingResult]


def other_rankers(prepared: Prepared, files: Mapping[str, str]) -> dict[str, Ranker]:
    """Return the rankers that need no model, by name.

    Args:
        prepared: The folder whose users are ranked. Of an earlier version's nothing but popularity is known.
        files: Scores of other recommenders, by their names.

    Returns:
        `popularity` and `item_knn` count all interactions of the training users, `popularity_shown` and
        `item_knn_shown` those in a training example, which are all that a model sees.

    Example:
        >>> rankers = other_rankers(Prepared.load("data"), {"mine": "scores.parquet"})  # doctest: +SKIP
        >>> rankers["item_knn"](users).metrics(["hr@1"])  # doctest: +SKIP
    """
    rankers: dict[str, Ranker] = {}
    rankers["popularity"] = partial(rank_by_popularity, popularity=prepared.popularity())
    if prepared.has_interactions:
        had = prepared.interactions
        shown = had.filter("shown")
        counts = dict(shown.group_by("item").len().iter_rows())
        rankers["popularity_shown"] = partial(rank_by_popularity, popularity=counts, name="popularity_shown")
        for name, interactions in (("item_knn", had), ("item_knn_shown", shown)):
            rankers[name] = partial(rank_by_item_knn, knn=ItemKNN(interactions), name=name)
    else:
        logger.warning("%s is of an earlier version: there is no ranking by ItemKNN.", prepared.folder)
    for name, path in files.items():
        rankers[name] = partial(rank_by_file, path=path, name=name)
    return rankers


def ranker_without_history(model: Any, tokenizer: Any, prepared: Prepared, ranking: Mapping[str, Any]) -> Ranker:
    """Return the ranker `no_history` of a model, see [`NoHistoryRanker`].

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        prepared: The folder whose users are ranked.
        ranking: Further options of `score_candidates`.

    Example:
        >>> ranker_without_history(model, tokenizer, prepared, {})(users).name  # doctest: +SKIP
        'no_history'
    """
    options = {**ranking, "progress": "ranking without a history"}
    return NoHistoryRanker(model, tokenizer, prepared.template, **options).rank


def validation_users(prepared: Prepared, whole_catalogue: bool, titles: Mapping[str, str]) -> Dataset:
    """Return the validation users, with the same kind of candidates as the test users.

    Args:
        prepared: The folder.
        whole_catalogue: Whether all items are candidates.
        titles: Of all items.

    Example:
        >>> users = validation_users(Prepared.load("data"), False, {})  # doctest: +SKIP
    """
    users = prepared.ranking["validation"]
    return full_catalogue(users, titles, prepared.template) if whole_catalogue else users


def ranked_to_choose(name: str, ranker: Ranker, validation: Dataset) -> RankingResult:
    """Rank the validation users, on whom the weight of a ranker is chosen.

    Args:
        name: What `--fuse` calls it.
        ranker: The ranker.
        validation: Those users.

    Raises:
        ValueError: It cannot rank them.

    Example:
        >>> ranked_to_choose("item_knn", rankers["item_knn"], validation)  # doctest: +SKIP
    """
    try:
        return ranker(validation)
    except ValueError as error:
        raise ValueError(f"--fuse {name} chooses its weight on the validation users. {error}") from error


def fusion_weight(
    model: Any,
    tokenizer: Any,
    validation: Dataset,
    other: RankingResult,
    ranking: Mapping[str, Any],
    weights: Sequence[float] = WEIGHTS,
) -> float:
    """Choose the weight of another ranker beside the model's sum of log-probs.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        validation: The users on whom it is chosen.
        other: How the other one ranks them.
        ranking: Further options of `score_candidates`.
        weights: To choose among.

    Example:
        >>> fusion_weight(model, tokenizer, validation, rankers["item_knn"](validation), {})  # doctest: +SKIP
        2.0
    """
    scored = score_candidates(model, tokenizer, validation, progress="ranking the validation users", **ranking)
    return choose_weight(rank_by_log_prob(validation, scored, score="sum", name="sum"), other, weights=weights)


def rank_fused(results: Mapping[str, RankingResult], other: str, weight: float) -> dict[str, RankingResult]:
    """Rank by the model's sum of log-probs and another ranker together.

    Args:
        results: The rankings of the test users.
        other: Name of the other one.
        weight: Its weight.

    Returns:
        The ranking, by its name: `sum + WEIGHT NAME`.

    Example:
        >>> fused = rank_fused(results, "item_knn", 2.0)  # doctest: +SKIP
    """
    name = f"sum + {weight:g} {other}"
    return {name: fuse(results["sum"], results[other], weight, name=name)}
