"""LLaRA's and NAPO's splits (arXiv 2312.02445, arXiv 2508.09653): JSON lines of item numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from .._files import POLARS_ERRORS, check_packed, open_binary
from .._sources import open_source
from ..readers import natural_title
from ..readers.movielens import read_movies
from ._splits import PublishedSplits, assemble, number_users, one_item_per_title

_FILES = {"train": "train_data", "validation": "Val_data", "test": "Test_data"}


def read_llara(path: str | Path, *, variant: str | None = None, names: str = "id2name.txt") -> PublishedSplits:
    """Read the JSON lines of LLaRA (arXiv 2312.02445) and NAPO (arXiv 2508.09653).

    `train_data.jsonl`, `Val_data.jsonl` and `Test_data.jsonl` hold `seq` (item numbers, filled up with the number of
    items), `len_seq` and `next`; a file of `id::name` lines holds the titles. All may be packed (`.gz`). No
    candidates were published.

    In LLaRA's MovieLens files an item is a pair of its number and its rating, which is left out. Their titles are in
    MovieLens 100K's own `u.item`, whose numbers are larger by one; it is read where there is no `id2name.txt`.

    A row whose history is the row before with its target behind it, cut to the longest history of the file, goes on
    with the same user; any other row starts the next one. Users are `"train-0"`, `"train-1"`, ...

    Args:
        path: Folder or archive.
        variant: Which of `Val_data.{variant}.jsonl` and `Test_data.{variant}.jsonl` to read. Needed only where several
            lie together. Variants may share one `train_data.jsonl`.
        names: The file with the titles. Without it, `u.item` of MovieLens 100K.

    Returns:
        Parts `train`, `validation` and `test`, as far as they exist. Every published row is kept, those with an empty
        history too: LLaRA and S-DPO use the rows with at least 3 items in the history.

    Raises:
        FileNotFoundError: Without titles or without any part.
        ValueError: Where several variants exist and none is named, the one that is named does not exist, or a row is
            not in the format.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> folder = TemporaryDirectory()
        >>> _ = Path(folder.name, "id2name.txt").write_text("0::Moby\\n1::Air\\n")
        >>> _ = Path(folder.name, "Test_data.jsonl").write_text('{"seq": [0, 2], "len_seq": 1, "next": 1}')
        >>> read_llara(folder.name).examples["test"].rows()
        [('test-0', ['0'], '1')]
        >>> folder.cleanup()
    """
    examples = {}
    with open_source(path) as files:
        films = None if files.find(names) else files.find("u.item")
        items = _numbered_from_zero(films) if films else _read_names(files.need(names))
        found = {part: _of_variant(files.names, stem, variant) for part, stem in _FILES.items()}
        parts = {part: name for part, name in found.items() if name}
        if not parts:
            files.need(*(f"{stem}.jsonl" for stem in _FILES.values()))
        if variant is not None and not any(name.endswith(f".{variant}.jsonl") for name in parts.values()):
            raise ValueError(f"There is no file of variant {variant!r}, only {', '.join(parts.values())}.")
        for part, name in parts.items():
            frame = number_users(_read_sequences(files.need(name), items["item"]), part)
            examples[part] = one_item_per_title(frame, items)
        return assemble(examples, items, files=files.used)


def _of_variant(names: Iterable[str], stem: str, variant: str | None) -> str | None:
    """Return the name of the variant's file, `stem.{variant}.jsonl`; without a variant that of the only file."""
    matches = (re.fullmatch(rf"({stem}(?:\.(\w+))?\.jsonl)(?:\.gz)?", name) for name in names)
    by_variant = {match[2]: match[1] for match in matches if match}
    if variant in by_variant:
        return by_variant[variant]
    if variant is not None and by_variant:
        if stem == _FILES["train"] and None in by_variant:
            return by_variant[None]
        there = ", ".join(by_variant.values())
        raise ValueError(f"There is no {stem}.{variant}.jsonl, the variant {variant!r}, only {there}.")
    if len(by_variant) > 1:
        variants = ", ".join(map(repr, by_variant))
        raise ValueError(f"There are {', '.join(by_variant.values())}; choose with variant: {variants}.")
    return next(iter(by_variant.values()), None)


def _read_names(path: Path) -> pl.DataFrame:
    with open_binary(path) as file:
        pairs = []
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: the text is not UTF-8. Save the file as UTF-8.") from error
            item, separator, title = text.partition("::")
            # Numbers of more digits are no places in a list, nor 64-bit integers
            if text and not (separator and item.isdecimal() and item.isascii() and len(item) <= 18):
                raise ValueError(f"{path}, line {number}: expected id::name, the line is {text[:80]!r}.")
            if text:
                pairs.append((item, title))
    return pl.DataFrame(pairs, schema={"item": pl.String, "title": pl.String}, orient="row")


def _numbered_from_zero(path: Path) -> pl.DataFrame:
    """Read the films of MovieLens 100K as LLaRA numbers them, from 0 on instead of 1."""
    films = read_movies(path)
    number = pl.col("item").cast(pl.Int64, strict=False) - 1
    title = pl.col("title").map_elements(natural_title, return_dtype=pl.String)
    return films.select(number.cast(pl.String).alias("item"), title)


def _read_sequences(path: Path, items: pl.Series) -> pl.DataFrame:
    check_packed(path)
    raw = _parsed(path, pl.Int64)
    if raw is None and (rated := _parsed(path, pl.List(pl.Int64))) is not None:
        # With ratings, a row has pairs of an item and its rating
        item = pl.element().list.get(0, null_on_oob=True)
        raw = rated.with_columns(pl.col("seq").list.eval(item), pl.col("next").list.get(0, null_on_oob=True))
    if raw is None:
        raise ValueError(
            f"{path}{_wrong_line(path)} must hold JSON lines with seq (items, or pairs of an item and its rating), "
            "len_seq and next."
        )
    frame = raw.with_row_index("row")
    # An empty history is published with len_seq 1
    length = pl.col("history").list.len()
    frame = frame.with_columns(history=pl.col("seq").list.eval(pl.element().filter(pl.element() != len(items))))
    known = items.cast(pl.Int64).implode()
    fits = (pl.max_horizontal(length, 1) == pl.col("len_seq")) & pl.concat_list("history", "next").list.eval(
        pl.element().is_in(known)
    ).list.all()
    wrong = frame.filter(~fits.fill_null(False))
    if not wrong.is_empty():
        row = wrong.row(0, named=True)
        raise ValueError(
            f"{path}, row {row['row']}: seq {str(row['seq'])[:300]} with next {row['next']} does not fit len_seq "
            f"{row['len_seq']} and the {len(items)} names; is it the file of names that belongs to it?"
        )
    return frame.select(pl.col("history").cast(pl.List(pl.String)), target=pl.col("next").cast(pl.String))


def _parsed(path: Path, item: pl.DataType | type[pl.DataType]) -> pl.DataFrame | None:
    """Return the lines, if items are written in this type."""
    try:
        return pl.read_ndjson(path, schema={"seq": pl.List(item), "len_seq": pl.Int64, "next": item})
    except POLARS_ERRORS:
        return None


def _wrong_line(path: Path) -> str:
    """Return the first line that is not a JSON object with the three fields, and why."""
    with open_binary(path) as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line) if line.strip() else {"seq": [], "len_seq": 1, "next": 0}
            except (ValueError, RecursionError) as error:
                return f", line {number} is not JSON in UTF-8 ({error}): {line[:80]!r}. The file"
            if not isinstance(row, dict) or not {"seq", "len_seq", "next"} <= row.keys():
                return f", line {number} is {line[:80]!r}. The file"
    return ""
