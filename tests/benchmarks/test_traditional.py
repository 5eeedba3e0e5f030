"""Traditional recommenders as rankers: what goes to their environment, what comes back, and scores without a model."""

import importlib
import json
import sys

import numpy as np
import polars as pl
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

# Stands for `fit.py` in an environment of its own: writes down its arguments, and scores candidates by their number
STAND_IN = """
import json, sys
from pathlib import Path
import polars as pl
options = dict(argument.removeprefix("--").split("=") for argument in sys.argv[2:])
folder = Path(options["folder"])
if options["seed"] == "13":
    sys.exit("thirteen is refused")
with (folder / "calls.txt").open("a") as file:
    file.write(json.dumps(options) + "\\n")
settings = {"epochs": int(options["epochs"]), "learning_rate": float(options["learning_rate"])}
settings |= {"batch_size": int(options["batch_size"]), "size": int(options["size"])}
settings |= {"weight_decay": float(options["weight_decay"])}
spent = {"method": options["method"], "seed": int(options["seed"]), "settings": settings}
(folder / "spent.json").write_text(json.dumps(spent))
asked = pl.read_parquet(folder / "users.parquet").select("user", item="items").explode("item")
asked.with_columns(score=pl.col("item").cast(pl.Float64)).write_parquet(folder / "scores.parquet")
"""
KNOWN = pl.DataFrame({"user": ["u2", "u1", "u1", "u1"], "item": ["3", "2", "1", "5"], "position": [70, 30, 30, 10]})
USERS = [
    {"user": "u8", "history": ["1", "2"], "items": ["4", "9"], "positive": 1},
    {"user": "u9", "history": ["7"], "items": ["3", "1", "5"], "positive": 1},
]


@pytest.fixture
def traditional():
    return importlib.import_module("paper.traditional")


@pytest.fixture
def users():
    return Dataset.from_list(USERS)


@pytest.fixture
def environment(traditional, monkeypatch, tmp_path):
    script, python = tmp_path / "stand_in.py", tmp_path / "environment" / "bin" / "python"
    script.write_text(STAND_IN)
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(traditional, "ENVIRONMENT", tmp_path / "environment")


@pytest.mark.usefixtures("environment")
def test_files_go_out_and_scores_come_back(traditional, users, tmp_path):
    folder = tmp_path / "deep" / "bpr"
    result = traditional.rank_by_traditional("bpr", KNOWN, users, 3, folder, epochs=7)
    assert (result.name, result.users, result.positives) == ("bpr", ["u8", "u9"], [1, 1])
    assert [own.tolist() for own in result.scores] == [[4, 9], [3, 1, 5]]
    # In each user's order, and rows with the same position as they were
    known = pl.read_parquet(folder / "known.parquet")
    assert known.rows() == [("u1", "5", 0), ("u1", "2", 1), ("u1", "1", 2), ("u2", "3", 0)]
    asked = pl.read_parquet(folder / "users.parquet")
    assert asked.rows(named=True) == [{name: row[name] for name in ("user", "history", "items")} for row in USERS]
    options = json.loads((folder / "calls.txt").read_text())
    assert (options["method"], options["seed"], options["epochs"]) == ("bpr", "3", "7")
    assert float(options["learning_rate"]) == traditional.DEFAULTS["bpr"]["learning_rate"]


@pytest.mark.usefixtures("environment")
def test_only_the_same_is_not_computed_again(traditional, users, tmp_path):
    def calls(known=KNOWN, users=users, seed=0, **settings):
        traditional.rank_by_traditional("bpr", known, users, seed, tmp_path, **settings)
        return len((tmp_path / "calls.txt").read_text().splitlines())

    assert calls() == calls() == 1
    assert calls(epochs=traditional.DEFAULTS["bpr"]["epochs"]) == 1  # the default, spelled out
    assert calls(epochs=3) == 2
    assert calls(seed=1) == 3
    assert calls(KNOWN.head(3), seed=1) == 4
    assert calls(KNOWN.head(3), users.select([1]), seed=1) == 5
    (tmp_path / "scores.parquet").unlink()  # as a killed run leaves it
    assert calls(KNOWN.head(3), users.select([1]), seed=1) == 6


