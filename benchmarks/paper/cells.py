"""Cells: each is computed once and becomes one JSON file, which nothing but the report reads."""

import json
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import torch
from machine import describe, fast_dtype, return_freed_memory
from transformers import AutoTokenizer

from dmpo_trl.data import Interactions, PublishedSplits
from dmpo_trl.evaluation import (
    RankingResult,
    ResultParts,
    cold_start_groups,
    reference_without_history,
    score_candidates,
)

from .explaining import deletion_curves
from .language_models import model_name, takes_messages
from .methods import COUNTS, METHODS, SFT, SFT_MORE, STAGES, TRADITIONAL, ZERO_SHOT
from .pairs import PAIRS, PairSource, PairUsers, check_pairs, pair_figures
from .ranking import Asked, as_json, rank_by_counts, rank_by_model
from .settings import Cell, differences
from .sources import SOURCES, read_source
from .training import Spent, load, read_spent, train_preference, train_sft
from .users import Users


@dataclass(frozen=True)
class Places:
    """Where a run finds and puts things.

    Attributes:
        model: Folder of the base model.
        data: Folders of raw files, by data set.
        work: Folder for adapters.
        output: Folder for cells.
    """

    model: str
    data: dict[str, Path]
    work: Path
    output: Path


def check(cells: Iterable[Cell]) -> None:
    """Check that cells can be computed.

    Raises:
        SystemExit: A name is unknown, or a method does not go with a data set or a setting.
    """
    for cell in cells:
        for kind, name, known in (
            ("dataset", cell.dataset, SOURCES),
            ("trained_on", cell.trained_on, SOURCES),
            ("method", cell.method, METHODS),
        ):
            if name not in known:
                raise SystemExit(f"The {kind} {name!r} is unknown. Choose among {', '.join(known)}.")
        check_pairs(cell)
        if cell.method in TRADITIONAL and cell.dataset != cell.trained_on:
            raise SystemExit(f"{cell.method} knows no item of {cell.dataset} when it is trained on {cell.trained_on}.")
        stage = STAGES.get(cell.method)
        if cell.settings.beta and stage and "beta" not in stage.options:
            raise SystemExit(f"{cell.file_name.removesuffix('.json')}: {cell.method} has no beta.")


def waiting(cells: Iterable[Cell], output: Path, model: str | None = None) -> list[Cell]:
    """Return the cells that are not there yet.

    Args:
        cells: All of them.
        output: The folder with those that are there.
        model: Folder of the base model; None: whichever.

    Raises:
        SystemExit: As in `check`, or a cell that is there was computed with other settings or by another model.
    """
    cells, left = list(cells), []
    check(cells)
    for cell in cells:
        file = output / cell.file_name
        if not file.exists():
            left.append(cell)
            continue
        content = json.loads(file.read_text(encoding="utf-8"))
        if model and model_name(content["model"]) != model_name(model):
            raise SystemExit(
                f"{file} was computed with {model_name(content['model'])}, not {model_name(model)}. Give another "
                "--output."
            )
        there, here = content["settings"], cell.described()["settings"]
        there.setdefault("trained_on", there["dataset"])
        if other := differences(there, here):
            raise SystemExit(
                f"{file} was computed with {other[0]}={there.get(other[0])}, the config says {here[other[0]]}. "
                "Give another --output, or delete the file."
            )
    return left


def check_users(cells: Iterable[Cell], places: Places) -> None:
    """Check that the data of cells have as many users as they want.

    Raises:
        SystemExit: They have fewer.
    """
    asked = {(name, cell.settings, cell.users): cell for cell in cells for name in (cell.dataset, cell.trained_on)}
    for (name, *_), cell in asked.items():
        users = users_of(cell, name, places)
        try:
            _ = users.groups if isinstance(users, Users) else None
        except ValueError as error:
            raise SystemExit(f"{cell.file_name.removesuffix('.json')}, users of {name}: {error}") from error


def run(cells: Iterable[Cell], places: Places) -> None:
    """Compute the cells that are not there yet, in their order, and say how long the rest will take."""
    left = waiting(cells, places.output, places.model)
    check_users(left, places)
    places.output.mkdir(parents=True, exist_ok=True)
    for number, cell in enumerate(left, start=1):
        start = time.perf_counter()
        content = compute(cell, places)
        seconds = time.perf_counter() - start
        return_freed_memory()  # else some cells later two runs side by side do not fit
        about = describe("trl", "peft") | {"model": model_name(places.model), "seconds": seconds}
        file = places.output / cell.file_name
        unfinished = file.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(cell.described() | about | content) + "\n", encoding="utf-8")
        unfinished.replace(file)
        shutil.rmtree(_scores(cell, places), ignore_errors=True)
        more = f"{len(left) - number} left, about {(len(left) - number) * seconds / 60:.0f} minutes if all are like it"
        print(f"{cell.file_name}: {_figure(content)}, {seconds:.0f} s; {more}", flush=True)


def _figure(content: dict[str, Any]) -> str:
    for name, metric in (
        ("test sum", "ndcg@5"),
        ("test", "ndcg@5"),
        ("item knn", "ndcg@5"),
        (f"{PAIRS} sum", "auc"),
        (f"{PAIRS} item knn", "auc"),
    ):
        if name in content:
            return f"{metric.upper()} {content[name][metric]:.3f}"
    return "ranked"


