"""The experiments on the paper's claims: cells are computed once, and the report is made of them alone."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from support import save_model
from support.films import write_films

PAPER = Path(__file__).parents[2] / "benchmarks" / "paper"
SIZES = {
    "test_users": 6,
    "validation_users": 4,
    "candidates": 5,
    "positions": 4,
    "min_history": 2,
    "tokens": 3000,
    "sft_epochs": 1,
    "lora_rank": 4,
    "batch_size": 4,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny model, films in RecBole's format and artists in HetRec's."""
    folder = tmp_path_factory.mktemp("paper")
    save_model(folder / "model")
    generator = np.random.default_rng(0)
    orders = [generator.permutation(60)[:20] for _ in range(40)]
    artists = folder / "artists"
    rows = [
        (user, item, generator.integers(3, 6), time)
        for user, own in enumerate(orders)
        for time, item in enumerate(own)
    ]
    write_films(folder / "films", rows, films=60)
    artists.mkdir()
    plays = [f"{user}\t{item}\t{100 + time}" for user, own in enumerate(orders) for time, item in enumerate(own)]
    (artists / "user_artists.dat").write_text("\n".join(["userID\tartistID\tweight", *plays]) + "\n")
    names = ["id\tname\turl\tpictureURL", *(f"{item}\tArtist {item}\t\t" for item in range(60))]
    (artists / "artists.dat").write_text("\n".join(names) + "\n")
    return folder


def options(folders: Path, output: Path) -> list[str]:
    places = ["--work", str(folders / "work"), "--output", str(output), "--model", str(folders / "model")]
    return [*places, "--data", f"movielens={folders / 'films'}", f"lastfm={folders / 'artists'}"]


def config(folder: Path, *blocks: dict, **settings) -> str:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump({"settings": SIZES | settings, "cells": list(blocks)}))
    return str(file)


def test_cells_are_computed_once_and_reported(paper, folders, tmp_path, capsys):
    methods = ["counts", "zero-shot", "sft more", "dmpo boundary", "sampled softmax 3"]
    file = config(tmp_path, {"dataset": "movielens", "users": 3, "seed": 0, "method": methods}, explained_users=2)
    output = tmp_path / "out"
    paper.main(["run", file, *options(folders, output), "--list"])
    assert len(capsys.readouterr().out.splitlines()) == len(methods)
    assert not output.exists()
    paper.main(["run", file, *options(folders, output)])
    files = sorted(output.iterdir())
    assert [one.name for one in files] == sorted(f"movielens-3-{name.replace(' ', '-')}-0.json" for name in methods)
    cells = {cell["method"]: cell for cell in (json.loads(one.read_text()) for one in files)}
    for name in (
        "sft more",
        "dmpo boundary",
        "sampled softmax 3",
    ):  # sft, whose adapter they need, was trained for them
        assert cells[name]["training"]["tokens"] == 3000
        assert cells[name]["training"]["log"]
        assert len(cells[name]["test sum"]["ranks"]) == 6
        assert {order: np.shape(curves) for order, curves in cells[name]["deletion"].items()} == {
            "explained": (2, 5),
            "popular": (2, 5),
            "random": (2, 5),
        }
    assert cells["counts"]["random"]["auc"] == 0.5
    written = [one.stat().st_mtime_ns for one in files]
    paper.main(["run", file, *options(folders, output)])
    assert [one.stat().st_mtime_ns for one in files] == written

    capsys.readouterr()
    paper.main(["report", str(output)])
    text = (output / "report.md").read_text()
    assert "## movielens, 3 training users, uniform candidates" in text
    for ranker in (
        "random",
        "item knn",
        "sft more",
        "dmpo boundary, mean per token",
        "sft more + no history",
        "sampled softmax 3 + item knn",
        "zero-shot + no history + item knn",
    ):
        assert f"| {ranker} | 1 |" in text
    compared = {
        (name, control)
        for name, control in re.findall(
            r"^- (.+) (?:cannot be told apart from|is better than|is worse than) (.+?):", text, re.M
        )
    }
    assert ("dmpo boundary", "sft more") in compared
    assert ("dmpo boundary + no history", "sft more + no history") in compared
    assert ("dmpo boundary + no history + item knn", "item knn") in compared
    assert not {pair for pair in compared if pair[0].endswith("no history") != pair[1].endswith("no history")}
    assert "Explanations: nats lost" in text
    first = {one.name: one.read_bytes() for one in output.iterdir() if one.suffix in (".md", ".html", ".svg")}
    assert {"report.md", "report.html", "seconds.svg", "margins.svg", "deletion.svg"} == first.keys()
    paper.main(["report", str(output), "--output", str(tmp_path / "again")])
    for name, content in first.items():
        assert (tmp_path / "again" / name).read_bytes() == content


