"""Titles that become the same tokens are named: in catalogues, in rankings, in training."""

import logging

import polars as pl
import pytest
from datasets import Dataset
from support import make_model, make_tokenizer

from dmpo_trl import RowError
from dmpo_trl.data import MOVIES
from dmpo_trl.preprocessing.dataset import tokenize_dataset
from dmpo_trl.preprocessing.ties import pairs_of_equal_tokens, warn_of_equal_tokens
from dmpo_trl.recommend import Recommender
from dmpo_trl.scoring import score_completions


def cutting_tokenizer(cut="x"):
    """With a template that keeps what stands behind a mark, as Qwen3's does."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("m['content']", f"m['content'].split('{cut}')[-1]")
    return tokenizer


def warnings(caplog):
    return [record.message for record in caplog.records if "the same tokens as another one" in record.message]


def test_pairs_are_of_different_texts():
    messages = [[{"role": "assistant", "content": text}] for text in ("Alien", "alien", "Babe", "Babe", "ALIEN")]
    ids = [[1], [1], [2], [2], [1]]
    assert pairs_of_equal_tokens(messages, ids) == [("Alien", "alien"), ("Alien", "ALIEN")]
    assert pairs_of_equal_tokens(messages, [[1], [2], [3], [3], [4]]) == []


@pytest.mark.parametrize(("count", "more"), [(1, False), (5, False), (6, True)])
def test_up_to_five_pairs_are_named(caplog, count, more):
    warn_of_equal_tokens([])
    assert not warnings(caplog)
    pairs = [(f"A {count} {i}", f"a {count} {i}") for i in range(count)]
    warn_of_equal_tokens([*pairs, *pairs])
    (message,) = warnings(caplog)
    assert f"({count} in all)" in message
    assert message.count(" and 'a ") == min(count, 5)
    assert ("; ..." in message) == more


def test_a_recommender_names_titles_that_it_cannot_tell_apart(caplog):
    items = pl.DataFrame({"item": ["1", "2", "3"], "title": ["Old xBabe", "New xBabe", "Heidi"]})
    recommender = Recommender(make_model(), cutting_tokenizer(), items, MOVIES)
    scores = {one.item: one.score for one in recommender.recommend(["3"], k=2)}
    recommender.recommend(["3"], k=2)
    assert scores["1"] == scores["2"]
    assert len(warnings(caplog)) == 1
    assert "'Old xBabe' and 'New xBabe'" in warnings(caplog)[0]


def test_a_ranking_names_them_once_for_all_users(caplog):
    def messages(role, text):
        return [{"role": role, "content": text}]

    candidates = [messages("assistant", title) for title in ("First xHeidi", "Alien", "Second xHeidi")]
    prompts = [messages("user", "Liked: Babe"), messages("user", "Liked: Alien")]
    with caplog.at_level(logging.WARNING):
        scores = score_completions(make_model(), cutting_tokenizer(), prompts, [candidates] * 2)
    assert scores[0].logps[0] == scores[0].logps[2]
    (message,) = warnings(caplog)
    assert "(1 in all)" in message
    assert "'First xHeidi' and 'Second xHeidi'" in message


def test_training_names_row_and_texts():
    rows = [
        {
            "prompt": [{"role": "user", "content": "Next?"}],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [[{"role": "assistant", "content": text}] for text in ("Heidi", "X xFilm 1")],
        }
        for chosen in ("Alien", "Film 1")
    ]
    expected = (
        r"^Row 1 of the train dataset, column `rejected`: entry 1, 'X xFilm 1', has the same tokens as the chosen "
        r"completion 'Film 1'\. Leave it out.*, and the tokenizer or the chat template leaves out what the two"
    )
    with pytest.raises(RowError, match=expected):
        tokenize_dataset(
            Dataset.from_list(rows),
            "train",
            cutting_tokenizer(),
            max_length=None,
            truncation_mode="keep_start",
        )
