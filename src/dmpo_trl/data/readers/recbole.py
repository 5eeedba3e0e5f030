"""RecBole's atomic files: https://recbole.io/docs/user_guide/data/atomic_files.html."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl

from .._options import OptionError
from .._sources import SourceFiles, open_source
from ..interactions import Interactions
from ._text import read_text, shown
from ._titles import natural_title
from ._values import drop_unreadable, number, times

_PART = re.compile(r"(?P<stem>.+)\.(?P<part>train|valid|test)\.inter")
_PARTS = ("train", "valid", "test")


def read_recbole(
    path: str | Path,
    *,
    title_field: str,
    year_field: str | None = None,
    user_field: str = "user_id",
    item_field: str = "item_id",
    timestamp_field: str = "timestamp",
    rating_field: str = "rating",
    order: str = "time",
    natural_titles: bool = True,
) -> Interactions:
    """Read `.inter` and `.item` files, tab-separated with typed headers (`name:type`).

    Args:
        path: A folder or archive with one `.item` file and one `.inter` file, such as `ml-100k`, or one of them beside
            the other. Benchmark files in parts (`x.train.inter`, `x.valid.inter`, `x.test.inter`) are put together.
        title_field: Name of the `.item` field with the title, such as `"movie_title"`.
        year_field: Name of the `.item` field with the year. Where it holds a year, titles become
            `"Toy Story (1995)"`.
        user_field: Name of the field with the user.
        item_field: Name of the field with the item in both files, such as `"product_id"` for Steam.
        timestamp_field: Name of the field that orders a user's interactions.
        rating_field: Name of the field with the rating; where there is none, the interactions have no ratings.
        order: What `timestamp_field` orders by: `"time"`, or `"plays"` where a count such as Last.fm's `weight`
            stands in its place.
        natural_titles: Turn `"Bug's Life, A"` into `"A Bug's Life"`.

    Returns:
        The interactions; items keep their further fields as text. What was dropped and why is in `dropped`, and
        logged.

    Raises:
        FileNotFoundError: Where there is not one `.item` file, or neither one `.inter` file nor the parts of one.
        ValueError: Where a field is missing or a file is not an atomic file.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> folder = TemporaryDirectory()
        >>> inter = "user_id:token\\titem_id:token\\ttimestamp:float\\nann\\t7\\t12.5\\n"
        >>> _ = Path(folder.name, "tiny.inter").write_text(inter)
        >>> _ = Path(folder.name, "tiny.item").write_text("item_id:token\\tname:token_seq\\n7\\tBug's Life, A\\n")
        >>> read_recbole(folder.name, title_field="name").titles()
        {'7': "A Bug's Life"}
        >>> folder.cleanup()
    """
    with open_source(path) as files:
        inter_names, item_name = _names(files)
        inter = pl.concat(
            [
                _read_atomic(
                    files.need(name),
                    {"user_field": user_field, "item_field": item_field, "timestamp_field": timestamp_field},
                )
                for name in inter_names
            ],
            how="diagonal",
        )
        years = {"year_field": year_field} if year_field else {}
        item = _read_atomic(files.need(item_name), {"item_field": item_field, "title_field": title_field} | years)
        used = files.used

    where = ", ".join(inter_names)
    raw = {"timestamp": inter[timestamp_field]}
    if rating_field in inter.columns:
        raw["rating"] = inter[rating_field]
    interactions = inter.select(
        pl.col(user_field).alias("user"),
        pl.col(item_field).alias("item"),
        times(raw["timestamp"], f"{where}: field {timestamp_field!r}").alias("timestamp"),
        *([number(raw["rating"], f"{where}: field {rating_field!r}").alias("rating")] if "rating" in raw else []),
    )
    dropped: dict[str, int] = {}
    read = {"interactions": interactions.height, "items": item.height}
    interactions = drop_unreadable(interactions, raw, where, dropped)
    title = pl.col(title_field).str.strip_chars()
    if natural_titles:
        title = title.map_elements(natural_title, return_dtype=pl.String)
    if year_field:
        year = pl.col(year_field)
        title = pl.when(year.str.contains(r"^\d{4}$")).then(pl.format("{} ({})", title, year)).otherwise(title)
    others = [
        name for name in item.columns if name not in ("item", "title", item_field, title_field, year_field or "")
    ]
    items = item.select(pl.col(item_field).alias("item"), title.alias("title"), *others)
    return Interactions.from_raw(interactions, items, order=order, dropped=dropped, read=read, files=used)


def _names(files: SourceFiles) -> tuple[list[str], str]:
    """Return the names of the .inter file, or of its parts in their order, and of the .item file."""
    inter, item = files.ending(".inter"), files.ending(".item")
    if files.given:
        name = files.given.name.removesuffix(".gz")
        given = _PART.fullmatch(name)
        if given or not inter:  # one of several parts, or x.item beside them
            stem = given["stem"] if given else name.removesuffix(".item")
            there = {other.removesuffix(".gz") for other in files.names}
            inter = [f"{stem}.{part}.inter" for part in _PARTS if f"{stem}.{part}.inter" in there]
            item = [f"{stem}.item"] if f"{stem}.item" in there else []
    parts = {match["part"]: match for name in inter if (match := _PART.fullmatch(name))}
    if len(parts) == len(inter) and len({match["stem"] for match in parts.values()}) == 1:
        inter = [parts[part].string for part in _PARTS if part in parts]
    for suffix, found, enough in ((".inter", inter, len(parts) == len(inter) > 0), (".item", item, False)):
        if len(found) != 1 and not enough:
            raise FileNotFoundError(
                f"There must be exactly one {suffix} file of RecBole's in {files.source}; found: "
                f"{', '.join(found) or 'none'} among {', '.join(files.names[:20]) or 'no file'}."
            )
    return inter, item[0]


def _read_atomic(path: Path, fields: dict[str, str]) -> pl.DataFrame:
    """Read a file with every field as text, its type cut off the name; `fields` by the option that names each."""

    def check(there: list[str]) -> None:
        if untyped := [name for name in there if ":" not in name]:
            raise ValueError(
                f"{path}: the header has no type (`name:type`) at {shown(untyped)}; is it an atomic file?"
            )
        names = [name.rsplit(":", 1)[0] for name in there]
        if missing := {option: name for option, name in fields.items() if name not in names}:
            options = ", ".join(f"`{option}`" for option in missing)
            raise OptionError(
                f"{path}: the fields {list(missing.values())} are missing; it has {shown(names)}. Say which they are "
                f"with {options}.",
                *missing,
            )
        if len(set(names)) < len(names):
            raise ValueError(f"{path}: the header names a field twice: {shown(names)}.")

    frame = read_text(path, [], check, separator="\t", encoding=None, others=True, quoted=False, published=True)
    return frame.rename({name: name.rsplit(":", 1)[0] for name in frame.columns})
