"""Two CPU processes recommend what one does, every user once and in order, and go on together where they were."""

import json

import polars as pl
import pytest
from support import make_model, make_tokenizer
from support.launch import two_processes
from support.users import TITLES

from dmpo_trl.data import MOVIES
from dmpo_trl.recommend import Candidates, Recommender

USERS = [(f"u{number}", [str(number), str(number + 2)]) for number in range(7)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the processes wrote."""
    folder = tmp_path_factory.mktemp("two_processes")
    two_processes("two_processes_recommend.py", folder)
    return folder


@pytest.mark.parametrize("way", ["beams", "candidates"])
def test_the_users_of_a_run_are_shared_and_come_out_as_of_one_process(folder, way):
    items = pl.DataFrame({"item": [str(number) for number in range(len(TITLES))], "title": TITLES})
    options = {
        "beams": {"num_beams": 3},
        "candidates": {"candidates": Candidates("any", lambda *_: items["item"].to_list()[2:7], 4)},
    }[way]
    Recommender(make_model(), make_tokenizer(), items, MOVIES.plain()).recommend_all(
        USERS, folder / f"one-{way}.parquet", k=3, **options
    )
    alone = pl.read_parquet(folder / f"one-{way}.parquet")
    for name in (way, f"{way}-again"):
        together = pl.read_parquet(folder / f"{name}.parquet")
        assert together.drop("score").equals(alone.drop("score"))
        assert together["score"].to_list() == pytest.approx(alone["score"].to_list(), abs=2e-5)
    assert not list(folder.glob("*.parts"))
    first, second = (json.loads((folder / f"{number}.json").read_text())[way] for number in (0, 1))
    assert first == {"whole": ["u0", "u2", "u4", "u6"], "interrupted": ["u0", "u2"], "again": ["u4", "u6"]}
    assert second == {"whole": ["u1", "u3", "u5"], "interrupted": ["u1", "u3"], "again": ["u5"]}
