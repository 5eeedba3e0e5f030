"""Tables of interactions: your own, in memory or in files."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from .._columns import identifiers
from ..interactions import Interactions


def read_table(
    interactions: Any,
    items: Any = None,
    *,
    user: str = "user",
    item: str = "item",
    timestamp: str = "timestamp",
    rating: str | None = None,
    title: str = "title",
) -> Interactions:
    """Read interactions and titles from tables in memory or in files.

    Args:
        interactions: A polars, pandas or Arrow table, or the path of a `.csv`, `.parquet` or `.jsonl` file, one row
            per interaction.
        items: The same, one row per item; None where `interactions` itself has the titles. Further columns are kept.
        user: Column with the users: text, or whole numbers of any type.
        item: Column with the items, of the same name in both tables: text, or whole numbers of any type.
        timestamp: Column with the times: numbers of any unit, dates or datetimes, or, in a text column, numbers or ISO
            8601. What are not numbers become seconds since 1970; a time without a zone is in UTC.
        rating: Column with the ratings, where there is one.
        title: Column with the titles. Where an item has several, in `interactions`, the first counts.

    Returns:
        The interactions. Rows with a field that is empty, or has no number where there should be one, are dropped and
        counted.

    Raises:
        FileNotFoundError: Where a file does not exist.
        TypeError: For something that is not a table.
        ValueError: For a column that is missing or of another type, or a file of another format.

    Example:
        >>> orders = pl.DataFrame({"customer": [7, 7], "sku": ["a", "b"], "bought_at": ["2026-05-02", "2026-05-01"]})
        >>> products = pl.DataFrame({"sku": ["a", "b"], "title": ["Apple", "Bread"]})
        >>> data = read_table(orders, products, user="customer", item="sku", timestamp="bought_at")
        >>> data.interactions["item"].to_list()
        ['b', 'a']
    """
    files = [str(table) for table in (interactions, items) if isinstance(table, str | Path)]
    rows = _scan("interactions", interactions)
    own_titles = items is None
    needed = [user, item, timestamp, *([rating] if rating else []), *([title] if own_titles else [])]
    kinds = _check("interactions", interactions, rows, needed)
    rows = rows.select(
        pl.col(user).alias("user"),
        pl.col(item).alias("item"),
        pl.col(timestamp).alias("timestamp"),
        *([_number(rating, kinds).alias("rating")] if rating else []),
        *([_title(title).alias("title")] if own_titles else []),
    )
    frame = _collect("interactions", interactions, rows)
    frame = frame.with_columns(
        _identifiers("interactions", user, frame["user"]),
        _identifiers("interactions", item, frame["item"]),
        _times(timestamp, frame["timestamp"]),
    )
    dropped = {}
    if own_titles:
        titles = frame.drop_nulls("item").group_by("item", maintain_order=True)
        catalogue = titles.agg(pl.col("title").drop_nulls().first(), spellings=pl.col("title").drop_nulls().n_unique())
        if surplus := int((catalogue["spellings"].clip(lower_bound=1) - 1).sum()):
            dropped["further titles of the same item"] = surplus
        frame, catalogue = frame.drop("title"), catalogue.drop("spellings")
    else:
        table = _scan("items", items)
        kinds = _check("items", items, table, [item, title])
        others = [name for name in kinds if name not in (item, title, "item", "title")]
        table = table.select(pl.col(item).alias("item"), _title(title).alias("title"), pl.col(others))
        catalogue = _collect("items", items, table)
        catalogue = catalogue.with_columns(_identifiers("items", item, catalogue["item"]))
    return Interactions.from_raw(frame, catalogue, dropped=dropped, files=files)


def _scan(name: str, table: Any) -> pl.LazyFrame:
    if isinstance(table, pl.DataFrame | pl.LazyFrame):
        return table.lazy()
    if hasattr(table, "__arrow_c_stream__"):  # pandas, Arrow and all others that export Arrow streams
        return pl.DataFrame(pa.table(table)).lazy()
    if not isinstance(table, str | Path):
        raise TypeError(
            f"{name} must be a polars, pandas or Arrow table, or the path of a .csv, .parquet or .jsonl file, "
            f"not {type(table).__name__}."
        )
    path = Path(table).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{name}: {path} does not exist.")
    match path.suffix:
        case ".csv":
            # As text, so that "007" stays the identifier that it is. With all columns, because polars takes a line
            # with too many fields ("Good, the Bad" without quotes) for a good one where it leaves out the last column
            lines = pl.scan_csv(path, infer_schema=False, glob=False)
            return lines.map_batches(lambda frame: frame, projection_pushdown=False, streamable=True)
        case ".parquet":
            return pl.scan_parquet(path, glob=False)
        case ".jsonl":
            return pl.scan_ndjson(path.resolve().as_uri(), infer_schema_length=None)
    raise ValueError(
        f"{name}: {path.name} is not a .csv, .parquet or .jsonl file; read it with polars and give the table."
    )


def _check(name: str, source: Any, table: pl.LazyFrame, needed: list[str]) -> pl.Schema:
    with _problems_named(name, source):
        schema = table.collect_schema()
    if not schema:
        raise ValueError(f"{name}: the table has no columns.")
    missing = [column for column in needed if column not in schema]
    if missing:
        raise ValueError(
            f"{name}: the columns {missing} are missing; there are {schema.names()}. Say which they are, for example "
            f"read_table(..., user={schema.names()[0]!r})."
        )
    return schema


def _collect(name: str, source: Any, table: pl.LazyFrame) -> pl.DataFrame:
    with _problems_named(name, source):
        return table.collect(engine="streaming")


@contextmanager
def _problems_named(name: str, source: Any) -> Iterator[None]:
    """Raise what polars cannot read as ValueError, with the path and, where it can be found, the line."""
    try:
        yield
    except pl.exceptions.PolarsError as error:
        if not isinstance(source, str | Path):
            raise ValueError(f"{name}: the table cannot be read: {error}.") from error
        path = Path(source).expanduser()
        find = {".csv": _wrong_csv_line, ".jsonl": _wrong_json_line}.get(path.suffix)
        reason = find(path) if find and path.stat().st_size else ""
        raise ValueError(f"{name}: {path}{reason or f' cannot be read: {error}'}.") from error


def _wrong_csv_line(path: Path) -> str:
    """Return the first line that has more fields than the header or is not UTF-8, and the remedy."""
    width, start = 0, 1
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file, suppress(csv.Error):
        lines = csv.reader(file)
        for fields in lines:
            text = ",".join(fields)
            if any("\udc80" <= letter <= "\udcff" for letter in text):
                return f", line {start}: the text is not UTF-8. Save the file as UTF-8"
            width = width or len(fields)
            if len(fields) > width:
                return (
                    f", line {start}: there are {len(fields)} fields, the header names {width}: {text[:80]!r}. Put a "
                    "text that has a comma in it in double quotes"
                )
            start = lines.line_num + 1
    return ""


def _wrong_json_line(path: Path) -> str:
    """Return the first line that is not a JSON object, and why."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                if line.strip() and not isinstance(json.loads(line.decode("utf-8")), dict):
                    return f", line {number} is not a JSON object: {line[:80]!r}"
            except ValueError as error:  # of JSON or of UTF-8
                return f", line {number} is not JSON in UTF-8: {error}"
    return ""


