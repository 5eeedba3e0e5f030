"""Amazon Reviews of 2014 and 2018 (https://nijianmo.github.io/amazon/) and 2023 (https://amazon-reviews-2023.github.io/)."""

from __future__ import annotations

import ast
import html
import json
import re
import warnings
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import polars as pl

from .._files import POLARS_ERRORS, check_packed, has_half_characters, open_binary
from .._sources import SourceFiles, open_source
from ..interactions import Interactions
from ._download import RemoteFile


class _Release(NamedTuple):
    """Where a release lies, and how its reviews and metadata name what we read."""

    reviews: str
    metadata: str
    terms: str
    user: str
    item: str
    rating: str
    timestamp: str


_HOST = "https://mcauleylab.ucsd.edu/public_datasets/data"
_RELEASES = {
    "2018": _Release(
        f"{_HOST}/amazon_v2/categoryFilesSmall/{{}}_5.json.gz",
        f"{_HOST}/amazon_v2/metaFiles2/meta_{{}}.json.gz",
        "Amazon Review Data 2018 by UC San Diego: no licence is stated; publications cite Ni, Li and McAuley, EMNLP "
        "2019; see https://nijianmo.github.io/amazon/, also for the categories' names.",
        *("reviewerID", "asin", "overall", "unixReviewTime"),
    ),
    "2023": _Release(
        f"{_HOST}/amazon_2023/raw/review_categories/{{}}.jsonl.gz",
        f"{_HOST}/amazon_2023/raw/meta_categories/meta_{{}}.jsonl.gz",
        "Amazon Reviews 2023 by UC San Diego: no licence is stated; publications cite Hou et al., arXiv 2403.03952; "
        "see https://amazon-reviews-2023.github.io/, also for the categories' names.",
        *("user_id", "parent_asin", "rating", "timestamp"),
    ),
}
_REVIEWS = re.compile(r"(?!meta_)(reviews_)?(?P<category>.+?)(_5)?\.jsonl?(\.gz)?")
_METADATA = re.compile(r"meta_(?P<category>.+)\.jsonl?(\.gz)?")
# A line of metadata has kilobytes; Python's parser takes a hundred times as much memory as the text
_LITERAL_LIMIT = 1 << 20
# What the crawler of 2018 took for a title: the beginning of a tag, or a script
_FRAGMENT = r"^</?[A-Za-z!]|<[A-Za-z]+ [A-Za-z-]+=|getTime\("


def read_amazon(
    path: str | Path | None = None,
    *,
    category: str | None = None,
    release: str = "2018",
    download: bool = False,
) -> Interactions:
    """Read one category of Amazon's product reviews, as JSON lines, gzipped or not.

    The reviews (2014: `reviews_X_5.json.gz` or `reviews_X.json.gz`, 2018: `X_5.json.gz` or `X.json.gz`, 2023:
    `X.jsonl.gz`) give user, item, rating and time, the metadata (`meta_X.json.gz`, `meta_X.jsonl.gz`) the titles.
    Which release a local copy is, its first review tells; those of 2014 and 2018 are written alike. In 2023 an item is
    a `parent_asin`: the variants of a product (colours, sizes) are one item. The lines of 2014's metadata are Python
    dictionaries, not JSON, and are read as literals: nothing in them is run.

    Titles lose HTML entities and repeated white space. A fragment of HTML (`<span class=...`, in 2018) does not
    count as a title. Of a product listed twice the first clean title counts. Metadata of products without a review in
    the file (most, beside a 5-core file) is left out.

    Args:
        path: A folder or archive with both files of one or several categories, or the file with the reviews, beside
            its metadata. Where a folder has a category's 5-core and full file, the 5-core one is read.
        category: The category's name as in the files', e.g. `"Video_Games"`. Needed to download, and where `path`
            holds several.
        release: What to download: `"2018"` (the 5-core reviews) or `"2023"` (all reviews).
        download: Get both files from mcauleylab.ucsd.edu, once, instead of reading `path`.

    Returns:
        The interactions, with ratings from 1 to 5 and the release's own timestamps: seconds since 1970, milliseconds
        in 2023. What was dropped and why is in `dropped`, and logged.

    Raises:
        FileNotFoundError: Where a file is missing.
        ValueError: For a category that is not there or not given, for a line that is not a review (the line is named),
            or where neither or both of `path` and `download` are given.
        DownloadError: Where the download fails.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> folder = TemporaryDirectory()
        >>> review = {"reviewerID": "A1", "asin": "B7", "overall": 5.0, "unixReviewTime": 1400000000}
        >>> _ = Path(folder.name, "Games_5.json").write_text(json.dumps(review))
        >>> _ = Path(folder.name, "meta_Games.json").write_text(json.dumps({"asin": "B7", "title": "Chess &amp; Go"}))
        >>> read_amazon(folder.name).titles()
        {'B7': 'Chess & Go'}
        >>> folder.cleanup()
    """
    if (path is None) != download:
        raise ValueError("Give either the path of a local copy, or download=True with a category.")
    if path is None:
        reviews, metadata = _download(category, release)
        return _read(reviews, metadata, (str(reviews), str(metadata)))
    with open_source(path) as files:
        reviews, metadata = _find(files, category)
        return _read(reviews, metadata, files.used)


