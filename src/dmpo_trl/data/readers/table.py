"""Reads the user's own table of who had what, and when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

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
    """Reads interactions and titles from tables in memory or in files.

    Args:
        interactions: a polars, pandas or Arrow table, or the path of a `.csv`, `.parquet` or `.jsonl` file, one row an
            interaction.
        items: the same, one row an item; None where `interactions` itself has the titles. Further columns are kept.
        user: column with the users, text or whole numbers.
        item: column with the items, of the same name in both tables, text or whole numbers.
        timestamp: column with the times: numbers of any unit, dates or datetimes, or, in a text column, numbers or ISO
            8601. What are not numbers become seconds since 1970 (UTC).
        rating: column with the ratings, where there is one.
        title: column with the titles. Where an item has several, in `interactions`, the first counts.

    Returns:
        The interactions. Rows with a field that is empty or no number where there should be one are dropped and
        counted.

    Example:

    ```python
    >>> data = read_table("orders.csv", "products.parquet", user="customer", item="sku", timestamp="bought_at")
    ```

    Raises:
        TypeError: for something that is no table.
        ValueError: for a column that is missing or of another type, or a file of another format.
    """
    files = [str(table) for table in (interactions, items) if isinstance(table, str | Path)]
    rows = _scan("interactions", interactions)
    own_titles = items is None
    needed = [user, item, timestamp, *([rating] if rating else []), *([title] if own_titles else [])]
    kinds = _check("interactions", rows, needed)
    frame = rows.select(
        _identifier("interactions", user, kinds).alias("user"),
        _identifier("interactions", item, kinds).alias("item"),
        pl.col(timestamp).alias("timestamp"),
        *([_number(rating, kinds).alias("rating")] if rating else []),
        *([_title(title).alias("title")] if own_titles else []),
    ).collect(engine="streaming")
    frame = frame.with_columns(_times(timestamp, frame["timestamp"]))
    dropped = {}
    if own_titles:
        titles = frame.drop_nulls("item").group_by("item", maintain_order=True)
        catalogue = titles.agg(pl.col("title").drop_nulls().first(), spellings=pl.col("title").drop_nulls().n_unique())
        if surplus := int((catalogue["spellings"].clip(lower_bound=1) - 1).sum()):
            dropped["further titles of the same item"] = surplus
        frame, catalogue = frame.drop("title"), catalogue.drop("spellings")
    else:
        table = _scan("items", items)
        kinds = _check("items", table, [item, title])
        others = [name for name in kinds if name not in (item, title, "item", "title")]
        catalogue = table.select(
            _identifier("items", item, kinds).alias("item"), _title(title).alias("title"), pl.col(others)
        ).collect()
    return Interactions.from_raw(frame, catalogue, dropped=dropped, files=files)


def _scan(name: str, table: Any) -> pl.LazyFrame:
    if isinstance(table, pl.DataFrame | pl.LazyFrame):
        return table.lazy()
    if hasattr(table, "__arrow_c_stream__"):  # pandas, Arrow and whatever else speaks Arrow
        return pl.DataFrame(pa.table(table)).lazy()
    if not isinstance(table, str | Path):
        raise TypeError(
            f"{name} must be a polars, pandas or Arrow table, or the path of a .csv, .parquet or .jsonl file, "
            f"not {type(table).__name__}"
        )
    path = Path(table).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{name}: {path} does not exist")
    match path.suffix:
        case ".csv":
            # As text, so that "007" stays the identifier that it is
            return pl.scan_csv(path, infer_schema=False, glob=False)
        case ".parquet":
            return pl.scan_parquet(path, glob=False)
        case ".jsonl":
            return pl.scan_ndjson(path.resolve().as_uri(), infer_schema_length=None)
    raise ValueError(f"{name}: {path.name} is none of .csv, .parquet, .jsonl; read it with polars and give the table")


def _check(name: str, table: pl.LazyFrame, needed: list[str]) -> pl.Schema:
    schema = table.collect_schema()
    missing = [column for column in needed if column not in schema]
    if missing:
        raise ValueError(
            f"{name}: the columns {missing} are missing; there are {schema.names()}. Say which they are, for example "
            f"read_table(..., user={schema.names()[0]!r})"
        )
    return schema


def _identifier(name: str, column: str, kinds: pl.Schema) -> pl.Expr:
    kind = kinds[column]
    if kind == pl.String or kind.is_integer():
        return pl.col(column)
    if kind in (pl.Categorical, pl.Enum):
        return pl.col(column).cast(pl.String)
    raise ValueError(
        f"{name}: column {column!r} must be text or whole numbers, it is {kind}; cast it. (pandas makes floats of "
        "whole numbers with gaps: astype('Int64') keeps them.)"
    )


def _number(column: str, kinds: pl.Schema) -> pl.Expr:
    kind = kinds[column]
    if kind != pl.String and not kind.is_numeric():
        raise ValueError(f"interactions: column {column!r} must hold numbers, it is {kind}; cast it")
    return pl.col(column).cast(pl.Float64, strict=False).fill_nan(None)


def _title(column: str) -> pl.Expr:
    text = pl.col(column).cast(pl.String).str.strip_chars()
    return pl.when(text != "").then(text)


def _times(column: str, times: pl.Series) -> pl.Series:
    """Times as numbers; what cannot be one is null."""
    if times.dtype == pl.String:
        whole = times.cast(pl.Int64, strict=False)
        if whole.null_count() == times.null_count():
            return whole
        numbers = times.cast(pl.Float64, strict=False)
        # polars also takes "1/2/2020", and guesses which is the month
        iso = (
            times.to_frame().select(pl.when(pl.first().str.contains(r"^\d{4}-\d\d-\d\d")).then(pl.first())).to_series()
        )
        dates = iso.str.to_datetime(time_unit="us", time_zone="UTC", strict=False)
        parsed = min(numbers, dates, key=pl.Series.null_count)
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
            f"interactions: column {column!r} must hold numbers, dates or datetimes, it is {times.dtype}; cast it"
        )
    return times.fill_nan(None) if times.dtype.is_float() else times
