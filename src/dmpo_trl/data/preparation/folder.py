"""Prepared folders: the datasets of one preparation, what they were made from, and how."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

import polars as pl
from datasets import DatasetDict, load_dataset
from huggingface_hub import DatasetCardData

from ...writing import MANIFEST, Kind, is_inside, is_unfinished, read_json, sha256
from .._words import counts_in_words
from ..prompts import PromptTemplate
from .summary import examples_in_words

FORMAT = "dmpo-trl prepared data, version 1"
PREPARED = Kind(FORMAT, command="prepare", holds="prepared data")
CARD = "README.md"
INTERACTIONS = "interactions.parquet"
_AGAIN = "prepare the data again"


@dataclass(frozen=True)
class Prepared:
    """A folder that [`prepare`] wrote. `datasets.load_dataset(folder, name)` reads the same datasets.

    Here the manifest says which files they are; `datasets` goes by the card, `README.md`.

    Args:
        folder: Holds `README.md` (a dataset card), `manifest.json`, `items.parquet`, `interactions.parquet`, and for
            each dataset a folder with one Parquet file per split.
        manifest: Sizes, options, seed, template, rows read and dropped, and checksums of the files read and written.

    Example:
        >>> Prepared.load("prepared/ml-1m").preference["train"][0]  # doctest: +SKIP
    """

    folder: Path
    manifest: dict[str, Any]

    @classmethod
    def load(cls, folder: str | Path) -> Prepared:
        """Open a prepared folder, and check its data against the manifest.

        Args:
            folder: The `output_dir` of a preparation.

        Raises:
            FileNotFoundError: Where there is no prepared folder.
            ValueError: Where its files are not those that were written, or its manifest is damaged.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        if manifest is None:
            if is_unfinished(folder, PREPARED):
                raise FileNotFoundError(
                    f"{folder} is unfinished: dmpo-trl prepare was interrupted while it put its files there. Run it "
                    "again."
                )
            raise FileNotFoundError(f"{folder} is not a folder of prepared data: it has no {MANIFEST} of dmpo-trl's.")
        _check_manifest(manifest, folder / MANIFEST)
        prepared = cls(folder, manifest)
        for name in manifest["files"]:
            if name != CARD:  # which decides nothing here
                prepared._check_file(name)
        return prepared

    def check_card(self) -> None:
        """Check `README.md`, by which `datasets.load_dataset` finds the files.

        Folders of earlier versions have no checksum of it, and pass.

        Raises:
            ValueError: Where it is missing or not the one that was written.
        """
        if CARD in self.manifest["files"]:
            self._check_file(CARD)

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
    def protocols(self) -> dict[str, DatasetDict]:
        """`ranking`, and the same users with candidates drawn in other ways, by `candidate_strategy`."""
        strategies = self.manifest.get("options", {}).get("candidate_strategy", "uniform")
        first, *others = [strategies] if isinstance(strategies, str) else strategies
        return {first: self.ranking} | {name: self._dataset(further_ranking(name)) for name in others}

    @property
    def items(self) -> pl.DataFrame:
        """`item`, `title`, and `popularity`: how many training users had the item, before what is evaluated."""
        return pl.read_parquet(self.folder / "items.parquet", glob=False)

    def titles(self) -> dict[str, str]:
        """Return the title of each item."""
        return dict(self.items.select("item", "title").iter_rows())

    def popularity(self) -> dict[str, int]:
        """Return how many training users had each item, before what is evaluated."""
        return dict(self.items.select("item", "popularity").iter_rows())

    @property
    def has_interactions(self) -> bool:
        """Whether there are `interactions`, which folders of earlier versions do not have."""
        return INTERACTIONS in self.manifest["files"]

    @property
    def interactions(self) -> pl.DataFrame:
        """`user`, `item` and `shown` (in a training example) of the training users, for rankers that count.

        Raises:
            ValueError: An earlier version wrote the folder, and no interactions.
        """
        if not self.has_interactions:
            raise ValueError(f"{self.folder} holds no {INTERACTIONS}: an earlier version wrote it; {_AGAIN}.")
        return pl.read_parquet(self.folder / INTERACTIONS, glob=False)

    @property
    def template(self) -> PromptTemplate:
        """The template that made the prompts."""
        return PromptTemplate.from_dict(self.manifest["template"])

    def _dataset(self, name: str) -> DatasetDict:
        if name not in self.manifest["rows"]:
            raise ValueError(f"{self.folder} holds no {name}, only {', '.join(self.manifest['rows'])}.")
        files = {split: f"{name}/{split}.parquet" for split in self.manifest["rows"][name]}
        # `datasets` caches under this name, and without a checksum would load old files after an overwrite
        known_as = "-".join([name, *(self.manifest["files"][file][:16] for file in files.values())])
        paths = {split: escape(str(self.folder.absolute() / file)) for split, file in files.items()}
        loaded = load_dataset("parquet", known_as, data_files=paths)
        for dataset in loaded.values():
            dataset.info.dataset_name = self.folder.absolute().name  # what a model card calls it
        return loaded

    def _check_file(self, name: str) -> None:
        if not (self.folder / name).is_file():
            raise ValueError(f"{self.folder / name} is missing, the manifest lists it; {_AGAIN}.")
        if sha256(self.folder / name) != self.manifest["files"][name]:
            raise ValueError(f"{self.folder / name} is not the file that was prepared; {_AGAIN}.")


