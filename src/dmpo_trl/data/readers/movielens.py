"""MovieLens, in every format in which GroupLens published it: https://grouplens.org/datasets/movielens/."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import polars as pl

from .._files import POLARS_ERRORS, check_packed, open_binary
from .._sources import SourceFiles, open_source
from ..interactions import Interactions
from ._download import RemoteFile, local_or_downloaded
from ._text import read_text, shown
from ._titles import natural_title
from ._values import drop_unreadable, number, times


class _Format(NamedTuple):
    """How one generation of MovieLens files is written."""

    ratings: str
    movies: str
    movies_separator: str
    separator: str
    columns: tuple[str, ...]  # of the ratings; empty where a header names them


_FORMATS = (
    _Format("ratings.csv", "movies.csv", ",", ",", ()),  # 20M and later, latest-small
    # 1M, 10M; polars separates by single characters, so that each "::" has an empty field in its middle
    _Format(
        "ratings.dat",
        "movies.dat",
        "::",
        "::",
        ("userId", "gap 1", "movieId", "gap 2", "rating", "gap 3", "timestamp"),
    ),
    _Format("u.data", "u.item", "|", "\t", ("userId", "movieId", "rating", "timestamp")),  # 100K
)
_FIELDS = {"userId": pl.UInt32, "movieId": pl.UInt32, "rating": pl.Float32, "timestamp": pl.Int64}
# fmt: off
_GENRES = (  # of 100K, from its u.genre
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)
# fmt: on

_TERMS = (
    "MovieLens {} by GroupLens, University of Minnesota: for research; commercial use only with their permission; "
    "publications must acknowledge it; redistribution as the README inside says. https://grouplens.org/datasets/movielens/"
)
# SHA-256 from TensorFlow Datasets' url_checksums/movielens.txt; MD5 as several public projects quote GroupLens' .md5.
_CHECKSUMS = {
    "100k": "sha256:50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
    "1m": "sha256:a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
    "10m": "md5:ce571fd55effeba0271552578f2648bd",
    "20m": "sha256:96f243c338a8665f6bcc89c53edf6ee39162a846940de6b7c8c48aeada765ff3",
    "25m": "sha256:8b21cfb7eb1706b4ec0aac894368d90acf26ebdfb6aced3ebd4ad5bd1eb9c6aa",
    "32m": "md5:d472be332d4daa821edc399621853b57",
    "latest-small": "sha256:696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436",
}
MOVIELENS = {
    version: RemoteFile(
        f"https://files.grouplens.org/datasets/movielens/ml-{version}.zip", checksum, _TERMS.format(version)
    )
    for version, checksum in _CHECKSUMS.items()
}
"""GroupLens' own archives by version."""


def read_movielens(
    path: str | Path | None = None,
    *,
    version: str | None = None,
    natural_titles: bool = True,
    download: bool = False,
) -> Interactions:
    """Read MovieLens 100K, 1M, 10M, 20M, 25M, 32M or latest-small; which one is seen from the files.

    Args:
        path: A folder or archive with the files as they were published, or one file with ratings whose movies lie
            beside it, whatever the name of the ratings (`u.item`, `movies.dat` and `movies.csv` hold the titles).
        version: What to download: `"100k"`, `"1m"`, `"10m"`, `"20m"`, `"25m"`, `"32m"` or `"latest-small"`.
        natural_titles: Turn `"Bug's Life, A (1998)"` into `"A Bug's Life (1998)"`.
        download: Get the archive from files.grouplens.org, once, instead of reading `path`.

    Returns:
        The interactions, with ratings from 0.5 to 5 stars and timestamps in seconds since 1970; items with their
        `genres`, separated by `|`. Lines without a rating are dropped and counted. Times that another program wrote
        anew, as fractions or in ISO 8601, are read too.

    Raises:
        FileNotFoundError: Where ratings or movies are missing.
        ValueError: For files in another format, or where neither or both of `path` and `download` are given.
        DownloadError: Where the download fails.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> folder = TemporaryDirectory()
        >>> _ = Path(folder.name, "ratings.csv").write_text("userId,movieId,rating,timestamp\\n1,7,4.5,964982703\\n")
        >>> _ = Path(folder.name, "movies.csv").write_text('movieId,title,genres\\n7,"Net, The (1995)",Thriller\\n')
        >>> read_movielens(folder.name).titles()
        {'7': 'The Net (1995)'}
        >>> folder.cleanup()
    """
    with open_source(local_or_downloaded(path, version, download, MOVIELENS)) as files:
        ratings, layout = _find_ratings(files)
        movies = files.find(layout.movies)
        if movies is None:
            raise FileNotFoundError(
                f"{ratings} has no titles: they are in {layout.movies} of the same MovieLens archive, which must lie "
                f"{'beside it' if files.given else 'in the same folder or archive'}."
            )
        items = read_movies(movies)
        if natural_titles:
            items = items.with_columns(pl.col("title").map_elements(natural_title, return_dtype=pl.String))
        dropped: dict[str, int] = {}
        rows = _read_ratings(ratings, layout, dropped)
        read = {"interactions": rows.height + sum(dropped.values()), "items": items.height}
        return Interactions.from_raw(rows, items, dropped=dropped, read=read, files=files.used)


