"""What a cell is, and the configs that say which cells there are."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Settings:
    """What cells of one config have in common; a block of the config may differ in some of it.

    Attributes:
        test_users: Users who are ranked, the same in every cell of a data set.
        validation_users: Users kept apart; the first 100 of them choose the weight of a fusion.
        positions: Training examples per user, the latest ones.
        history_length: Most items of a prompt.
        min_history: Fewest items before a training example.
        candidates: Items to rank for each user: one that the user had next, the rest never.
        protocols: How the others are drawn: `uniform`, `popularity` (as often as they are had).
        catalogue_users: How many of the test users are also ranked among the whole catalogue.
        tokens: Tokens of each stage after SFT; those computed, so that a prefix which a batch shares counts once.
        sft_epochs: Epochs of SFT, over the longest history of each user.
        sft_tokens: Its tokens, in place of `sft_epochs` where it is not 0.
        sft_learning_rate: Its learning rate.
        sft_batch_size: Its sequences per step.
        learning_rate: Of a stage after SFT; 0: that of `methods.yaml`, and SFT's where SFT goes on.
        beta: Of a preference stage; 0: that of `methods.yaml`.
        batch_size: Examples per step of a preference stage.
        lora_rank: Rank of the adapter; twice as much is its alpha.
        explained_users: How many test users the deletion curves are measured on, of the protocol `uniform`.
        four_bit: Load the model in 4 bits (NF4, bitsandbytes).
    """

    test_users: int = 400
    validation_users: int = 200
    positions: int = 20
    history_length: int = 24
    min_history: int = 5
    candidates: int = 20
    protocols: tuple[str, ...] = ("uniform",)
    catalogue_users: int = 0
    tokens: int = 50_000
    sft_epochs: float = 10.0
    sft_tokens: int = 0
    sft_learning_rate: float = 5e-4
    sft_batch_size: int = 8
    learning_rate: float = 0.0
    beta: float = 0.0
    batch_size: int = 20
    lora_rank: int = 16
    explained_users: int = 0
    four_bit: bool = False

    def of_training(self, *, after_sft: bool) -> dict[str, Any]:
        """Return what an adapter depends on: all but how is ranked, and for SFT but what comes after it."""
        other = {"candidates", "protocols", "catalogue_users", "explained_users"}
        if not after_sft:
            other |= {"tokens", "learning_rate", "beta"}
        return {name: value for name, value in asdict(self).items() if name not in other}

    def changed(self) -> dict[str, Any]:
        """Return what is not as by default."""
        return _as_json({one.name: value for one in fields(self) if (value := getattr(self, one.name)) != one.default})


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Return the names of settings that differ. One that a file does not have, being older, was as by default."""
    defaults = _as_json(asdict(Settings()))
    return [name for name in here if there.get(name, defaults.get(name)) != here[name]]


@dataclass(frozen=True)
class Cell:
    """One method on one data set with one seed.

    Attributes:
        dataset: What is ranked, a name of `sources.SOURCES`.
        trained_on: What is trained on; another data set makes it a cell across domains.
        users: Number of training users. Of each seed they are others.
        method: A name of `methods.METHODS`, or one that is not trained.
        seed: Of the training users, of what is drawn for them, and of training.
        settings: What else there is to set.
    """

    dataset: str
    trained_on: str
    users: int
    method: str
    seed: int
    settings: Settings = field(repr=False)

    @property
    def file_name(self) -> str:
        across = "" if self.trained_on == self.dataset else f"-from-{self.trained_on}"
        return f"{self.dataset}{across}-{self.users}-{self.method.replace(' ', '-')}-{self.seed}.json"

    def adapter(self, work: Path, method: str | None = None) -> Path:
        """Return the folder of the adapter of this cell, or of another method with the same users."""
        return work / f"{self.trained_on}-{self.users}-{self.seed}" / (method or self.method).replace(" ", "-")

    def described(self) -> dict[str, Any]:
        """Return what the cell's file says of it."""
        own = {"dataset": self.dataset, "trained_on": self.trained_on, "users": self.users}
        return {"method": self.method, "seed": self.seed, "settings": own | _as_json(asdict(self.settings))}


def _as_json(values: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


_LISTED = ("dataset", "trained_on", "users", "method", "seed")  # in this order, the last one varies fastest


def read_config(file: Path) -> list[Cell]:
    """Read a YAML file: `settings`, and `cells`, blocks each of which is the product of its lists.

    `tuning` (see `tuning.py`) and what it `found` may stand there too.

    A block has `dataset`, `users`, `method` and `seed`, each one value or a list, may have `trained_on`, and may set
    any of the settings anew.

    Raises:
        SystemExit: A key is unknown or missing, a value has another type, or a cell stands there twice.
    """
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    known = {"settings", "cells", "tuning", "found"}
    if not isinstance(content, dict) or set(content) - known or not content.get("cells"):
        raise SystemExit(f"{file} must hold `cells`, and may hold `settings`, `tuning` and `found`, nothing else.")
    common = _updated(Settings(), content.get("settings") or {}, f"{file}, settings")
    cells = [
        cell
        for number, block in enumerate(content["cells"], start=1)
        for cell in _product(block, common, f"{file}, block {number} of cells")
    ]
    names = [cell.file_name for cell in cells]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SystemExit(f"{file} names {twice[0].removesuffix('.json')} more than once.")
    return cells


def _product(block: dict[str, Any], common: Settings, where: str) -> Iterator[Cell]:
    if missing := [name for name in _LISTED if name not in block and name != "trained_on"]:
        raise SystemExit(f"{where}: {missing[0]} is missing.")
    settings = _updated(common, {name: value for name, value in block.items() if name not in _LISTED}, where)
    values = [block.get(name) for name in _LISTED]
    for dataset, trained_on, users, method, seed in itertools.product(*map(_as_list, values)):
        yield Cell(dataset, trained_on or dataset, users, method, seed, settings)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _updated(settings: Settings, values: dict[str, Any], where: str) -> Settings:
    known = {one.name: one for one in fields(Settings)}
    for name, value in values.items():
        if name not in known:
            raise SystemExit(f"{where}: {name} is unknown. Choose among {', '.join((*_LISTED, *known))}.")
        default = getattr(settings, name)
        kind = {float: (int, float), tuple: list}.get(type(default), type(default))
        if not isinstance(value, kind):
            raise SystemExit(f"{where}: {name} is {value!r}, where something like {default!r} is expected.")
    tuples = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    updated = replace(settings, **values | tuples)
    if max(updated.explained_users, updated.catalogue_users) > updated.test_users:
        raise SystemExit(
            f"{where}: explained_users and catalogue_users are some of the {updated.test_users} test_users."
        )
    if updated.explained_users and "uniform" not in updated.protocols:
        raise SystemExit(f"{where}: explained_users needs the protocol uniform.")
    return updated
