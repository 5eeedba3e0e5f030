"""What a ranker made of every user's candidates: scores, from which all metrics follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from sys import intern

import numpy as np
import polars as pl

from .metrics import (
    METRICS,
    POOLED_AUC,
    Difference,
    Interval,
    Ranks,
    bootstrap_mean,
    bootstrap_pooled_auc,
    paired_difference,
    per_user,
    pooled_auc,
)


@dataclass(frozen=True)
class RankingResult:
    """One ranker's scores for the candidates of every user.

    Args:
        name: of the ranker.
        users: their identifiers, in the order of the other fields.
        scores: a score a candidate, the higher the better, (candidates,) for each user.
        positives: index of the relevant candidate of each user.
        items: identifiers of the candidates of each user.
    """

    name: str
    users: list[str]
    scores: list[np.ndarray]
    positives: list[int]
    items: list[list[str]]

    @property
    def ranks(self) -> Ranks:
        """Where the relevant candidates stand."""
        return Ranks.from_scores(self.scores, self.positives)

    def per_user(self, metric: str) -> np.ndarray:
        """The metric's value of each user, (U,)."""
        return per_user(self.ranks, metric)

    def metrics(self, names: Sequence[str] = METRICS) -> dict[str, float]:
        """The metrics by name: means over the users, and `pooled_auc`."""
        ranks = self.ranks
        return {
            name: pooled_auc(self.scores, self.positives)
            if name == POOLED_AUC
            else float(per_user(ranks, name).mean())
            for name in names
        }

    def intervals(self, names: Sequence[str] = METRICS, *, confidence: float = 0.95) -> dict[str, Interval]:
        """The metrics by name with bootstrap confidence intervals over the users."""
        return {
            name: bootstrap_pooled_auc(self.scores, self.positives, confidence=confidence)
            if name == POOLED_AUC
            else bootstrap_mean(self.per_user(name), confidence=confidence)
            for name in names
        }

    def minus(
        self, other: RankingResult, names: Sequence[str] = METRICS, *, confidence: float = 0.95
    ) -> dict[str, Difference]:
        """Mean differences to another ranker, with paired bootstrap interval and permutation test, by metric.

        Raises:
            ValueError: where the other ranker ranked other users or other candidates.
        """
        if self.users != other.users:
            raise ValueError(
                f"{self.name} and {other.name} ranked different users; a paired difference needs the same"
            )
        for user, ours, theirs in zip(self.users, self._questions(), other._questions(), strict=True):
            if ours != theirs:
                raise ValueError(
                    f"{self.name} and {other.name} ranked different candidates of user {user}; a paired difference "
                    "needs the same"
                )
        return {
            name: paired_difference(self.per_user(name), other.per_user(name), confidence=confidence) for name in names
        }

    def _questions(self) -> list[tuple[str, set[str]]]:
        return [(items[positive], set(items)) for items, positive in zip(self.items, self.positives, strict=True)]

    def to_parquet(self, path: str | Path) -> None:
        """Writes a row a user: `ranker`, `user`, `positive`, `items`, `scores` and the value of each metric.

        Args:
            path: of the file; its folder is made where there is none.
        """
        ranks = self.ranks
        frame = pl.DataFrame(
            {
                "ranker": [self.name] * len(self.users),
                "user": self.users,
                "positive": self.positives,
                "items": self.items,
                "scores": [own.tolist() for own in self.scores],
                **{name: per_user(ranks, name) for name in METRICS},
            }
        )
        frame.write_parquet(path, mkdir=True)

    @classmethod
    def from_parquet(cls, path: str | Path) -> RankingResult:
        """Reads what [`to_parquet`] wrote.

        Raises:
            ValueError: where the file holds something else.
        """
        frame = pl.read_parquet(path)
        if missing := {"ranker", "user", "positive", "items", "scores"} - set(frame.columns):
            raise ValueError(f"{path} is no ranking: it has no column {sorted(missing)}")
        if frame["ranker"].n_unique() != 1:
            raise ValueError(
                f"{path} holds {frame['ranker'].n_unique()} rankers, not one: {sorted(set(frame['ranker']))}"
            )
        return cls(
            frame["ranker"][0],
            frame["user"].to_list(),
            [own.to_numpy() for own in frame["scores"]],
            frame["positive"].to_list(),
            interned(frame["items"]),
        )


def interned(items: Sequence[Sequence[str]] | pl.Series) -> list[list[str]]:
    """Lists of identifiers in which equal ones are one object: a catalogue a user would otherwise fill the memory."""
    return [[intern(item) for item in own] for own in items]
