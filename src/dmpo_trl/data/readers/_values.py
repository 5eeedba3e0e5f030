"""Times and numbers of raw tables, and the rows in which they cannot be read."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import polars as pl

from .._columns import blank_as_null

logger = logging.getLogger(__name__)


def number(values: pl.Series, where: str) -> pl.Series:
    """Return numbers; what cannot be read is null.

    Args:
        values: (E,), text or numbers.
        where: Names the column in messages.

    Raises:
        ValueError: The column is of another type.
    """
    if values.dtype != pl.String and not values.dtype.is_numeric():
        raise ValueError(f"{where} must hold numbers, it is {values.dtype}; cast it.")
    return _as_numbers(values).cast(pl.Float64)


def times(values: pl.Series, where: str) -> pl.Series:
    """Return times as numbers; what cannot be read is null.

    In text, numbers and ISO 8601 are read, but not beside one another: the unit of a number is not known. Whichever
    are more count.

    Args:
        values: (E,), text, numbers, dates or datetimes.
        where: Names the column in messages.

    Raises:
        ValueError: The column is of another type, or no time can be read.
    """
    if values.dtype == pl.String:
        values = blank_as_null(values)
        numbers = _as_numbers(values)
        if numbers.null_count() == values.null_count():
            return numbers
        parsed = min(numbers, _iso_times(values), key=pl.Series.null_count)
        if parsed.null_count() == len(parsed):
            raise ValueError(
                f"{where} holds neither numbers nor times in ISO 8601, such as "
                f"2026-05-01 12:00:00: the first is {values.drop_nulls()[0]!r}. Write them so."
            )
        values = parsed
    if values.dtype in (pl.Datetime, pl.Date):
        return values.dt.timestamp("us") / 1e6
    if not values.dtype.is_numeric():
        raise ValueError(f"{where} must hold numbers, dates or datetimes, it is {values.dtype}; cast it.")
    return values


def drop_unreadable(
    rows: pl.DataFrame, raw: Mapping[str, pl.Series], where: str, dropped: dict[str, int]
) -> pl.DataFrame:
    """Drop rows with something that could not be read, name one of them, and count them by the column.

    Args:
        rows: The rows, with a null where something could not be read.
        raw: What was read, by the column, (E,) each.
        where: Names the table in the warning.
        dropped: Gets the counts.
    """
    readable = pl.repeat(True, rows.height, eager=True)
    for name, before in raw.items():
        wrong = rows[name].is_null() & blank_as_null(before).is_not_null() & readable
        if count := int(wrong.sum()):
            first = wrong.arg_max() or 0
            dropped[f"interactions with an unreadable {name}"] = count
            logger.warning(
                "%s: %d of %d rows have a %s that cannot be read, for example %r in row %d; they are left out",
                *(where, count, rows.height, name, before[first], first + 1),
            )
            readable &= ~wrong
    return rows if readable.all() else rows.filter(readable)


def _as_numbers(values: pl.Series) -> pl.Series:
    """Return text as Int64, or as Float64 where it has fractions; other columns as they are."""
    if values.dtype != pl.String:
        return values
    text = values.str.strip_chars()
    numbers, whole = text.cast(pl.Float64, strict=False), text.cast(pl.Int64, strict=False)
    numbers = numbers.set(~numbers.is_finite(), None)  # the texts nan and inf
    # Whole numbers of nanoseconds have more digits than a float: what is not a number must not make floats of them
    return whole if whole.null_count() == numbers.null_count() else numbers


def _iso_times(times: pl.Series) -> pl.Series:
    """Return ISO 8601 as datetimes, without a zone in UTC; anything else is null.

    A column can have times with and without a zone: polars would take one of the kinds and drop the other.
    """
    parts = (
        times.str.strip_chars()
        .str.extract_groups(
            r"^(?<date>\d{4}-\d\d-\d\d)(?:[T ](?<minute>\d\d:\d\d)(?::(?<second>\d\d(?:\.\d+)?))?"
            r" ?(?:Z|UTC|(?<zone>[+-]\d\d(?::?\d\d)?))?)?$"
        )
        .struct.unnest()
    )
    zone = pl.col("zone").str.replace(":", "").str.pad_end(5, "0")
    minutes = zone.str.slice(1, 2).cast(pl.Int64) * 60 + zone.str.slice(3).cast(pl.Int64)
    east = pl.when(zone.str.starts_with("-")).then(-minutes).otherwise(minutes).fill_null(0)
    text = pl.concat_str(
        "date", pl.lit(" "), pl.col("minute").fill_null("00:00"), pl.lit(":"), pl.col("second").fill_null("00")
    )
    local = text.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False)
    return parts.select((local - pl.duration(minutes=east)).alias(times.name)).to_series()