def _download(category: str | None, release: str) -> tuple[Path, Path]:
    if release not in _RELEASES:
        raise ValueError(f"release must be one of {', '.join(_RELEASES)}; it is {release!r}.")
    if category is None or not re.fullmatch(r"\w+", category, re.ASCII):
        raise ValueError(f"category must be named as on Amazon's pages, such as 'Video_Games'; it is {category!r}.")
    known = _RELEASES[release]
    # The publisher states no checksums
    metadata = RemoteFile(known.metadata.format(category), None, known.terms).fetch()
    return RemoteFile(known.reviews.format(category), None, known.terms).fetch(), metadata


def _find(files: SourceFiles, category: str | None) -> tuple[Path, Path]:
    """Find the files with the reviews and the metadata."""
    if files.given and (match := _REVIEWS.fullmatch(files.given.name)):
        if category not in (None, match["category"]):
            raise ValueError(f"{files.given} is not of the category {category!r}: give the folder, or no category.")
        reviews = files.need(files.given.name)
        return reviews, files.need(*_metadata_names(match["category"], reviews))
    if files.given and (match := _METADATA.fullmatch(files.given.name)):
        category = category or match["category"]
    reviewed, described = (
        {match["category"] for match in map(kind.fullmatch, files.names) if match} for kind in (_REVIEWS, _METADATA)
    )
    # Without a pair, one name of what is there leads to an error that says what is missing beside it
    categories = sorted(reviewed & described or reviewed | described)
    if category is None and len(categories) > 1:
        raise ValueError(f"Several categories are there: choose one of {', '.join(categories)} by category='...'.")
    if category is None:
        category = categories[0] if categories else "X"
    elif categories and category not in categories:
        raise ValueError(f"category {category!r} is not there; there are {', '.join(categories)}.")
    stems = f"{category}_5", f"reviews_{category}_5", category, f"reviews_{category}"
    reviews = files.need(*(f"{stem}.json" for stem in stems), f"{category}.jsonl")
    return reviews, files.need(*_metadata_names(category, reviews))


def _metadata_names(category: str, reviews: Path) -> tuple[str, str]:
    """Return the likelier name first: one folder may hold a category of both releases."""
    names = f"meta_{category}.json", f"meta_{category}.jsonl"
    return names[::-1] if ".jsonl" in reviews.name else names


def _read(reviews: Path, metadata: Path, used: Iterable[str]) -> Interactions:
    release = _release_of(reviews, metadata)
    rows = _scan(
        reviews,
        {release.user: pl.String, release.item: pl.String, release.rating: pl.Float32, release.timestamp: pl.Int64},
        # Ten million reviews have few users and items: text would take five times the memory
        user=pl.col(release.user).cast(pl.Categorical),
        item=pl.col(release.item).cast(pl.Categorical),
        timestamp=release.timestamp,
        rating=release.rating,
    )
    products = _scan(metadata, {release.item: pl.String, "title": pl.String}, item=release.item, title="title")
    read = {"interactions": rows.height, "items": products.height}
    dropped: dict[str, int] = {}

    def keep(reason: str, frame: pl.DataFrame, condition: pl.Expr) -> pl.DataFrame:
        kept = frame.filter(condition)
        if kept.height < frame.height:
            dropped[reason] = frame.height - kept.height
        return kept

    reviewed = rows["item"].unique().cast(pl.String)
    products = keep("items that nobody reviewed", products, pl.col("item").is_in(reviewed.implode()))
    described = products["item"]
    title = pl.col("title").map_elements(html.unescape, return_dtype=pl.String).str.strip_chars()
    products = products.with_columns(title=pl.when(title != "").then(title))
    fragment = pl.col("title").str.contains(_FRAGMENT).fill_null(False)
    products = keep("items whose title is a fragment of HTML", products, ~fragment)
    titled = products.drop_nulls("title")["item"]
    for reason, known in (
        ("interactions with an item without metadata", described),
        ("interactions with an item without a clean title", titled),
    ):
        among = pl.col("item").is_in(known.unique().cast(pl.Categorical).implode())
        rows = keep(reason, rows, among.fill_null(True))  # what is empty, from_raw counts
    return Interactions.from_raw(rows, products, dropped=dropped, read=read, files=used)


