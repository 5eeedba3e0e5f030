"""Text tables: delimited files in any encoding, as columns of text."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from .._files import POLARS_ERRORS, open_binary
from .._options import OptionError

_SEPARATORS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
ENDINGS = (*_SEPARATORS, ".txt", ".dat")
_NAMED = {"tab": "\t", "\\t": "\t"}  # as a shell can give it
_BATCH = 100_000
REMEDY = "Save the file as UTF-8, or name its encoding with `encoding`, such as cp1252 or latin-1"


def read_text(
    path: Path,
    columns: Sequence[str],
    check: Callable[[list[str]], None],
    *,
    separator: str | None,
    encoding: str | None,
    others: bool = False,
    quoted: bool = True,
    published: bool = False,
) -> pl.DataFrame:
    """Read columns of a delimited file as text, whatever its lines end in; empty fields are null.

    Args:
        path: The file, packed or not. Its first line names the columns.
        columns: The columns to read.
        check: Gets the names of all columns, and raises an error where one of `columns` is missing.
        separator: What stands between fields. None: what separates most of these columns in the first line.
        encoding: Of the text. None: UTF-8, or UTF-16 where the file begins like it.
        others: Whether to read all further columns too.
        quoted: Whether a text can stand in quotes; else they are a part of it.
        published: Whether the format is a publisher's, so that no option can change it.

    Raises:
        ValueError: Where a line has more fields than the first, is not text in the encoding, or has a quote that does
            not end. The line is named.
    """
    survey = _survey(path)
    encoding = encoding or encoding_of(survey.head)
    header = _decoded(survey.head, path, encoding).splitlines()[:1]
    if not header or not header[0].strip():
        raise ValueError(f"{path} is empty: its first line must name the columns.")
    if separator is None:
        separator = _likeliest(header[0], columns, path)
    separator = _NAMED.get(separator, separator)
    if not separator or set(separator) & set('"\r\n\\'):
        raise OptionError(f"`separator` cannot be {separator!r}; it is a character such as ; or tab.", "separator")
    # As text, so that "007" stays the identifier that it is
    single = len(separator) == 1 and separator.isascii()  # polars knows no others
    if encoding == "utf-8-sig" and survey.simple and single and not (quoted and survey.escapes):
        quote = '"' if quoted else None
        lines = pl.scan_csv(path, separator=separator, infer_schema=False, glob=False, quote_char=quote)
        # With all columns, because polars takes a line with too many fields ("Good, the Bad" without quotes) for a
        # good one where it leaves out the last column
        lines = lines.map_batches(lambda frame: frame, projection_pushdown=False, streamable=True)
        try:
            there = lines.collect_schema().names()
            check(there)
            return lines.select(there if others else columns).collect(engine="streaming")
        except POLARS_ERRORS:
            pass  # Python's reader reads it, or names the line
    dialects = [_Dialect(separator, encoding, quoted, published)]
    if quoted and survey.escapes:
        # `\"` is a quote within a text, or a backslash at its end: only one of them fits the rest of the file
        dialects.append(_Dialect(separator, encoding, quoted, published, escape="\\"))
    problem: ValueError | None = None
    for dialect in dialects:
        try:
            return _read_slowly(path, dialect, None if others else columns, check)
        except OptionError:
            raise
        except ValueError as error:
            problem = problem or error
    assert problem is not None
    raise problem


def ending(path: str | Path) -> str:
    """Return the ending of a file's name that says its format, in lower case and without `.gz`."""
    path = Path(path)
    return Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower()


def encoding_of(head: bytes) -> str:
    """Return the encoding of a file by its first bytes: UTF-16, where it begins like it, else UTF-8.

    Example:
        >>> encoding_of("user,item".encode("utf-16")), encoding_of(b"user,item")
        ('utf-16', 'utf-8-sig')
    """
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    if len(head) > 3 and 0 in head[:4]:
        return "utf-16-le" if head[0] else "utf-16-be"
    return "utf-8-sig"


def shown(names: Sequence[str]) -> str:
    """Return the names of columns for a message, however many and long they are.

    Example:
        >>> shown(["user", "item"])
        "['user', 'item']"
    """
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"{[name[:60] for name in names[:20]]}{more}"


@dataclass(frozen=True)
class _Survey:
    """What one pass over the bytes of a file finds.

    Attributes:
        head: The first bytes.
        simple: Whether lines end in a line feed.
        escapes: Whether a quote follows a backslash.
    """

    head: bytes
    simple: bool
    escapes: bool


def _survey(path: Path) -> _Survey:
    with open_binary(path) as file:
        head = data = file.read(1 << 16)
        feeds = returns = escapes = False
        end = b""
        while data:
            feeds = feeds or b"\n" in data
            returns = returns or b"\r" in data
            escapes = escapes or b'\\"' in end + data
            end, data = data[-1:], file.read(1 << 20)
    return _Survey(head, feeds or not returns, escapes)