def _find_ratings(files: SourceFiles) -> tuple[Path, _Format]:
    movies = [layout.movies for layout in _FORMATS]
    if files.given and files.given.name.removesuffix(".gz") not in movies:
        path = files.need(files.given.name)
    else:
        path = files.need(*(layout.ratings for layout in _FORMATS))
    first = _first_line(path)
    for layout in _FORMATS:
        if first.count(layout.separator) >= 3:
            return path, layout
    raise ValueError(
        f"{path} does not hold MovieLens ratings: a line is user, movie, rating and time, separated by ',', '::' or "
        f"a tab; the first line is {first[:80]!r}."
    )


def _read_ratings(path: Path, layout: _Format, dropped: dict[str, int]) -> pl.DataFrame:
    columns = layout.columns or tuple(_first_line(path).replace('"', "").split(","))
    missing = [name for name in _FIELDS if name not in columns]
    if missing:
        raise ValueError(f"{path}: the columns {missing} are missing; the first line names {shown(columns)}.")
    check_packed(path)
    # A field that should be empty and is not: "1:x:3::4::5"
    strays = [pl.col(name) != "" for name in columns if name.startswith("gap")] or [pl.lit(False)]

    def scan(kinds: Mapping[str, type[pl.DataType]]) -> pl.LazyFrame:
        lines = pl.scan_csv(
            path,
            separator=layout.separator[0],
            has_header=False,
            glob=False,
            skip_rows=0 if layout.columns else 1,
            schema={name: kinds.get(name, pl.String) for name in columns},
            ignore_errors=True,  # what is not a number becomes null
            quote_char=None if layout.columns else '"',
        )
        return lines.select(
            user=pl.when(pl.any_horizontal(strays)).then(None).otherwise("userId"),
            item="movieId",
            rating="rating",
            timestamp="timestamp",
        )

    try:
        rows = scan(_FIELDS).collect(engine="streaming")
        if not any(column.null_count() for column in rows):
            return rows
        # Written anew by something else, such as pandas: 964982703.0, or a date. Only these lines are read as text
        kinds = [pl.col(name).cast(kind, strict=False) for name, kind in rows.schema.items()]
        odd = pl.any_horizontal(kind.is_null() for kind in kinds)
        text = scan({}).with_row_index("row").filter(odd).collect(engine="streaming")
    except POLARS_ERRORS as error:
        raise ValueError(_explain(path, layout, columns, error)) from error
    return _with_text(rows, text, f"{path}", dropped)


def _with_text(rows: pl.DataFrame, text: pl.DataFrame, where: str, dropped: dict[str, int]) -> pl.DataFrame:
    """Put what the fields of odd lines say into their rows; `text` has the lines and their place in `row`."""
    place = text["row"].cast(pl.Int64)
    raw, parsed = {}, {}
    for name, kind in rows.schema.items():
        words = text[name]
        # Not a single time may be there to tell how they are written
        read = number if name != "timestamp" or _all_numbers(words) else times
        values = read(words, f"{where}: column {name!r}")
        if name == "timestamp" and not (values.cast(pl.Int64, strict=False) == values).fill_null(True).all():
            kind = values.dtype
        parsed[name] = rows[name].cast(kind).scatter(place, values.cast(kind, strict=False))
        raw[name] = pl.select(pl.repeat(None, rows.height, dtype=pl.String)).to_series().scatter(place, words)
    fields = {name: raw[name] for name in ("timestamp", "rating")}
    return drop_unreadable(pl.DataFrame(parsed), fields, where, dropped)


