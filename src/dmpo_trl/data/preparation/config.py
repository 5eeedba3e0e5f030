"""Options of a preparation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..._closest import closest
from ..prompts import TEMPLATES, PromptTemplate

# The template where none is named
_TEMPLATE_OF = {
    "movielens": "movies",
    "amazon": "products",
    "lastfm": "music",
    "recbole": "general",
    "table": "general",
}

# The least that each option may be
_AT_LEAST = {
    "k_core_users": 1,
    "k_core_items": 1,
    "train_users": 1,
    "validation_users": 1,
    "test_users": 1,
    "few_shot_users": 1,
    "history_length": 1,
    "min_history": 1,
    "examples_per_user": 0,
    "negatives": 1,
    "candidates": 2,
    "batch_size": 2,
    "seed": 0,
}


def _option(help: str, default: Any = None, choices: list[str] | None = None) -> Any:
    return field(default=default, metadata={"help": help} | ({"choices": choices} if choices else {}))


@dataclass
class PrepareConfig:
    """What [`prepare`] reads, how it splits it, and what it writes; for `HfArgumentParser` and `TrlParser`.

    Raises:
        ValueError: For an option out of its range, and options that do not fit together.

    Example:
        >>> config = PrepareConfig("movielens", "out", path="ml-1m.zip", min_rating=4)
        >>> config.prompt_template().instruction
        'Which film will a viewer like next, after these?'
    """

    dataset: str = field(metadata={"help": "Format of the raw files.", "choices": list(_TEMPLATE_OF)})
    output_dir: str = field(metadata={"help": "Folder to write to."})
    overwrite: bool = _option(
        "Replace earlier prepared data in output_dir. Where it holds anything else, or a file that was changed since, "
        "nothing is replaced.",
        False,
    )

    path: str | None = _option("Raw data: a folder, an archive or a file. For a table the file of interactions.")
    download: bool = _option("Download the raw data from their official address.", False)
    version: str | None = _option('Which MovieLens ("100k", "1m", ...) or Last.fm ("hetrec-2k", "1k") to download.')
    category: str | None = _option('Amazon category, for example "Video_Games".')
    release: str = _option("Which release of the Amazon reviews.", "2018", ["2018", "2023"])
    items: str | None = _option(
        "Table: the file with items and titles. Default: the titles are in the file of interactions."
    )
    user_column: str = _option("Table: column of the user.", "user")
    item_column: str = _option("Table: column of the item, in both files.", "item")
    timestamp_column: str = _option("Table: column of the time.", "timestamp")
    rating_column: str | None = _option("Table: column of the rating.")
    title_column: str = _option("Table: column of the title.", "title")
    separator: str | None = _option(
        "Table: what stands between the fields of text files, such as ; or tab. Default: what separates the columns."
    )
    encoding: str | None = _option("Table: encoding of text files, such as cp1252. Default: UTF-8 or UTF-16.")
    user_field: str = _option("RecBole: field with the user.", "user_id")
    item_field: str = _option("RecBole: field with the item, in both files.", "item_id")
    timestamp_field: str = _option("RecBole: field that orders a user's interactions.", "timestamp")
    rating_field: str = _option("RecBole: field with the rating, where there is one.", "rating")
    title_field: str = _option("RecBole: field of the .item file with the title.", "movie_title")
    year_field: str | None = _option("RecBole: field of the .item file with the year, to be part of the title.")

    order: str = _option(
        "RecBole: what --timestamp_field orders by; plays where it is a count, such as weight.",
        "time",
        ["time", "plays"],
    )

    min_rating: float | None = _option("Ratings from here on count as liked; by default everything does.")
    k_core_users: int = _option("Keep users with at least this many interactions, liked or not.", 1)
    k_core_items: int = _option("Keep items with at least this many interactions, liked or not.", 1)
    split: str = _option(
        "users: some users to train on, others to evaluate on, with the last item each liked. leave_one_out: the last "
        "item of each user to test, the one before to validate. time: what comes after a point in time. items: some "
        "items are held out (cold start); the users whose last liked item is one of them are evaluated, ranking it "
        "among the other held-out items, and the others train without any of them.",
        "users",
        ["users", "leave_one_out", "time", "items"],
    )
    train_users: int | None = _option("With --split users: number of users to train on. Default: all others.")
    validation_users: int | None = _option(
        "Number of users to validate on. Default: a tenth with --split users, else all."
    )
    test_users: int | None = _option("Number of users to test on. Default: a tenth with --split users, else all.")
    validation_from: float = _option(
        "With --split time: validate from here on, a time or the share of earlier interactions.", 0.8
    )
    test_from: float = _option(
        "With --split time: test from here on, a time or the share of earlier interactions.", 0.9
    )
    validation_items: float = _option("With --split items: share of the items to validate on.", 0.1)
    test_items: float = _option("With --split items: share of the items to test on.", 0.1)
    few_shot_users: int | None = _option("Train on only this many of the training users, drawn at random.")
    history: str = _option(
        "latest: a prompt has the latest items before its target. growing: the histories of a user's training "
        "examples begin at the same item and grow, up to history_length, so that a prefix trie computes them at once; "
        "SFT learns each longest one with its target. Set examples_per_user to more than 1.",
        "latest",
        ["latest", "growing"],
    )
    history_length: int = _option("Items in a prompt, at most.", 10)
    min_history: int = _option("Items in a prompt, at least. From 2 on every training example has one for SFT.", 2)
    examples_per_user: int = _option(
        "Training examples per user, the latest ones (--split time: in each part); 0 for all.", 1
    )
    sft_targets: str = _option(
        "earlier: SFT learns the item before the one that preference training learns, because a target that SFT has "
        "seen is too easy. same: both learn the same. Without effect where histories grow.",
        "earlier",
        ["earlier", "same"],
    )

    negatives: int = _option("Rejected items for each chosen one.", 7)
    negative_strategy: str = _option(
        "How negatives are drawn; never an item that the user had.", "uniform", ["uniform", "popularity", "in_batch"]
    )
    alpha: float = _option("With a strategy popularity: draw in proportion to popularity^alpha.", 1.0)
    batch_size: int | None = _option("With --negative_strategy in_batch: examples in a batch.")
    candidates: int = _option("Items to rank in the evaluation: one that the user had next, the rest never.", 20)
    candidate_strategy: list[str] = field(
        default_factory=lambda: ["uniform"],
        metadata={
            "help": "How the other candidates are drawn. uniform: most of them are items that few users had, so that "
            "ranking by popularity does well. popularity: in proportion to popularity^alpha among the training users. "
            "Of several, the first makes the main table, and `evaluate` prints one for each.",
            "choices": ["uniform", "popularity"],
        },
    )

    template: str | None = _option(
        f"{', '.join(TEMPLATES)}, or a YAML or JSON file with a template's fields. Default: the dataset's."
    )
    conversational: bool = _option("Messages for chat models, or else plain text.", True)
    list_candidates: bool = _option("List the candidates in the prompt: target and negatives, in random order.", False)
    pairs: bool = _option("Also write pairs, for TRL's DPOTrainer.", False)
    seed: int = _option("Seed of all that is drawn at random.", 0)

    def __post_init__(self) -> None:
        """Check what can be checked without reading anything."""
        if isinstance(self.candidate_strategy, str):
            self.candidate_strategy = [self.candidate_strategy]
        # Of this class by name: a subclass may have other defaults, but the choices stay
        for name, spec in PrepareConfig.__dataclass_fields__.items():
            choices: list[str] = spec.metadata.get("choices", [])
            value = getattr(self, name)
            for one in value if isinstance(value, list) else [value]:
                if choices and one not in choices:
                    hint = _did_you_mean(one, choices)
                    raise ValueError(f"{name} must be one of {', '.join(choices)}, it is {one!r}.{hint}")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, it is {value}.")
            if name in _AT_LEAST and value is not None and value < _AT_LEAST[name]:
                raise ValueError(f"{name} must be at least {_AT_LEAST[name]}, it is {value}.")
        self._check_items()
        if self.alpha <= 0:
            raise ValueError(f"alpha must be above 0, it is {self.alpha}.")
        for name in ("path", "items"):
            if not isinstance(getattr(self, name), str | Path | None):
                kind, argument = type(getattr(self, name)).__name__, "data" if name == "path" else "items"
                raise ValueError(
                    f"`{name}` is the path of a file, not a {kind}. A table in memory is given beside the options: "
                    f"prepare(config, {argument}=...)."
                )
        if self.train_users is not None and self.split != "users":
            raise ValueError(f"train_users belongs to the split users; with {self.split} use few_shot_users.")

    def _check_items(self) -> None:
        for name in ("validation_items", "test_items"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be above 0 and below 1, it is {getattr(self, name)}.")
        if not self.candidate_strategy or len(set(self.candidate_strategy)) < len(self.candidate_strategy):
            raise ValueError(f"candidate_strategy must be one or more, each once; it is {self.candidate_strategy}.")
        if self.split == "items" and "popularity" in self.candidate_strategy:
            raise ValueError(
                "candidate_strategy popularity draws by how many training users had an item, and with the split items "
                "nobody had a candidate; use candidate_strategy uniform."
            )

    def prompt_template(self) -> PromptTemplate:
        """Return the template that the options describe.

        Raises:
            ValueError: For a name that is neither a template nor a file, and a file that holds something else.
        """
        name = self.template or _TEMPLATE_OF[self.dataset]
        template = TEMPLATES.get(name) or _read_template(Path(name))
        if not self.conversational:
            template = template.plain()
        if self.list_candidates and template.candidates is None:
            template = template.with_candidates()
        return template


def _read_template(path: Path) -> PromptTemplate:
    if not path.is_file():
        hint = _did_you_mean(str(path), list(TEMPLATES)) or " For any items take general, or write a file."
        raise ValueError(f"{path} is neither a template ({', '.join(TEMPLATES)}) nor a file with one.{hint}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML too
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} is neither YAML nor JSON: {error}.") from error
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply to be a template.") from error
    if not isinstance(values, Mapping):
        raise ValueError(f"{path} must hold the fields of a prompt template by name.")
    return PromptTemplate.from_dict(values)


def _did_you_mean(name: Any, known: list[str]) -> str:
    found = closest(str(name), known)
    return f" Did you mean {' or '.join(found)}?" if found else ""
