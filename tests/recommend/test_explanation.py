import sys

import numpy as np
import pytest
import torch
from support import make_model, make_tokenizer, naive_logp

from dmpo_trl.data import MOVIES
from dmpo_trl.preprocessing.tokenize import tokenize_completions
from dmpo_trl.recommend import Explanation, Recommender
from dmpo_trl.recommend.explanation import generate_words

HISTORY = ["100", "Star Wars", "111", "The Rock"]
TITLES = ["Alien", "Star Wars", "Babe", "The Rock"]


@torch.no_grad()
def naive_score(case, titles, title):
    prompt_ids, (ids,) = tokenize_completions(
        case.tokenizer,
        case.template.prompt(titles),
        [case.template.completion(title)],
    )
    return naive_logp(case.model, prompt_ids, ids).item()


def test_effects_are_scores_with_less_scores_without(case):
    explanation = case.recommender.explain(HISTORY, "Heidi")  # no words unless asked for
    full = naive_score(case, TITLES, "Heidi")
    expected = [full - naive_score(case, [t for t in TITLES if t != removed], "Heidi") for removed in TITLES]
    np.testing.assert_allclose(explanation.effects, expected, atol=5e-5)
    assert explanation.score == pytest.approx(full, abs=2e-5)
    assert (explanation.item, explanation.title, explanation.words) == ("110", "Heidi", "")
    assert explanation.history == ("100", "106", "111", "112")
    assert explanation.titles == tuple(TITLES)


def test_a_history_of_one_is_compared_with_none(case):
    explanation = case.recommender.explain(["100"], "Heidi", max_new_tokens=0)
    expected = naive_score(case, ["Alien"], "Heidi") - naive_score(case, [], "Heidi")
    np.testing.assert_allclose(explanation.effects, [expected], atol=5e-5)


def test_words_are_the_greedy_continuation_of_the_question(case):
    words = case.recommender.explain(HISTORY, "Heidi", max_new_tokens=5).words
    question = "Why do you recommend Heidi? Answer in one sentence."
    prompt = case.template.prompt(TITLES)
    if isinstance(prompt, str):
        ids = case.tokenizer(f"{prompt}Heidi\n{question}\n")["input_ids"]
    else:
        messages = [*prompt, {"role": "assistant", "content": "Heidi"}, {"role": "user", "content": question}]
        ids = case.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    begin = len(ids)
    with torch.no_grad():
        while len(ids) < begin + 5 and ids[-1] != case.tokenizer.eos_token_id:
            ids.append(int(case.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert words == case.tokenizer.decode(ids[begin:], skip_special_tokens=True).strip()


def make_explanation():
    return Explanation(
        "7", "Heidi", -3.5, ("1", "2", "3"), ("Babe", "$ick", "Alien 3"), np.array([0.5, -1.0, 2.0]), "So!"
    )


def test_text_names_items_from_the_strongest_on():
    assert str(make_explanation()).splitlines() == [
        "Heidi (score -3.50, sum of the tokens). What each item of the history adds to the score, in nats:",
        "  Alien 3   +2.000              |████████████",
        "  Babe      +0.500              |███",
        "  $ick      -1.000        ██████|",
        "  (a full bar is 2; bars to the left speak against the recommendation)",
        "In the model's words (generated, no evidence of the cause): So!",
    ]


@pytest.mark.parametrize(("largest", "little"), [(0.0, True), (-0.0499, True), (0.05, False), (-0.05, False)])
def test_text_says_so_where_no_item_matters_much(largest, little):
    explanation = Explanation("7", "Heidi", -3.5, ("1", "2"), ("Alien", "Babe"), np.array([0.01, largest]), "")
    text = str(explanation)
    assert ("No item matters much: without any one of them the score changes by less than 0.05." in text) == little
    assert text.count("█") <= 1 + 6  # effects as small as these have no full bar


@pytest.mark.parametrize(
    ("largest", "full"), [(0.02, "0.1"), (0.1, "0.1"), (0.101, "0.2"), (0.3, "0.5"), (0.51, "1"), (1, "1"), (6, "10")]
)
def test_the_scale_of_the_bars_is_a_round_number_and_written_below(largest, full):
    text = str(Explanation("7", "Heidi", -3.5, ("1",), ("Alien",), np.array([largest]), ""))
    assert f"(a full bar is {full}; " in text
    assert text.count("█") == round(12 * largest / float(full))


def test_text_says_which_score_it_is(case, items):
    recommender = Recommender(case.model, case.tokenizer, items, case.template, score="mean")
    mean = recommender.explain(HISTORY, "Heidi", max_new_tokens=0)
    assert str(mean).startswith(f"Heidi (score {mean.score:.2f}, mean per token).")
    assert "sum of the tokens" in str(case.recommender.explain(HISTORY, "Heidi", max_new_tokens=0))


def test_picture(tmp_path):
    pytest.importorskip("matplotlib")
    make_explanation().plot(tmp_path / "why.png")
    assert (tmp_path / "why.png").read_bytes().startswith(b"\x89PNG")


def test_picture_without_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[plot\]' in a clone"):
        make_explanation().plot(tmp_path / "why.png")


def test_faults(case):
    with pytest.raises(ValueError, match="history: the list is empty"):
        case.recommender.explain([], "Heidi")
    with pytest.raises(ValueError, match="item: 'Hedi' is neither"):
        case.recommender.explain(["100"], "Hedi")


def test_words_end_where_the_chat_template_ends_a_turn_and_are_greedy_whatever_the_models_own_config_says():
    """As with a base model in ChatML, whose end of sequence is another token, and a repetition penalty of its own."""
    tokenizer, model = make_tokenizer(), make_model("llama")
    tokenizer.chat_template = tokenizer.chat_template.replace("</s>", "<|system|>\n")
    end = tokenizer.convert_tokens_to_ids("<|system|>")
    ids = tokenizer.encode("Star Trek", add_special_tokens=False)
    says = iter([*ids, *ids, end, *ids])

    def say(module, arguments, output):
        output.logits[:, -1] = 0
        output.logits[:, -1, next(says)] = 9
        return output

    model.generation_config.repetition_penalty = 100.0
    model.register_forward_hook(say)
    prompt = MOVIES.prompt(["Alien"])
    assert generate_words(model, tokenizer, prompt, len(ids) * 3) == "Star TrekStar Trek"
