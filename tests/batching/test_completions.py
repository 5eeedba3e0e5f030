"""The index work of a batch, against plain Python over lists of completions."""

from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import ragged_examples

from dmpo_trl import DataCollatorForMultiPreference
from dmpo_trl.batching.completions import Completions, from_pairs, model_inputs

# Examples, each with its chosen and its rejected completions; a completion is the values of its tokens
SIDE = st.lists(st.lists(st.integers(-9, 9), min_size=1, max_size=4), min_size=1, max_size=4)
VALUES = st.lists(st.tuples(SIDE, SIDE), min_size=1, max_size=4)


def completions_of(examples):
    """Every token with a scored pair of its own, and the values of the pairs."""
    flat = [completion for chosen, rejected in examples for completion in chosen + rejected]
    owners = [index for index, completion in enumerate(flat) for _ in completion]
    completions = Completions.make(
        num_chosen=torch.tensor([len(chosen) for chosen, _ in examples]),
        num_rejected=torch.tensor([len(rejected) for _, rejected in examples]),
        token_pairs=torch.arange(len(owners)).flip(0),
        token_completions=torch.tensor(owners),
    )
    return completions, torch.tensor([float(value) for completion in flat for value in completion]).flip(0)


@given(VALUES)
def test_sums_lengths_and_sides_are_those_of_lists(examples):
    completions, values = completions_of(examples)
    found = completions.split(completions.sum(completions.per_token(values)))
    for side in (0, 1):
        assert found[side].tolist() == [sum(one) for example in examples for one in example[side]]
    assert completions.lengths.tolist() == [len(one) for chosen, rejected in examples for one in chosen + rejected]
    assert completions.example.tolist() == [b for b, sides in enumerate(examples) for side in sides for _ in side]
    is_chosen = [
        side is chosen for chosen, rejected in examples for side in (chosen, rejected) for one in side for _ in one
    ]
    assert completions.chosen_tokens.tolist() == [place for place, chosen in enumerate(is_chosen) if chosen]
    assert completions.rejected_tokens.tolist() == [place for place, chosen in enumerate(is_chosen) if not chosen]


@given(VALUES)
def test_pairs_are_those_of_each_chosen_completion_with_each_rejected_one(examples):
    completions, values = completions_of(examples)
    chosen, rejected = completions.split(completions.sum(completions.per_token(values)))
    of_chosen, of_rejected = completions.pairs
    assert list(zip(chosen[of_chosen].tolist(), rejected[of_rejected].tolist(), strict=True)) == [
        (sum(one), sum(other)) for sides in examples for one in sides[0] for other in sides[1]
    ]


@given(VALUES)
def test_tokens_past_the_shortest_completion_of_their_example_weigh_alpha(examples):
    completions, values = completions_of(examples)
    expected = [
        sum(one[: (shared := min(map(len, chosen + rejected)))]) + 0.25 * sum(one[shared:])
        for chosen, rejected in examples
        for one in chosen + rejected
    ]
    assert completions.logps(values, 0.25).tolist() == pytest.approx(expected)
    assert completions.logps(values).tolist() == [sum(one) for a, b in examples for one in a + b]


@given(VALUES, st.integers(1, 4))
def test_first_rows_are_the_completions_of_these_rows(examples, rows):
    rows = min(rows, len(examples))
    completions, values = completions_of(examples)
    first = completions.first(rows)
    expected, own_values = completions_of(examples[:rows])
    assert first.sum(first.per_token(values)).tolist() == expected.sum(expected.per_token(own_values)).tolist()
    for name in (field.name for field in fields(Completions) if field.name != "token_pairs"):  # which stay whole
        assert getattr(first, name).tolist() == getattr(expected, name).tolist()


@given(VALUES)
def test_join_undoes_split_and_leaves_further_examples_out(examples):
    completions, values = completions_of(examples)
    sums = completions.sum(completions.per_token(values))
    chosen, rejected = completions.split(sums)
    assert completions.join(chosen, rejected).tolist() == sums.tolist()
    first = completions.first(1)
    assert first.join(chosen, rejected).tolist() == sums[: sum(map(len, examples[0]))].tolist()


@given(VALUES)
def test_a_table_has_a_row_per_example(examples):
    completions, values = completions_of(examples)
    sides = completions.split(completions.sum(completions.per_token(values)))
    assert completions.tables(*sides, (None, None)) == sides
    for place, table in enumerate(completions.tables(*sides, (5, 6))):
        assert table.shape == (len(examples), 5 + place)
        for row, example in zip(table.tolist(), examples, strict=True):
            own = [sum(one) for one in example[place]]
            assert row[: len(own)] == own
            assert all(value != value for value in row[len(own) :])  # NaN


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("share", [True, False])
def test_first_rows_of_a_batch_score_the_tokens_of_these_rows(rows, share):
    """In the trie layout too, where completions share scored pairs."""
    examples = ragged_examples(0, (3, 1, 4))
    collator = DataCollatorForMultiPreference(pad_token_id=0, prefix_sharing=share)
    batch = collator(examples)
    first = Completions.of(batch).first(rows)
    targets = first.per_token(batch["scored_targets"]).tolist()
    found = [[] for _ in range(len(first))]
    for target, owner in zip(targets, first.token_completions.tolist(), strict=True):
        found[owner].append(target)
    assert found == [ids for example in examples[:rows] for ids in (example["chosen_ids"], *example["rejected_ids"])]


def test_the_forward_gets_neither_completions_nor_the_reference():
    examples = [e | {"ref_chosen_logps": 1.0, "ref_rejected_logps": [2.0]} for e in ragged_examples(0, (1, 1))]
    batch = DataCollatorForMultiPreference(pad_token_id=0, prefix_sharing=True)(examples)
    inputs = model_inputs(batch | {"pixel_values": torch.zeros(1)})
    assert inputs.keys() == {
        *("input_ids", "attention_mask", "position_ids", "subtree_end", "pixel_values", "use_cache"),
        *("scored_rows", "scored_columns", "scored_targets"),
    }


def test_a_batch_in_trls_layout_scores_the_same_tokens():
    """Two pairs: chosen rows first, then rejected ones, padded on the right."""
    ids = torch.tensor([[1, 2, 3, 4, 0], [1, 5, 6, 0, 0], [1, 2, 7, 0, 0], [1, 5, 8, 9, 4]])
    mask = torch.tensor([[0, 0, 1, 1, 0], [0, 0, 1, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 1]])
    batch = from_pairs({"input_ids": ids, "attention_mask": (ids > 0).long(), "completion_mask": mask})
    assert "completion_mask" not in batch
    completions = Completions.of(batch)
    assert completions.num_rejected.tolist() == [1, 1]
    targets = [[] for _ in range(4)]
    for target, owner in zip(
        completions.per_token(batch["scored_targets"]).tolist(), completions.token_completions.tolist(), strict=True
    ):
        targets[owner].append(target)
    assert targets == [[3, 4], [7], [6], [8, 9, 4]]  # chosen and rejected of the first pair, then of the second
    predictors = ids[batch["scored_rows"], batch["scored_columns"]].tolist()
    assert sorted(zip(predictors, batch["scored_targets"].tolist(), strict=True)) == sorted(
        [(2, 3), (3, 4), (5, 6), (2, 7), (5, 8), (8, 9), (9, 4)]
    )
