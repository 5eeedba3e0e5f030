"""Reads RecBole's atomic files: https://recbole.io/docs/user_guide/data/atomic_files.html."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from ..interactions import Interactions
from ._titles import natural_title


def read_recbole(
    folder: str | Path, *, title_field: str, year_field: str | None = None, natural_titles: bool = True
) -> Interactions:
    """Reads a folder with one `.inter` and one `.item` file, tab-separated with typed headers (`name:type`).

    The fields are RecBole's own: `user_id`, `item_id`, `timestamp` and, where it exists, `rating`.

    Args:
        folder: the folder, e.g. `ml-100k`.
        title_field: name of the `.item` field with the title, e.g. `"movie_title"`.
        year_field: name of the `.item` field with the year. Where it holds a year, titles become
            `"Toy Story (1995)"`.
        natural_titles: turn `"Bug's Life, A"` into `"A Bug's Life"`.

    Returns:
        The interactions; items keep their further fields as text. What was dropped and why is in `dropped`, and
        logged.

    Raises:
        FileNotFoundError: where the folder does not have exactly one file of each kind.
        ValueError: where a field is missing or a file is not an atomic file.
    """
    inter_file, item_file = (_find_file(Path(folder), suffix) for suffix in (".inter", ".item"))
    inter = _read_atomic(inter_file, ["user_id", "item_id", "timestamp"])
    item = _read_atomic(item_file, ["item_id", title_field, *([year_field] if year_field else [])])

    interactions = inter.select(
        user="user_id",
        item="item_id",
        # What is no number becomes null, which Interactions.from_raw drops and counts.
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
    return Interactions.from_raw(interactions, items.select("item", "title", *others), files=(inter_file, item_file))


def _find_file(folder: Path, suffix: str) -> Path:
    paths = sorted(folder.glob(f"*{suffix}"))
    if len(paths) != 1:
        found = ", ".join(path.name for path in paths) or "none"
        raise FileNotFoundError(f"{folder} must hold exactly one {suffix} file of RecBole's; found: {found}")
    return paths[0]


def _read_atomic(path: Path, fields: list[str]) -> pl.DataFrame:
    """Reads a file with every field as text, its type cut off the name."""
    try:
        frame = pl.read_csv(path, separator="\t", quote_char=None, infer_schema=False, glob=False)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path} is not a tab-separated file in UTF-8: {error}") from error
    untyped = [name for name in frame.columns if ":" not in name]
    if untyped:
        raise ValueError(f"{path}: the header has no type (`name:type`) at {untyped}; is it an atomic file?")
    frame = frame.rename({name: name.rsplit(":", 1)[0] for name in frame.columns})
    missing = [name for name in fields if name not in frame.columns]
    if missing:
        raise ValueError(f"{path}: the fields {missing} are missing; it has {frame.columns}")
    return frame
