"""Downloads: files from their publishers' addresses, checked and cached.

Written by hand because what does it otherwise does not resume: `datasets.DownloadManager` (5.2) and `pooch` begin a
file anew after a broken connection, and neither remembers the checksum of a first download. The archives have up to
several gigabytes.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import logging
import os
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from tqdm.auto import tqdm

logger = logging.getLogger(__name__)


class DownloadError(OSError):
    """A file could not be obtained; the message says why and what to do.

    Example:
        >>> issubclass(DownloadError, OSError)
        True
    """


def cache_dir() -> Path:
    """Return the folder for downloads: `$DMPO_TRL_CACHE`, else `~/.cache/dmpo-trl`.

    Example:
        >>> cache_dir().is_absolute()
        True
    """
    return Path(os.environ.get("DMPO_TRL_CACHE") or Path.home() / ".cache" / "dmpo-trl").expanduser()


@dataclass(frozen=True)
class RemoteFile:
    """One file at an address on the web.

    Args:
        url: Its address, `https://...`.
        checksum: `"sha256:..."` or `"md5:..."`, in hexadecimal. None where the publisher states none: then the SHA-256
            of the first download is written beside the file, logged, and held against every later one.
        terms: One line about licence and terms of use, logged when the file is downloaded.

    Raises:
        ValueError: For an address or a checksum of another form.

    Example:
        >>> file = RemoteFile("https://example.org/data/ratings.zip", None, "For research only.")
        >>> file.path.relative_to(cache_dir()).as_posix()
        'example.org/data/ratings.zip'
    """

    url: str
    checksum: str | None
    terms: str = ""

    def __post_init__(self) -> None:
        """Check what would otherwise fail only at the download."""
        if urlsplit(self.url).scheme not in ("http", "https"):
            raise ValueError(f"url must begin with https://, not {self.url!r}.")
        if self.checksum is not None and not re.fullmatch(r"sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", self.checksum):
            raise ValueError(
                f"checksum must be 'sha256:' or 'md5:' and lower-case hexadecimal, not {self.checksum!r}."
            )

    @property
    def path(self) -> Path:
        """Where the file is kept: under the cache, by the host and the path of its address."""
        address = urlsplit(self.url)
        return cache_dir() / _inside(f"{address.hostname}{address.path}")

    def fetch(self) -> Path:
        """Download the file, unless the cache holds it, and check it.

        An interrupted download goes on where it stopped, if the server can do that. The file appears under its name
        only when it is complete and checked.

        Returns:
            The path of the file, [`RemoteFile.path`].

        Raises:
            DownloadError: Without network, without room on the disk, or where the checksum is another.
        """
        path = self.path
        with room_on_disk(path.parent):
            if path.is_file():
                self._check(path, "The file was changed after it was downloaded: delete it and run again.")
                return path
            # A warning, because terms must be seen also where nobody set logging up.
            logger.warning("Downloading %s. %s", self.url, self.terms)
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"{path.name}.part")
            self._download(part)
            try:
                self._check(part, "The download is damaged or the publisher has another file there by now: run again.")
            except DownloadError:
                part.unlink()
                raise
            os.replace(part, path)
        return path

    def _download(self, part: Path) -> None:
        """Bring `part` to its full length."""
        version = part.with_name(f"{part.name}.version")  # ETag or date: only the same version can be continued
        headers = {"User-Agent": "dmpo-trl"}
        if part.exists() and version.exists():
            headers |= {"Range": f"bytes={part.stat().st_size}-", "If-Range": version.read_text()}
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url, headers=headers), timeout=60) as response:
                # A login, or an error that calls itself a success
                if response.headers.get_content_type() == "text/html":
                    raise ConnectionError("the server answered with a web page")
                resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
                start = part.stat().st_size if resumed else 0
                length = response.headers["Content-Length"]
                total = start + int(length) if length else None
                version.unlink(missing_ok=True)
                with (
                    part.open("ab" if resumed else "wb") as file,
                    tqdm(desc=part.stem, total=total, initial=start, unit="B", unit_scale=True, disable=None) as bar,
                ):
                    if tag := _strong_tag(response.headers):
                        version.write_text(tag)
                    while block := response.read(1 << 20):
                        file.write(block)
                        bar.update(len(block))
                    if total is not None and file.tell() < total:
                        raise ConnectionError(f"it ended after {file.tell()} of {total} bytes")
        except urllib.error.HTTPError as error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and "Range" in headers:
                version.unlink()  # the part is whole or too long: without a version it is begun anew
                return self._download(part)
            raise DownloadError(_explain_address(self.url, error)) from error
        except (
            urllib.error.URLError,
            http.client.HTTPException,
            ssl.SSLError,
            ConnectionError,
            TimeoutError,
        ) as error:
            raise DownloadError(_explain_address(self.url, error)) from error
        version.unlink(missing_ok=True)

    def _check(self, path: Path, remedy: str) -> None:
        record = self.path.with_name(f"{self.path.name}.sha256")
        expected = self.checksum
        if expected is None and record.exists():
            expected = f"sha256:{record.read_text().split()[0]}"
        algorithm = (expected or "sha256:").split(":")[0]
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
        if expected is None:
            record.write_text(f"{digest}  {self.path.name}\n")
            logger.warning("%s: no checksum is published; recorded for later: sha256:%s", self.path.name, digest)
        elif f"{algorithm}:{digest}" != expected:
            raise DownloadError(f"{path} has the checksum {algorithm}:{digest}, expected was {expected}. {remedy}")


def _inside(address: str) -> PurePosixPath:
    path = PurePosixPath(address)
    if path.is_absolute() or ".." in path.parts or "\\" in address or not path.parts:
        raise ValueError(f"{address!r} leads out of the cache.")
    return path


def _strong_tag(headers: http.client.HTTPMessage) -> str | None:
    """Return what If-Range accepts: a weak ETag (`W/...`) does not promise the same bytes."""
    tag = headers["ETag"]
    return tag if tag and not tag.startswith("W/") else headers["Last-Modified"]


def _explain_address(url: str, error: Exception) -> str:
    return (
        f"Could not download {url}: {error}. Check the network and the proxy (HTTPS_PROXY) and run again: the "
        "download goes on where it stopped. Or get the file with a browser and give its path instead."
    )


@contextmanager
def room_on_disk(folder: Path) -> Iterator[None]:
    """Turn the errors of a full or locked disk inside the block into a `DownloadError` with the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DownloadError(f"No room on the disk under {folder}. Free some, or set DMPO_TRL_CACHE.") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise DownloadError(f"{folder} cannot be written to. Set DMPO_TRL_CACHE to another folder.") from error
        raise


def local_or_downloaded(
    path: str | Path | None, version: str | None, download: bool, releases: Mapping[str, RemoteFile]
) -> str | Path:
    """Return the local copy of a data set, or the archive of the version asked for, downloaded.

    Raises:
        ValueError: For neither or both of `path` and `download`, a version that is not in `releases`, and a version
            beside a local copy.
        DownloadError: Where the download fails.
    """
    if download and path is None:
        if version is None or version not in releases:
            raise ValueError(f"version must say what to download, one of {', '.join(releases)}; it is {version!r}.")
        return releases[version].fetch()
    if path is None or download:
        raise ValueError("Give either the path of a local copy, or download=True with a version.")
    if version is not None:
        raise ValueError(
            "version only says what to download: the files of a local copy tell which version it is. Leave it out."
        )
    return path
