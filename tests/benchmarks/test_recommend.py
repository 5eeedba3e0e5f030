"""The benchmark of recommending on a tiny model: its ways find the same where nothing is left out."""

import polars as pl
import pytest
from support import load_script, make_model, make_tokenizer, save_model

from dmpo_trl.data import Interactions

TITLES = [f"{name} ({1980 + number})" for number, name in enumerate(["Alien", "Aliens", "Babe", "Heidi", "The Mask"])]
TITLES += [f"The {title}" for title in TITLES] + [f"{title} 2" for title in TITLES]


@pytest.fixture
def data():
    items = pl.DataFrame({"item": [str(number) for number in range(len(TITLES))], "title": TITLES})
    rows = [(f"u{user}", str((user + 2 * step) % len(TITLES)), step, 5.0) for user in range(9) for step in range(4)]
    return Interactions(pl.DataFrame(rows, schema=["user", "item", "timestamp", "rating"], orient="row"), items)


@pytest.fixture
def script(monkeypatch, data):
    with load_script("benchmarks/recommend.py") as module:
        monkeypatch.setattr(module, "movielens_folder", lambda: None)
        monkeypatch.setattr(module, "read_recbole", lambda *_, **__: data)
        yield module


def test_with_room_for_every_title_all_ways_find_the_proven_best(script):
    settings = script.Settings(
        model="tiny",
        users=2,
        history=2,
        beams=[50],
        together=[2],
        candidates=[15],
        generate_beams=[50],
        titles=None,
    )
    rows = script.compare(settings, script.make_case(settings, make_model(), make_tokenizer()))
    assert [row["way"] for row in rows] == [
        *("proven best", "generate, 50 beams", "50 beams", "50 beams, 2 users together"),
        *("item_knn, 15 candidates", "popularity, 15 candidates"),
    ]
    assert [row["recall"] for row in rows] == [1.0] * 6
    assert all(0 < row["outside the model"] < 1 for row in rows)


def test_the_trie_is_measured_and_written(script, tmp_path):
    save_model(tmp_path)
    script.main(["--model", str(tmp_path), "--titles", "40", "--output", str(tmp_path / "results")])
    frame = pl.read_csv(tmp_path / "results" / "recommend-trie.csv")
    assert frame["titles"].to_list() == [40]
    assert frame["nodes"][0] > 40
