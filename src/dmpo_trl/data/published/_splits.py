"""Splits as papers publish them: what their readers share, and the one for LLaRA and NAPO."""

from __future__ import annotations

import gzip
import json
import logging
import lzma
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from .._sources import open_source
from ..interactions import Interactions

logger = logging.getLogger(__name__)

_OPENERS = {".xz": lzma.open, ".gz": gzip.open}
_FILES = {"train": "train_data", "validation": "Val_data", "test": "Test_data"}


class PublishedSplits(NamedTuple):
    """Splits as they were published, so that results can be compared.

    Attributes:
        interactions: histories and targets put together, each user's items in order (`order="position"`).
        examples: the rows of each part in their published order. Columns `user`, `history`, `target` and, where they
            were published, `negatives`; each reader says what else it keeps.
    """

    interactions: Interactions
    examples: dict[str, pl.DataFrame]


def read_llara(path: str | Path, *, variant: str | None = None, names: str = "id2name.txt") -> PublishedSplits:
    """Reads the JSON lines of LLaRA (arXiv 2312.02445) and NAPO (arXiv 2508.09653).

    `train_data.jsonl`, `Val_data.jsonl` and `Test_data.jsonl` hold `seq` (item numbers, filled up with the number of
    items), `len_seq` and `next`; a file of `id::name` lines holds the titles. No candidates were published.

    A row whose history is the row before with its target behind it, cut to the longest history of the file, goes on
    with the same user; any other row starts the next one. Users are `"train-0"`, `"train-1"`, ...

    Args:
        path: folder or archive.
        variant: reads `Val_data.{variant}.jsonl` and `Test_data.{variant}.jsonl`. Needed only where several lie
            together.
        names: the file with the titles.

    Returns:
        Parts `train`, `validation` and `test`, as far as they exist. Every published row is kept, those with an empty
        history too: LLaRA and S-DPO use the rows with at least 3 items in the history.

    Raises:
        FileNotFoundError: without titles or without any part.
        ValueError: where several variants exist and none is named, or a row is not in the format.
    """
    examples = {}
    with open_source(path) as files:
        items = _read_names(files.need(names))
        for part, stem in _FILES.items():
            name = _of_variant(files.names, stem, variant)
            if name:
                frame = number_users(_read_sequences(files.need(name), items["item"]), part)
                examples[part] = _one_item_a_title(frame, items)
        if not examples:
            files.need(*(f"{stem}.jsonl" for stem in _FILES.values()))
        return assemble(examples, items, files=files.used)


def number_users(examples: pl.DataFrame, part: str) -> pl.DataFrame:
    """Adds `user`, `"{part}-0"`, `"{part}-1"`, ..., to rows that hold the prefixes of one user after the other."""
    window = pl.col("history").list.len().max()
    expected = pl.concat_list("history", "target").list.tail(window).shift()
    goes_on = (pl.col("history").list.len() > 0) & (pl.col("history") == expected).fill_null(False)
    return examples.select(pl.format("{}-{}", pl.lit(part), (~goes_on).cum_sum() - 1).alias("user"), pl.all())


def items_by_title(examples: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Every title in the examples as an item, its identifier the title itself."""
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
    """Adds the interactions: each user's items in the order in which histories and targets name them."""
    had = pl.concat(frame.select("user", item=pl.concat_list("history", "target")) for frame in examples.values())
    interactions = (
        had.explode("item")
        .unique(["user", "item"], keep="last", maintain_order=True)  # the latest stays, as in Interactions.from_raw
        .with_columns(timestamp=pl.int_range(pl.len()).over("user"))
    )
    logger.info("Read %s", ", ".join(f"{part}: {frame.height} examples" for part, frame in examples.items()))
    return PublishedSplits(
        Interactions.from_raw(interactions, items, dropped=dropped, order="position", files=tuple(files)), examples
    )


def read_json(path: Path) -> list[dict[str, Any]]:
    """A JSON list of objects, plain or compressed.

    Raises:
        ValueError: where the file holds something else.
    """
    with _OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8") as file:  # type: ignore[operator]
        try:
            rows = json.load(file)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not one JSON value: {error}") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} must hold a list of objects")
    return rows


def _of_variant(names: Iterable[str], stem: str, variant: str | None) -> str | None:
    """The file `stem.jsonl` or `stem.{variant}.jsonl`; where there is only one of them, that one."""
    matches = [match for name in names if (match := re.fullmatch(rf"{stem}(?:\.(\w+))?\.jsonl", name))]
    chosen = [match for match in matches if match[1] == variant] or matches
    if len(chosen) > 1:
        variants = ", ".join(repr(match[1]) for match in matches)
        raise ValueError(f"There are {', '.join(match[0] for match in matches)}; choose with variant: {variants}")
    return chosen[0][0] if chosen else None


def _read_names(path: Path) -> pl.DataFrame:
    lines = path.read_text(encoding="utf-8").split("\n")
    pairs = [line.rstrip("\r").split("::", 1) for line in lines if line]
    if bad := [number for number, pair in enumerate(pairs, start=1) if len(pair) != 2 or not pair[0].isdecimal()]:
        raise ValueError(f"{path}, line {bad[0]}: expected id::name")
    return pl.DataFrame(pairs, schema={"item": pl.String, "title": pl.String}, orient="row")


def _read_sequences(path: Path, items: pl.Series) -> pl.DataFrame:
    try:
        raw = pl.read_ndjson(path, schema={"seq": pl.List(pl.Int64), "len_seq": pl.Int64, "next": pl.Int64})
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path} must hold JSON lines with seq, len_seq and next: {error}") from error
    # An empty history is published with len_seq 1
    length = pl.col("history").list.len()
    frame = raw.with_row_index("row").with_columns(
        history=pl.col("seq").list.eval(pl.element().filter(pl.element() != len(items)))
    )
    known = items.cast(pl.Int64).implode()
    wrong = frame.filter(
        (pl.max_horizontal(length, 1) != pl.col("len_seq"))
        | ~pl.concat_list("history", "next").list.eval(pl.element().is_in(known)).list.all()
    )
    if not wrong.is_empty():
        first = wrong.row(0, named=True)
        raise ValueError(
            f"{path}, row {first['row']}: seq {first['seq']} with next {first['next']} does not fit len_seq "
            f"{first['len_seq']} and the {len(items)} names; is it the file of names that belongs to it?"
        )
    return frame.select(pl.col("history").cast(pl.List(pl.String)), target=pl.col("next").cast(pl.String))


def _one_item_a_title(examples: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    """Of items that share a title the first, as `Interactions.from_raw` keeps it."""
    first = items.select("item", first=pl.col("item").first().over("title")).filter(pl.col("item") != pl.col("first"))
    return examples.with_columns(
        pl.col("history").list.eval(pl.element().replace(first["item"], first["first"])),
        pl.col("target").replace(first["item"], first["first"]),
    )