@dataclass(frozen=True)
class _Dialect:
    separator: str
    encoding: str
    quoted: bool
    published: bool
    escape: str | None = None


def _decoded(head: bytes, path: Path, encoding: str) -> str:
    try:
        with io.TextIOWrapper(io.BytesIO(head), encoding=encoding, errors="replace") as text:
            return text.read()
    except (LookupError, ValueError) as error:
        raise wrong_encoding(path, encoding, error) from error


def wrong_encoding(path: Path, encoding: str, error: Exception) -> OptionError:
    """Return the error for an encoding that Python does not know, or that a text is not in."""
    try:
        codecs.lookup(encoding)
    except (LookupError, ValueError):
        return OptionError(
            f"{path}: there is no encoding {encoding!r}. `encoding` is one that Python knows, such as utf-8, cp1252 "
            "or latin-1.",
            "encoding",
        )
    if isinstance(error, LookupError):  # one of bytes, such as hex
        return OptionError(f"{path}: {encoding!r} is no encoding of text. {REMEDY}.", "encoding")
    return OptionError(f"{path}: the text is not {encoding} ({error}). {REMEDY}.", "encoding")


def _likeliest(header: str, columns: Sequence[str], path: Path) -> str:
    usual = _SEPARATORS.get(ending(path), ",")

    def merit(separator: str) -> tuple[int, bool, int]:
        fields = [field.strip().strip('"') for field in header.split(separator)]
        splits = len(fields) > 1  # else a message about missing columns would show the whole line as one
        return sum(name in fields for name in columns), separator == usual and splits, len(fields)

    return max((usual, ",", ";", "\t", "|", "::"), key=merit)


def _read_slowly(
    path: Path, dialect: _Dialect, columns: Sequence[str] | None, check: Callable[[list[str]], None]
) -> pl.DataFrame:
    """Read by Python's csv, which knows more dialects than polars, and stops where one is broken."""
    rows = _numbered_rows(path, dialect)
    _, header = next(rows)
    names: list[str] = []
    for name in header:
        names.append(name if name not in names else f"{name}_duplicated_{len(names)}")
    check(names)
    wanted = [place for place, name in enumerate(names) if columns is None or name in columns]
    schema = {names[place]: pl.String for place in wanted}
    parts, batch = [pl.DataFrame(schema=schema)], []
    for number, fields in rows:
        if len(fields) > len(names):
            remedy = f"Put a text that has {dialect.separator!r} in it in double quotes."
            raise ValueError(
                f"{path}, line {number}: there are {len(fields)} fields, the header names {len(names)}: "
                f"{dialect.separator.join(fields)[:80]!r}. {remedy if dialect.quoted else 'Correct or remove it.'}"
            )
        batch.append([fields[place] or None if place < len(fields) else None for place in wanted])
        if len(batch) == _BATCH:
            parts.append(pl.DataFrame(batch, schema=schema, orient="row"))
            batch = []
    return pl.concat([*parts, pl.DataFrame(batch, schema=schema, orient="row")])


def _numbered_rows(path: Path, dialect: _Dialect) -> Iterator[tuple[int, list[str]]]:
    """Yield the fields of each row that is not blank, and the line in which it begins."""
    start = 1
    with open_binary(path) as file, io.TextIOWrapper(file, encoding=dialect.encoding, newline="") as text:
        try:
            if len(dialect.separator) > 1:
                for start, line in enumerate(text, 1):
                    if line.strip():
                        yield start, line.rstrip("\r\n").split(dialect.separator)
                return
            quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if dialect.quoted else csv.QUOTE_NONE
            reader = csv.reader(
                text, delimiter=dialect.separator, escapechar=dialect.escape, quoting=quoting, strict=True
            )
            for fields in reader:
                if fields:
                    yield start, fields
                start = reader.line_num + 1
        except UnicodeError as error:
            number = _undecodable_line(path, dialect.encoding) or start
            name = "UTF-8" if dialect.encoding == "utf-8-sig" else dialect.encoding
            problem = f"{path}, line {number}: the text is not {name}."
            if dialect.published:
                raise ValueError(f"{problem} Save the file as UTF-8.") from error
            raise OptionError(f"{problem} {REMEDY}.", "encoding") from error
        except csv.Error as error:
            raise ValueError(
                f"{path}, line {start}: the fields cannot be told apart ({error}). Double the quotes within a text in "
                "quotes, and close those that are open."
            ) from error


def _undecodable_line(path: Path, encoding: str) -> int | None:
    if encoding.startswith("utf-16"):  # the bytes of a line are no text of their own
        return None
    with open_binary(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode(encoding)
            except UnicodeError:
                return number
    return None
