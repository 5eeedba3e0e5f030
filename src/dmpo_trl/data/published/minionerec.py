"""MiniOneRec's splits of Amazon 2018 (arXiv 2510.24431): CSV with Python lists of item numbers and titles."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from .._files import open_binary
from .._sources import SourceFiles, open_source
from ._splits import PublishedSplits, assemble, one_item_per_title, read_csv

_PARTS = {"train": "train", "valid": "validation", "test": "test"}
_INFO = "info"
_COLUMNS = ["user_id", "history_item_id", "history_item_title", "item_id", "item_title"]
_IDS = r"^\[\s*(\d+(\s*,\s*\d+)*)?\s*\]$"
_LITERAL_LIMIT = 1 << 16  # Python's parser takes hundreds of bytes for each of a literal's


def read_minionerec(path: str | Path, *, category: str | None = None) -> PublishedSplits:
    """Read the CSV files of MiniOneRec: the next item after a history of at most 10, split by time.

    `train/NAME.csv`, `valid/NAME.csv` and `test/NAME.csv` hold `user_id`, the last items before the target
    (`history_item_id` and `history_item_title`, Python lists) and the target (`item_id`, `item_title`);
    `info/NAME.txt` holds semantic id, title and number of each item, between tabs. NAME is a category with its dates,
    such as `Office_Products_5_2016-10-2018-11`. All may be packed (`.gz`). No candidates were published: the whole
    catalogue is ranked.

    Args:
        path: Folder or archive that holds `info`, `train`, `valid` and `test`.
        category: NAME or how it begins, such as "Office_Products". Needed only where several lie together.

    Returns:
        Parts `train`, `validation` and `test`, as far as they exist, with the rows and their order as published. The
        items have their semantic ids in the column `sid`; items with the same title become one.

    Raises:
        FileNotFoundError: Without `info` or without any part.
        ValueError: Where several categories are there and none is named, or a row is not in the format, has an item
            that `info` does not list, or another title for it.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> folder = TemporaryDirectory()
        >>> info, test = Path(folder.name, "info"), Path(folder.name, "test")
        >>> info.mkdir(), test.mkdir()
        (None, None)
        >>> _ = Path(info, "Office.txt").write_text("<a_1><b_7>\\tPen\\t0\\n<a_1><b_8>\\tInk\\t1\\n")
        >>> _ = Path(test, "Office.csv").write_text(
        ...     "user_id,history_item_title,item_title,history_item_id,item_id\\nA7,['Pen'],Ink,[0],1\\n"
        ... )
        >>> read_minionerec(folder.name).examples["test"].rows()
        [('A7', ['0'], '1')]
        >>> folder.cleanup()
    """
    with open_source(path) as files:
        name = _choose(files, category)
        items = _read_items(files.need(f"{_INFO}/{name}.txt"))
        titles = dict(items.select("item", "title").iter_rows())
        found = {part: files.find(f"{stem}/{name}.csv") for stem, part in _PARTS.items()}
        if not any(found.values()):
            files.need(*(f"{stem}/{name}.csv" for stem in _PARTS))
        examples = {
            part: one_item_per_title(_read_rows(file, titles), items)
            for part, file in found.items()
            if file is not None
        }
        return assemble(examples, items, files=files.used)


def _choose(files: SourceFiles, category: str | None) -> str:
    """Return the name of the files of a category."""
    names = {name.removesuffix(".gz") for name in files.in_folder(_INFO)}
    there = sorted(name.removesuffix(".txt") for name in names if name.endswith(".txt"))
    if not there:
        files.need(f"{_INFO}/{category or 'NAME'}.txt")
    fitting = there if category is None else [name for name in there if f"{name}_".startswith(f"{category}_")]
    if category in there:  # though another's name may begin with it
        fitting = [category]
    if len(fitting) != 1:
        raise ValueError(
            f"There are {', '.join(there)}; choose one with `category`, for example {there[0]!r}"
            f"{'' if category is None else f', not {category!r}'}."
        )
    return fitting[0]


def _read_items(path: Path) -> pl.DataFrame:
    """Read the titles by item number, each on a line of its own."""
    rows = []
    with open_binary(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                fields = line.removeprefix(b"\xef\xbb\xbf").decode("utf-8").rstrip("\r\n").split("\t")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: the text is not UTF-8. Save the file as UTF-8.") from error
            if len(fields) != 3 or not re.fullmatch(r"\d{1,18}", fields[2]) or not fields[1].strip():
                raise ValueError(
                    f"{path}, line {number}: expected semantic id, title and item number, separated by tabs, found "
                    f"{line[:80]!r}. Correct or remove it."
                )
            rows.append({"item": str(int(fields[2])), "title": fields[1].strip(), "sid": fields[0]})
    items = pl.DataFrame(rows, schema={"item": pl.String, "title": pl.String, "sid": pl.String})
    if items.is_empty():
        raise ValueError(f"{path} is empty: it must hold semantic id, title and number of each item.")
    doubled = items.filter(items["item"].is_duplicated())
    if not doubled.is_empty():
        raise ValueError(f"{path}: item {doubled['item'][0]} is listed more than once. Keep one line.")
    return items


def _read_rows(path: Path, titles: Mapping[str, str]) -> pl.DataFrame:
    raw = read_csv(path, _COLUMNS)
    listed = pl.col("history_item_id").str.strip_chars()
    fits = pl.all_horizontal(
        listed.str.contains(_IDS),
        pl.col("item_id").str.contains(r"^\d{1,18}$"),
        pl.col("user_id").str.strip_chars().str.len_chars() > 0,
    ).fill_null(False)
    if (wrong := raw.with_row_index("row").filter(~fits)).height:
        first = wrong.row(0, named=True)
        raise ValueError(
            f"{path}, row {first['row'] + 1}: user_id must not be empty, item_id must be a whole number and "
            "history_item_id a list such as [4, 8, 15]; they are "
            + ", ".join(f"{str(first[name])[:80]!r}" for name in ("user_id", "item_id", "history_item_id"))
            + "."
        )
    # A number as the list of items has it: without zeros before it
    rows = raw.select(
        user="user_id",
        history=listed.str.extract_all(r"\d+").list.eval(pl.element().str.replace(r"^0+(\d)", "$1")),
        target=pl.col("item_id").str.replace(r"^0+(\d)", "$1"),
    )
    for number, (own, (history, target)) in enumerate(
        zip(
            raw.select("history_item_title", "item_title").iter_rows(),
            rows.select("history", "target").iter_rows(),
            strict=True,
        ),
        1,
    ):
        named = [*_texts(own[0], f"{path}, row {number}"), own[1]]
        _check_titles([*history, target], named, titles, f"{path}, row {number}")
    return rows


def _texts(literal: str | None, where: str) -> list[str]:
    """Return a Python list of texts; nothing in it is run."""
    try:
        if literal is None or len(literal) > _LITERAL_LIMIT:
            raise ValueError
        with warnings.catch_warnings(action="ignore"):  # of "\\d" in a text
            found = ast.literal_eval(literal.strip())
        if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
            raise TypeError
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ValueError(
            f"{where}: history_item_title must be a list of texts such as ['Pen', 'Ink'], it is {str(literal)[:80]!r}."
        ) from None
    return found


def _check_titles(items: list[str], named: list[str | None], titles: Mapping[str, str], where: str) -> None:
    """Compare the titles of a row with those of the list of items, of which another version may lie beside it."""
    if len(items) != len(named):
        raise ValueError(f"{where}: the history has {len(items) - 1} numbers and {len(named) - 1} titles.")
    for item, title in zip(items, named, strict=True):
        if item not in titles:
            raise ValueError(f"{where}: item {item} is not in the list of items in {_INFO}.")
        if title is None or title.strip() != titles[item]:
            raise ValueError(
                f"{where}: item {item} is called {(title or '')[:80]!r}, and {titles[item][:80]!r} in {_INFO}. Are "
                "the files of one version?"
            )