def test_removing_what_an_explanation_puts_first_lowers_the_score_most(paper, folders, tmp_path):
    # By definition: the first of `explained` is the item whose removal costs most
    file = config(tmp_path, {"dataset": "movielens", "users": 3, "seed": 0, "method": "zero-shot"}, explained_users=4)
    paper.main(["run", file, *options(folders, tmp_path / "out")])
    deletion = json.loads((tmp_path / "out" / "movielens-3-zero-shot-0.json").read_text())["deletion"]
    first = {order: np.array(curves)[:, 0] for order, curves in deletion.items()}
    assert (first["explained"] >= first["popular"] - 1e-4).all()
    assert (first["explained"] >= first["random"] - 1e-4).all()
    assert (first["explained"] > first["random"]).any()


def test_a_case_study_shows_rankings_before_and_after_and_explanations(paper, folders, tmp_path):
    file = config(tmp_path, {"dataset": "movielens", "users": 3, "seed": 0, "method": ["sft", "dmpo", "counts"]})
    places, study = options(folders, tmp_path / "out"), tmp_path / "study.md"
    paper.main(["cases", file, *places, "--cell", "movielens-3-dmpo-0", "--users", "2", "--output", str(study)])
    text = study.read_text()
    assert "Ranked by sft (before) and by dmpo (after)" in text
    cases = text.split("\n## User ")[1:]
    assert len(cases) == 2
    for case in cases:
        history = re.search(r"^History: (.+)$", case, re.M)[1].split("; ")
        rows = re.findall(r"^\| (\d) \| (.+) \| (.+) \|$", case, re.M)
        assert [int(place) for place, *_ in rows] == [1, 2, 3, 4, 5]
        before, after = ([row[column] for row in rows] for column in (1, 2))
        assert sorted(before) == sorted(after)  # all five candidates
        places_of_target = re.search(r"^\| place of the target among 5 \| (\d) \| (\d) \|$", case, re.M)
        assert [
            next(place for place, name in enumerate(order, 1) if name.endswith(" *")) for order in (before, after)
        ] == [int(place) for place in places_of_target.groups()]
        explained = re.search(r"^(.+) \(score .+What each item of the history adds", case, re.M)[1]
        assert explained == after[0].removesuffix(" *")
        assert all(re.search(rf"^  {re.escape(title)} +[+-]", case, re.M) for title in history)
    for cell, more, says in (
        ("movielens-3-counts-0", [], "a language model that was trained"),
        ("movielens-3-mppo-0", [], r"has no cell movielens-3-mppo-0\. Choose among"),
        ("movielens-3-sft-0", ["--users", "7"], "ranks 6 test users"),
    ):
        with pytest.raises(SystemExit, match=says):
            paper.main(["cases", file, *places, "--cell", cell, *more])


def test_cold_starts_are_targets_that_no_training_user_had(paper, folders, tmp_path):
    file = config(tmp_path, {"dataset": "movielens", "users": 3, "seed": [0, 1], "method": "counts"})
    output = tmp_path / "out"
    paper.main(["run", file, *options(folders, output)])
    paper.main(["report", str(output)])
    cells = [json.loads((output / f"movielens-3-counts-{seed}.json").read_text()) for seed in (0, 1)]
    assert all(0 < len(cell["cold start"]) < 6 for cell in cells)
    for cell in cells:  # counts give nobody's item no score at all: all such items are tied or below others
        gains = np.array(cell["popularity"]["ndcg@5 per user"])
        cold = np.zeros(6, bool)
        cold[cell["cold start"]] = True
        assert gains[cold].mean() < gains[~cold].mean()
    text = (output / "report.md").read_text()
    mean = np.mean([np.mean(np.array(cell["popularity"]["ndcg@5 per user"])[cell["cold start"]]) for cell in cells])
    (line,) = [line for line in text.splitlines() if line.startswith("| popularity | 2 |")]
    header = next(line for line in text.splitlines() if line.startswith("| ranker |"))
    column = header.split(" | ").index("cold start")
    assert line.split(" | ")[column].startswith(f"{mean:.3f} (")
    assert "have a target that no training user had" in text


def cell_of(dataset: str, method: str, ndcg: list[float], validation: float) -> dict:
    """Return what the tables of a report want of a cell."""
    users = {"ranker": method, "ranks": [1.0] * len(ndcg), "ndcg@5 per user": ndcg, "ndcg@5": float(np.mean(ndcg))}
    figures = users | {"hr@1": 0.5, "auc": 0.5, "mean gap to the hardest": 0.0}
    there = {"dataset": dataset, "trained_on": dataset, "users": 3}
    chosen = {"ranker": method, "ndcg@5": validation}
    return {"settings": there, "method": method, "seed": 0, "test sum": figures, "validation sum": chosen}


