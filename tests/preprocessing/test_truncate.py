import logging

import numpy as np
import pytest
from datasets import Dataset

from dmpo_trl.preprocessing import truncate
from dmpo_trl.preprocessing.truncate import drop_and_report, max_num_chosen, max_num_rejected

# (tokens of the prompt, of the chosen, of each rejected completion)
SHAPES = [(3, 2, [1, 4]), (6, 1, [1]), (5, 2, [1, 1, 3]), (9, 1, [2])]


def make_dataset(shapes=SHAPES, cut=None):
    rows = [
        {"prompt_ids": [1] * prompt, "chosen_ids": [2] * chosen, "rejected_ids": [[3] * n for n in rejected]}
        for prompt, chosen, rejected in shapes
    ]
    for row, count in zip(rows, cut or [0] * len(rows), strict=True):
        row["prompt_tokens_cut"] = count
    return Dataset.from_list(rows)


def test_full_prompts_drop_the_example_and_long_completions_are_counted(caplog):
    with caplog.at_level(logging.WARNING):
        kept = drop_and_report(make_dataset(), "train", 6, "keep_start")
    assert [len(row["prompt_ids"]) for row in kept] == [3, 5]
    assert "2 of the 4 examples of the train dataset are dropped" in caplog.text
    # Row 0: the rejected of 4 tokens; row 2: the chosen of 2 and the rejected of 3
    assert "3 of the 7 completions of the train dataset are cut (at the end)" in caplog.text


def test_each_of_several_chosen_completions_is_counted(caplog):
    rows = [
        {
            "prompt_ids": [1] * prompt,
            "chosen_ids": [[2] * n for n in chosen],
            "rejected_ids": [[3] * n for n in rejected],
        }
        for prompt, chosen, rejected in [(3, [1, 4, 5], [1]), (9, [9], [9, 9]), (5, [2], [1, 1, 3])]
    ]
    dataset = Dataset.from_list(rows)
    with caplog.at_level(logging.WARNING):
        kept = drop_and_report(dataset, "train", 6, "keep_start")
    assert len(kept) == 2
    # Row 0: the chosen of 4 and 5 tokens; row 2: the chosen of 2 and the rejected of 3
    assert "4 of the 8 completions of the train dataset are cut (at the end)" in caplog.text
    assert (max_num_chosen(dataset), max_num_rejected(dataset)) == (3, 3)
    assert max_num_chosen(make_dataset()) is None
    lengths = truncate.token_lengths(dataset)
    assert lengths.chosen_per_row.tolist() == [3, 1, 1]
    assert lengths.rejected_per_row.tolist() == [1, 2, 3]


def test_nothing_is_said_where_nothing_is_lost(caplog):
    with caplog.at_level(logging.WARNING):
        assert len(drop_and_report(make_dataset(), "train", 11, "keep_start")) == 4
        assert len(drop_and_report(make_dataset(), "train", None, "keep_start")) == 4
    assert not caplog.records


def test_keep_end_drops_nothing(caplog):
    with caplog.at_level(logging.WARNING):
        assert len(drop_and_report(make_dataset(), "train", 6, "keep_end")) == 4
    assert "7 of the 11 completions of the train dataset are cut (their prompts first)" in caplog.text


def test_shortened_prompts_are_counted(caplog):
    with caplog.at_level(logging.WARNING):
        assert len(drop_and_report(make_dataset(cut=[0, 2, 0, 7]), "eval", 6, "keep_completion")) == 4
    assert "2 of the 4 prompts of the eval dataset are shortened" in caplog.text


def test_an_error_where_nothing_is_left():
    with pytest.raises(ValueError, match=r"all 4 examples fill max_length=3 \(the shortest has 3 tokens\).*Raise"):
        drop_and_report(make_dataset(), "train", 3, "keep_start")


def test_a_stream_is_counted_while_it_runs(caplog):
    stream = drop_and_report(make_dataset().to_iterable_dataset(), "train", 6, "keep_start")
    with caplog.at_level(logging.WARNING):
        assert [len(row["prompt_ids"]) for row in stream] == [3, 5]
    assert "2 examples of the train dataset so far are dropped" in caplog.text


def test_counts_across_the_batches_of_a_large_dataset(caplog):
    shapes = [(3, 1, [1] * (1 + i % 3)) for i in range(10_001)] + [(3, 1, [1, 9])]
    dataset = make_dataset(shapes)
    with caplog.at_level(logging.WARNING):
        drop_and_report(dataset, "train", 5, "keep_start")
    total = 10_002 + sum(len(rejected) for _, _, rejected in shapes)
    assert f"1 of the {total} completions" in caplog.text
    assert max_num_rejected(dataset) == 3
    assert max_num_rejected(dataset.select(np.arange(0))) == 0


def test_lengths_are_measured_once_per_dataset(monkeypatch):
    measured = []
    measure = truncate._measure
    monkeypatch.setattr(truncate, "_measure", lambda dataset: measured.append(dataset) or measure(dataset))
    dataset = make_dataset()
    assert drop_and_report(dataset, "train", 100, "keep_start") is dataset
    assert max_num_rejected(dataset) == 3
    assert len(measured) == 1
    assert max_num_rejected(dataset.select([0, 1])) == 2
