"""Tables of interactions: your own, in memory or in files."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from .._columns import identifiers
from .._files import POLARS_OWN_ERRORS, check_packed, open_binary, require_file
from .._options import OptionError
from ..interactions import Interactions
from ._text import ENDINGS, encoding_of, ending, read_text, shown, wrong_encoding
from ._values import drop_unreadable, number, times

_LINES = (".jsonl", ".ndjson")
_FORMATS = f"{', '.join(ENDINGS)}, .jsonl (these also as .gz) or .parquet"


def read_table(
    interactions: Any,
    items: Any = None,
    *,
    user: str = "user",
    item: str = "item",
    timestamp: str = "timestamp",
    rating: str | None = None,
    title: str = "title",
    separator: str | None = None,
    encoding: str | None = None,
) -> Interactions:
    """Read interactions and titles from tables in memory or in files.

    Args:
        interactions: A polars, pandas or Arrow table, or the path of a file, one row per interaction: text with
            separators (`.csv`, `.tsv`, `.txt`, `.dat`) or JSON lines (`.jsonl`), gzipped or not, or `.parquet`.
        items: The same, one row per item; None where `interactions` itself has the titles. Further columns are kept.
        user: Column with the users: text, or whole numbers of any type.
        item: Column with the items, of the same name in both tables: text, or whole numbers of any type.
        timestamp: Column with the times: numbers of any unit, dates or datetimes, or, in a text column, numbers or ISO
            8601. What are not numbers become seconds since 1970; a time without a zone is in UTC. Where a text column
            has both numbers and ISO 8601, the fewer are unreadable: nobody knows the numbers' unit.
        rating: Column with the ratings, where there is one.
        title: Column with the titles. Where an item has several, in `interactions`, the first counts.
        separator: What stands between the fields of text files. None: the comma, semicolon, tab, bar or `::` at which
            the first line falls into the columns.
        encoding: Encoding of text files and JSON lines, such as `"cp1252"`. None: UTF-8 or UTF-16.

    Returns:
        The interactions. Rows with a field that is empty or cannot be read are dropped and counted, by their reason.

    Raises:
        FileNotFoundError: Where a file does not exist.
        TypeError: For something that is not a table.
        ValueError: For a column that is missing or of another type, or a file that cannot be read; the line is named.

    Example:
        >>> orders = pl.DataFrame({"customer": [7, 7], "sku": ["a", "b"], "bought_at": ["2026-05-02", "2026-05-01"]})
        >>> products = pl.DataFrame({"sku": ["a", "b"], "title": ["Apple", "Bread"]})
        >>> data = read_table(orders, products, user="customer", item="sku", timestamp="bought_at")
        >>> data.interactions["item"].to_list()
        ['b', 'a']
    """
    files = [str(table) for table in (interactions, items) if isinstance(table, str | Path)]
    own_titles = items is None
    needed = {"user": user, "item": item, "timestamp": timestamp}
    needed |= {"rating": rating} if rating else {}
    needed |= {"title": title} if own_titles else {}
    raw = _load("interactions", interactions, needed, separator, encoding)
    where = _place("interactions", interactions)
    frame = pl.DataFrame(
        [
            identifiers(raw[user], f"{where}: column {user!r}").alias("user"),
            identifiers(raw[item], f"{where}: column {item!r}").alias("item"),
            times(raw[timestamp], f"{where}: column {timestamp!r}").alias("timestamp"),
            *([number(raw[rating], f"{where}: column {rating!r}").alias("rating")] if rating else []),
            *([raw[title].alias("title")] if own_titles else []),
        ]
    )
    read = {"interactions": frame.height}
    dropped: dict[str, int] = {}
    if own_titles:
        frame = frame.with_columns(_titles(frame["title"], f"{where}: column {title!r}"))
        titles = frame.drop_nulls("item").select("item", "title")
        groups = titles.group_by("item", maintain_order=True)
        catalogue = groups.agg(pl.col("title").drop_nulls().first(), spellings=pl.col("title").drop_nulls().n_unique())
        if surplus := int((catalogue["spellings"].clip(lower_bound=1) - 1).sum()):
            dropped["further titles of the same item"] = surplus
        frame, catalogue = frame.drop("title"), catalogue.drop("spellings")
    else:
        table = _load("items", items, {"item": item, "title": title}, separator, encoding, others=True)
        others = [name for name in table.columns if name not in (item, title, "item", "title")]
        place = _place("items", items)
        catalogue = table.select(pl.col(item).alias("item"), pl.col(title).alias("title"), pl.col(others))
        catalogue = catalogue.with_columns(
            identifiers(catalogue["item"], f"{place}: column {item!r}"),
            _titles(catalogue["title"], f"{place}: column {title!r}"),
        )
    read["items"] = catalogue.height
    parsed = {"timestamp": raw[timestamp]} | ({"rating": raw[rating]} if rating else {})
    frame = drop_unreadable(frame, parsed, where, dropped)
    return Interactions.from_raw(frame, catalogue, dropped=dropped, files=files, read=read)


def _load(
    name: str,
    table: Any,
    needed: dict[str, str],
    separator: str | None,
    encoding: str | None,
    *,
    others: bool = False,
) -> pl.DataFrame:
    """Read the columns `needed`, by the option that names each, and the others where asked for."""
    columns = list(dict.fromkeys(needed.values()))

    def check(there: list[str]) -> None:
        _check(table, there, needed)

    if isinstance(table, str | Path) and ending(table) in ENDINGS:
        path = _file(name, table)
        with _named(name):
            return read_text(path, columns, check, separator=separator, encoding=encoding, others=others)
    with _problems_named(name, table, encoding):
        lines = _scan(name, table, encoding)
        there = lines.collect_schema().names()
        with _named(name):
            check(there)
        return lines.select(there if others else columns).collect(engine="streaming")


def _file(name: str, path: str | Path) -> Path:
    with _named(name):
        return require_file(Path(path).expanduser())


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Say which of the two tables cannot be read."""
    try:
        yield
    except OptionError as error:
        raise OptionError(f"{name}: {error.text}", *error.options) from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _scan(name: str, table: Any, encoding: str | None) -> pl.LazyFrame:
    if isinstance(table, pl.DataFrame | pl.LazyFrame):
        return table.lazy()
    if hasattr(table, "__arrow_c_stream__"):  # pandas, Arrow and all others that export Arrow streams
        return pl.DataFrame(pa.table(table)).lazy()
    if not isinstance(table, str | Path):
        raise TypeError(
            f"{name} must be a polars, pandas or Arrow table, or the path of a file ({_FORMATS}), not "
            f"{type(table).__name__}."
        )
    path = _file(name, table)
    if path.suffix.lower() == ".parquet":
        return pl.scan_parquet(path, glob=False)
    if ending(path) not in _LINES:
        raise ValueError(f"{name}: {path.name} is not a file that can be read ({_FORMATS}). Convert it to one.")
    with _named(name):
        check_packed(path)
        with open_binary(path) as file:
            head = file.read(4)
            text = encoding or encoding_of(head)
            if not encoding and text == "utf-8-sig" and not head.startswith(b"\xef\xbb\xbf"):
                return pl.scan_ndjson(path.resolve().as_uri(), infer_schema_length=None)
            try:
                data = (head + file.read()).decode(text).encode()
            except (LookupError, ValueError) as error:
                raise wrong_encoding(path, text, error) from error
        return pl.scan_ndjson(io.BytesIO(data), infer_schema_length=None)


