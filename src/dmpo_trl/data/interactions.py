"""Interactions of users with items: the one form that every reader of raw files returns."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from ._columns import above, blank_as_null, identifiers, numbers, positions
from ._words import counts_in_words
from .tidy import tidy_titles

logger = logging.getLogger(__name__)

ORDERS = ("time", "plays", "position")
_MISSING = ["NA", "N/A", "NaN", "nan", "null", "NULL", "None", "<NA>"]


@dataclass(frozen=True, repr=False)
class Interactions:
    """Interactions of users with items, and the items' titles.

    Two invariants make everything after this point simple: a user has an item at most once, and no two items share a
    title, because a language model knows an item by nothing else. [`Interactions.from_raw`] turns the rows of raw
    files into such tables; the constructor only checks, sorts the rows, and makes `user` and `item` Categorical: as
    codes, 25 million interactions take half a gigabyte.

    Args:
        interactions: One row for each item that a user had. Columns `user` and `item` (String or Categorical),
            `timestamp` (any numeric type, any unit) and, where the source has it, `rating` (numeric). The attribute
            has the rows sorted by `user` (as text) and `timestamp`; equal timestamps keep the order of the rows.
        items: One row per item. Columns `item` (String), `title` (String), any others are kept as they are.
        dropped: Rows that were left out, counted by reason.
        read: Rows read, `{"interactions": n, "items": m}`.
        order: What `timestamp` orders by: "time", or "plays" (the source has no times), or "position" (only the order
            is known).
        files: Paths of the files that were read.
        changed: Titles that were changed, counted by reason (see [`tidy_title`]).

    Raises:
        ValueError: For a column that is missing or of another type, a null, a blank text, a repeated user-item pair,
            item or title, an interaction with an item that `items` does not hold, and another `order`.

    Example:
        >>> interactions = pl.DataFrame({"user": ["ann", "ann"], "item": ["i1", "i2"], "timestamp": [20, 10]})
        >>> items = pl.DataFrame({"item": ["i1", "i2"], "title": ["Alien", "Babe"]})
        >>> data = Interactions(interactions, items)
        >>> data.interactions["item"].to_list()
        ['i2', 'i1']
        >>> data.titles()
        {'i1': 'Alien', 'i2': 'Babe'}
    """

    interactions: pl.DataFrame
    items: pl.DataFrame
    dropped: dict[str, int] = field(default_factory=dict)
    read: dict[str, int] = field(default_factory=dict)
    order: str = "time"
    files: tuple[str, ...] = ()
    changed: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the invariants and bring the interactions into their form."""
        if self.order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, it is {self.order!r}.")
        _check_columns("interactions", self.interactions, text=("user", "item"), numeric=("timestamp",))
        if "rating" in self.interactions.columns:
            _check_columns("interactions", self.interactions, numeric=("rating",))
        _check_columns("items", self.items, text=("item", "title"))
        _check_unique("items", self.items, ["item"])
        _check_unique("items", self.items, ["title"])
        interactions = _in_form(self.interactions)
        if _has_repeats(_pairs(interactions)):
            _check_unique("interactions", interactions, ["user", "item"])
        had = interactions.select(pl.col("item").unique(maintain_order=True).cast(pl.String))
        unknown = had.join(self.items, on="item", how="anti", maintain_order="left")["item"]
        if len(unknown):
            raise ValueError(
                f"interactions: {len(unknown)} items are not in items, the first is {unknown[0]!r}. "
                "Interactions.from_raw(interactions, items) drops and counts them."
            )
        object.__setattr__(self, "interactions", _sorted(interactions))

    @classmethod
    def from_raw(
        cls,
        interactions: pl.DataFrame,
        items: pl.DataFrame,
        *,
        dropped: Mapping[str, int] | None = None,
        order: str = "time",
        files: Iterable[str | Path] = (),
        read: Mapping[str, int] | None = None,
        tidy: bool = True,
    ) -> Interactions:
        """Clean the two tables, and count and log every row that is dropped, and every title changed, on the way.

        Rows with a null or a blank text in a column that is needed go, and so do interactions with unknown items.
        Items with the same title become one item, under the identifier that comes first in `items`. Where a user then
        has an item several times, the latest interaction stays.

        Args:
            interactions: As in the constructor, but nulls, unknown items and repeated pairs are allowed, and `user`
                and `item` may also be whole numbers of any type.
            items: As in the constructor, but nulls, repeated items and repeated titles are allowed, and `item` may
                also be whole numbers of any type.
            dropped: What the reader itself dropped before, by reason.
            order: As in the constructor.
            files: As in the constructor.
            read: As in the constructor; by default the heights of the two tables.
            tidy: Whether titles become what [`tidy_title`] makes of them; published splits keep theirs.

        Returns:
            The interactions; `dropped` has what was left out, `changed` what titles were changed.

        Raises:
            ValueError: For a column that is missing or of another type, or where no interaction is left.

        Example:
            >>> interactions = pl.DataFrame({"user": [7, 7, 7], "item": [1, 2, 3], "timestamp": [10, 20, 30]})
            >>> items = pl.DataFrame({"item": [1, 2, 3], "title": ["Alien", "Babe", None]})
            >>> Interactions.from_raw(interactions, items).dropped
            {'items without a title': 1, 'interactions with an unknown item': 1}
        """
        counts, files = dict(dropped or {}), tuple(files)

        def keep(reason: str, before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
            if after.height < before.height:
                counts[reason] = counts.get(reason, 0) + before.height - after.height
            return after

        _check_columns("interactions", interactions, "user", "item", numeric=("timestamp",), nulls=True)
        _check_columns("items", items, "item", text=("title",), nulls=True)
        interactions = _with_identifiers("interactions", interactions, "user", "item")
        items = _with_identifiers("items", items, "item").cast({"item": pl.String})
        given = items["title"].cast(pl.String)
        titles, changed = tidy_titles(given) if tidy else (given, {})
        items = items.with_columns(blank_as_null(titles), given.alias("_given"))
        read = dict(read or {"interactions": interactions.height, "items": items.height})

        needed = [name for name in ("user", "item", "timestamp", "rating") if name in interactions.columns]
        filled = interactions.drop_nulls(needed)
        interactions = keep("interactions with an empty or unreadable field", interactions, filled)
        floats = [pl.col(name).is_finite() for name in needed if interactions[name].dtype.is_float()]
        finite = interactions.filter(floats) if floats else interactions
        interactions = keep("interactions with a time or rating that is not a finite number", interactions, finite)
        items = keep("items without a title", items, items.drop_nulls(["item", "title"]))
        items = keep("items listed twice", items, items.unique("item", keep="first", maintain_order=True))
        listed = items.select("item", pl.col("item").first().over("title").alias("canonical"))
        items = keep(
            "items merged into another of the same title",
            items,
            items.unique("_given", keep="first", maintain_order=True),
        )
        distinct = items.unique("title", keep="first", maintain_order=True)
        _warn_of_merged(items)
        items = keep("items merged into another whose title looks the same", items, distinct).drop("_given")
        interactions = _in_form(interactions)
        place = positions(interactions["item"], listed["item"])
        unknown = ""
        if len(place) and place.min() < 0:
            known = pl.Series(place >= 0)
            first = interactions["item"].filter(~known)[0]
            unknown = f" The first unknown item is {first!r}, the first of the items {listed['item'].first()!r}."
            interactions = keep("interactions with an unknown item", interactions, interactions.filter(known))
            place = place[place >= 0]
        if len(items) < len(listed):
            interactions = interactions.with_columns(item=listed["canonical"].cast(pl.Categorical).gather(place))
        interactions = keep(
            "earlier interactions of a user with the same item", interactions, _latest_of_pairs(interactions)
        )
        if interactions.is_empty():
            of = f" of {', '.join(map(str, files))}" if files else ""
            raise ValueError(
                f"No interaction{of} is left of {read['interactions']} read. Dropped: {counts_in_words(counts)}."
                f"{unknown}"
            )
        used = interactions.height + counts.get("earlier interactions of a user with the same item", 0)
        if used < read["interactions"] / 2:
            logger.warning(
                "Most of the %d interactions read cannot be used, %d are left: is the file what the options say? "
                "Dropped: %s.%s",
                *(read["interactions"], interactions.height, counts_in_words(counts), unknown),
            )
        logger.info(
            "Read %s; dropped: %s; titles changed: %s.%s",
            *(*map(counts_in_words, (read, counts, changed)), unknown),
        )
        paths = tuple(map(str, files))
        return cls(interactions, items, dropped=counts, read=read, order=order, files=paths, changed=changed)

    def __repr__(self) -> str:
        """Return one line: how many interactions of how many users with how many items, and what they are in."""
        users = self.interactions["user"].n_unique()
        return (
            f"Interactions({self.interactions.height:,} interactions of {users:,} users with {self.items.height:,} "
            f"items, by {self.order}; {sum(self.dropped.values()):,} rows dropped)"
        )

    def titles(self) -> dict[str, str]:
        """Return the title of each item."""
        return dict(self.items.select("item", "title").iter_rows())


def _warn_of_merged(items: pl.DataFrame) -> None:
    """Name titles that differ in what cannot be seen: their items become one."""
    alike = items.group_by("title", maintain_order=True).agg("_given").filter(pl.col("_given").list.len() > 1)
    if alike.height:
        logger.warning(
            "%d titles are written in several ways that look the same, and their items become one: %s%s",
            alike.height,
            "; ".join(" and ".join(map(repr, ways)) for ways in alike["_given"].head(5).to_list()),
            "; ..." if alike.height > 5 else "",
        )


def _with_identifiers(table: str, frame: pl.DataFrame, *names: str) -> pl.DataFrame:
    columns = [identifiers(frame[name], f"{table}: column {name!r}") for name in names]
    for values in columns:
        if not values.dtype.is_integer():
            _warn_of_odd_identifiers(table, values.unique().cast(pl.String).drop_nulls())
    return frame.with_columns(columns)


def _warn_of_odd_identifiers(table: str, distinct: pl.Series) -> None:
    """Name identifiers that are perhaps none, or another's with white space around it: they are taken as they are."""
    stripped = distinct.str.strip_chars()
    for odd, problem in (
        (distinct.is_in(_MISSING), "is what programs write where there is none"),
        ((stripped != distinct) & stripped.is_in(distinct.implode()), "is another with white space around it"),
    ):
        if odd.any():
            logger.warning(
                "%s: the %s %r %s, and is taken for one of its own (%d such). Clean the table if it is not.",
                *(table, distinct.name, distinct.filter(odd).sort()[0], problem, odd.sum()),
            )


def _in_form(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(_categorical(frame["user"]), _categorical(frame["item"]), numbers(frame["timestamp"]))


def _categorical(values: pl.Series) -> pl.Series:
    if not values.dtype.is_integer():
        return values.cast(pl.Categorical)
    distinct = values.unique().to_numpy()
    low, high = (int(distinct.min()), int(distinct.max())) if len(distinct) else (0, 0)
    if high - low > 2 * len(values):
        return values.cast(pl.String).cast(pl.Categorical)
    # Text for each number once instead of for each row
    table = np.zeros(high - low + 1, np.uint32)
    table[above(distinct, low)] = np.arange(len(distinct))
    text = pl.Series(values.name, distinct).cast(pl.String).cast(pl.Categorical)
    return text.gather(table[above(values.to_numpy(), low)])


def _pairs(frame: pl.DataFrame) -> np.ndarray:
    """Return user and item as one number."""
    pairs = frame["user"].to_physical().to_numpy().astype(np.uint64) << np.uint64(32)
    pairs |= frame["item"].to_physical().to_numpy()
    return pairs


def _has_repeats(values: np.ndarray) -> bool:
    # Sorting is ten times faster than hashing and takes a fifth of its memory
    ordered = np.sort(values)
    return bool((ordered[1:] == ordered[:-1]).any())


def _latest_of_pairs(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the last row of each user-item pair by time, in the order of the rows."""
    pairs = _pairs(frame)
    if not _has_repeats(pairs):
        return frame
    order = np.lexsort((frame["timestamp"].to_numpy(), pairs))
    pairs = pairs[order]
    keep = np.zeros(frame.height, bool)
    keep[order[np.append(pairs[1:] != pairs[:-1], True)]] = True
    return frame.filter(pl.Series(keep))


def _sorted(frame: pl.DataFrame) -> pl.DataFrame:
    """Sort by user, as text because codes depend on what the process has read, and by time; ties stay in order."""
    users = frame["user"].unique().cast(pl.String).sort()
    rank, time = positions(frame["user"], users), frame["timestamp"].to_numpy()
    if np.where(rank[1:] == rank[:-1], time[1:] >= time[:-1], rank[1:] > rank[:-1]).all():
        return frame
    low, high = time.min(), time.max()
    if time.dtype.kind in "iu" and (span := int(high) - int(low) + 1) * len(users) < 2**63:
        # One number to sort by, four times as fast as two columns
        order = np.argsort(rank.astype(np.int64) * span + above(time, int(low)), kind="stable")
    else:
        order = np.lexsort((time, rank))
    return frame[pl.Series(order)]


def _check_columns(
    table: str,
    frame: pl.DataFrame,
    *names: str,
    text: tuple[str, ...] = (),
    numeric: tuple[str, ...] = (),
    nulls: bool = False,
) -> None:
    """Raise ValueError where a column is missing, of another type, or has nulls or blanks that are not allowed."""
    for name in (*names, *text, *numeric):
        if name not in frame.columns:
            raise ValueError(f"{table}: column {name!r} is missing; the columns are {frame.columns}.")
        kind = frame.schema[name]
        if name in text and not isinstance(kind, pl.String | pl.Categorical):
            raise ValueError(f"{table}: column {name!r} must be text (String), it is {kind}; cast it.")
        if name in numeric and not kind.is_numeric():
            raise ValueError(f"{table}: column {name!r} must be numeric, it is {kind}; cast it.")
        if nulls:
            continue
        values = blank_as_null(frame[name])
        absent, what = values.null_count(), "empty"
        if kind.is_float():
            absent, what = values.len() - int(values.is_finite().sum()), "empty or infinite"
        if absent:
            raise ValueError(
                f"{table}: column {name!r} has {absent} {what} values. Interactions.from_raw(...) drops and counts "
                "them."
            )


def _check_unique(table: str, frame: pl.DataFrame, columns: list[str]) -> None:
    repeated = frame.filter(frame.select(columns).is_duplicated())
    if not repeated.is_empty():
        example = repeated.select(columns).row(0, named=True)
        raise ValueError(
            f"{table}: {repeated.height} rows repeat another row's {' and '.join(columns)}, for example {example}. "
            "Interactions.from_raw(...) keeps one of them."
        )
