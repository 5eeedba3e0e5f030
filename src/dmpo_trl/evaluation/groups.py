"""Groups of users: results for new items, and by how much a user has had, apart from the others."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np
from datasets import Dataset

from .intervals import Interval
from .metrics import METRICS
from .result import RankingResult

HISTORY_BOUNDS = (5, 10, 20, 50, 100)
"""Where a new group of users by the length of their history begins."""

Groups = Mapping[str, np.ndarray]
"""Numbers of the rows of a dataset, from 0, by the name of the group."""


def cold_start_groups(dataset: Dataset, known: Collection[str]) -> dict[str, np.ndarray]:
    """Divide users by whether the item that they had next is new.

    Of an item that no training user had no counts exist, and nothing told the model that anybody likes it.

    Args:
        dataset: Columns of [`ranking_dataset`].
        known: Identifiers of the items that are not new. What a model saw in training is
            `prepared.interactions.filter("shown")["item"]`, what the training users had
            `prepared.interactions["item"]` (see [`Prepared`]).

    Returns:
        The groups `known` and `cold`, as far as anybody is in them.

    Example:
        >>> users = [{"user": "u1", "items": ["a", "b"], "positive": 0}]
        >>> users += [{"user": "u2", "items": ["b", "c"], "positive": 1}]
        >>> {name: rows.tolist() for name, rows in cold_start_groups(Dataset.from_list(users), {"a", "b"}).items()}
        {'known': [0], 'cold': [1]}
    """
    known = frozenset(known)
    targets = (items[positive] for items, positive in zip(dataset["items"], dataset["positive"], strict=True))
    is_known = np.array([target in known for target in targets], dtype=bool)
    return _filled([("known", is_known), ("cold", ~is_known)])


def history_groups(dataset: Dataset, *, bounds: Sequence[int] = HISTORY_BOUNDS) -> dict[str, np.ndarray]:
    """Divide users by how many items they had before the one that they had next.

    All of them count, liked or not, also those that no longer fit into the prompt (the column `seen`); of a dataset
    without such a column the history in the prompt.

    Args:
        dataset: Columns of [`ranking_dataset`].
        bounds: The numbers of items with which the second group, the third, ... begins.

    Returns:
        The groups from the shortest histories to the longest, as far as anybody is in them.

    Raises:
        ValueError: The bounds are not increasing numbers from 1 on.

    Example:
        >>> users = [{"user": "u1", "history": ["a"]}, {"user": "u2", "history": ["a"] * 7}]
        >>> {name: rows.tolist() for name, rows in history_groups(Dataset.from_list(users), bounds=[5, 10]).items()}
        {'0 to 4': [0], '5 to 9': [1]}
    """
    edges = [0, *bounds]
    if any(low >= high for low, high in pairwise(edges)):
        raise ValueError(f"bounds must be increasing numbers from 1 on, they are {list(bounds)}.")
    column = "seen" if "seen" in dataset.column_names else "history"
    lengths = np.array([len(items) for items in dataset[column]])
    names = [str(low) if high == low + 1 else f"{low} to {high - 1}" for low, high in pairwise(edges)]
    group = np.searchsorted(edges, lengths, side="right") - 1
    return _filled((name, group == place) for place, name in enumerate([*names, f"{edges[-1]} or more"]))


def popularity_groups(dataset: Dataset, popularity: Mapping[str, float], *, parts: int = 3) -> dict[str, np.ndarray]:
    """Divide users by how popular the item is that they had next, into parts of about as many users.

    Items of one popularity are in one part, so that parts may differ in size, and there may be fewer of them.

    Args:
        dataset: Columns of [`ranking_dataset`].
        popularity: Count by item, see [`rank_by_popularity`]; an item without one counts 0.
        parts: Number of groups, at least 1.

    Returns:
        The groups from the least popular items to the most popular.

    Example:
        >>> users = [{"user": f"u{n}", "items": [item, "z"], "positive": 0} for n, item in enumerate("abcd")]
        >>> popularity = {"a": 1, "b": 7, "c": 90}
        >>> found = popularity_groups(Dataset.from_list(users), popularity, parts=2)
        >>> {name: rows.tolist() for name, rows in found.items()}
        {'had by 0 to 1': [0, 3], 'had by 7 to 90': [1, 2]}
    """
    targets = (items[positive] for items, positive in zip(dataset["items"], dataset["positive"], strict=True))
    counts = np.array([popularity.get(target, 0) for target in targets])
    edges = np.unique(np.quantile(counts, np.arange(1, parts) / parts, method="lower"))
    group = np.searchsorted(edges, counts, side="left")
    masks = [group == place for place in range(len(edges) + 1)]
    return _filled((_span(counts[mask]), mask) for mask in masks if mask.any())


def _span(counts: np.ndarray) -> str:
    low, high = counts.min(), counts.max()
    return f"had by {low:g}" if low == high else f"had by {low:g} to {high:g}"


def group_intervals(
    result: RankingResult, groups: Groups, names: Sequence[str] = METRICS, *, confidence: float = 0.95
) -> dict[str, dict[str, Interval]]:
    """Return the means of each group of users, with bootstrap intervals over its users.

    Args:
        result: A ranking of the users that were divided.
        groups: What [`cold_start_groups`], [`history_groups`] or [`popularity_groups`] returned, or groups of your
            own.
        names: Names of the metrics, see [`RankingResult.intervals`].
        confidence: Confidence level of the intervals.

    Returns:
        The intervals by metric, by group. A group of a single user has no interval and is left out; how many users a
        group has is the length of its rows.

    Raises:
        ValueError: There is no metric of such a name.

    Example:
        >>> items = [["a", "b"]] * 4
        >>> scores = [np.array(pair) for pair in ([1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0])]
        >>> result = RankingResult("model", ["u1", "u2", "u3", "u4"], scores, positives=[0, 0, 0, 0], items=items)
        >>> groups = {"known": np.array([0, 1]), "cold": np.array([2, 3])}
        >>> {name: str(row["hr@1"]) for name, row in group_intervals(result, groups, ["hr@1"]).items()}
        {'known': '1.000 [1.000, 1.000]', 'cold': '0.000 [0.000, 0.000]'}
    """
    return {
        name: result.of_rows(rows).intervals(names, confidence=confidence)
        for name, rows in groups.items()
        if len(rows) > 1
    }


def _filled(groups: Iterable[tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the rows of each mask that marks any."""
    return {name: np.flatnonzero(mask) for name, mask in groups if mask.any()}
