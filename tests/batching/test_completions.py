"""The index work of a batch, against plain Python over lists of completions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import ragged_examples

from dmpo_trl import DataCollatorForMultiPreference
from dmpo_trl.batching.completions import Completions, from_pairs, model_inputs

# Examples, each with its completions, the chosen one first; a completion is the values of its tokens
VALUES = st.lists(
    st.lists(st.lists(st.integers(-9, 9), min_size=1, max_size=4), min_size=2, max_size=5), min_size=1, max_size=4
)


def completions_of(examples):
    """Every token with a scored pair of its own, and the values of the pairs."""
    flat = [completion for example in examples for completion in example]
    owners = [index for index, completion in enumerate(flat) for _ in completion]
    completions = Completions(
        num_rejected=torch.tensor([len(example) - 1 for example in examples]),
        is_chosen=torch.tensor([place == 0 for example in examples for place in range(len(example))]),
        token_pairs=torch.arange(len(owners)).flip(0),
        token_completions=torch.tensor(owners),
    )
    return completions, torch.tensor([float(value) for completion in flat for value in completion]).flip(0)


@given(VALUES)
def test_sums_lengths_and_sides_are_those_of_lists(examples):
    completions, values = completions_of(examples)
    chosen, rejected = completions.split(completions.sum(completions.per_token(values)))
    assert chosen.tolist() == [sum(example[0]) for example in examples]
    assert rejected.tolist() == [sum(one) for example in examples for one in example[1:]]
    assert completions.lengths.tolist() == [len(one) for example in examples for one in example]
    assert completions.example.tolist() == [index for index, example in enumerate(examples) for _ in example]
    assert completions.token_is_chosen.tolist() == [
        place == 0 for example in examples for place, one in enumerate(example) for _ in one
    ]


@given(VALUES)
def test_tokens_past_the_shortest_completion_of_their_example_weigh_alpha(examples):
    completions, values = completions_of(examples)
    expected = [
        sum(one[: (shared := min(map(len, example)))]) + 0.25 * sum(one[shared:])
        for example in examples
        for one in example
    ]
    assert completions.logps(values, 0.25).tolist() == pytest.approx(expected)
    assert completions.logps(values).tolist() == [sum(one) for example in examples for one in example]


@given(VALUES, st.integers(1, 4))
def test_first_rows_are_the_completions_of_these_rows(examples, rows):
    rows = min(rows, len(examples))
    completions, values = completions_of(examples)
    first = completions.first(rows)
    expected, own_values = completions_of(examples[:rows])
    assert first.sum(first.per_token(values)).tolist() == expected.sum(expected.per_token(own_values)).tolist()
    assert first.num_rejected.tolist() == expected.num_rejected.tolist()
    assert first.is_chosen.tolist() == expected.is_chosen.tolist()


@given(VALUES)
def test_join_undoes_split_and_leaves_further_examples_out(examples):
    completions, values = completions_of(examples)
    sums = completions.sum(completions.per_token(values))
    chosen, rejected = completions.split(sums)
    assert completions.join(chosen, rejected).tolist() == sums.tolist()
    first = completions.first(1)
    assert first.join(chosen, rejected).tolist() == sums[: len(examples[0])].tolist()


@given(VALUES)
def test_a_table_has_a_row_per_example(examples):
    completions, values = completions_of(examples)
    _, rejected = completions.split(completions.sum(completions.per_token(values)))
    table = completions.table(rejected, 6)
    for row, example in zip(table.tolist(), examples, strict=True):
        assert row[: len(example) - 1] == [sum(one) for one in example[1:]]
        assert all(value != value for value in row[len(example) - 1 :])  # NaN


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("share", [True, False])
def test_first_rows_of_a_batch_score_the_tokens_of_these_rows(rows, share):
    """In the trie layout too, where completions share scored pairs."""
    examples = ragged_examples(0, (3, 1, 4))
    collator = DataCollatorForMultiPreference(pad_token_id=0, prefix_sharing=share)
    batch = collator(examples)
    first = Completions.of(batch).first(rows)
    targets = first.per_token(batch["scored_targets"]).tolist()
    found = [[] for _ in first.is_chosen]
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
