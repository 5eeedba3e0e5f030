"""MSL's, BEAR's and LBR's splits: sliding windows over Amazon's reviews, as CSV with lists of item numbers."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from .._sources import SourceFiles, open_source
from ._splits import PublishedSplits, assemble, load_json, one_item_per_title, read_csv

logger = logging.getLogger(__name__)

_PARTS = {"train": "train", "valid": "validation", "test": "test"}
_FILE = re.compile(r"((train|valid|test)(?:_\d+)?\.csv)(?:\.gz)?")
# Of the two the second leaves out an item that shares its title with another
_NAMES = ("id2name4Rec.json", "id2name.json")
_COLUMNS = ["user_id", "item_ids", "timestamp"]
_LIST = r"^\[\s*\d+(\s*,\s*\d+)*\s*\]$"


def read_msl(path: str | Path, *, parts: Mapping[str, str] | None = None, names: str | None = None) -> PublishedSplits:
    """Read the CSV files of MSL, BEAR and LBR: windows of at most 11 items, the last of which is to be ranked.

    `train.csv`, `valid.csv` and `test.csv`, or samples of them such as `train_10000.csv`, hold `user_id`, `item_ids`
    (a list such as `[4, 8, 15]`) and the last item's `timestamp`; `id2name4Rec.json` or `id2name.json` the titles. All
    may be packed (`.gz`). No candidates were published: the whole catalogue is ranked.

    Args:
        path: Folder or archive.
        parts: The file of a part, such as `{"train": "train_10000.csv"}`. Needed only where several lie together.
        names: The file with the titles. Default: `id2name4Rec.json`, which has all of them, else `id2name.json`.

    Returns:
        Parts `train`, `validation` and `test`, as far as they exist, with the rows and their order as published and
        the column `timestamp`. Some numbers have no title: they leave the histories, and a row whose target is one of
        them goes. Both are counted in `interactions.dropped` and named in the log.

    Raises:
        FileNotFoundError: Without titles or without any part.
        ValueError: Where several files of a part exist and none is named, or a row is not in the format.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> folder = TemporaryDirectory()
        >>> _ = Path(folder.name, "id2name.json").write_text('{"1": "Pen", "2": "Ink", "3": "Desk"}')
        >>> _ = Path(folder.name, "test.csv").write_text('user_id,item_ids,timestamp\\n7,"[1, 9, 3, 2]",1400000000\\n')
        >>> read_msl(folder.name).examples["test"].rows()
        [('7', ['1', '3'], '2', 1400000000)]
        >>> folder.cleanup()
    """
    examples: dict[str, pl.DataFrame] = {}
    dropped: dict[str, int] = {}
    with open_source(path) as files:
        items = _read_names(files.need(*([names] if names else _NAMES)))
        for part, name in _find(files, dict(parts or {})).items():
            rows = _read_windows(files.need(name))
            titled = _with_titles(part, rows, items["item"], dropped)
            examples[part] = one_item_per_title(titled, items)
        in_time = {part: frame.sort("timestamp", maintain_order=True) for part, frame in examples.items()}
        together = assemble(in_time, items, files=files.used, dropped=dropped)
    return PublishedSplits(together.interactions, examples)


def _find(files: SourceFiles, parts: dict[str, str]) -> dict[str, str]:
    """Return the name of each part's file."""
    if unknown := sorted(set(parts) - set(_PARTS.values())):
        raise ValueError(f"parts names {unknown}; a part is train, validation or test.")
    there: dict[str, list[str]] = {}
    for match in map(_FILE.fullmatch, [files.given.name] if files.given else files.names):
        if match and match[1] not in there.setdefault(_PARTS[match[2]], []):
            there[_PARTS[match[2]]].append(match[1])
    for part, names in there.items():
        if len(names) > 1 and part not in parts:
            raise ValueError(
                f"There are {', '.join(sorted(names))}; choose with parts, for example "
                f"parts={{{part!r}: {sorted(names)[0]!r}}}."
            )
    found = {part: parts.get(part) or there[part][0] for part in _PARTS.values() if part in parts or part in there}
    if not found:
        files.need(*(f"{stem}.csv" for stem in _PARTS))
    return found


def _read_names(path: Path) -> pl.DataFrame:
    names = load_json(path)
    if not isinstance(names, dict) or not all(isinstance(title, str) for title in names.values()):
        raise ValueError(f"{path} must hold one JSON object that gives each item number its title.")
    titles = {"item": list(names), "title": [title.strip() for title in names.values()]}
    return pl.DataFrame(titles, schema={"item": pl.String, "title": pl.String}).filter(pl.col("title") != "")


def _read_windows(path: Path) -> pl.DataFrame:
    raw = read_csv(path, _COLUMNS)
    listed = pl.col("item_ids").str.strip_chars()
    fits = pl.all_horizontal(
        listed.str.contains(_LIST), *(pl.col(name).str.contains(r"^\d{1,18}$") for name in ("user_id", "timestamp"))
    )
    wrong = raw.with_row_index("row").filter(~fits.fill_null(False))
    if not wrong.is_empty():
        first = wrong.row(0, named=True)
        raise ValueError(
            f"{path}, row {first['row'] + 1}: user_id and timestamp must be whole numbers and item_ids a list such as "
            f"[4, 8, 15]; they are "
            + ", ".join(f"{str(first[name])[:80]!r}" for name in ("user_id", "timestamp", "item_ids"))
            + "."
        )
    # A number as the names have it: without zeros before it
    window = listed.str.extract_all(r"\d+").list.eval(pl.element().str.replace(r"^0+(\d)", "$1"))
    return raw.select(
        pl.col("user_id").alias("user"), window.alias("window"), pl.col("timestamp").cast(pl.Int64)
    ).select(
        "user",
        pl.col("window").list.slice(0, pl.col("window").list.len() - 1).alias("history"),
        pl.col("window").list.last().alias("target"),
        "timestamp",
    )


def _with_titles(part: str, rows: pl.DataFrame, known: pl.Series, dropped: dict[str, int]) -> pl.DataFrame:
    """Leave out what has no title, count it and name it."""
    named = pl.element().is_in(known.implode())
    history = pl.col("history").list.eval(pl.element().filter(named))
    kept = rows.with_columns(history=history).filter(pl.col("target").is_in(known.implode()))
    entries = int(rows["history"].list.len().sum() - rows.select(history.list.len().sum()).item())
    for reason, count in (
        ("entries of histories without a title", entries),
        ("examples whose target has no title", rows.height - kept.height),
    ):
        if count:
            dropped[reason] = dropped.get(reason, 0) + count
    ids = pl.concat([rows["history"].explode(), rows["target"]]).drop_nulls().unique(maintain_order=True)
    if len(untitled := ids.filter(~ids.is_in(known.implode()))):
        logger.warning(
            "%s: %d items have no title: %s%s. %d entries of histories and %d of %d examples are left out",
            *(part, len(untitled), ", ".join(untitled.head(10)), ", ..." if len(untitled) > 10 else ""),
            *(entries, rows.height - kept.height, rows.height),
        )
    return kept
