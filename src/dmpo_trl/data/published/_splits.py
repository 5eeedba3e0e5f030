"""Splits as papers publish them: what their readers share."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from .._files import POLARS_ERRORS, has_half_characters, open_binary
from ..interactions import Interactions
from ..readers._text import read_text, shown

logger = logging.getLogger(__name__)


class PublishedSplits(NamedTuple):
    """Splits as they were published, so that results can be compared.

    Attributes:
        interactions: Histories and targets put together, each user's items in order (`order="position"`).
        examples: The rows of each part in their published order. Columns `user`, `history`, `target` and, where they
            were published, `negatives`; each reader says what else it keeps.

    Example:
        >>> examples = pl.DataFrame({"user": ["ann"], "history": [["Alien"]], "target": ["Babe"]})
        >>> items = pl.DataFrame({"item": ["Alien", "Babe"], "title": ["Alien", "Babe"]})
        >>> splits = assemble({"test": examples}, items, files=[])
        >>> splits.interactions.interactions.rows()
        [('ann', 'Alien', 0), ('ann', 'Babe', 1)]
    """

    interactions: Interactions
    examples: dict[str, pl.DataFrame]


def number_users(examples: pl.DataFrame, part: str) -> pl.DataFrame:
    """Add `user`, `"{part}-0"`, `"{part}-1"`, ..., to rows that hold the prefixes of one user after the other."""
    window = pl.col("history").list.len().max()
    expected = pl.concat_list("history", "target").list.tail(window).shift()
    goes_on = (pl.col("history").list.len() > 0) & (pl.col("history") == expected).fill_null(False)
    return examples.select(pl.format("{}-{}", pl.lit(part), (~goes_on).cum_sum() - 1).alias("user"), pl.all())


def items_by_title(examples: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Return every title in the examples as an item, its identifier the title itself."""
    columns = [
        frame.select(pl.concat_list("history", "target", "negatives").explode().alias("item")) for frame in examples
    ]
    return pl.concat(columns).unique(maintain_order=True).with_columns(title="item")


def assemble(
    examples: dict[str, pl.DataFrame],
    items: pl.DataFrame,
    *,
    files: Iterable[str],
    dropped: Mapping[str, int] | None = None,
) -> PublishedSplits:
    """Add the interactions: each user's items in the order in which histories and targets name them."""
    had = pl.concat(frame.select("user", item=pl.concat_list("history", "target")) for frame in examples.values())
    interactions = (
        had.explode("item")
        .unique(["user", "item"], keep="last", maintain_order=True)  # the latest stays, as in Interactions.from_raw
        .with_columns(timestamp=pl.int_range(pl.len()).over("user"))
    )
    logger.info("Read %s", ", ".join(f"{part}: {frame.height} examples" for part, frame in examples.items()))
    return PublishedSplits(
        Interactions.from_raw(interactions, items, dropped=dropped, order="position", files=tuple(files), tidy=False),
        examples,
    )


def one_item_per_title(examples: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    """Replace items that share a title by the first of them, as `Interactions.from_raw` does."""
    first = items.select("item", first=pl.col("item").first().over("title")).filter(pl.col("item") != pl.col("first"))
    return examples.with_columns(
        pl.col("history").list.eval(pl.element().replace(first["item"], first["first"])),
        pl.col("target").replace(first["item"], first["first"]),
    )


def read_csv(path: Path, columns: list[str]) -> pl.DataFrame:
    """Read columns of a published CSV file as text, plain or compressed.

    Raises:
        ValueError: Where a column is missing, or a line is not in the format.
    """

    def check(there: list[str]) -> None:
        if missing := [name for name in columns if name not in there]:
            raise ValueError(f"{path}: the columns {missing} are missing; the first line names {shown(there)}.")

    return read_text(path, columns, check, separator=",", encoding=None, published=True)


def load_json(path: Path) -> Any:
    """Read one JSON value, plain or compressed.

    Raises:
        ValueError: Where the file holds something else.
    """
    with open_binary(path, lines=False) as file:
        try:
            value = json.load(file)
        except RecursionError as error:
            raise ValueError(f"{path} nests too deeply for data.") from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not one JSON value in UTF-8: {error}.") from error
    if has_half_characters(value):
        raise ValueError(f"{path} holds half of a character (a lone surrogate). Correct or remove it.")
    return value


def read_json(path: Path) -> list[dict[str, Any]]:
    """Read a JSON list of objects, plain or compressed.

    Raises:
        ValueError: Where the file holds something else.
    """
    rows = load_json(path)
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} must hold a list of objects.")
    return rows


def frame_of(rows: list[dict[str, Any]], path: str | Path) -> pl.DataFrame:
    """Return objects as a table.

    Raises:
        ValueError: Where a field has values of several types.
    """
    try:
        return pl.DataFrame(rows, infer_schema_length=None)
    except (*POLARS_ERRORS, TypeError, OverflowError) as error:
        raise ValueError(f"{path}: the objects are not of one form: {str(error)[:200]}.") from error