def _all_numbers(words: pl.Series) -> bool:
    return not words.str.contains(r"\d\d\d\d-\d\d").any()


def _explain(path: Path, layout: _Format, columns: tuple[str, ...], error: Exception) -> str:
    """Name the line that polars does not: one with too many fields, or a first one with too few."""
    with open_binary(path) as file:
        for number, line in enumerate(file, 1):
            fields = line.decode("utf-8", errors="replace").rstrip("\r\n").split(layout.separator[0])
            if len(fields) > len(columns) or (len(fields) < len(columns) and number <= 2):
                return (
                    f"{path}, line {number}: a rating is {', '.join(_FIELDS)}, separated by {layout.separator!r}; "
                    f"the line is {layout.separator[0].join(fields)[:80]!r}. Correct or remove it."
                )
    if not layout.columns:
        try:
            read_text(path, [], lambda there: None, separator=",", encoding=None, others=True, published=True)
        except ValueError as problem:
            return str(problem)
    return f"{path} cannot be read: {str(error)[:200]}."


def read_movies(path: Path) -> pl.DataFrame:
    """Read the movies as text; a line that is not one is refused, because ratings would lose their titles.

    Args:
        path: `u.item`, `movies.dat` or `movies.csv`, packed or not.

    Returns:
        Columns `item`, `title` and `genres`.

    Raises:
        ValueError: For a line that is not a movie.
    """
    name = path.name.removesuffix(".gz")
    separator = next(layout.movies_separator for layout in _FORMATS if layout.movies == name)
    width = 5 + len(_GENRES) if name == "u.item" else 3
    movies = []
    with open_binary(path) as file, io.TextIOWrapper(file, encoding=_encoding(path), newline="") as text:
        try:
            for number, fields in _fields(text, separator):
                if len(fields) != width:
                    raise ValueError(
                        f"{path}, line {number}: a movie has {width} fields, separated by {separator!r}, here are "
                        f"{len(fields)}: {str(fields)[:200]}. Correct the line, or take the file anew from the "
                        "MovieLens archive."
                    )
                genres = fields[2]
                if name == "u.item":
                    genres = "|".join(genre for genre, flag in zip(_GENRES, fields[5:], strict=True) if flag == "1")
                item = fields[0].removesuffix(".0")  # written anew as a number, as in the ratings
                movies.append((item, fields[1].strip() or None, genres))
        except csv.Error as error:
            raise ValueError(f"{path}, line {len(movies) + 1} or behind it: {error}. Correct the line.") from error
    header = name == "movies.csv"
    return pl.DataFrame(movies[header:], schema=dict.fromkeys(("item", "title", "genres"), pl.String), orient="row")


def _encoding(path: Path) -> str:
    """Return UTF-8 if the whole file is, else latin-1, as in 100K and 1M."""
    decode = codecs.getincrementaldecoder("utf-8")().decode
    with open_binary(path) as file:
        try:
            while data := file.read(1 << 20):
                decode(data)
            decode(b"", final=True)
        except UnicodeDecodeError:
            return "latin-1"
    return "utf-8-sig"


def _fields(text: Iterable[str], separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the fields of each line that is not empty."""
    if separator == ",":
        reader = csv.reader(text)
        rows = ((reader.line_num, fields) for fields in reader)
    else:
        rows = ((number, line.rstrip("\r\n").split(separator)) for number, line in enumerate(text, 1))
    return ((number, fields) for number, fields in rows if fields not in ([], [""]))


def _first_line(path: Path) -> str:
    with open_binary(path) as file:
        return file.readline(1000).decode("utf-8-sig", errors="replace").rstrip("\r\n")
