"""RecBole's atomic files: https://recbole.io/docs/user_guide/data/atomic_files.html."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from .._sources import SourceFiles, open_source
from ..interactions import Interactions
from ._titles import natural_title


def read_recbole(
    path: str | Path, *, title_field: str, year_field: str | None = None, natural_titles: bool = True
) -> Interactions:
    """Read one `.inter` and one `.item` file, tab-separated with typed headers (`name:type`).

    The fields are RecBole's own: `user_id`, `item_id`, `timestamp` and, where it exists, `rating`.

    Args:
        path: A folder or archive with the two files, such as `ml-100k`, or one of them beside the other.
        title_field: Name of the `.item` field with the title, such as `"movie_title"`.
        year_field: Name of the `.item` field with the year. Where it holds a year, titles become
            `"Toy Story (1995)"`.
        natural_titles: Turn `"Bug's Life, A"` into `"A Bug's Life"`.

    Returns:
        The interactions; items keep their further fields as text. What was dropped and why is in `dropped`, and
        logged.

    Raises:
        FileNotFoundError: Where there is not exactly one file of each kind.
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
        inter_file, item_file = (files.need(_only_name(files, suffix)) for suffix in (".inter", ".item"))
        inter = _read_atomic(inter_file, ["user_id", "item_id", "timestamp"])
        item = _read_atomic(item_file, ["item_id", title_field, *([year_field] if year_field else [])])
        used = files.used

    interactions = inter.select(
        user="user_id",
        item="item_id",
        # What is not a number becomes null, which Interactions.from_raw drops and counts.
        timestamp=pl.col("timestamp").cast(pl.Float64, strict=False),
        **({"rating": pl.col("rating").cast(pl.Float64, strict=False)} if "rating" in inter.columns else {}),
    )
    title = pl.col(title_field).str.strip_chars()
    if natural_titles:
        title = title.map_elements(natural_title, return_dtype=pl.String)
    if year_field:
        year = pl.col(year_field)
        title = pl.when(year.str.contains(r"^\d{4}$")).then(pl.format("{} ({})", title, year)).otherwise(title)
    items = item.with_columns(title=title).rename({"item_id": "item"})
    others = [name for name in items.columns if name not in ("item", "title", title_field, year_field)]
    return Interactions.from_raw(interactions, items.select("item", "title", *others), files=used)


def _only_name(files: SourceFiles, suffix: str) -> str:
    names = files.ending(suffix)
    if len(names) != 1:
        raise FileNotFoundError(
            f"There must be exactly one {suffix} file of RecBole's; found: {', '.join(names) or 'none'} among "
            f"{', '.join(files.names[:20]) or 'no file'}."
        )
    return names[0]


def _read_atomic(path: Path, fields: list[str]) -> pl.DataFrame:
    """Read a file with every field as text, its type cut off the name."""
    try:
        frame = pl.read_csv(path, separator="\t", quote_char=None, infer_schema=False, glob=False)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path} is not a tab-separated file in UTF-8: {error}.") from error
    untyped = [name for name in frame.columns if ":" not in name]
    if untyped:
        raise ValueError(f"{path}: the header has no type (`name:type`) at {untyped}; is it an atomic file?")
    frame = frame.rename({name: name.rsplit(":", 1)[0] for name in frame.columns})
    missing = [name for name in fields if name not in frame.columns]
    if missing:
        raise ValueError(f"{path}: the fields {missing} are missing; it has {frame.columns}.")
    return frame