def compute(cell: Cell, places: Places) -> dict[str, Any]:
    """Return what a cell's file says beside its description."""
    torch.manual_seed(cell.seed)
    ranked, trained = users_of(cell, cell.dataset, places), users_of(cell, cell.trained_on, places)
    if cell.method == COUNTS:
        return _as_json(rank_by_counts(ranked, trained), ranked) | _cold_start(ranked, trained)
    if cell.method in TRADITIONAL:
        return _traditional(cell, ranked, trained, places)
    spent = None if cell.method == ZERO_SHOT else train(cell, trained, places)
    folder = None if cell.method == ZERO_SHOT else cell.adapter(places.work)
    model, tokenizer = load(places.model, cell.settings, folder), AutoTokenizer.from_pretrained(places.model)
    start = time.perf_counter()
    shown = trained.shown if cell.dataset == cell.trained_on and isinstance(trained, Users) else None
    scores = _scores(cell, places)
    scores.mkdir(parents=True, exist_ok=True)
    parts = ResultParts(scores)
    results = rank_by_model(model, tokenizer, ranked, shown, cell.method, parts)
    content = _as_json(results, ranked)
    if not parts.taken:  # of a cell that was killed while it ranked the time is not known
        content["seconds of ranking"] = time.perf_counter() - start
    if cell.settings.explained_users:
        content["deletion"] = _deletion(cell, model, tokenizer, ranked, trained, results["test sum"])
    content["prompts"] = "messages" if takes_messages(places.model) else "plain text"
    return content | {"precision": str(fast_dtype()).removeprefix("torch."), "training": spent or {}}


def _scores(cell: Cell, places: Places) -> Path:
    """Return the folder of what a cell has scored, from which it goes on when it was killed."""
    return places.work / "scores" / cell.file_name.removesuffix(".json")


def _as_json(results: dict[str, RankingResult], ranked: Asked) -> dict[str, Any]:
    return pair_figures(results, ranked.repeats) if isinstance(ranked, PairUsers) else as_json(results)


def _cold_start(ranked: Asked, trained: Asked) -> dict[str, list[int]]:
    """Return which test users have a target that no training user had, by their places."""
    if not (isinstance(ranked, Users) and isinstance(trained, Users)) or ranked.source is not trained.source:
        return {}
    groups = cold_start_groups(ranked.ranking("test"), trained.shown["item"].unique().to_list())
    return {"cold start": groups["cold"].tolist() if "cold" in groups else []}


def train(cell: Cell, users: Asked, places: Places) -> Spent:
    """Train the cell's adapter, or find that it has been trained."""
    folder = cell.adapter(places.work)
    own, sft = cell.settings, cell.adapter(places.work, SFT)
    if spent := read_spent(folder, places.model, own.of_training(after_sft=cell.method != SFT)):
        return spent
    if cell.method == SFT:
        tokens = own.sft_tokens or None
        return train_sft(places.model, users.sft(), own, cell.seed, folder, None, tokens, whole=users.whole_rows)
    method = STAGES.get(cell.method)
    of_sft = read_spent(sft, places.model, own.of_training(after_sft=False))
    if of_sft is None:  # an adapter outlives no machine, a cell does: SFT may have to be trained again
        of_sft = train(replace(cell, method=SFT), users, places)
    if cell.method == SFT_MORE:
        return train_sft(places.model, users.sft(), own, cell.seed, folder, sft, own.tokens, whole=users.whole_rows)
    assert method is not None
    start, tokens = (sft, own.tokens) if method.start == "sft" else (None, own.tokens + of_sft["tokens"])

    def asked() -> tuple[Any, Any]:
        return load(places.model, own, start), AutoTokenizer.from_pretrained(places.model)

    def score(questions: Any) -> list[list[float]]:
        return [one.by("sum").tolist() for one in score_candidates(*asked(), questions)]

    data = users.preference(method, score)
    if method.reference == "no history":
        assert isinstance(users, Users)
        data = reference_without_history(data, *asked(), users.source.template)
    return train_preference(places.model, data, own, cell.seed, folder, start, tokens, method)


def users_of(cell: Cell, name: str, places: Places) -> Asked:
    """Return the users of a cell, of the data set that is ranked or of that trained on."""
    source = SOURCES[name]
    if cell.method not in (COUNTS, *TRADITIONAL) and not takes_messages(places.model):
        source = source.plain()
    kind = PairUsers if isinstance(source, PairSource) else Users
    return kind(source, _read(name, tuple(places.data.items())), cell.settings, cell.users, cell.seed)


@cache
def _read(name: str, folders: tuple[tuple[str, Path], ...]) -> Interactions | PublishedSplits:
    return read_source(name, dict(folders))


def _traditional(cell: Cell, ranked: Users, trained: Users, places: Places) -> dict[str, Any]:
    from .traditional import rank_by_traditional

    results = {}
    of_all = {"epochs": TRADITIONAL[cell.method]}
    runs = {"test": (trained.shown, {}), "test, all users": (trained.all_of("others"), of_all)}
    for name, (known, settings) in runs.items():
        folder = cell.adapter(places.work) / name.replace(", ", "-").replace(" ", "-")
        ordered = known.with_columns(position=pl.int_range(pl.len()))
        users = ranked.ranking("test")
        results[name] = rank_by_traditional(cell.method, ordered, users, cell.seed, folder, **settings)
    return as_json(results)


def _deletion(
    cell: Cell, model: Any, tokenizer: Any, ranked: Users, trained: Users, result: RankingResult
) -> dict[str, Any]:
    rows = ranked.ranking("test").select(range(cell.settings.explained_users))
    popularity = dict(trained.shown.group_by("item").len().iter_rows())
    titles, template = ranked.data.titles(), ranked.source.template
    return deletion_curves(model, tokenizer, rows, result, titles, template, popularity, cell.seed)
