"""LLaRA's and NAPO's splits (arXiv 2312.02445, arXiv 2508.09653): JSON lines of item numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from .._sources import open_binary, open_source
from ._splits import PublishedSplits, assemble, number_users

_FILES = {"train": "train_data", "validation": "Val_data", "test": "Test_data"}


def read_llara(path: str | Path, *, variant: str | None = None, names: str = "id2name.txt") -> PublishedSplits:
    """Read the JSON lines of LLaRA (arXiv 2312.02445) and NAPO (arXiv 2508.09653).

    `train_data.jsonl`, `Val_data.jsonl` and `Test_data.jsonl` hold `seq` (item numbers, filled up with the number of
    items), `len_seq` and `next`; a file of `id::name` lines holds the titles. All may be packed (`.gz`). No
    candidates were published.

    A row whose history is the row before with its target behind it, cut to the longest history of the file, goes on
    with the same user; any other row starts the next one. Users are `"train-0"`, `"train-1"`, ...

    Args:
        path: Folder or archive.
        variant: Which of `Val_data.{variant}.jsonl` and `Test_data.{variant}.jsonl` to read. Needed only where several
            lie together. Variants may share one `train_data.jsonl`.
        names: The file with the titles.

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
        items = _read_names(files.need(names))
        found = {part: _of_variant(files.names, stem, variant) for part, stem in _FILES.items()}
        parts = {part: name for part, name in found.items() if name}
        if not parts:
            files.need(*(f"{stem}.jsonl" for stem in _FILES.values()))
        if variant is not None and not any(name.endswith(f".{variant}.jsonl") for name in parts.values()):
            raise ValueError(f"There is no file of variant {variant!r}, only {', '.join(parts.values())}.")
        for part, name in parts.items():
            frame = number_users(_read_sequences(files.need(name), items["item"]), part)
            examples[part] = _one_item_per_title(frame, items)
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
        lines = file.read().decode("utf-8").split("\n")
    pairs = [line.rstrip("\r").split("::", 1) for line in lines if line]
    if bad := [number for number, pair in enumerate(pairs, start=1) if len(pair) != 2 or not pair[0].isdecimal()]:
        raise ValueError(f"{path}, line {bad[0]}: expected id::name.")
    return pl.DataFrame(pairs, schema={"item": pl.String, "title": pl.String}, orient="row")


def _read_sequences(path: Path, items: pl.Series) -> pl.DataFrame:
    try:
        raw = pl.read_ndjson(path, schema={"seq": pl.List(pl.Int64), "len_seq": pl.Int64, "next": pl.Int64})
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path} must hold JSON lines with seq, len_seq and next: {error}.") from error
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


def _one_item_per_title(examples: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    """Replace items that share a title by the first of them, as `Interactions.from_raw` does."""
    first = items.select("item", first=pl.col("item").first().over("title")).filter(pl.col("item") != pl.col("first"))
    return examples.with_columns(
        pl.col("history").list.eval(pl.element().replace(first["item"], first["first"])),
        pl.col("target").replace(first["item"], first["first"]),
    )
