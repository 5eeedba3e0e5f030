"""Tuning: learning rate, beta and tokens of each method, decided on validation users.

    PYTHONPATH=benchmarks python -m paper tune benchmarks/paper/tuning.yaml
    PYTHONPATH=benchmarks python -m paper run benchmarks/paper/tuning-found.yaml --work outputs/tuned

The search space and the number of trials stand in the config and are the same for all methods; beta is drawn for those
that have one. How long a method trains is drawn in tokens, because an epoch of 15 negatives has several times those of
one: equal ranges of tokens are equal cost, and what epochs they were is written down. SFT comes first, and what comes
after it begins at the SFT that was found. Test users are not ranked. The study of each method is an SQLite file, and a
search that was killed goes on.
"""

import math
import shutil
import time
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from machine import describe
from optuna.trial import FrozenTrial, Trial, TrialState
from transformers import AutoTokenizer

from dmpo_trl.cli._search import Range
from dmpo_trl.cli._tuning import Study, held, sentence
from dmpo_trl.evaluation import rank_with_model

from .cells import Places, check, train, users_of
from .language_models import model_name
from .methods import SFT, SFT_MORE, STAGES
from .pairs import PAIR_SOURCES
from .settings import Cell, Settings, read_config
from .training import load

_SFT_NAMES = {"learning_rate": "sft_learning_rate", "tokens": "sft_tokens"}
"""What is drawn, as SFT's settings call it."""


@dataclass(frozen=True)
class Search:
    """What the config says under `tuning`.

    Attributes:
        search: Lower and upper end of `learning_rate`, `beta` and `tokens`; drawn evenly on a logarithmic scale.
        trials: Of each method.
        startup: So many of them are drawn at random.
        metric: Of the validation users, ranked by the sum of log-probs; maximised.
        seeds: For the cells that are found; each search has the one seed of its cell.
    """

    search: dict[str, list[float]]
    trials: int = 10
    startup: int = 4
    metric: str = "ndcg@5"
    seeds: list[int] = field(default_factory=lambda: [0])

    def space(self, cell: Cell) -> dict[str, Range]:
        """Return what is drawn for a cell's method."""
        stage = STAGES.get(cell.method)
        has_beta = stage is not None and "beta" in stage.options
        return {name: Range(*ends) for name, ends in self.search.items() if name != "beta" or has_beta}


def read_search(file: Path) -> Search:
    """Read what a config says under `tuning`.

    Raises:
        SystemExit: It says nothing, or something else than `Search` has.
    """
    content = yaml.safe_load(file.read_text(encoding="utf-8")).get("tuning")
    known = [one.name for one in fields(Search)]
    if not isinstance(content, dict) or not content.get("search") or set(content) - set(known):
        raise SystemExit(f"{file}: `tuning` must hold `search`, and may hold {', '.join(known[1:])}, nothing else.")
    for name, ends in content["search"].items():
        if name not in ("learning_rate", "beta", "tokens"):
            raise SystemExit(f"{file}: {name} cannot be searched. Choose among learning_rate, beta, tokens.")
        kind = int if name == "tokens" else (int, float)
        numbers = isinstance(ends, list) and len(ends) == 2 and all(isinstance(end, kind) for end in ends)
        if not (numbers and 0 < ends[0] < ends[1]):
            raise SystemExit(f"{file}: the search of {name} is {ends!r}, where [LOW, HIGH] is expected, LOW above 0.")
    return Search(**content)


