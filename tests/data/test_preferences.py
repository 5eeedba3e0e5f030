import numpy as np
import polars as pl
import pytest

from dmpo_trl.data import MOVIES, Interactions, PromptTemplate, preference_dataset, ranking_dataset

ITEMS = pl.DataFrame({"item": list("abcd"), "title": ["Alien", "Babe", "Casino", "Diva"]})
DATA = Interactions(pl.DataFrame({"user": ["u1"], "item": ["a"], "timestamp": [1]}), ITEMS)
EXAMPLES = pl.DataFrame(
    {"user": ["u1", "u2"], "history": [["a"], ["b", "c"]], "target": ["b", "d"], "negatives": [["c", "d"], ["a"]]}
)
TEMPLATE = PromptTemplate(system="You recommend.", instruction="Liked:", question="Next?")


def test_conversational_rows():
    rows = preference_dataset(EXAMPLES, DATA, TEMPLATE).to_list()
    system = {"role": "system", "content": "You recommend."}
    assert rows[1] == {
        "prompt": [system, {"role": "user", "content": "Liked:\nBabe\nCasino\nNext?"}],
        "chosen": [{"role": "assistant", "content": "Diva"}],
        "rejected": [[{"role": "assistant", "content": "Alien"}]],
    }
    assert len(rows[0]["rejected"]) == 2


def test_plain_rows():
    rows = preference_dataset(EXAMPLES, DATA, TEMPLATE.plain()).to_list()
    assert rows[0] == {
        "prompt": "You recommend.\nLiked:\nAlien\nNext?\n",
        "chosen": "Babe",
        "rejected": ["Casino", "Diva"],
    }


def test_a_template_without_a_system_message():
    template = PromptTemplate(instruction="Liked:", question="Next?", separator="; ")
    assert template.prompt(["Alien", "Babe"]) == [{"role": "user", "content": "Liked:\nAlien; Babe\nNext?"}]
    assert template.plain().prompt(["Alien", "Babe"]) == "Liked:\nAlien; Babe\nNext?\n"


def test_ranking_rows_hold_the_target_among_the_negatives():
    for row, example in zip(
        ranking_dataset(EXAMPLES, DATA, TEMPLATE.plain(), seed=0), EXAMPLES.to_dicts(), strict=True
    ):
        assert row["items"][row["positive"]] == example["target"]
        assert sorted(row["items"]) == sorted([example["target"], *example["negatives"]])
        assert row["candidates"] == [DATA.titles()[item] for item in row["items"]]
        assert row["history"] == example["history"]
        assert row["prompt"] == TEMPLATE.plain().prompt([DATA.titles()[item] for item in row["history"]])


def test_the_targets_place_is_uniform_and_independent_of_the_target():
    users = [f"u{i}" for i in range(1000)]
    examples = pl.DataFrame(
        {"user": users, "history": [["a"]] * 1000, "target": ["b"] * 1000, "negatives": [["c", "d"]] * 1000}
    )
    places = ranking_dataset(examples, DATA, MOVIES, seed=0)["positive"][:]
    assert np.bincount(places) == pytest.approx([1000 / 3] * 3, abs=5 * (1000 * 2 / 9) ** 0.5)
    swapped = examples.with_columns(target=pl.lit("c"), negatives=pl.Series([["b", "d"]] * 1000))
    assert ranking_dataset(swapped, DATA, MOVIES, seed=0)["positive"][:] == places
    assert ranking_dataset(examples, DATA, MOVIES, seed=1)["positive"][:] != places