def _check(source: Any, there: list[str], needed: dict[str, str]) -> None:
    where = f"{source}: " if isinstance(source, str | Path) else ""
    if not there:
        raise ValueError(f"{where}the table has no columns.")
    if missing := {option: column for option, column in needed.items() if column not in there}:
        options = ", ".join(f"`{option}`" for option in missing)
        titles_apart = "title" in missing and "user" in needed  # the interactions were to hold the titles too
        raise OptionError(
            f"{where}the columns {list(missing.values())} are missing; there are {shown(there)}. Say which they are "
            f"with {options}{'; or name the table that has the titles with `items`' if titles_apart else ''}.",
            *missing,
            *(["items"] if titles_apart else []),
        )


@contextmanager
def _problems_named(name: str, source: Any, encoding: str | None) -> Iterator[None]:
    """Raise what polars cannot read as ValueError, with the path and, where it can be found, the line."""
    try:
        yield
    except (*POLARS_OWN_ERRORS, pa.ArrowException) as error:
        if not isinstance(source, str | Path):
            raise ValueError(
                f"{name}: the table cannot be read: {error}. Give each of its columns one type, such as text."
            ) from error
        path = Path(source).expanduser()
        reason = _wrong_json_line(path, encoding) if path.suffix.lower() != ".parquet" and path.stat().st_size else ""
        raise ValueError(f"{name}: {path}{reason or f' cannot be read: {str(error)[:200]}'}.") from error


def _wrong_json_line(path: Path, encoding: str | None) -> str:
    """Return the first line that is not a JSON object, and why."""
    with open_binary(path) as file:
        for number_, line in enumerate(file, 1):
            try:
                text = line.decode(encoding or "utf-8-sig")
                if text.strip() and not isinstance(json.loads(text, parse_constant=_refuse_constant), dict):
                    return f", line {number_} is not a JSON object: {line[:80]!r}"
            except RecursionError:
                return f", line {number_} nests too deeply: {line[:80]!r}"
            except ValueError as error:  # of JSON or of UTF-8
                return f", line {number_} is not JSON in {encoding or 'UTF-8'}: {error}"
    return ""


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is none of its numbers; write null")


def _place(name: str, table: Any) -> str:
    return f"{name}: {table}" if isinstance(table, str | Path) else name


def _titles(values: pl.Series, where: str) -> pl.Series:
    """Return titles as text, null where there is none.

    Raises:
        ValueError: They are lists or the like, naming `where`.
    """
    if values.dtype.is_nested():
        raise ValueError(
            f"{where} must hold texts, it holds {values.dtype}, for example {str(values.drop_nulls()[0])[:80]}."
        )
    if values.dtype.is_float():  # as pandas and JSON make them of whole numbers with gaps
        whole = values.cast(pl.Int64, strict=False)
        other = values.fill_nan(None).cast(pl.String)
        values = whole.cast(pl.String).zip_with((whole == values).fill_null(False), other)
    text = values.cast(pl.String).str.strip_chars()
    return text.set(text == "", None)
