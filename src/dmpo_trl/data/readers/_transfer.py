"""Transfers: complete downloads of single files, and checks of what was received.

Written by hand because the alternatives do not continue a broken download of the same version: `pooch` (1.9) and
`datasets.DownloadManager` (5.2) begin anew, `huggingface_hub.file_download.http_get` (2.4) takes whatever follows. The
archives have up to several gigabytes.
"""

from __future__ import annotations

import gzip
import http.client
import json
import re
import ssl
import urllib.error
import urllib.request
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from tqdm.auto import tqdm

SCHEMES = ("http", "https")
OTHER_WAY = "Get the file with a browser and give its path instead."
_PATIENCE, _LEAST = 60, 10_240  # seconds, and the bytes that must come in each such time
_BLOCK = 1 << 18


class DownloadError(OSError):
    """A file could not be obtained; the message says why and what to do.

    Example:
        >>> issubclass(DownloadError, OSError)
        True
    """


@dataclass(frozen=True)
class _Version:
    """Which file a part is of: only its rest may follow.

    Attributes:
        header: "ETag" or "Last-Modified".
        value: Of that header.
        total: Length of the whole file.
    """

    header: str
    value: str
    total: int

    @classmethod
    def of(cls, headers: http.client.HTTPMessage, total: int | None) -> _Version | None:
        """Read it from the answer to a request for the whole; None where a part of it could not be continued.

        A weak ETag (`W/...`) does not promise the same bytes, and If-Range does not accept it.
        """
        for header in ("ETag", "Last-Modified"):
            if total is not None and (value := headers[header]) and not value.startswith("W/"):
                return cls(header, value, total)
        return None

    @classmethod
    def stored(cls, file: Path) -> _Version | None:
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            return cls(found["header"], found["value"], int(found["total"]))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def is_continued_by(self, headers: http.client.HTTPMessage, start: int) -> bool:
        """Return whether an answer has the bytes from `start` to the end of this version, as was asked."""
        content_range = f"bytes {start}-{self.total - 1}/{self.total}"
        return headers["Content-Range"] == content_range and headers[self.header] == self.value


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects within the web, never from an encrypted connection to one that is not."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        schemes = SCHEMES if urlsplit(req.full_url).scheme == "http" else SCHEMES[1:]
        if urlsplit(newurl).scheme not in schemes:
            raise ConnectionError(f"it leads on to {newurl}, and only {' and '.join(schemes)} are followed from there")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Pace:
    """Gives up a server that all but stands still: a byte a minute never runs into a timeout."""

    def __init__(self) -> None:
        self.since, self.received = monotonic(), 0

    def check(self, received: int) -> None:
        """Count bytes that came.

        Raises:
            TimeoutError: Too few have come for too long.
        """
        self.received += received
        if monotonic() - self.since < _PATIENCE:
            return
        if self.received < _LEAST:
            raise TimeoutError(f"less than {_LEAST:,} bytes came in {_PATIENCE} seconds")
        self.since, self.received = monotonic(), 0


def download(url: str, part: Path) -> bool:
    """Download a file. A part of the same version that is there already is continued.

    Args:
        url: Address on the web.
        part: Where the file grows. Beside it stands what tells the version, `<part>.version`, as long as it grows.

    Returns:
        Whether the file is known to be complete: the server said where it ends.

    Raises:
        DownloadError: It could not be downloaded.
    """
    try:
        return _download(url, part)
    except (
        urllib.error.URLError,
        http.client.HTTPException,
        ssl.SSLError,
        ConnectionError,
        TimeoutError,
    ) as error:
        raise DownloadError(
            f"Could not download {url}: {error}. Check the network and the proxy (HTTPS_PROXY) and run again: the "
            f"download goes on where it stopped, if the server can do that. Or: {OTHER_WAY}"
        ) from error


def _download(url: str, part: Path) -> bool:
    version_file = part.with_name(f"{part.name}.version")
    version = _Version.stored(version_file) if part.exists() else None
    start = part.stat().st_size if version else 0
    headers = {"User-Agent": "dmpo-trl", "Accept-Encoding": "identity"}
    if version and 0 < start < version.total:
        headers |= {"Range": f"bytes={start}-", "If-Range": version.value}
    opener = urllib.request.build_opener(_Redirects)
    try:
        response = opener.open(urllib.request.Request(url, headers=headers), timeout=_PATIENCE)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or "Range" not in headers:
            raise
        version_file.unlink()
        return _download(url, part)  # anew: without a version it is not continued
    with response:
        continued = response.status == http.HTTPStatus.PARTIAL_CONTENT and "Range" in headers
        if continued and not (version and version.is_continued_by(response.headers, start)):
            version_file.unlink()
            return _download(url, part)
        total = _length(response, Path(urlsplit(url).path).name, continued)
        if continued and version:
            total = version.total
        else:
            start, version = 0, _Version.of(response.headers, total)
            version_file.unlink(missing_ok=True)
        with part.open("ab" if continued else "wb") as file:
            if version:
                version_file.write_text(json.dumps(asdict(version)), encoding="utf-8")
            bar = tqdm(desc=part.stem, total=total, initial=start, unit="B", unit_scale=True, disable=None)
            with bar:
                pace = _Pace()
                while block := response.read1(_BLOCK):
                    file.write(block)
                    bar.update(len(block))
                    pace.check(len(block))
            if total is not None and file.tell() < total:
                raise ConnectionError(f"it ended after {file.tell()} of {total} bytes")
    version_file.unlink(missing_ok=True)
    return total is not None or response.chunked


def _length(response: Any, name: str, continued: bool) -> int | None:
    """Return the length that the server states; None without one.

    Raises:
        ConnectionError: The answer is not the file, whatever its status says.
    """
    expected = http.HTTPStatus.PARTIAL_CONTENT if continued else http.HTTPStatus.OK
    if response.status != expected:
        raise ConnectionError(f"the server answered with status {response.status}")
    if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):  # a login, an error in words
        raise ConnectionError("the server answered with a web page")
    encoding = (response.headers["Content-Encoding"] or "identity").lower()
    # Some servers declare the file's own compression here
    if encoding != "identity" and not (name.endswith((".gz", ".tgz")) and encoding in ("gzip", "x-gzip")):
        raise ConnectionError(f"the server sent it in another form, Content-Encoding: {encoding}")
    length = response.headers["Content-Length"]
    if length is not None and not re.fullmatch("[0-9]+", length):
        raise ConnectionError(f"the server states a length of {length!r}")
    return None if length is None else int(length)


def damage(path: Path, name: str, whole: bool) -> str | None:
    """Return what is wrong with a file for which there is no checksum; None where nothing is.

    Args:
        path: The file.
        name: Its name at the publisher's.
        whole: Whether it is known to be complete.
    """
    with path.open("rb") as file:
        head = file.read(512).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not path.stat().st_size:
        return "is empty"
    if head.startswith((b"<!doctype html", b"<html")) or (head.startswith(b"<?xml") and b"<html" in head):
        return "is a web page"
    try:
        if name.endswith((".gz", ".tgz")):
            with gzip.open(path) as file:
                if file.read(2) == b"\x1f\x8b":
                    return "is compressed twice"
                while file.read(_BLOCK):  # at whose end is a checksum
                    pass
        elif name.endswith(".zip"):
            with zipfile.ZipFile(path) as archive:
                if bad := archive.testzip():
                    return f"is damaged: its member {bad} has another checksum than it should have"
        elif not whole:
            return "has no stated length, and may be cut short"
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes make the standard library raise nearly anything
        return f"is damaged: {error}"
    return None