def tune(config: Path, places: Places, output: Path) -> None:
    """Search for every cell of a config that trains, and write all cells with what was found as a config for `run`.

    Args:
        config: Names the cells, one seed for each method, and the search.
        places: As for `run`; trials and studies lie in `tuning` of its `work`.
        output: The YAML file to write.

    Raises:
        SystemExit: The config cannot be searched, or a study was begun with other settings.
    """
    search, cells = read_search(config), read_config(config)
    _check(cells, config)
    places = replace(places, work=places.work / "tuning")
    found: list[dict[str, Any]] = []
    settings_of: dict[str, Settings] = {}
    sft: dict[tuple[str, int], Settings] = {}
    for cell in sorted(cells, key=lambda cell: cell.method != SFT):
        if not _is_trained(cell):
            continue
        base = sft.get((cell.dataset, cell.users), cell.settings)
        begun = replace(cell.settings, **{name: getattr(base, name) for name in _SFT_NAMES.values()})
        own = replace(cell, settings=begun)
        study = _search(own, search, places)
        if study.best is None:
            raise SystemExit(f"{_title(cell)}: no trial came to its end, so none is the best: search elsewhere.")
        chosen = applied(own, study.best.params)
        settings_of[cell.file_name] = chosen.settings
        if cell.method == SFT:
            sft[cell.dataset, cell.users] = chosen.settings
        found.append(_described(own, study))
    content = {
        "tuning": asdict(search),
        "cells": [
            {"dataset": cell.dataset, "users": cell.users, "method": cell.method, "seed": search.seeds}
            | settings_of.get(cell.file_name, cell.settings).changed()
            for cell in cells
        ],
        "found": [entry | {"model": model_name(places.model)} | describe("trl", "peft", "optuna") for entry in found],
    }
    head = f"# Made by `python -m paper tune` of {config.name}: the settings that ranked validation users best.\n"
    output.write_text(head + yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    print(f"{output}: {len(found)} methods. Rank the test users, once: python -m paper run {output}")


def applied(cell: Cell, drawn: dict[str, Any]) -> Cell:
    """Return a cell with values that were drawn."""
    names = _SFT_NAMES if cell.method == SFT else {}
    return replace(cell, settings=replace(cell.settings, **{names.get(name, name): drawn[name] for name in drawn}))


def _is_trained(cell: Cell) -> bool:
    return cell.method in (SFT, SFT_MORE, *STAGES)


def _title(cell: Cell) -> str:
    return f"{cell.dataset}, {cell.users} users, {cell.method}"


def _check(cells: list[Cell], config: Path) -> None:
    check(cells)
    titles = [_title(cell) for cell in cells]
    for cell, title in zip(cells, titles, strict=True):
        if titles.count(title) > 1:
            raise SystemExit(f"{config}: {title} has several seeds. Search with one; `seeds` are for what is found.")
        if cell.dataset != cell.trained_on or cell.dataset in PAIR_SOURCES:
            raise SystemExit(f"{config}: {title} has no validation users of its own.")


def _search(cell: Cell, search: Search, places: Places) -> Study:
    """Run the trials of a cell that are not there yet."""
    users = users_of(cell, cell.dataset, places)
    folder = places.work / cell.file_name.removesuffix(".json")
    folder.mkdir(parents=True, exist_ok=True)

    def objective(trial: Trial, drawn: dict[str, Any]) -> float:
        tried = applied(cell, drawn)
        adapter = tried.adapter(places.work)
        shutil.rmtree(adapter, ignore_errors=True)  # of a trial that was killed, or of other settings
        torch.manual_seed(cell.seed)
        spent = train(tried, users, places)
        if not all(math.isfinite(entry["loss"]) for entry in spent["log"]):
            raise FloatingPointError("the loss is no number")
        start = time.perf_counter()
        model, tokenizer = load(places.model, tried.settings, adapter), AutoTokenizer.from_pretrained(places.model)
        asked = users.ranking("validation")
        result = rank_with_model(model, tokenizer, asked, score="sum", name=cell.method)
        shutil.rmtree(adapter)
        own = {"tokens": spent["tokens"], "seconds": spent["seconds"], "epochs": spent["log"][-1]["epoch"]}
        for name, value in (own | {"seconds of ranking": time.perf_counter() - start}).items():
            trial.set_user_attr(name, value)
        return float(result.per_user(search.metric).mean())

    described = cell.described() | {"search": {name: asdict(own) for name, own in search.space(cell).items()}}
    described |= {"metric": search.metric, "model": model_name(places.model)}
    try:
        with held(folder):
            study = Study(
                folder,
                described,
                search.space(cell),
                metric=search.metric,
                startup=search.startup,
                seed=cell.seed,
            )
            while len(study.done) < search.trials:
                print(f"{_title(cell)}: {sentence(study.run(objective), search.metric)}", flush=True)
    except (ValueError, OSError) as error:
        raise SystemExit(f"{_title(cell)}: {str(error).replace('--output_dir', '--work')}") from error
    return study


def _described(cell: Cell, study: Study) -> dict[str, Any]:
    """Return what was found for a cell, what it cost, and all trials."""
    assert study.best is not None
    trials = [_trial(trial) for trial in study.done]
    costs = ("tokens", "seconds", "seconds of ranking")
    return {
        "dataset": cell.dataset,
        "users": cell.users,
        "method": cell.method,
        "best trial": study.best.number,
        **{f"{name} in all": round(sum(own.get(name, 0) for own in trials)) for name in costs},
        "trials": trials,
    }


def _trial(trial: FrozenTrial) -> dict[str, Any]:
    value = trial.value if trial.state == TrialState.COMPLETE else None
    return {"trial": trial.number, "value": value, **trial.params} | {
        name: round(own, 2) if isinstance(own, float) else own for name, own in trial.user_attrs.items()
    }
