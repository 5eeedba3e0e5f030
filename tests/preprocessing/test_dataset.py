"""A dataset that was tokenised for other limits is fitted to those of today."""

import logging

import pytest
from support import make_rows, make_tokenizer

from dmpo_trl.preprocessing.dataset import tokenize_dataset
from dmpo_trl.preprocessing.format import TOKEN_COLUMNS

ROWS = make_rows((2, 3, 1, 2))
LONG, SHORT = 64, 12  # all rows are shorter than the first, and some longer than the second


def tokenized(rows, max_length, mode):
    dataset = tokenize_dataset(rows, "train", make_tokenizer(), max_length=max_length, truncation_mode=mode)
    return dataset, list(dataset.select_columns(list(TOKEN_COLUMNS)))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("now", ["keep_start", "keep_completion", "keep_end"])
@pytest.mark.parametrize("before", ["keep_start", "keep_completion", "keep_end"])
def test_as_if_tokenised_anew(caplog, before, now, stream):
    rows = ROWS.to_iterable_dataset() if stream else ROWS
    first, whole = tokenized(rows, LONG, before)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        _, again = tokenized(first, SHORT, now)
    said = [record.getMessage() for record in caplog.records]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        _, expected = tokenized(rows, SHORT, now)
    assert again == expected
    assert said == [record.getMessage() for record in caplog.records]
    assert (expected != whole) is (now != "keep_end")  # which the collator cuts


def test_nothing_is_done_to_what_fits(caplog):
    first, whole = tokenized(ROWS, LONG, "keep_completion")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        _, rows = tokenized(first, LONG, "keep_completion")
    assert rows == whole
    assert not caplog.records


def test_prompts_that_were_shortened_for_less_are_named(caplog):
    short, _ = tokenized(ROWS, SHORT, "keep_completion")
    cut = sum(count > 0 for count in short["prompt_tokens_cut"])
    assert 0 < cut < len(ROWS)
    for limit in (LONG, None):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            tokenized(short, limit, "keep_completion")
        assert f"{cut} of the 4 prompts of the train dataset were shortened for a smaller" in caplog.text
    shorter, _ = tokenized(short, SHORT - 1, "keep_completion")
    fresh, _ = tokenized(ROWS, SHORT - 1, "keep_completion")
    assert shorter["prompt_tokens_cut"] == fresh["prompt_tokens_cut"]
