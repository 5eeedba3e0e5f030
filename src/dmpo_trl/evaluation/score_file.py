"""Score files: ranking by scores that another program wrote."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset

from .parquet_file import first_row, read_pairs
from .result import RankingResult

logger = logging.getLogger(__name__)


def rank_by_file(dataset: Dataset, path: str | Path, *, name: str) -> RankingResult:
    """Rank by the scores in a Parquet file, whatever wrote them: RecBole, RecTools, LensKit, a script.

    A candidate without a score ranks last, tied with the others that have none (see `scores_of`); their number is
    logged.

    Args:
        dataset: Columns of [`ranking_dataset`].
        path: A file of columns `user`, `item` (identifiers, as in the raw data) and `score` (the higher the better).
        name: Name of the result.

    Returns:
        The ranking.

    Raises:
        ValueError: The file is not Parquet or lacks a column, a row has no user or no item, a score is not a finite
            number or a whole number of 2^53 or more, a pair is listed twice, or a user of the dataset has no score of
            any candidate.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> import polars as pl
        >>> users = Dataset.from_list([{"user": "u1", "items": ["a", "b"], "positive": 1}])
        >>> frame = pl.DataFrame({"user": ["u1", "u1"], "item": ["a", "b"], "score": [0.1, 0.7]})
        >>> with TemporaryDirectory() as folder:
        ...     frame.write_parquet(f"{folder}/scores.parquet")
        ...     rank_by_file(users, f"{folder}/scores.parquet", name="mine").metrics(["hr@1"])
        {'hr@1': 1.0}
    """
    by_user = read_scores(path)
    without = [
        user
        for user, items in zip(dataset["user"], dataset["items"], strict=True)
        if by_user.get(user, {}).keys().isdisjoint(items)
    ]
    if without:
        raise ValueError(
            f"{path}: {len(without)} of the {len(dataset)} users to rank have no score of a candidate, for example "
            f"{without[0]!r}. Identifiers of users and items must be those of the raw data."
        )
    scores, missing, total = [], 0, 0
    for user, items in zip(dataset["user"], dataset["items"], strict=True):
        own = by_user[user]
        scores.append(scores_of(own, items))
        missing += sum(item not in own for item in items)
        total += len(items)
    if missing:
        logger.warning(
            "%s: %d of %d candidates have no score; they rank last, tied. Score all of them for a fair comparison.",
            path,
            missing,
            total,
        )
    return RankingResult.of(name, dataset, scores)


def read_scores(path: str | Path) -> dict[str, dict[str, float]]:
    """Read a score file: the score of each item, by user.

    Args:
        path: See [`rank_by_file`].

    Raises:
        ValueError: As in [`rank_by_file`].

    Example:
        >>> read_scores("scores.parquet")["u1"]  # doctest: +SKIP
        {'a': 0.1, 'b': 0.7}
    """
    frame = read_pairs(path, ["user", "item", "score"], holds="scores")
    row = first_row(frame.select("user", "item").is_duplicated())
    if row is not None:
        user, item = frame["user"][row], frame["item"][row]
        raise ValueError(
            f"{path}, row {row}: user {user!r} and item {item!r} are listed more than once. Keep one row."
        )
    return {
        user: dict(zip(items, scores, strict=True))
        for user, items, scores in frame.group_by("user").agg("item", "score").iter_rows()
    }


def scores_of(own: Mapping[str, float], items: Sequence[str]) -> np.ndarray:
    """Return a user's score of each item, (items,); of those without one, the same score below all that there are.

    It is as far below the user's lowest score as that is below the highest, whatever the unit of the scores: what is
    made of them does not change where all are multiplied by a number.

    Args:
        own: The user's scores by item, at least one.
        items: The items.

    Example:
        >>> scores_of({"a": 0.25, "b": 0.75}, ["b", "c"])
        array([ 0.75, -0.25])
    """
    lowest = min(own.values())
    spread = max(own.values()) - lowest or abs(lowest) or 1.0
    return np.array([own.get(item, lowest - spread) for item in items], dtype=float)