def further_ranking(strategy: str) -> str:
    """Return the name of the dataset with candidates of a strategy that is not the first."""
    return f"ranking_{strategy}"


def is_prepared(path: str | Path | None) -> bool:
    """Return whether there is a folder of prepared data at a path; None is none."""
    return path is not None and read_manifest(Path(path)) is not None


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Read the manifest of a prepared folder; None where the folder is not one."""
    return read_json(folder / MANIFEST, PREPARED.format)


def check_before_loading(name: str | None) -> None:
    """Check a folder of prepared data, card included, before `datasets.load_dataset` reads it; others pass.

    Args:
        name: What `load_dataset` will be given: a folder or a hub id.

    Raises:
        ValueError: Its files, or the card that says which they are, are not those that were written.
    """
    if name is not None and read_manifest(Path(name)) is not None:
        Prepared.load(name).check_card()


def _check_manifest(manifest: Mapping[str, Any], path: Path) -> None:
    """Check what the rest of the class relies on."""
    files, rows, template = (manifest.get(name) for name in ("files", "rows", "template"))
    if (
        not isinstance(files, dict)
        or not all(isinstance(checksum, str) for checksum in files.values())
        or not isinstance(rows, dict)
        or not all(isinstance(splits, dict) for splits in rows.values())
        or not isinstance(template, dict)
    ):
        raise ValueError(f"{path} is damaged: it must hold files, rows and template as they were written; {_AGAIN}.")
    listed = {"items.parquet", *(f"{name}/{split}.parquet" for name, splits in rows.items() for split in splits)}
    if missing := sorted(listed - files.keys()):
        raise ValueError(f"{path} is damaged: it lists no {', '.join(missing)}; {_AGAIN}.")
    if outside := sorted(name for name in files if not is_inside(name)):
        raise ValueError(f"{path} names files outside of its folder: {', '.join(outside)}; {_AGAIN}.")


def _strategies(options: Mapping[str, Any]) -> str:
    first, *others = options["candidate_strategy"]
    return ", ".join([first, *(f"{name} in `{further_ranking(name)}`" for name in others)])


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
            "description": f"{_ABOUT.get(kind, _ABOUT['ranking'])} Contents: {_contents(manifest, kind)}.",
            "data_files": [{"split": split, "path": f"{kind}/{split}.parquet"} for split in splits],
            **({"default": True} if kind == "preference" else {}),
        }
        for kind, splits in manifest["rows"].items()
    ]
    head = DatasetCardData(configs=configs, tags=["dmpo-trl", "recommendation"])
    options, source = manifest["options"], manifest["source"]
    rows = [f"| {kind} | {split} | {n:,} |" for kind, sizes in manifest["rows"].items() for split, n in sizes.items()]
    files = ", ".join(file["name"] for file in source["files"])
    read = counts_in_words(source["read"])
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
- `ranking`: a prompt and candidates of which one is what the user had next. Candidates: {_strategies(options)}.
- `items.parquet`: item, title, and popularity, the number of training users that had it (not what is evaluated on).
- `interactions.parquet`: what the training users had, and whether it is shown in a training example.

{examples_in_words(manifest)}

Split: {options["split"]}. Seed: {options["seed"]}. All options, checksums and versions are in `{MANIFEST}`.

Read: {read}. Dropped:{dropped}
"""