def _identifiers(table: str, column: str, values: pl.Series) -> pl.Series:
    return identifiers(values, f"{table}: column {column!r}")


def _number(column: str, kinds: pl.Schema) -> pl.Expr:
    kind = kinds[column]
    if kind != pl.String and not kind.is_numeric():
        raise ValueError(f"interactions: column {column!r} must hold numbers, it is {kind}; cast it.")
    return pl.col(column).cast(pl.Float64, strict=False).fill_nan(None)


def _title(column: str) -> pl.Expr:
    text = pl.col(column).cast(pl.String).str.strip_chars()
    return pl.when(text != "").then(text)


def _times(column: str, times: pl.Series) -> pl.Series:
    """Return times as numbers; what cannot be one is null."""
    if times.dtype == pl.String:
        whole = times.cast(pl.Int64, strict=False)
        if whole.null_count() == times.null_count():
            return whole
        numbers = times.cast(pl.Float64, strict=False)
        parsed = min(numbers, _iso_times(times), key=pl.Series.null_count)
        if parsed.null_count() == len(parsed):
            raise ValueError(
                f"interactions: column {column!r} holds neither numbers nor times in ISO 8601: the first row has "
                f"{times[0]!r}. Parse it with polars (str.to_datetime with a format) and give the table."
            )
        times = parsed
    if times.dtype in (pl.Datetime, pl.Date):
        return times.dt.timestamp("us") / 1e6
    if not times.dtype.is_numeric():
        raise ValueError(
            f"interactions: column {column!r} must hold numbers, dates or datetimes, it is {times.dtype}; cast it."
        )
    return times.fill_nan(None) if times.dtype.is_float() else times


def _iso_times(times: pl.Series) -> pl.Series:
    """Return ISO 8601 as datetimes, without a zone in UTC; anything else is null.

    A column can have times with and without a zone: polars would take one of the kinds and drop the other.
    """
    parts = times.str.extract_groups(
        r"^(?<date>\d{4}-\d\d-\d\d)(?:[T ](?<minute>\d\d:\d\d)(?::(?<second>\d\d(?:\.\d+)?))?"
        r" ?(?:Z|UTC|(?<zone>[+-]\d\d(?::?\d\d)?))?)?$"
    ).struct.unnest()
    zone = pl.col("zone").str.replace(":", "").str.pad_end(5, "0")
    minutes = zone.str.slice(1, 2).cast(pl.Int64) * 60 + zone.str.slice(3).cast(pl.Int64)
    east = pl.when(zone.str.starts_with("-")).then(-minutes).otherwise(minutes).fill_null(0)
    text = pl.concat_str(
        "date", pl.lit(" "), pl.col("minute").fill_null("00:00"), pl.lit(":"), pl.col("second").fill_null("00")
    )
    local = text.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False)
    return parts.select((local - pl.duration(minutes=east)).alias(times.name)).to_series()
