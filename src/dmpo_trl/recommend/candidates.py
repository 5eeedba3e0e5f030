"""Candidates: the few hundred items of a cheaper ranker that the model then puts in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from ..evaluation.parquet_file import first_row, read_pairs
from ..writing import sha256
from .catalogue import Catalogue
from .prior import Prior

Propose = Callable[[str | None, Sequence[str], Sequence[str]], Sequence[str]]
"""Items from the best on, given the user (None where there is no name), the history, and all that may come out."""


def _anybody(user: str | None) -> None:
    """Accept any user."""


@dataclass(frozen=True)
class Candidates:
    """Retrieval before ranking: which items of the catalogue the model scores for a user.

    [`Recommender.recommend`] with candidates scores each of them exactly, with no search; what is not among them
    cannot come out. Of what is proposed, the user's history and everything else that is excluded are left out first.

    Args:
        name: Its name in messages.
        propose: Returns items of the catalogue for a user, the best first.
        per_user: Most candidates of a user: the first ones that may come out.
        version: Another text where others are proposed: `recommend_all` continues an interrupted run only with the
            same.
        check: Raises a `ValueError` for a user for whom nothing can be proposed, before anything is scored.

    Raises:
        ValueError: `per_user` is below 1.

    Example:
        The 200 most similar items, of those that are equally similar the more popular ones:

        >>> candidates = Candidates.best_by(
        ...     Prior.item_knn(prepared.interactions), ties=Prior.popularity(counts), per_user=200
        ... )  # doctest: +SKIP
        >>> recommender.recommend(["Alien", "Heidi"], k=10, candidates=candidates)  # doctest: +SKIP
    """

    name: str
    propose: Propose
    per_user: int = 200
    version: str = ""
    check: Callable[[str | None], object] = _anybody

    def __post_init__(self) -> None:
        """Check the number."""
        if self.per_user < 1:
            raise ValueError(f"A user needs at least one candidate, `per_user` is {self.per_user}.")

    @classmethod
    def best_by(cls, prior: Prior, *, ties: Prior | None = None, per_user: int = 200) -> Candidates:
        """Propose what a prior scores highest: popularity, ItemKNN, or scores of your own.

        Args:
            prior: Scores every item of the catalogue.
            ties: Decides between items of the same score; between those that it cannot tell apart either, the order of
                the catalogue does.
            per_user: See the class.

        Raises:
            ValueError: When something is proposed: one of both returns another number of scores, or one that is not
                finite.

        Example:
            >>> candidates = Candidates.best_by(Prior.popularity({"1": 5, "2": 7, "3": 6}), per_user=2)
            >>> candidates.propose(None, [], ["1", "2", "3"])
            ['2', '3']
        """

        def propose(user: str | None, history: Sequence[str], items: Sequence[str]) -> list[str]:
            keys = [-own.scores(user, history, items) for own in (ties, prior) if own is not None]
            return [items[place] for place in np.lexsort(keys)[:per_user]]

        version = "; ".join(f"{own.name} {own.version}" for own in (prior, ties) if own is not None)
        return cls(prior.name, propose, per_user, version, prior.check)

    @classmethod
    def of_file(cls, path: str | Path, items: pl.DataFrame, *, per_user: int = 200) -> Candidates:
        """Propose what a file lists, whatever wrote it.

        Args:
            path: A Parquet file of columns `user` and `item` (an id or a title of the catalogue), in any order of the
                users. Where there is a column `score`, the highest comes first, else the order is the file's.
            items: The catalogue, as [`Recommender`] takes it.
            per_user: See the class.

        Raises:
            ValueError: The file is not Parquet or lacks a column, a row has no user, no item, no finite score (nor a
                whole number of 2^53 or more), an item that the catalogue does not have, or one that the user has in
                another row; the message names the row.

        Example:
            >>> Candidates.of_file("candidates.parquet", prepared.items)  # doctest: +SKIP
        """
        catalogue, frame = Catalogue(items), read_pairs(path, ["user", "item"], holds="candidates")
        rows = frame["item"].replace_strict(_row_of(frame["item"], catalogue, path), return_dtype=pl.Int32)
        frame = frame.with_columns(item=rows, row=pl.int_range(pl.len()))
        row = first_row(frame.select("user", "item").is_duplicated())
        if row is not None:
            user, item = frame["user"][row], catalogue.items[frame["item"][row]]
            raise ValueError(f"{path}, row {row}: user {user!r} has the item {item!r} in several rows. Keep one.")
        order = [pl.col("score").neg()] if "score" in frame.columns else []
        frame = frame.sort("user", *order, "row")
        listed = frame["item"].to_numpy()
        users = frame["user"].rle().struct.unnest() if frame.height else pl.DataFrame({"len": [], "value": []})
        ends = users["len"].cast(pl.Int64).cum_sum().to_list()
        places = dict(zip(users["value"], zip([0, *ends[:-1]], ends, strict=True), strict=True)) if ends else {}

        def check(user: str | None) -> None:
            if user is None:
                raise ValueError(f"{path} has candidates by user: say which user it is, not only the history.")
            if user not in places:
                raise ValueError(f"{path} has no candidates of user {user!r}. Add some, or leave the user out.")

        def propose(user: str | None, history: Sequence[str], items: Sequence[str]) -> list[str]:
            return [catalogue.items[row] for row in listed[slice(*places[str(user)])]]

        return cls(str(path), propose, per_user, sha256(Path(path)), check)

    def describe(self) -> list[str | int]:
        """Return what a user's candidates depend on."""
        return [self.name, self.version, self.per_user]

    def rows(
        self, catalogue: Catalogue, history: Sequence[int], excluded: Iterable[int], user: str | None
    ) -> list[int]:
        """Return the rows of a user's candidates, best first, without what is excluded.

        Args:
            catalogue: The catalogue.
            history: Rows of the user's items.
            excluded: Rows that must not come out.
            user: The user's name, where there is one.

        Raises:
            ValueError: Something is proposed that is not in the catalogue.
        """
        self.check(user)
        excluded = frozenset(excluded)
        left = [item for row, item in enumerate(catalogue.items) if row not in excluded]
        proposed = self.propose(user, [catalogue.items[row] for row in history], left)
        rows = dict.fromkeys(catalogue.rows(proposed, f"candidates of {self.name}"))
        return [row for row in rows if row not in excluded][: self.per_user]


def _row_of(entries: pl.Series, catalogue: Catalogue, path: str | Path) -> dict[str, int]:
    """Return the row of the catalogue for each distinct entry of a file."""
    found = {}
    for entry in entries.unique(maintain_order=True):
        try:
            (found[entry],) = catalogue.rows([entry], "item")
        except ValueError as error:
            row = first_row(entries == entry)
            raise ValueError(f"{path}, row {row}: {error} Correct it, or take the row out.") from error
    return found