def test_other_words_are_compared_on_the_same_users(paper):
    from paper.records import records_of
    from paper.tables import tables

    cells = [
        cell_of("movielens", "sft", [0.0, 1.0, 0.0, 1.0], 0.4),
        cell_of("movielens-question-last", "sft", [0.5, 1.0, 0.5, 1.0], 0.4),
        cell_of("movielens-question-last", "dmpo", [0.0, 0.0, 0.0, 0.0], 0.4),
    ]
    found = {table.title: table for table in tables([one for cell in cells for one in records_of(cell)])}
    table = found["Other words: movielens-question-last, NDCG@5"]
    row = {"ranker": "sft", "training users": "3", "movielens-question-last": "0.750", "movielens": "0.500"}
    assert table.rows == [row]
    assert table.notes[0].startswith("sft (3 users) of movielens-question-last cannot be told apart from that of")
    assert "of movielens: 0.250 [" in table.notes[0]


def test_beta_is_chosen_by_validation_users_alone(paper):
    from paper.records import records_of
    from paper.tables import tables

    cells = [
        cell_of("movielens", "dmpo", [1.0, 1.0], 0.41),
        cell_of("movielens", "sft", [1.0, 1.0], 0.4),
        cell_of("lastfm", "dmpo", [1.0, 1.0], 0.6),
    ]
    tried = cell_of("movielens", "dmpo beta 0.1", [1.0, 1.0], 0.43)
    del tried["test sum"]  # what `protocols: []` leaves out
    found = {table.title: table for table in tables([one for cell in [*cells, tried] for one in records_of(cell)])}
    table = found["Beta: NDCG@5 of validation users, each row the same users"]
    assert table.rows == [{"cells": "movielens, 3 users, seed 0", "dmpo": "0.410", "dmpo beta 0.1": "0.430"}]


def test_a_cell_of_other_settings_is_not_taken_for_this_one(paper, folders, tmp_path):
    block = {"dataset": "movielens", "users": 3, "seed": 0, "method": "counts"}
    paper.main(["run", config(tmp_path, block), *options(folders, tmp_path / "out")])
    with pytest.raises(SystemExit, match="computed with candidates=5, the config says 4"):
        paper.main(["run", config(tmp_path, block, candidates=4), *options(folders, tmp_path / "out")])


def test_an_adapter_of_other_settings_is_not_taken_for_this_one(paper, folders, tmp_path):
    block = {"dataset": "movielens", "users": 3, "seed": 1, "method": "sft"}
    places = options(folders, tmp_path / "out")
    places[1] = str(tmp_path / "work")
    paper.main(["run", config(tmp_path, block), *places])
    (tmp_path / "out" / "movielens-3-sft-1.json").unlink()
    paper.main(["run", config(tmp_path, block, candidates=4), *places])  # only how is ranked differs
    (tmp_path / "out" / "movielens-3-sft-1.json").unlink()
    with pytest.raises(SystemExit, match="trained with lora_rank=4, now it is 2"):
        paper.main(["run", config(tmp_path, block, lora_rank=2), *places])


@pytest.mark.parametrize(
    ("block", "settings", "says"),
    [
        ({"dataset": "films"}, {}, "The dataset 'films' is unknown. Choose among movielens"),
        ({"method": "ppo"}, {}, "The method 'ppo' is unknown. Choose among counts"),
        ({"usres": 3}, {}, "block 1 of cells: usres is unknown"),
        ({}, {"tokens": "many"}, "tokens is 'many', where something like 50000 is expected"),
        ({"explained_users": 2}, {"protocols": ["popularity"]}, "cells: explained_users needs the protocol uniform"),
        (
            {"explained_users": 5},
            {"test_users": 4},
            "catalogue_users are some of the 4 test_users",
        ),
        (
            {"catalogue_users": 5},
            {"test_users": 4},
            "catalogue_users are some of the 4 test_users",
        ),
        ({"method": "bpr", "trained_on": "lastfm"}, {}, "bpr knows no item of movielens when it is trained on lastfm"),
        ({"seed": [0, 0]}, {}, "names movielens-3-counts-0 more than once"),
    ],
)
def test_a_config_is_checked_before_the_work(paper, folders, tmp_path, block, settings, says):
    whole = {"dataset": "movielens", "users": 3, "seed": 0, "method": "counts"} | block
    with pytest.raises(SystemExit, match=re.escape(says)):
        paper.main(["run", config(tmp_path, whole, **settings), *options(folders, tmp_path / "out")])


