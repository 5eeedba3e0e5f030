"""Columns of text as arrays of numbers, and back."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa


def positions(values: pl.Series, among: pl.Series) -> np.ndarray:
    """The index in `among` of each of the values, -1 where it is not there.

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
    """Cuts values into lists of the given lengths."""
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return pl.Series(values.name, pa.LargeListArray.from_arrays(offsets, values.cast(pl.String).to_arrow()))
