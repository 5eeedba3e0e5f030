import numpy as np
import polars as pl
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from dmpo_trl.data import MOVIES, Interactions, PromptTemplate, datasets, preference_dataset, ranking_dataset
from dmpo_trl.data.datasets import pair_dataset, sft_dataset

TITLES = {"a": "Alien", "b": "Babe", "c": "Casino", "d": "Diva", "e": 'È "già\tieri"'}
ITEMS = pl.DataFrame({"item": list(TITLES), "title": list(TITLES.values())})
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
        "user": "u2",
    }
    assert len(rows[0]["rejected"]) == 2


def test_plain_rows():
    rows = preference_dataset(EXAMPLES, DATA, TEMPLATE.plain()).to_list()
    assert rows[0] == {
        "prompt": "You recommend.\nLiked:\nAlien\nNext?\n",
        "chosen": "Babe",
        "rejected": ["Casino", "Diva"],
        "user": "u1",
    }
    without = preference_dataset(EXAMPLES.drop("user"), DATA, TEMPLATE.plain())
    assert without.column_names == ["prompt", "chosen", "rejected"]


@pytest.mark.parametrize("template", [TEMPLATE, TEMPLATE.plain()])
def test_several_targets_are_a_list_of_those_of_rows_with_one(template):
    several = EXAMPLES.with_columns(
        target=pl.Series([["b", "e"], ["d"]]), chosen_levels=pl.Series([[1.0, 2.0], [3.0]])
    )
    made = preference_dataset(several, DATA, template)
    single = preference_dataset(several.explode("target", "chosen_levels"), DATA, template).to_list()
    assert made["chosen"][:] == [[single[0]["chosen"], single[1]["chosen"]], [single[2]["chosen"]]]
    assert made["chosen_levels"][:] == [[1.0, 2.0], [3.0]]
    rest = ["chosen", "chosen_levels"]
    for own, other in zip(made.remove_columns(rest).to_list(), (single[0], single[2]), strict=True):
        assert own == {name: value for name, value in other.items() if name not in rest}
    assert made.features == Dataset.from_list(made.to_list()).features


def test_several_targets_are_refused_where_a_row_has_one():
    several = EXAMPLES.with_columns(target=pl.concat_list("target"))
    for make in (pair_dataset, sft_dataset, ranking_dataset):
        with pytest.raises(
            ValueError, match=r'target holds lists.* one target a row: give `examples.explode\("target"\)'
        ):
            make(several, DATA, TEMPLATE, seed=0)
    with pytest.raises(ValueError, match="whose template lists the candidates"):
        preference_dataset(several, DATA, MOVIES.with_candidates())
    with pytest.raises(ValueError, match="target has the item 'y'"):
        preference_dataset(several.with_columns(target=pl.lit(["b", "y"])), DATA, MOVIES)


def test_a_template_without_a_system_message():
    template = PromptTemplate(instruction="Liked:", question="Next?", separator="; ")
    assert template.prompt(["Alien", "Babe"]) == [{"role": "user", "content": "Liked:\nAlien; Babe\nNext?"}]
    assert template.plain().prompt(["Alien", "Babe"]) == "Liked:\nAlien; Babe\nNext?\n"


words = st.text("ab\n{}\"' \\é", max_size=5)
templates = st.builds(
    PromptTemplate,
    instruction=words,
    question=words,
    system=st.none() | words,
    separator=words,
    conversational=st.booleans(),
    candidates=st.none() | words,
)
examples = st.lists(
    st.builds(
        lambda user, history, items: {"user": user, "history": history, "target": items[0], "negatives": items[1:]},
        st.sampled_from(["u1", "u2"]),
        st.lists(st.sampled_from(list(TITLES)), max_size=4),
        st.permutations(list(TITLES)).flatmap(lambda items: st.integers(1, 5).map(lambda n: items[:n])),
    ),
    min_size=1,
    max_size=6,
)


