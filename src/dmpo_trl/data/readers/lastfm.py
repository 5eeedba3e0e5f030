"""Last.fm: HetRec 2K (https://grouplens.org/datasets/hetrec-2011/) and 1K (https://zenodo.org/records/6090214)."""

from __future__ import annotations

import logging
from pathlib import Path

import polars as pl

from .._columns import blank_as_null
from .._files import POLARS_ERRORS, check_packed
from .._sources import open_source
from ..interactions import Interactions
from ._download import RemoteFile, local_or_downloaded
from ._text import read_text, shown

logger = logging.getLogger(__name__)

# Checksums as several public projects recorded them, independently of one another
LASTFM = {
    "hetrec-2k": RemoteFile(
        "https://files.grouplens.org/datasets/hetrec2011/hetrec2011-lastfm-2k.zip",
        "sha256:6738f48195667ff03caaab4d32ca9a3133d8cc026b7c3cdaf6ce1010e913c59c",
        "Last.fm 2K of HetRec 2011: for non-commercial use; publications cite Last.fm, http://www.lastfm.com, and "
        "Cantador, Brusilovsky and Kuflik, RecSys 2011.",
    ),
    "1k": RemoteFile(
        "https://zenodo.org/records/6090214/files/lastfm-dataset-1K.tar.gz",
        "md5:a79a6808f54f73354789a9fb02cb1e41",
        "Last.fm 1K by Òscar Celma, with permission of Last.fm: for non-commercial use; publications cite Celma, "
        "Music Recommendation and Discovery, Springer 2010.",
    ),
}
"""The publishers' archives by version."""

_LISTENS = "userid-timestamp-artid-artname-traid-traname.tsv"


def read_lastfm(path: str | Path | None = None, *, version: str | None = None, download: bool = False) -> Interactions:
    """Read who listened to which artist, from HetRec 2K or from Last.fm 1K; which one is seen from the files.

    - HetRec 2K (`user_artists.dat`, `artists.dat`) has **no times**. `timestamp` is the number of plays, also kept as
      column `plays`, and `order` is `"plays"`: a history runs from the artist that the user played least to the one
      played most, and the last item, which `leave_one_out` holds out, is the user's favourite. Nothing that compares
      the timestamps of two users means anything there.
    - 1K (`userid-timestamp-artid-artname-traid-traname.tsv`, 19 million listens) has times: `timestamp` is the second
      since 1970 in which the user last played the artist. An artist is known by its MusicBrainz id, or by its name
      where that is empty; of several spellings the most played counts.

    Args:
        path: A folder or archive with the files as they were published, or one of the files beside the others.
        version: What to download: `"hetrec-2k"` or `"1k"`.
        download: Get the archive from files.grouplens.org or zenodo.org, once, instead of reading `path`.

    Returns:
        The interactions; what was dropped and why is in `dropped`, and logged.

    Raises:
        FileNotFoundError: Where a file is missing.
        ValueError: For files in another format, or where neither or both of `path` and `download` are given.
        DownloadError: Where the download fails.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> folder = TemporaryDirectory()
        >>> _ = Path(folder.name, "user_artists.dat").write_text("userID\\tartistID\\tweight\\n2\\t51\\t13883\\n")
        >>> _ = Path(folder.name, "artists.dat").write_text("id\\tname\\n51\\tDuran Duran\\n")
        >>> read_lastfm(folder.name).titles()
        {'51': 'Duran Duran'}
        >>> folder.cleanup()
    """
    with open_source(local_or_downloaded(path, version, download, LASTFM)) as files:
        if listens := files.find(_LISTENS):
            return _read_1k(listens, files.used)
        plays, artists = files.need("user_artists.dat", _LISTENS), files.need("artists.dat")
        return _read_hetrec(plays, artists, files.used)


def _read_hetrec(plays: Path, artists: Path, used: tuple[str, ...]) -> Interactions:
    logger.info(
        "Last.fm HetRec 2K has no times: `timestamp` is the play count, so that a history runs from the least to the "
        "most played artist and the item held out is the user's favourite."
    )
    counts = _read_columns(plays, {"userID": pl.UInt32, "artistID": pl.UInt32, "weight": pl.Int64})
    names = _read_columns(artists, {"id": pl.UInt32, "name": pl.String})
    return Interactions.from_raw(
        counts.select(user="userID", item="artistID", timestamp="weight", plays="weight"),
        names.select(item="id", title=blank_as_null(names["name"])),
        order="plays",
        files=used,
    )


def _read_columns(path: Path, columns: dict[str, type[pl.DataType]]) -> pl.DataFrame:
    """Read some columns of a table with a header; what is not a number becomes null, for from_raw to drop."""

    def check(there: list[str]) -> None:
        if missing := [name for name in columns if name not in there]:
            raise ValueError(f"{path}: the columns {missing} are missing; the first line names {shown(there)}.")

    table = read_text(path, list(columns), check, separator="\t", encoding=None, quoted=False, published=True)
    return table.select(pl.col(name).cast(kind, strict=False) for name, kind in columns.items())


def _read_1k(listens: Path, used: tuple[str, ...]) -> Interactions:
    check_packed(listens)
    name = _one_line("artist")
    lines = pl.scan_csv(
        listens.resolve().as_uri(),  # as an address, because polars maps a path into memory whole
        separator="\t",
        quote_char=None,
        has_header=False,
        schema=dict.fromkeys(("user", "time", "mbid", "artist", "track mbid", "track"), pl.String),
        truncate_ragged_lines=True,  # a tab in a track's title
    ).select(
        user="user",
        item=pl.coalesce("mbid", name),
        title=name,
        timestamp=pl.col("time").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", strict=False).dt.epoch("s"),
    )
    # Nineteen million rows become one for each user, artist and spelling while they stream by
    groups = lines.group_by("user", "item", "title").agg(
        rows=pl.len(), listens=pl.col("timestamp").count(), timestamp=pl.col("timestamp").max()
    )
    try:
        table = groups.collect(engine="streaming")
    except POLARS_ERRORS as error:
        raise ValueError(f"{listens} is not a tab-separated table in UTF-8: {error}.") from error
    whole = table.drop_nulls(["user", "item", "timestamp"])
    spellings = whole.group_by("item", "title").agg(pl.col("listens").sum())
    spellings = spellings.sort("listens", "item", "title", descending=[True, False, False])
    latest = whole.group_by("user", "item").agg(pl.col("timestamp").max())
    read, complete = (int(column.sum()) for column in (table["rows"], whole["listens"]))
    dropped = {
        "interactions with an empty or unreadable field": read - complete,
        "earlier interactions of a user with the same item": complete - latest.height,
    }
    return Interactions.from_raw(
        # Groups come in any order
        latest.sort("user", "timestamp", "item"),
        spellings.select("item", "title"),
        dropped={reason: rows for reason, rows in dropped.items() if rows},
        read={"interactions": read, "items": spellings.height},
        files=used,
    )


def _one_line(column: str) -> pl.Expr:
    """Return text without white space around it or repeated in it; null where nothing is left."""
    text = pl.col(column).str.replace_all(r"\s+", " ").str.strip_chars()
    return pl.when(text != "").then(text)
