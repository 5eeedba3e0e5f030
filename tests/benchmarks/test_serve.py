"""The benchmark of the service on a tiny model: every answer is right, and one that is not is counted."""

import os

import polars as pl
import pytest
from support import load_script, make_model, make_tokenizer
from support.service import serving

from dmpo_trl.data import MOVIES
from dmpo_trl.recommend import Recommender
from dmpo_trl.serving import ServiceLimits, make_app

ITEMS = pl.DataFrame({"item": [str(row) for row in range(12)], "title": [f"Film {row}" for row in range(12)]})


@pytest.mark.parametrize("score", ["sum", "mean"])
def test_answers_are_counted_and_those_of_another_recommender_are_wrong(score):
    recommender, served = (
        Recommender(make_model(), make_tokenizer(), ITEMS, MOVIES, score=own) for own in ("sum", score)
    )
    histories = [["0"], ["1", "5"], ["2"]]
    with (
        load_script("benchmarks/serve.py") as script,
        serving(make_app(served, ServiceLimits(num_beams=30))) as port,
    ):
        settings = script.Settings(model="tiny", clients=[1, 8], num_beams=30, candidates=4)
        found = [
            script.measure(settings, route, port, os.getpid())
            for route in script.routes(settings, recommender, histories)
        ]
    for rows in found:
        assert [row["clients"] for row in rows] == ["direct", "1", "8"]
        assert [row["requests"] for row in rows] == [6, 6, 16]
        assert [row["lost or wrong"] for row in rows] == ([0, 0, 0] if score == "sum" else [0, 6, 16])
        assert all(row["p95"] >= row["p50"] > 0 for row in rows)
    assert [rows[0]["route"] for rows in found] == ["/recommend", "/rank"]