@given(examples, templates, st.integers(1, 3), st.integers(0, 3))
def test_every_row_is_what_the_template_says(rows, template, rows_a_step, seed):
    """The template's own methods, row by row, against the datasets' columns, made many rows at a time."""
    frame = pl.DataFrame(
        rows,
        schema={
            "user": pl.String,
            "history": pl.List(pl.String),
            "target": pl.String,
            "negatives": pl.List(pl.String),
        },
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "ROWS", rows_a_step)
        ranking = ranking_dataset(frame, DATA, template, seed=seed)
        preference = preference_dataset(frame, DATA, template, seed=seed)
        pairs = pair_dataset(frame, DATA, template, seed=seed)
        sft = sft_dataset(frame, DATA, template, seed=seed)

    def completions(items: list[str]) -> list:
        return [template.completion(TITLES[item]) for item in items]

    for row, example in zip(ranking, rows, strict=True):
        assert row["items"][row["positive"]] == example["target"]
        assert sorted(row["items"]) == sorted([example["target"], *example["negatives"]])
        assert row["candidates"] == completions(row["items"])
        assert (row["user"], row["history"]) == (example["user"], example["history"])
    prompts = [
        template.prompt(
            [TITLES[item] for item in example["history"]],
            None if template.candidates is None else [TITLES[item] for item in row["items"]],
        )
        for example, row in zip(rows, ranking, strict=True)
    ]
    assert ranking["prompt"][:] == prompts
    expected = [
        {
            "prompt": prompt,
            "chosen": template.completion(TITLES[row["target"]]),
            "rejected": completions(row["negatives"]),
        }
        for prompt, row in zip(prompts, rows, strict=True)
    ]
    assert preference.remove_columns("user").to_list() == expected
    assert preference["user"][:] == [row["user"] for row in rows]
    assert pairs.to_list() == [row | {"rejected": one} for row in expected for one in row["rejected"]]
    assert sft.to_list() == [{"prompt": row["prompt"], "completion": row["chosen"]} for row in expected]


@pytest.mark.parametrize("template", [TEMPLATE, TEMPLATE.plain()])
def test_the_columns_have_the_types_that_datasets_gives_such_rows(template):
    for make in (preference_dataset, pair_dataset, sft_dataset, ranking_dataset):
        made = make(EXAMPLES, DATA, template, seed=0)
        assert made.features == Dataset.from_list(made.to_list()).features


def test_sft_needs_no_negatives_unless_the_prompt_lists_candidates():
    frame = EXAMPLES.drop("user", "negatives")
    assert sft_dataset(frame, DATA, MOVIES.plain())["completion"][:] == ["Babe", "Diva"]
    assert preference_dataset(frame.with_columns(negatives=[]), DATA, MOVIES)["rejected"][:] == [[], []]
    with pytest.raises(ValueError, match=r"\['negatives', 'user'\] are missing for a sft dataset"):
        sft_dataset(frame, DATA, MOVIES.with_candidates())
    with pytest.raises(ValueError, match=r"\['negatives'\] are missing for a preference dataset"):
        preference_dataset(frame, DATA, MOVIES)


def test_an_item_without_a_title_is_named():
    with pytest.raises(ValueError, match="negatives has the item 'x', but "):
        preference_dataset(EXAMPLES.with_columns(negatives=pl.lit(["a", "x"])), DATA, MOVIES)
    with pytest.raises(ValueError, match="target has the item 'y'"):
        sft_dataset(EXAMPLES.with_columns(target=pl.lit("y")), DATA, MOVIES)
    with pytest.raises(ValueError, match="no examples to make a sft dataset of"):
        sft_dataset(EXAMPLES[:0], DATA, MOVIES)


def test_the_targets_place_is_uniform_and_independent_of_the_target():
    users = [f"u{i}" for i in range(1000)]
    examples = pl.DataFrame(
        {"user": users, "history": [["a"]] * 1000, "target": ["b"] * 1000, "negatives": [["c", "d"]] * 1000}
    )
    ranking = ranking_dataset(examples, DATA, MOVIES, seed=0)
    places = ranking["positive"][:]
    assert np.bincount(places) == pytest.approx([1000 / 3] * 3, abs=5 * (1000 * 2 / 9) ** 0.5)
    swapped = examples.with_columns(target=pl.lit("c"), negatives=pl.Series([["b", "d"]] * 1000))
    assert ranking_dataset(swapped, DATA, MOVIES, seed=0)["positive"][:] == places
    assert ranking_dataset(examples, DATA, MOVIES, seed=1)["positive"][:] != places
    # The negatives are shuffled too: their order would give the target away that is put among them
    before = [row["items"].index("c") < row["items"].index("d") for row in ranking]
    assert np.mean(before) == pytest.approx(0.5, abs=5 * 0.5 / 1000**0.5)


def test_each_example_of_a_user_has_its_own_order():
    one = pl.DataFrame({"user": ["u"], "history": [["a"]], "target": ["b"], "negatives": [["c", "d", "e"]]})
    many = ranking_dataset(pl.concat([one] * 240), DATA, MOVIES, seed=0)
    orders = {tuple(items) for items in many["items"]}
    assert len(orders) == 24  # all there are; the chance that one of them is never drawn is 24 * (23/24)^240 < 0.001
    assert ranking_dataset(one, DATA, MOVIES, seed=0)["items"][0] == many["items"][0]