def test_too_few_users_are_said_before_the_first_cell_is_computed(paper, folders, tmp_path):
    blocks = [
        {"dataset": "movielens", "users": 3, "seed": 0, "method": "counts"},
        {"dataset": "lastfm", "users": 31, "seed": 0, "method": "counts"},  # with 6 and 4 others of 40
    ]
    with pytest.raises(SystemExit, match=r"lastfm-31-counts-0, users of lastfm: .*31.*30"):
        paper.main(["run", config(tmp_path, *blocks), *options(folders, tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file", ["full", "laptop", "learning", "beta", "second", "tuning"])
def test_the_real_data_have_as_many_users_as_the_configs_want(paper, file):
    if not (root := os.environ.get("DMPO_TRL_SHARED_DATA")):
        pytest.skip("DMPO_TRL_SHARED_DATA does not point to the folder with real data")
    from paper.cells import Places, check_users
    from paper.settings import read_config

    names = {
        "movielens": "ml-100k-recbole",
        "lastfm": "lastfm-hetrec2011",
        "office": "amazon-msl/Office",
        "gift-cards": "amazon2018-gift-cards",
    }
    data = {name: Path(root) / folder for name, folder in names.items()}
    cells = [replace(cell, method="counts", seed=0) for cell in read_config(PAPER / f"{file}.yaml")]
    check_users(cells, Places("none", data, Path(), Path()))


def test_a_data_set_without_a_folder_is_named(paper, folders, tmp_path):
    file = config(tmp_path, {"dataset": "office", "users": 3, "seed": 0, "method": "counts"})
    with pytest.raises(SystemExit, match="--data office=FOLDER: the Office files of MSL"):
        paper.main(["run", file, *options(folders, tmp_path / "out")])


@pytest.mark.parametrize("file", sorted(PAPER.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_configs_can_be_read(paper, file):
    if file.stem == "methods":
        from paper.methods import STAGES

        from dmpo_trl import DMPOConfig

        for method in STAGES.values():
            assert (
                DMPOConfig("out", use_cpu=True, bf16=False, **method.options).loss_type == method.options["loss_type"]
            )
        return
    from paper.methods import METHODS
    from paper.settings import read_config
    from paper.sources import SOURCES

    for cell in read_config(file):
        assert cell.dataset in SOURCES
        assert cell.method in METHODS


@pytest.mark.slow
def test_every_method_table_and_picture(paper, folders, tmp_path):
    places = options(folders, tmp_path / "smoke")
    places[1] = str(tmp_path / "work")  # the other tests' adapters have other settings
    paper.main(["run", str(PAPER / "smoke.yaml"), *places])
    paper.main(["report", str(tmp_path / "smoke")])
    assert {file.stem for file in (tmp_path / "smoke").glob("*.svg")} == {
        "shots",
        "negatives",
        "seconds",
        "margins",
        "deletion",
        "across-sft",
        "across-sft-no-history",
        "across-dmpo",
        "across-dmpo-no-history",
    }
    text = (tmp_path / "smoke" / "report.md").read_text()
    for title in (
        "movielens, 3 training users, the whole catalogue",
        "movielens, 6 training users, candidates drawn by popularity",
        "lastfm, 3 training users, uniform candidates",
        "Across domains: dmpo, NDCG@5 on ...",
        "Other words: movielens-question-last, NDCG@5",
        "Beta: NDCG@5 of validation users",
        "Margins while training",
        "Explanations: nats lost",
    ):
        assert f"## {title}" in text
    assert "| dmpo hard negatives | 1 |" in text


def test_the_reference_may_be_what_the_sft_model_says_without_a_history(paper, folders, tmp_path, monkeypatch):
    from paper import cells
    from paper.settings import read_config

    given = []

    def train(model, data, *rest):
        given.append(data)
        return {"tokens": 0}

    monkeypatch.setattr(cells, "train_preference", train)
    block = {"dataset": "movielens", "users": 3, "seed": 0}
    for cell in read_config(Path(config(tmp_path, block | {"method": ["pmi softmax 3", "softmax"]}))):
        places = cells.Places(str(folders / "model"), {"movielens": folders / "films"}, tmp_path, tmp_path)
        cells.train(cell, cells.users_of(cell, "movielens", places), places)
    against_nothing, against_the_model = given
    assert {"ref_chosen_logps", "ref_rejected_logps"} <= set(against_nothing.column_names)
    assert "ref_chosen_logps" not in against_the_model.column_names
