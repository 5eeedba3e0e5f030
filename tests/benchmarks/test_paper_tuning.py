"""Settings are searched on validation users alone, a search goes on where it was killed, `run` takes its outcome."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from support import save_model
from support.films import write_films

SETTINGS = {
    "test_users": 6,
    "validation_users": 4,
    "candidates": 5,
    "positions": 4,
    "min_history": 2,
    "lora_rank": 4,
    "batch_size": 4,
}
SEARCH = {"learning_rate": [1e-5, 1e-3], "beta": [0.1, 2.0], "tokens": [2500, 4000]}
CELLS = [{"dataset": "movielens", "users": 3, "seed": 0, "method": ["dmpo", "counts", "sft", "mppo"]}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model, and films in RecBole's format."""
    folder = tmp_path_factory.mktemp("tuning")
    save_model(folder / "model")
    generator = np.random.default_rng(0)
    rows = [
        (user, item, generator.integers(3, 6), time)
        for user in range(30)
        for time, item in enumerate(generator.permutation(60)[:15])
    ]
    write_films(folder / "films", rows, films=60)
    return folder


def config(folder: Path, **changes) -> Path:
    file = folder / "search.yaml"
    tuning = {"search": SEARCH, "trials": 2, "startup": 1, "seeds": [0, 1]} | changes.pop("tuning", {})
    file.write_text(yaml.safe_dump({"settings": SETTINGS, "tuning": tuning, "cells": CELLS} | changes))
    return file


def tune(paper, folder: Path, file: Path, *more: str) -> dict:
    data, model = f"movielens={folder / 'films'}", str(folder / "model")
    paper.main(["tune", str(file), "--data", data, "--model", model, "--work", str(file.parent / "work"), *more])
    return yaml.safe_load(file.with_name("search-found.yaml").read_text())


def test_a_search_ranks_no_test_user_and_run_takes_what_it_found(paper, folder, tmp_path, monkeypatch):
    from paper.users import Users

    ranked, ranking = [], Users.ranking
    with monkeypatch.context() as patch:
        patch.setattr(Users, "ranking", lambda self, group, *rest: ranked.append(group) or ranking(self, group, *rest))
        found = tune(paper, folder, config(tmp_path))
    assert set(ranked) == {"validation"}
    assert len(ranked) == 6  # trials
    assert [entry["method"] for entry in found["found"]] == ["sft", "dmpo", "mppo"]
    for entry in found["found"]:
        assert len(entry["trials"]) == 2
        best = max(entry["trials"], key=lambda trial: trial["value"])
        assert entry["best trial"] == best["trial"]
        assert entry["tokens in all"] == sum(trial["tokens"] for trial in entry["trials"])
        assert entry["seconds in all"] > 0
        assert ("beta" in best) == (entry["method"] == "dmpo")
        for name, (low, high) in SEARCH.items():
            assert name not in best or low <= best[name] <= high
    cells = {cell["method"]: cell for cell in found["cells"]}
    sft, dmpo = (max(found["found"][n]["trials"], key=lambda trial: trial["value"]) for n in (0, 1))
    for method in ("sft", "dmpo", "mppo"):
        assert cells[method]["sft_learning_rate"] == sft["learning_rate"]
    assert {name: cells["dmpo"][name] for name in SEARCH} == {name: dmpo[name] for name in SEARCH}

    output = tmp_path / "cells"
    run = ["run", str(tmp_path / "search-found.yaml"), "--work", str(tmp_path / "tuned"), "--output", str(output)]
    data, model = f"movielens={folder / 'films'}", str(folder / "model")
    paper.main([*run, "--data", data, "--model", model])
    assert len(list(output.iterdir())) == 8  # four methods, two seeds
    cell = json.loads((output / "movielens-3-dmpo-0.json").read_text())
    assert cell["training"]["tokens"] == dmpo["tokens"]
    rates = [entry["learning_rate"] for entry in cell["training"]["log"]]
    assert max(rates) == pytest.approx(dmpo["learning_rate"])  # after the warm-up
    assert cell["settings"]["beta"] == dmpo["beta"]


def test_a_search_that_was_killed_goes_on(paper, folder, tmp_path, monkeypatch):
    tuning = importlib.import_module("paper.tuning")
    file, train, calls = config(tmp_path), tuning.train, []

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(tuning, "train", killed)
        with pytest.raises(KeyboardInterrupt):
            tune(paper, folder, file)
    assert not file.with_name("search-found.yaml").exists()
    calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "train", lambda *arguments: calls.append(arguments) or train(*arguments))
        found = tune(paper, folder, file)
    assert len(calls) == 5  # of six trials one was done
    (tmp_path / "alone").mkdir()
    alone = tune(paper, folder, config(tmp_path / "alone"))
    assert found["cells"] == alone["cells"]
    with pytest.raises(SystemExit, match=r"begun with other settings \(settings\).*--work"):
        tune(paper, folder, config(tmp_path, settings=SETTINGS | {"candidates": 4}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tuning": {"search": {"lora_rank": [4, 8]}}}, "lora_rank cannot be searched"),
        ({"tuning": {"search": {"tokens": [0.5, 8]}}}, r"the search of tokens is \[0.5, 8\]"),
        ({"tuning": {"search": {"beta": [2, 1]}}}, r"the search of beta is \[2, 1\]"),
        ({"tuning": {"tries": 3}}, "`tuning` must hold `search`, and may hold trials"),
        ({"cells": [CELLS[0] | {"seed": [0, 1]}]}, "has several seeds"),
        ({"cells": [CELLS[0] | {"trained_on": "lastfm"}]}, "has no validation users of its own"),
        ({"settings": SETTINGS | {"beta": 1.0}}, "mppo has no beta"),
    ],
)
def test_a_search_is_checked_before_the_work(paper, folder, tmp_path, changes, says):
    with pytest.raises(SystemExit, match=says):
        tune(paper, folder, config(tmp_path, **changes))
    assert not (tmp_path / "work").exists()
