"""Who had what, and when: the one form that every reader of raw files returns."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import polars as pl

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Interactions:
    """Interactions of users with items, and the items' titles.

    Two invariants make everything after this point simple: a user has an item at most once, and no two items share a
    title, because a language model knows an item by nothing else. [`Interactions.from_raw`] turns the rows of raw
    files into such tables; the constructor only checks.

    Args:
        interactions: one row for each item that a user had. Columns `user` (String), `item` (String), `timestamp` (any
            numeric type, any unit) and, where the source has it, `rating` (numeric). Order within a user is by
            `timestamp`; equal timestamps keep the order of the rows.
        items: one row an item. Columns `item` (String), `title` (String), any others are kept as they are.
        dropped: rows that the reader left out, counted by reason.

    Raises:
        ValueError: for a column that is missing or of another type, a null, a repeated user-item pair, item or title,
            and an interaction with an item that `items` does not hold.
    """

    interactions: pl.DataFrame
    items: pl.DataFrame
    dropped: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks the invariants."""
        _check_columns("interactions", self.interactions, text=("user", "item"), numeric=("timestamp",))
        if "rating" in self.interactions.columns:
            _check_columns("interactions", self.interactions, numeric=("rating",))
        _check_columns("items", self.items, text=("item", "title"))
        _check_unique("interactions", self.interactions, ["user", "item"])
        _check_unique("items", self.items, ["item"])
        _check_unique("items", self.items, ["title"])
        unknown = self.interactions.join(self.items, on="item", how="anti")["item"].unique(maintain_order=True)
        if len(unknown):
            raise ValueError(
                f"interactions: {len(unknown)} items are not in items, the first is {unknown[0]!r}. "
                "Interactions.from_raw(interactions, items) drops and counts them."
            )

    @classmethod
    def from_raw(cls, interactions: pl.DataFrame, items: pl.DataFrame) -> Interactions:
        """Makes the two tables clean, and counts and logs every row that it drops on the way.

        Rows with a null in a column that is needed go, and so do interactions with unknown items. Items with the same
        title become one item, under the identifier that comes first in `items`. Where a user then has an item several
        times, the latest interaction stays.

        Args:
            interactions: as in the constructor, but nulls, unknown items and repeated pairs are allowed.
            items: as in the constructor, but nulls, repeated items and repeated titles are allowed.

        Raises:
            ValueError: for a column that is missing or of another type, or where no interaction is left.
        """
        dropped: dict[str, int] = {}

        def keep(reason: str, before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
            if after.height < before.height:
                dropped[reason] = before.height - after.height
            return after

        _check_columns("interactions", interactions, text=("user", "item"), numeric=("timestamp",), nulls=True)
        _check_columns("items", items, text=("item", "title"), nulls=True)
        read = interactions.height, items.height

        needed = [name for name in ("user", "item", "timestamp", "rating") if name in interactions.columns]
        interactions = keep("interactions with an empty field", interactions, interactions.drop_nulls(needed))
        items = keep("items without a title", items, items.drop_nulls(["item", "title"]))
        items = keep("items listed twice", items, items.unique("item", keep="first", maintain_order=True))
        canonical = items.select("item", pl.col("item").first().over("title").alias("canonical"))
        items = keep(
            "items merged into another of the same title",
            items,
            items.unique("title", keep="first", maintain_order=True),
        )
        # Left joins that keep the rows' order: it decides between equal timestamps.
        interactions = interactions.join(canonical, on="item", how="left", maintain_order="left")
        interactions = keep("interactions with an unknown item", interactions, interactions.drop_nulls("canonical"))
        interactions = interactions.with_columns(item="canonical").drop("canonical")
        interactions = interactions.sort("timestamp", maintain_order=True)
        interactions = keep(
            "earlier interactions of a user with the same item",
            interactions,
            interactions.unique(["user", "item"], keep="last", maintain_order=True),
        )
        if interactions.is_empty():
            raise ValueError(f"No interaction is left of {read[0]} read. Dropped: {dropped}")
        logger.info("Read %d interactions and %d items; dropped: %s", *read, dropped or "nothing")
        return cls(interactions=interactions, items=items, dropped=dropped)

    def titles(self) -> dict[str, str]:
        """Title by item."""
        return dict(self.items.select("item", "title").iter_rows())


def _check_columns(
    table: str, frame: pl.DataFrame, text: tuple[str, ...] = (), numeric: tuple[str, ...] = (), nulls: bool = False
) -> None:
    for name in (*text, *numeric):
        if name not in frame.columns:
            raise ValueError(f"{table}: column {name!r} is missing; the columns are {frame.columns}")
        kind = frame.schema[name]
        if name in text and kind != pl.String:
            raise ValueError(f"{table}: column {name!r} must be text (String), it is {kind}; cast it")
        if name in numeric and not kind.is_numeric():
            raise ValueError(f"{table}: column {name!r} must be numeric, it is {kind}; cast it")
        if not nulls and (count := frame[name].null_count()):
            raise ValueError(
                f"{table}: column {name!r} has {count} nulls. Interactions.from_raw(...) drops and counts them."
            )


def _check_unique(table: str, frame: pl.DataFrame, columns: list[str]) -> None:
    repeated = frame.filter(frame.select(columns).is_duplicated())
    if not repeated.is_empty():
        example = repeated.select(columns).row(0, named=True)
        raise ValueError(
            f"{table}: {repeated.height} rows repeat another row's {' and '.join(columns)}, for example {example}. "
            "Interactions.from_raw(...) keeps one of them."
        )
