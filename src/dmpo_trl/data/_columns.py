"""Columns of identifiers and numbers as arrays, and back."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa

# Up to here a float holds every whole number: beyond it, two identifiers may have become one already
_EXACT: dict[type[pl.DataType], int] = {pl.Float16: 2**11, pl.Float32: 2**24, pl.Float64: 2**53}


def identifiers(values: pl.Series, where: str) -> pl.Series:
    """Return a column of identifiers as text, codes of text, or integers of at most 64 bits.

    Whole numbers are integers whatever holds them: also floats (pandas makes them of integers with gaps) and decimals.
    Blank text is null.

    Args:
        values: (E,).
        where: Names the column in messages.

    Raises:
        ValueError: For another type, a number that is not whole, and floats too large to be told apart.
    """
    kind = values.dtype
    if kind.is_float():
        values = values.fill_nan(None)
        _refuse(
            values.abs() > _EXACT[type(kind)], values, f"{where} has a {kind} too large to tell from its neighbour"
        )
        return _whole(values, values.cast(pl.Int64), where)
    if kind.is_decimal():
        return _whole(values, values.cast(pl.Decimal(38, 0)), where).cast(pl.String)
    if isinstance(kind, pl.Enum) or kind in (pl.Int128, pl.UInt128):
        return blank_as_null(values.cast(pl.String))
    if not kind.is_integer() and not isinstance(kind, pl.String | pl.Categorical):
        raise ValueError(f"{where} must be text or whole numbers, it is {kind}; cast it.")
    return blank_as_null(values)


def _whole(values: pl.Series, whole: pl.Series, where: str) -> pl.Series:
    _refuse(values != whole, values, f"{where} must be text or whole numbers, it has")
    return whole


def _refuse(wrong: pl.Series, values: pl.Series, problem: str) -> None:
    if wrong.any():
        raise ValueError(f"{problem}: {values.filter(wrong)[0]}; make it text.")


def numbers(values: pl.Series) -> pl.Series:
    """Return numbers of a type that numpy has: decimals and 128-bit integers become Int64, or Float64 where they must.

    Args:
        values: (E,), numeric.
    """
    if not values.dtype.is_decimal() and values.dtype not in (pl.Int128, pl.UInt128):
        return values
    whole = values.cast(pl.Int64, strict=False)
    return whole if (whole == values).fill_null(False).all() else values.cast(pl.Float64)


def blank_as_null(values: pl.Series) -> pl.Series:
    """Return text with nulls where it is empty or white space, and anything else as it is.

    Args:
        values: (E,), of any type.

    Example:
        >>> blank_as_null(pl.Series(["a", " ", ""])).to_list()
        ['a', None, None]
    """
    if isinstance(values.dtype, pl.Categorical):
        if not (values.unique().cast(pl.String).str.strip_chars() == "").any():
            return values
        return blank_as_null(values.cast(pl.String)).cast(values.dtype)
    if not isinstance(values.dtype, pl.String):
        return values
    blank = values.str.strip_chars() == ""
    return values.to_frame().select(pl.when(~blank).then(pl.first())).to_series() if blank.any() else values


def above(values: np.ndarray, low: int) -> np.ndarray:
    """Return how far above `low`, their least, integers of any type lie; the type's own arithmetic would wrap around.

    Args:
        values: (E,), integers of at most 64 bits.
        low: None of the values is smaller, and none is 2^63 or more above it.

    Returns:
        64-bit integers, (E,).

    Example:
        >>> above(np.array([-100, 100], np.int8), -100)
        array([  0, 200])
    """
    # Modulo 2^64, where the difference is right whether or not the numbers are negative
    offsets = values.astype(np.uint64)
    offsets -= np.uint64(low % 2**64)
    return offsets.view(np.int64)


def positions(values: pl.Series, among: pl.Series) -> np.ndarray:
    """Return the index in `among` of each of the values, -1 where it is not there.

    Args:
        values: String or Categorical, (E,).
        among: String or Categorical, without repeats.

    Returns:
        32-bit integers, (E,).
    """
    # All Categorical columns of a process share their codes, so that a table of codes does what a join would
    codes = values.cast(pl.Categorical).to_physical().to_numpy()
    among_codes = among.cast(pl.Categorical).to_physical().to_numpy()
    table = np.full(int(max(codes.max(initial=0), among_codes.max(initial=0))) + 1, -1, np.int32)
    table[among_codes] = np.arange(len(among_codes))
    return table[codes]


def lists(values: pl.Series, lengths: np.ndarray) -> pl.Series:
    """Cut values into lists of the given lengths."""
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return pl.Series(values.name, pa.LargeListArray.from_arrays(offsets, values.cast(pl.String).to_arrow()))
