"""Plain `generate` with the processor finds what our own beam search finds."""

from dataclasses import replace

import pytest
import torch
from support import make_model, make_tokenizer

from dmpo_trl.data import MOVIES
from dmpo_trl.recommend import Recommender, TitleGeneration

HISTORIES = [["Alien"], ["Heidi", "Babe", "Toy Story", "The Rock"], ["The Mask", "Star Wars"]]
EXCLUDE = [["The Matrix"], [], ["Alien 3", "Aliens"]]


def assert_same(found, expected):
    """The same items; scores, and with them the order, up to the rounding of float32."""
    for own, other in zip(found, expected, strict=True):
        scores = {one.item: one.score for one in other}
        assert {one.item: pytest.approx(one.score, abs=5e-5) for one in own} == scores
        assert [one.score for one in own] == sorted((one.score for one in own), reverse=True)


@pytest.mark.parametrize("style", ["chat", "plain"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen2_windows", "gpt2"])
def test_generate_finds_the_items_and_scores_of_our_search(name, style, items):
    """As many beams as there are titles, so that neither search leaves anything out; padding on the left."""
    recommender = Recommender(make_model(name), make_tokenizer(), items, MOVIES if style == "chat" else MOVIES.plain())
    inputs = TitleGeneration(recommender).inputs(HISTORIES, EXCLUDE)
    assert (inputs.attention_mask == 0).any()
    output = recommender.model.generate(**inputs.arguments(num_beams=14))
    expected = [
        recommender.recommend(history, 14, exclude=exclude)
        for history, exclude in zip(HISTORIES, EXCLUDE, strict=True)
    ]
    assert [len(own) for own in expected] == [12, 10, 9]
    assert_same(inputs.recommendations(output), expected)


@pytest.mark.parametrize("num_beams", [2, 3, 5])
def test_with_few_beams_every_item_has_its_own_score(case, num_beams):
    recommender = case.recommender
    inputs = TitleGeneration(recommender).inputs(HISTORIES, EXCLUDE)
    output = recommender.model.generate(**inputs.arguments(num_beams=num_beams))
    found = inputs.recommendations(output)
    for history, exclude, own in zip(HISTORIES, EXCLUDE, found, strict=True):
        scores = {one.item: one.score for one in recommender.recommend(history, 14, exclude=exclude)}
        assert own
        assert all(one.score == pytest.approx(scores[one.item], abs=5e-5) for one in own)


def test_greedy_is_a_search_with_one_beam(case):
    recommender = case.recommender
    inputs = TitleGeneration(recommender).inputs(HISTORIES)
    output = recommender.model.generate(**inputs.arguments())
    for history, own in zip(HISTORIES, inputs.recommendations(output), strict=True):
        scores = {one.item: one.score for one in recommender.recommend(history, 14)}
        assert len({one.title for one in own}) == 1
        assert all(one.score == pytest.approx(scores[one.item], abs=5e-5) for one in own)


def test_samples_are_titles(case):
    inputs = TitleGeneration(case.recommender).inputs(HISTORIES, EXCLUDE)
    torch.manual_seed(0)
    arguments = inputs.arguments() | {"do_sample": True, "num_return_sequences": 20}
    output = case.model.generate(**arguments)
    for history, exclude, own in zip(HISTORIES, EXCLUDE, inputs.recommendations(output), strict=True):
        assert len(own) > 2
        assert not {one.title for one in own} & {*history, *exclude}


def test_titles_without_an_end_are_told_apart_by_one_behind_them(items):
    """A chat template that ends no turn: `Alien` begins `Aliens`, and both must be able to come out."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    recommender = Recommender(make_model(), tokenizer, items, MOVIES)
    generation = TitleGeneration(recommender)
    assert generation.titles().end_appended
    inputs = generation.inputs(HISTORIES)
    output = recommender.model.generate(**inputs.arguments(num_beams=14))
    assert_same(inputs.recommendations(output), [recommender.recommend(history, 14) for history in HISTORIES])


def test_what_cannot_be_asked_is_refused(case):
    generation = TitleGeneration(case.recommender)
    with pytest.raises(ValueError, match="histories: the list is empty"):
        generation.inputs([])
    with pytest.raises(ValueError, match=r"history: 'Aliem' is neither .* Did you mean 'Alien'"):
        generation.inputs([["Aliem"]])
    with pytest.raises(ValueError, match="exclude: 1 histories need one entry each, there are 2"):
        generation.inputs([["Alien"]], [[], []])
    everything = case.recommender.catalogue.titles
    with pytest.raises(ValueError, match="prompt 0 has every title excluded"):
        generation.inputs([["Alien"]], [everything])


def test_a_template_with_candidates_is_refused(items):
    template = replace(MOVIES, candidates="Choose from: ")
    recommender = Recommender(make_model(), make_tokenizer(), items, template)
    with pytest.raises(ValueError, match="lists candidates"):
        TitleGeneration(recommender).inputs([["Alien"]])
