"""Batches within a budget: no more tokens than it allows, by any number of workers, counted once."""

import json
from itertools import chain
from types import SimpleNamespace

import pytest
from datasets import Dataset, load_from_disk
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ragged_examples
from support.launch import two_processes

from dmpo_trl.batching import budget
from dmpo_trl.batching.budget import batches_within_budget, form_batches
from dmpo_trl.batching.collator import DataCollatorForMultiPreference
from dmpo_trl.batching.token_count import TokenCounter

COLLATOR = DataCollatorForMultiPreference(0, prefix_sharing=True)


@st.composite
def examples_and_order(draw):
    tokens = st.lists(st.integers(0, 3), min_size=1, max_size=6)
    examples = draw(
        st.lists(
            st.fixed_dictionaries(
                {"prompt_ids": tokens, "chosen_ids": tokens, "rejected_ids": st.lists(tokens, min_size=1, max_size=3)}
            ),
            min_size=1,
            max_size=12,
        )
    )
    return examples, draw(st.permutations(range(len(examples))))


@settings(max_examples=50)
@given(examples_and_order(), st.booleans(), st.integers(1, 80), st.integers(1, 6))
def test_no_batch_exceeds_the_budget_but_a_row_that_alone_does(drawn, prefix_sharing, max_tokens, max_examples):
    examples, order = drawn
    collator = DataCollatorForMultiPreference(0, prefix_sharing=prefix_sharing, attention_balance=20.0)

    def tokens(indices):
        return collator([examples[i] for i in indices])["input_ids"].numel()

    batches = batches_within_budget(order, tokens, max_tokens, max_examples)
    assert list(chain.from_iterable(batches)) == list(order)
    for batch in batches:
        assert 1 <= len(batch) <= max_examples
        assert len(batch) == 1 or tokens(batch) <= max_tokens


def test_a_batch_takes_all_that_fits():
    assert batches_within_budget(range(10), lambda indices: 3 * len(indices), 12, 100) == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
    ]


@pytest.fixture
def dataset():
    return Dataset.from_list(ragged_examples(0, [1 + i % 5 for i in range(40)]))


def one_by_one(dataset, order, max_tokens, max_examples, chunk):
    counter = TokenCounter(COLLATOR, dataset, order)
    return [
        batch
        for start in range(0, len(order), chunk)
        for batch in batches_within_budget(order[start : start + chunk], counter, max_tokens, max_examples)
    ]


@pytest.mark.parametrize("num_proc", [None, 2, 9])
@pytest.mark.parametrize("chunk", [2**14, 16])
def test_chunks_are_formed_by_any_number_of_workers(dataset, monkeypatch, chunk, num_proc):
    """Each with batches of its own, so that it does not matter how many workers there are."""
    monkeypatch.setattr(budget, "_CHUNK", chunk)
    order = list(reversed(range(len(dataset))))
    batches, over = form_batches(dataset, order, COLLATOR, 120, 6, num_proc=num_proc)
    assert batches == one_by_one(dataset, order, 120, 6, chunk)
    assert over == []
    assert len({len(batch) for batch in batches}) > 1


def test_examples_over_the_budget_are_told(dataset):
    batches, over = form_batches(dataset, range(len(dataset)), COLLATOR, 5, 6)
    assert batches == [[i] for i in range(len(dataset))]
    assert over == [COLLATOR([row])["input_ids"].numel() for row in dataset]


def test_they_are_formed_once(dataset, tmp_path, monkeypatch):
    dataset.save_to_disk(tmp_path / "data")
    stored, order, counted = load_from_disk(tmp_path / "data"), list(range(len(dataset))), []
    form = budget._form_chunk

    def counting(*args, **kwargs):
        counted.append(1)
        return form(*args, **kwargs)

    monkeypatch.setattr(budget, "_form_chunk", counting)
    first = form_batches(stored, order, COLLATOR, 120, 6)
    assert counted
    counted.clear()
    assert form_batches(load_from_disk(tmp_path / "data"), order, COLLATOR, 120, 6) == first
    assert not counted
    others = [(order[::-1], COLLATOR, 120, 6), (order, COLLATOR, 119, 6), (order, COLLATOR, 120, 5)]
    others.append((order, DataCollatorForMultiPreference(0, max_length=9, prefix_sharing=True), 120, 6))
    for number, (of_order, collator, max_tokens, max_examples) in enumerate(others, start=1):
        form_batches(stored, of_order, collator, max_tokens, max_examples)
        assert len(counted) == number


def test_a_collator_of_a_users_own_is_asked_each_time(dataset, tmp_path):
    """What it does is not known by its settings."""
    dataset.save_to_disk(tmp_path / "data")
    stored, asked = load_from_disk(tmp_path / "data"), []

    def own(rows):
        asked.append(len(rows))
        return COLLATOR(rows)

    for _ in range(2):
        asked.clear()
        batches, _ = form_batches(stored, range(len(stored)), own, 120, 6, num_proc=2)
        assert batches == one_by_one(dataset, range(len(dataset)), 120, 6, 2**14)
        assert asked


def test_other_processes_are_told(dataset, monkeypatch):
    def told(formed, from_process=0):
        formed[0] = ([30, 10], [7])

    monkeypatch.setattr(budget, "PartialState", lambda: SimpleNamespace(is_main_process=False))
    monkeypatch.setattr(budget, "broadcast_object_list", told)
    monkeypatch.setattr(budget, "_formed", None)  # nothing that could be called
    batches, over = form_batches(dataset, range(40), COLLATOR, 120, 6)
    assert batches == [list(range(30)), list(range(30, 40))]
    assert over == [7]


@pytest.mark.slow
def test_one_of_two_processes_forms_them(tmp_path):
    """With workers of its own, while the process group is there."""
    two_processes("two_processes_batches.py", tmp_path)
    first, second = (json.loads((tmp_path / f"{process}.json").read_text()) for process in (0, 1))
    assert first["batches"] == second["batches"]
    assert list(chain.from_iterable(first["batches"])) == list(range(50))
    assert (first["formed"], second["formed"]) == ([0], [])
