"""Downloads: files from their publishers' addresses, checked and cached."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from filelock import FileLock

from ...writing import is_full
from ._transfer import OTHER_WAY, SCHEMES, DownloadError, damage, download

logger = logging.getLogger(__name__)


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
        if urlsplit(self.url).scheme not in SCHEMES:
            raise ValueError(f"url must begin with https://, not {self.url!r}.")
        if self.checksum is not None and not re.fullmatch(r"sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", self.checksum):
            raise ValueError(
                f"checksum must be 'sha256:' or 'md5:' and lower-case hexadecimal, not {self.checksum!r}."
            )

    @property
    def path(self) -> Path:
        """Where the file is kept: under the cache, by the host and the path of its address.

        A port and a query, which lead to other files, stand before the name as a hash.
        """
        address = urlsplit(self.url)
        path = _inside(f"{address.hostname}{address.path}")
        if address.query or address.port:
            path = path.with_name(f"{_sha256(f'{address.port}?{address.query}'.encode())[:12]}-{path.name}")
        return cache_dir() / path

    @property
    def _record(self) -> Path:
        """Where the checksum of the first download is kept, if none is published."""
        return self.path.with_name(f"{self.path.name}.sha256")

    def fetch(self) -> Path:
        """Download the file, unless the cache holds it, and check it.

        An interrupted download goes on where it stopped, if the server can do that and still has the same file. The
        file appears under its name only when it is complete and checked. Of several processes one downloads.

        Returns:
            The path of the file, [`RemoteFile.path`].

        Raises:
            DownloadError: Without network, without room on the disk, or where the file is not what it should be.
        """
        path = self.path
        with room_on_disk(path.parent):
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(path.with_name(f"{path.name}.lock")):
                    if not path.is_file():
                        self._fetch_anew(path)
            self._check(path, "The file was changed after it was downloaded: delete it and run again.")
        return path

    def _fetch_anew(self, path: Path) -> None:
        # A warning, because terms must be seen also where nobody set logging up.
        logger.warning("Downloading %s. %s", self.url, self.terms)
        part = path.with_name(f"{path.name}.part")
        whole = download(self.url, part)
        try:
            if self.checksum is None and not self._record.exists():
                if problem := damage(part, path.name, whole):
                    raise DownloadError(f"What {self.url} sent {problem}. {OTHER_WAY} Nothing was kept.")
                self._pin(part)
            remedy = "The download is damaged, or the publisher has another file there by now: run again."
            if self.checksum is None:
                remedy += f" To take the other file, delete {self._record} and run again."
            self._check(part, remedy)
        except DownloadError:
            part.unlink()
            raise
        os.replace(part, path)

    def _pin(self, path: Path) -> None:
        """Keep the checksum of the first download: later ones are held against it."""
        digest = _digest(path, "sha256")
        scratch = self._record.with_name(f"{self._record.name}.part")
        scratch.write_text(f"{digest}  {self.path.name}\n", encoding="utf-8")
        os.replace(scratch, self._record)
        logger.warning("%s: no checksum is published; recorded for later: sha256:%s", self.path.name, digest)

    def _check(self, path: Path, remedy: str) -> None:
        if self.checksum is None and not self._record.exists():
            self._pin(path)  # somebody deleted it
        expected = self.checksum or f"sha256:{self._record.read_text(encoding='utf-8').partition(' ')[0]}"
        algorithm = expected.partition(":")[0]
        if (found := f"{algorithm}:{_digest(path, algorithm)}") != expected:
            raise DownloadError(f"{path} has the checksum {found}, expected was {expected}. {remedy}")


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _inside(address: str) -> PurePosixPath:
    path = PurePosixPath(address)
    if path.is_absolute() or ".." in path.parts or "\\" in address or not path.parts:
        raise ValueError(f"{address!r} leads out of the cache.")
    return path


@contextmanager
def room_on_disk(folder: Path) -> Iterator[None]:
    """Turn the errors of a full or locked disk inside the block into a `DownloadError` with the remedy.

    Args:
        folder: Where the block writes.

    Example:
        >>> with room_on_disk(Path("c")):
        ...     raise OSError(28, "No space left on device")
        Traceback (most recent call last):
        dmpo_trl.data.readers._transfer.DownloadError: No room on the disk under c. Free some, or set DMPO_TRL_CACHE.
    """
    try:
        yield
    except OSError as error:
        if is_full(error):
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