def test_a_missing_environment_says_how_it_is_made(traditional, users, monkeypatch, tmp_path):
    monkeypatch.setattr(traditional, "ENVIRONMENT", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"there is no .*nowhere\. Make it: make \.venv-traditional"):
        traditional.rank_by_traditional("sasrec", KNOWN, users, 0, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("environment")
def test_a_fit_that_fails_is_told(traditional, users, tmp_path):
    with pytest.raises(RuntimeError, match=r"bpr could not be fitted in .*\n.*thirteen is refused"):
        traditional.rank_by_traditional("bpr", KNOWN, users, 13, tmp_path)


@pytest.mark.parametrize(
    ("known", "rows", "message"),
    [
        (KNOWN.drop("position"), USERS, r"no column \['position'\]"),
        (KNOWN.clear(), USERS, "no known interactions"),
        (
            pl.concat([KNOWN, KNOWN.head(1).with_columns(item=pl.lit(None))]),
            USERS,
            "1 known interactions have no item",
        ),
        (KNOWN.with_columns(user=pl.lit("u9")), USERS, "1 known interactions are targets, .* item '1' of user 'u9'"),
        (KNOWN, [USERS[0], *USERS], "User 'u8' is listed more than once"),
    ],
)
def test_what_cannot_be_fitted_is_refused(traditional, tmp_path, known, rows, message):
    with pytest.raises(ValueError, match=message):
        traditional.rank_by_traditional("sasrec", known, Dataset.from_list(rows), 0, tmp_path)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("lightgcn", {}, "no method 'lightgcn': choose among bpr, sasrec, gru4rec"),
        ("bpr", {"dropout": 0.1}, "bpr has no setting dropout; it has epochs, "),
    ],
)
def test_unknown_methods_and_settings_are_refused(traditional, users, tmp_path, method, settings, message):
    with pytest.raises(ValueError, match=message):
        traditional.rank_by_traditional(method, KNOWN, users, 0, tmp_path, **settings)


ITEMS = st.sampled_from([f"i{number}" for number in range(8)])


@given(
    known=st.lists(st.tuples(st.sampled_from(["k1", "k2", "k3"]), ITEMS), min_size=1),
    candidates=st.lists(st.lists(ITEMS, min_size=1, unique=True), min_size=1, max_size=4),
    data=st.data(),
)
def test_candidates_without_a_score_get_what_is_documented(known, candidates, data):
    fit = importlib.import_module("paper.traditional.fit")
    items = fit.Items(pl.DataFrame(known, schema=["user", "item"], orient="row"))
    names = sorted({item for _, item in known})
    assert items.of([*names, "nobody's"]) == list(range(len(names))) == list(range(len(items)))
    scored = data.draw(st.lists(st.sampled_from(range(len(candidates))), unique=True))
    scores = np.random.default_rng(0).normal(size=(len(scored), len(names))).astype(np.float32)
    users = pl.DataFrame({"user": [f"u{row}" for row in range(len(candidates))], "items": candidates})
    found = fit.score_candidates(users, items, scores, scored)
    expected = []
    for row, own in enumerate(candidates):
        if row in scored:
            values = {item: float(scores[scored.index(row), names.index(item)]) for item in own if item in names}
        else:
            values = {item: len({user for user, had in known if had == item}) for item in own if item in names}
        last = min(values.values()) - 1 if values else 0
        expected += [(f"u{row}", item, values.get(item, last), item in names) for item in own]
    assert found.rows() == expected


@pytest.mark.slow
@pytest.mark.parametrize("method", ["bpr", "sasrec", "gru4rec"])
def test_what_is_learnable_is_learned(traditional, tmp_path, method):
    """Item i is followed by i + 1, on a circle of 40; identifiers hold what separates fields in RecBole's files."""
    if not traditional.ENVIRONMENT.exists():
        pytest.skip("there is no .venv-traditional: make .venv-traditional")
    generator = np.random.default_rng(0)
    circle = [f'film\t"{number}", 4' for number in range(40)] * 2
    rows = [
        (f"k{user}", circle[start + step], step)
        for user, start in enumerate(generator.integers(40, size=60))
        for step in range(12)
    ]
    known = pl.DataFrame(rows, schema=["user", "item", "position"], orient="row")
    users = [{"user": "new", "history": ["nobody's"], "items": ["nobody's", circle[0]], "positive": 1}]
    for user, start in enumerate(generator.integers(40, size=50)):
        own = circle[start : start + 40]
        others = generator.choice(own[8:], size=9, replace=False).tolist()
        users.append({"user": f"u{user}", "history": own[:7], "items": [*others, own[7]], "positive": 9})
    result = traditional.rank_by_traditional(method, known, Dataset.from_list(users), 0, tmp_path)
    count = sum(item == circle[0] for _, item, _ in rows)
    assert result.scores[0].tolist() == [count - 1, count]
    # At random 0.5. BPR does not see the order: the two neighbours of a history are alike to it
    assert result.per_user("auc")[1:].mean() > (0.8 if method == "bpr" else 0.95)
    spent = json.loads((tmp_path / "spent.json").read_text())
    assert (spent["users scored by popularity"], spent["candidates no known user had"]) == (1, 1)
