"""Parquet files that others wrote: what is wrong with one is said before anything is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

_TEXTS = (pl.String, pl.Categorical, pl.Enum)
_EXACT = 2**53  # beyond it, neighbouring whole numbers are the same float


def read_columns(path: str | Path, needed: Sequence[str], *, holds: str) -> pl.DataFrame:
    """Read a Parquet file that has certain columns.

    Args:
        path: The file; what it is called is no pattern.
        needed: Names of the columns.
        holds: What the file holds, for the message.

    Raises:
        ValueError: There is no such file, it is not Parquet, or it lacks a column.

    Example:
        >>> read_columns("nothing.parquet", ["user"], holds="scores")
        Traceback (most recent call last):
        ...
        ValueError: nothing.parquet is not a file. Name the Parquet file with the scores.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} is not a file. Name the Parquet file with the {holds}.")
    try:
        frame = pl.read_parquet(path, glob=False)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"{path} is not a Parquet file: {error}.") from error
    if missing := sorted(set(needed) - set(frame.columns)):
        raise ValueError(f"{path} has no column {missing}; it has {frame.columns}.")
    return frame


def read_pairs(path: str | Path, needed: Sequence[str], *, holds: str) -> pl.DataFrame:
    """Read a file of users and items, as text, and of scores, as numbers, where it has any.

    Args:
        path: The file.
        needed: Names of the columns that it must have, of `user`, `item` and `score`.
        holds: What the file holds, for the message.

    Returns:
        Its rows in order, with those of the three columns that it has.

    Raises:
        ValueError: As in `read_columns`; a user or an item is neither text nor a number; or a score is not a finite
            number, or a whole number of 2^53 or more, which a float cannot tell from the next.

    Example:
        >>> read_pairs("scores.parquet", ["user", "item", "score"], holds="scores")  # doctest: +SKIP
    """
    frame = read_columns(path, needed, holds=holds)
    columns = [_texts(frame[name], path) for name in ("user", "item")]
    return pl.DataFrame([*columns, _numbers(frame["score"], path)] if "score" in frame.columns else columns)


def first_row(marked: pl.Series) -> int | None:
    """Return the first row that is marked, None where none is.

    Example:
        >>> first_row(pl.Series([False, True, True])), first_row(pl.Series([False]))
        (1, None)
    """
    return int(marked.arg_max()) if marked.any() else None  # type: ignore[arg-type]


def _texts(column: pl.Series, path: str | Path) -> pl.Series:
    if not (column.dtype.is_numeric() or column.dtype in (*_TEXTS, pl.Null)):
        raise ValueError(f"{path}: the column `{column.name}` must hold texts or numbers, it has {column.dtype}.")
    _refuse(column, column.is_null(), path)
    return column.cast(pl.String)


def _numbers(column: pl.Series, path: str | Path) -> pl.Series:
    if not (column.dtype.is_numeric() or column.dtype == pl.Null):
        raise ValueError(f"{path}: the column `{column.name}` must hold numbers, it has {column.dtype}.")
    numbers = column.cast(pl.Float64)
    _refuse(column, ~numbers.is_finite().fill_null(False), path)
    large = None if column.dtype.is_float() else first_row(numbers.abs() >= _EXACT)
    if large is not None:
        raise ValueError(
            f"{path}, row {large}: the {column.name} is {column[large]}, and a float cannot tell whole numbers from "
            "2^53 on from their neighbours. Subtract what they have in common, or write ranks instead."
        )
    return numbers


def _refuse(column: pl.Series, bad: pl.Series, path: str | Path) -> None:
    row = first_row(bad)
    if row is not None:
        raise ValueError(f"{path}, row {row}: the {column.name} is {column[row]}. Fill it in, or take the row out.")
