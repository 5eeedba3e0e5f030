"""Prepared folders: the datasets of one preparation, what they were made from, and how."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from datasets import DatasetDict, load_dataset
from huggingface_hub import DatasetCardData

from ..prompts import PromptTemplate
from .summary import examples_in_words

MANIFEST = "manifest.json"
FORMAT = "dmpo-trl prepared data, version 1"


@dataclass(frozen=True)
class Prepared:
    """A folder that [`prepare`] wrote. `datasets.load_dataset(folder, name)` reads the same datasets.

    Args:
        folder: Holds `README.md` (a dataset card), `manifest.json`, `items.parquet`, and for each dataset a folder
            with one Parquet file per split.
        manifest: Sizes, options, seed, template, rows read and dropped, and checksums of the files read and written.

    Example:
        >>> Prepared.load("prepared/ml-1m").preference["train"][0]  # doctest: +SKIP
    """

    folder: Path
    manifest: dict[str, Any]

    @classmethod
    def load(cls, folder: str | Path) -> Prepared:
        """Open a prepared folder, and check its files against the manifest.

        Args:
            folder: The `output_dir` of a preparation.

        Raises:
            FileNotFoundError: Where there is no prepared folder.
            ValueError: Where its files are not those that were written.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        if manifest is None:
            raise FileNotFoundError(f"{folder} is not a folder of prepared data: it has no {MANIFEST} of dmpo-trl's.")
        for name, expected in manifest["files"].items():
            if not (folder / name).is_file():
                raise ValueError(f"{folder / name} is missing, the manifest lists it; prepare the data again.")
            if sha256(folder / name) != expected:
                raise ValueError(f"{folder / name} is not the file that was prepared; prepare the data again.")
        return cls(folder, manifest)

    @property
    def preference(self) -> DatasetDict:
        """`train` and `validation` for `DMPOTrainer`, as [`preference_dataset`] makes them."""
        return self._dataset("preference")

    @property
    def sft(self) -> DatasetDict:
        """`train` and `validation` for TRL's `SFTTrainer`, as [`sft_dataset`] makes them."""
        return self._dataset("sft")

    @property
    def pairs(self) -> DatasetDict:
        """`train` and `validation` for TRL's `DPOTrainer`, as [`pair_dataset`] makes them; only where asked for."""
        return self._dataset("pairs")

    @property
    def ranking(self) -> DatasetDict:
        """`validation` and `test` for the evaluation, as [`ranking_dataset`] makes them."""
        return self._dataset("ranking")

    @property
    def items(self) -> pl.DataFrame:
        """`item`, `title`, and `popularity`: how many training users had the item, before what is evaluated."""
        return pl.read_parquet(self.folder / "items.parquet")

    @property
    def template(self) -> PromptTemplate:
        """The template that made the prompts."""
        return PromptTemplate.from_dict(self.manifest["template"])

    def _dataset(self, name: str) -> DatasetDict:
        if name not in self.manifest["rows"]:
            raise ValueError(f"{self.folder} holds no {name}, only {', '.join(self.manifest['rows'])}.")
        return load_dataset(str(self.folder), name)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Read the manifest of a prepared folder; None where the folder is not one."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and manifest.get("format") == FORMAT else None


def sha256(path: str | Path) -> str:
    """Return the checksum of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_free(folder: Path, *, overwrite: bool) -> None:
    """Check that `folder` holds nothing that must not be replaced.

    Args:
        folder: Where prepared data are to go.
        overwrite: Whether earlier prepared data may be replaced. Anything else never is.

    Raises:
        FileExistsError: Where it does.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if read_manifest(folder) is None:
        raise FileExistsError(f"{folder} is not empty and was not written by dmpo-trl prepare; choose another folder.")
    if not overwrite:
        raise FileExistsError(f"{folder} holds prepared data already; choose another folder, or set overwrite.")


@contextmanager
def new_folder(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """Make a folder to write to, which takes the name `folder` when everything is in it, or goes after an error.

    Raises:
        FileExistsError: As in [`check_free`], at once.
    """
    folder = folder.absolute()
    check_free(folder, overwrite=overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-unfinished-") as scratch:
        new = Path(scratch) / "new"
        new.mkdir()  # with the usual permissions, which a temporary folder does not have
        yield new
        check_free(folder, overwrite=overwrite)
        if folder.exists():
            os.replace(folder, Path(scratch) / "old")
        try:
            os.replace(new, folder)
        except OSError:
            if (Path(scratch) / "old").exists():
                os.replace(Path(scratch) / "old", folder)
            raise


_ABOUT = {
    "preference": "Prompt, chosen and a list of rejected completions, for DMPOTrainer.",
    "sft": "Prompt and completion, for SFTTrainer.",
    "pairs": "Prompt, chosen and one rejected completion, for DPOTrainer.",
    "ranking": "A prompt and candidates, of which one is what the user had next.",
}


def _contents(manifest: Mapping[str, Any], kind: str) -> str:
    """Return a short name for the contents of a dataset, which differs where they differ."""
    files = (manifest["files"][f"{kind}/{split}.parquet"] for split in manifest["rows"][kind])
    return hashlib.sha256(" ".join(files).encode()).hexdigest()[:12]


def card(manifest: Mapping[str, Any]) -> str:
    """Write the dataset card, whose head tells `datasets.load_dataset` where what is."""
    configs = [
        {
            "config_name": kind,
            # `datasets` caches by what is here, and without a checksum would load old files after an overwrite
            "description": f"{_ABOUT[kind]} Contents: {_contents(manifest, kind)}.",
            "data_files": [{"split": split, "path": f"{kind}/{split}.parquet"} for split in splits],
            **({"default": True} if kind == "preference" else {}),
        }
        for kind, splits in manifest["rows"].items()
    ]
    head = DatasetCardData(configs=configs, tags=["dmpo-trl", "recommendation"])
    options, source = manifest["options"], manifest["source"]
    rows = [f"| {kind} | {split} | {n:,} |" for kind, sizes in manifest["rows"].items() for split, n in sizes.items()]
    files = ", ".join(file["name"] for file in source["files"])
    read = ", ".join(f"{n:,} {name}" for name, n in source["read"].items())
    dropped = "".join(f"\n- {n:,} {reason}" for reason, n in source["dropped"].items()) or " nothing."
    return f"""---
{head}
---

# Preferences of {manifest["users"]["all"]:,} users among {manifest["items"]:,} items

Made by `dmpo-trl prepare` {manifest["versions"]["dmpo-trl"]} from {files} ({options["dataset"]}).
The terms of the raw data hold for this folder too.

| dataset | split | rows |
|---|---|---:|
{chr(10).join(rows)}

- `preference`: prompt, chosen and a list of rejected completions, for `DMPOTrainer`.
- `sft`: prompt and completion, for TRL's `SFTTrainer`.
- `pairs`, where it was asked for: prompt, chosen and one rejected completion, for TRL's `DPOTrainer`.
- `ranking`: a prompt and candidates of which one is what the user had next.
- `items.parquet`: item, title, and popularity, the number of training users that had it (not what is evaluated on).

{examples_in_words(manifest)}

Split: {options["split"]}. Seed: {options["seed"]}. All options, checksums and versions are in `{MANIFEST}`.

Read: {read}. Dropped:{dropped}
"""