def _release_of(reviews: Path, metadata: Path) -> _Release:
    fields = _first_fields(reviews)
    for release in _RELEASES.values():
        if {release.user, release.item, release.rating, release.timestamp} <= fields.keys():
            if release.item not in _first_fields(metadata):
                raise ValueError(
                    f"{metadata} is not the metadata of {reviews.name}: its first line has no {release.item!r}. "
                    "Reviews and metadata must be of one release."
                )
            return release
    raise ValueError(
        f"{reviews} does not hold Amazon reviews: a line of 2014 and 2018 has reviewerID, asin, overall and "
        "unixReviewTime, one of 2023 user_id, parent_asin, rating and timestamp; the first line has "
        f"{', '.join(map(str, fields))[:200] or 'nothing'}."
    )


def _first_fields(path: Path) -> dict[str, object]:
    with open_binary(path) as file:
        first = file.readline()
    return _object(first, f"{path}, line 1") if first.strip() else {}


def _object(line: bytes, where: str) -> dict[str, object]:
    """Return what a line holds, be it JSON or a Python literal."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        try:
            if len(line) > _LITERAL_LIMIT:
                raise ValueError
            with warnings.catch_warnings(action="ignore"):  # of "\\d" in a text
                fields = ast.literal_eval(line.decode("utf-8").strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise ValueError(
                f"{where} is not JSON, and not a Python dictionary as in 2014: {line[:80]!r}. Correct or remove it."
            ) from None
    if not isinstance(fields, dict):
        raise ValueError(f"{where} is not an object with fields: {line[:80]!r}. Correct or remove it.")
    return fields


def _scan(path: Path, schema: dict[str, type[pl.DataType]], **columns: pl.Expr | str) -> pl.DataFrame:
    """Read some fields of JSON lines without ever holding the rest, such as the reviews' text."""
    check_packed(path)
    with open_binary(path) as file:
        literals = not _is_json(file.readline())
    if literals:
        return _read_literals(path, schema).select(**columns)
    try:
        # As an address, because polars maps a path into memory whole, and takes [ and * in it for patterns
        lines = pl.scan_ndjson(path.resolve().as_uri(), schema=schema)
        return lines.select(**columns).collect(engine="streaming")
    except POLARS_ERRORS as error:
        raise ValueError(f"{path}{_first_problem(path, schema) or f': {error}'}") from error


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line or b"{}")
    except (ValueError, RecursionError):
        return False
    return True


def _read_literals(path: Path, schema: dict[str, type[pl.DataType]]) -> pl.DataFrame:
    """Read some fields of lines that are Python dictionaries; what is not a number where it should be is null."""
    rows = []
    with open_binary(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                where = f"{path}, line {number}"
                fields = _object(line, where)
                rows.append([fields.get(name) for name in schema])
                if has_half_characters(rows[-1]):
                    raise ValueError(f"{where} holds half of a character (a lone surrogate). Correct or remove it.")
    text = {
        name: pl.Series(name, [None if row[place] is None else str(row[place]) for row in rows], pl.String)
        for place, name in enumerate(schema)
    }
    return pl.DataFrame(text).cast(schema, strict=False)  # type: ignore[arg-type]


def _first_problem(path: Path, schema: dict[str, type[pl.DataType]]) -> str:
    """Say where and why a file cannot be read, since polars does not name the line; "" where it can."""
    number = 0
    with open_binary(path) as file:
        while lines := list(islice(file, 10_000)):
            try:
                pl.read_ndjson(b"".join(lines), schema=schema)
            except POLARS_ERRORS:
                for line in lines:
                    number += 1
                    try:
                        pl.read_ndjson(line, schema=schema)
                    except POLARS_ERRORS as error:
                        return f", line {number} cannot be read ({error}): {line[:80]!r}. Correct or remove it."
            else:
                number += len(lines)
    return ""
