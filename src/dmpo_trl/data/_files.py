"""Raw files as bytes: regular files only, unpacked as they are read, with errors that name the file."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import zlib
from pathlib import Path
from typing import IO, Any, cast

import polars as pl

# A line of a raw file has kilobytes; this many bytes without a line end are something else
LINE_LIMIT = 1 << 24
# Text shrinks to a third or a tenth. A large file that grows this many times was made to fill the memory
RATIO_LIMIT, RATIO_FROM = 200, 1 << 29
# What polars raises for a file that it cannot read: a lone quote makes some of its readers panic
POLARS_OWN_ERRORS = (pl.exceptions.PolarsError, pl.exceptions.PanicException)
# The same where a path is known to be readable: packed data that Python unpacks may be an OSError to polars, and that
# names no file
POLARS_ERRORS = (*POLARS_OWN_ERRORS, OSError)
PACKED = {".gz": gzip.open, ".xz": lzma.open}
_GZIP = b"\x1f\x8b"  # how it begins, whatever its name; polars knows it by that too


def require_file(path: Path) -> Path:
    """Return the path if a regular file is there, itself or behind a link.

    Raises:
        FileNotFoundError: Where nothing is there.
        ValueError: For a folder, and for a pipe or a device, which may never end.

    Example:
        >>> require_file(Path("/"))
        Traceback (most recent call last):
        ...
        ValueError: / is a folder; give a file.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give a file.")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    if not path.is_file():
        raise ValueError(f"{path} is a pipe or a device; give a regular file.")
    return path


def has_half_characters(value: Any) -> bool:
    """Return whether a text in a JSON value holds half of a surrogate pair, which no file in UTF-8 can hold.

    JSON and Python literals can spell such halves, and `json` lets them through.

    Example:
        >>> has_half_characters(["\\ud83d"]), has_half_characters(["\\U0001f600"])
        (True, False)
    """
    try:
        json.dumps(value, ensure_ascii=False, skipkeys=True, default=str).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def open_binary(path: Path, *, lines: bool = True) -> IO[bytes]:
    """Open a file for reading, unpacked where its name ends in `.gz` or `.xz`, or it begins as gzip does.

    What is read raises ValueError with the path where the file is damaged, where it unpacks to far more than text
    does, and where a line does not end.

    Args:
        path: The file.
        lines: Whether the file consists of lines, so that an endless one is an error.

    Raises:
        FileNotFoundError: Where nothing is there.
        ValueError: Where it is not a regular file.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> folder = TemporaryDirectory()
        >>> path = Path(folder.name, "titles.gz")
        >>> _ = path.write_bytes(gzip.compress(b"Alien")[:-1])
        >>> with open_binary(path) as file:
        ...     file.read()
        Traceback (most recent call last):
        ...
        ValueError: ...titles.gz is damaged: Compressed file ended before ... Get it again.
        >>> folder.cleanup()
    """
    return cast(IO[bytes], io.BufferedReader(_Watched(require_file(path), lines), 1 << 18))


def check_packed(path: Path) -> None:
    """Unpack a file to nowhere, if it is packed, before something reads it that does not watch its size.

    Raises:
        ValueError: As from what [`open_binary`] returns.
    """
    if _unpacker(path) is not None:
        with open_binary(path) as file:
            while file.read(1 << 20):
                pass


def _unpacker(path: Path) -> Any:
    """Return what unpacks a file; None where it is not packed."""
    if (suffix := path.suffix.lower()) in PACKED:
        return PACKED[suffix]
    with path.open("rb") as file:
        return gzip.open if file.read(len(_GZIP)) == _GZIP else None


class _Watched(io.RawIOBase):
    def __init__(self, path: Path, lines: bool) -> None:
        self._path, self._lines = path, lines
        unpack = _unpacker(path)
        self._packed = path.stat().st_size if unpack is not None else None
        self._file = cast(IO[bytes], (unpack or open)(path, "rb"))
        self._line = self._total = self._ended = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        try:
            data = self._file.read(len(view))
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise ValueError(f"{self._path} is damaged: {error}. Get it again.") from error
        view[: len(data)] = data
        self._watch(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    def _watch(self, data: bytes) -> None:
        self._total += len(data)
        if self._packed and self._total > max(RATIO_FROM, RATIO_LIMIT * self._packed):
            raise ValueError(
                f"{self._path} has {self._packed:,} bytes and unpacks to more than {RATIO_LIMIT} times as many, which "
                "no data file does. Unpack it yourself if you trust it."
            )
        if not self._lines:
            return
        self._ended += data.count(b"\n")
        last = data.rfind(b"\n")
        self._line = self._line + len(data) if last < 0 else len(data) - last - 1
        if self._line > LINE_LIMIT:
            raise ValueError(
                f"{self._path}, line {self._ended + 1}: the line does not end within {LINE_LIMIT >> 20} MiB; this is "
                "not a file of text lines."
            )
