"""Ranking results: the scores of every user's candidates, from which all metrics follow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from sys import intern

import numpy as np
import polars as pl
from datasets import Dataset

from .intervals import Difference, Interval, bootstrap_mean, bootstrap_pooled_auc, paired_difference
from .metrics import METRICS, POOLED_AUC, Ranks, check_scores, per_user, pooled_auc
from .parquet_file import first_row, read_columns

_COLUMNS = {
    "ranker": pl.String,
    "positive": pl.Int64,
    "items": pl.List(pl.String),
    "scores": pl.List(pl.Float64),
}


@dataclass(frozen=True)
class RankingResult:
    """One ranker's scores for the candidates of every user.

    Args:
        name: Name of the ranker.
        users: Identifiers of the users, in the order of the other fields.
        scores: One score per candidate, the higher the better, (candidates,) for each user.
        positives: Index of the relevant candidate of each user.
        items: Identifiers of the candidates of each user.

    Raises:
        ValueError: The fields have different lengths, there are no users, a user's candidates cannot be ranked (see
            [`Ranks.from_scores`]), or one of them is listed twice.

    Example:
        Of two users, the model ranks one's relevant item first and the other's second.

        >>> users, items = ["u1", "u2"], [["a", "b", "c"], ["a", "d"]]
        >>> scores = [np.array([-1.0, -3.0, -2.0]), np.array([-1.0, -2.0])]
        >>> model = RankingResult("model", users, scores, positives=[0, 1], items=items)
        >>> model.metrics(["hr@1", "mrr", "auc"])
        {'hr@1': 0.5, 'mrr': 0.75, 'auc': 0.5}
        >>> model.per_user("mrr")
        array([1. , 0.5])
        >>> print(model.intervals(["mrr"])["mrr"])
        0.750 [0.500, 1.000]

        Another ranker of the same candidates is compared user by user:

        >>> reverse = RankingResult("reverse", users, [-own for own in scores], [0, 1], items)
        >>> model.minus(reverse, ["hr@1"])["hr@1"].mean
        0.0

        A file holds the whole result:

        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     model.to_parquet(f"{folder}/model.parquet")
        ...     RankingResult.from_parquet(f"{folder}/model.parquet").users
        ['u1', 'u2']
    """

    name: str
    users: list[str]
    scores: list[np.ndarray]
    positives: list[int]
    items: list[list[str]]

    def __post_init__(self) -> None:
        lengths = {field: len(getattr(self, field)) for field in ("users", "scores", "positives", "items")}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"{self.name}: each user needs one entry in each field; there are {lengths}.")
        check_scores(self.scores, self.positives, self.users)
        for user, values, own in zip(self.users, self.scores, self.items, strict=True):
            if len(values) != len(own):
                raise ValueError(f"User {user!r}: there are {len(values)} scores, but {len(own)} items.")
            if len(set(own)) < len(own):
                twice, times = Counter(own).most_common(1)[0]
                raise ValueError(
                    f"User {user!r}: the candidate {twice!r} is listed {times} times. Keep one, with its score."
                )

    @classmethod
    def of(cls, name: str, dataset: Dataset, scores: list[np.ndarray]) -> RankingResult:
        """Return the result of a ranker that scored the candidates of a dataset.

        Args:
            name: Name of the ranker.
            dataset: Columns of [`ranking_dataset`].
            scores: One score per candidate, (candidates,) for each row.

        Raises:
            ValueError: As in the class, or an item is not text.
        """
        return cls(name, dataset["user"][:], scores, dataset["positive"][:], interned(dataset["items"]))

    def of_rows(self, rows: Sequence[int] | np.ndarray) -> RankingResult:
        """Return the result of some of the users.

        Args:
            rows: Their numbers in the result's order, from 0.

        Raises:
            ValueError: There are none.
        """
        own = [int(row) for row in rows]
        fields = (self.users, self.scores, self.positives, self.items)
        return RankingResult(self.name, *([values[row] for row in own] for values in fields))  # type: ignore[arg-type]

    @cached_property
    def ranks(self) -> Ranks:
        """Positions of the relevant candidates."""
        return Ranks.from_scores(self.scores, self.positives)

    def per_user(self, metric: str) -> np.ndarray:
        """Return the metric's value for each user, (U,).

        Args:
            metric: `hr@k`, `recall@k`, `ndcg@k`, `mrr@k`, `mrr` or `auc`.

        Raises:
            ValueError: For any other name.
        """
        return per_user(self.ranks, metric)

    def metrics(self, names: Sequence[str] = METRICS) -> dict[str, float]:
        """Return means over the users.

        Args:
            names: Names of the metrics: as in `per_user`, or `pooled_auc`.

        Returns:
            The means by name, and the pooled AUC.

        Raises:
            ValueError: There is no metric of such a name.
        """
        return {
            name: pooled_auc(self.scores, self.positives) if name == POOLED_AUC else float(self.per_user(name).mean())
            for name in names
        }

    def intervals(self, names: Sequence[str] = METRICS, *, confidence: float = 0.95) -> dict[str, Interval]:
        """Return means with bootstrap confidence intervals over the users.

        Args:
            names: Names of the metrics: as in `per_user`, or `pooled_auc`.
            confidence: Confidence level of the intervals, between 0 and 1.

        Returns:
            The intervals by name.

        Raises:
            ValueError: There is no metric of such a name, there are fewer than two users, or the confidence level is
                not between 0 and 1.
        """
        return {
            name: bootstrap_pooled_auc(self.scores, self.positives, confidence=confidence)
            if name == POOLED_AUC
            else bootstrap_mean(self.per_user(name), confidence=confidence)
            for name in names
        }

    def minus(
        self, other: RankingResult, names: Sequence[str] = METRICS, *, confidence: float = 0.95
    ) -> dict[str, Difference]:
        """Return mean differences from another ranker, with paired bootstrap interval and permutation test.

        Args:
            other: The other ranker's result.
            names: Names of the metrics: as in `per_user`.
            confidence: Confidence level of the intervals, between 0 and 1.

        Returns:
            The differences by name.

        Raises:
            ValueError: The other ranker ranked other users or other candidates, there is no metric of such a name,
                there are fewer than two users, or the confidence level is not between 0 and 1.
        """
        if self.users != other.users:
            raise ValueError(
                f"{self.name} and {other.name} ranked different users; a paired difference needs the same."
            )
        for user, ours, theirs in zip(self.users, self._questions(), other._questions(), strict=True):
            if ours != theirs:
                raise ValueError(
                    f"{self.name} and {other.name} ranked different candidates of user {user}; a paired difference "
                    "needs the same."
                )
        return {
            name: paired_difference(self.per_user(name), other.per_user(name), confidence=confidence) for name in names
        }

    def _questions(self) -> Iterator[tuple[str, set[str]]]:
        """Yield each user's relevant item and candidates, one user at a time: the sets are large."""
        for items, positive in zip(self.items, self.positives, strict=True):
            yield items[positive], set(items)

    def to_parquet(self, path: str | Path) -> None:
        """Write one row per user: `ranker`, `user`, `positive`, `items`, `scores` and the value of each metric.

        Args:
            path: The file; its folder is created if needed.
        """
        frame = pl.DataFrame(
            {
                "ranker": [self.name] * len(self.users),
                "user": self.users,
                "positive": self.positives,
                "items": self.items,
                "scores": [own.astype(float).tolist() for own in self.scores],
                **{name: self.per_user(name) for name in METRICS},
            }
        )
        frame.write_parquet(path, mkdir=True)

    @classmethod
    def from_parquet(cls, path: str | Path) -> RankingResult:
        """Read a result that `to_parquet` wrote.

        Args:
            path: The file.

        Raises:
            ValueError: There is no such file, or it holds something else.
        """
        frame = read_columns(path, ["user", *_COLUMNS], holds="ranking")
        _check_columns(frame, path)
        if frame["ranker"].n_unique() != 1:
            raise ValueError(
                f"{path} holds {frame['ranker'].n_unique()} rankers instead of one: {sorted(set(frame['ranker']))}."
            )
        return cls(
            frame["ranker"][0],
            frame["user"].to_list(),
            [own.to_numpy() for own in frame["scores"]],
            frame["positive"].to_list(),
            interned(frame["items"]),
        )


def interned(items: Sequence[Sequence[str]] | pl.Series) -> list[list[str]]:
    """Return the lists with one object per identifier: whole catalogues of many users would fill the memory.

    Raises:
        ValueError: An identifier is not text; the message names its row.
    """
    return [_interned(row, own) for row, own in enumerate(items)]


def _interned(row: int, items: Sequence[str] | pl.Series) -> list[str]:
    try:
        return [intern(item) for item in items]
    except TypeError as error:
        raise ValueError(
            f"Row {row}: the candidates must be identifiers as text ({error}). Cast those of all rows."
        ) from error


def _check_columns(frame: pl.DataFrame, path: str | Path) -> None:
    """Check that a file holds what `to_parquet` writes."""
    for name, kind in _COLUMNS.items():
        if (found := frame.schema[name]) != kind:
            raise ValueError(f"{path} is not a ranking: its column {name!r} has {found} instead of {kind}.")
    in_lists = pl.col("items", "scores").list.eval(pl.element().is_null()).list.any()
    row = first_row(frame.select(pl.any_horizontal(pl.col("user", *_COLUMNS).is_null(), in_lists)).to_series())
    if row is not None:
        raise ValueError(f"{path}, row {row}: a value is missing. Write the ranking anew.")
