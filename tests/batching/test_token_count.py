"""Numbers of tokens of batches, against the batches themselves."""

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from dmpo_trl import DataCollatorForMultiPreference
from dmpo_trl.batching.token_count import TokenCounter, make_counter
from dmpo_trl.batching.trie import build_row, count_nodes

# Few distinct tokens, so that prompts are equal, or one the beginning of another, often
IDS = st.lists(st.integers(0, 2), max_size=8)
SOME = st.lists(st.integers(0, 2), min_size=1, max_size=4)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "prompt_ids": IDS,
            "chosen_ids": st.lists(SOME, min_size=1, max_size=2),
            "rejected_ids": st.lists(SOME, min_size=1, max_size=4),
        }
    ),
    min_size=1,
    max_size=6,
)


@given(st.lists(st.tuples(IDS, st.lists(IDS, max_size=4)), max_size=5))
def test_nodes_are_those_of_the_row(parts):
    prompts, completions = [prompt for prompt, _ in parts], [own for _, own in parts]
    assert count_nodes(prompts, completions) == len(build_row(prompts, completions).input_ids)


@settings(max_examples=100, deadline=None)
@given(
    rows=ROWS,
    share=st.booleans(),
    balance=st.sampled_from([1.0, 20.0, float("inf")]),
    packed=st.sampled_from([None, 12, 4096]),
    multiple=st.sampled_from([None, 8, 128]),
    max_length=st.sampled_from([None, 6, 9]),
    mode=st.sampled_from(["keep_start", "keep_end"]),
)
def test_tokens_are_those_of_the_batch(rows, share, balance, packed, multiple, max_length, mode):
    collator = DataCollatorForMultiPreference(
        0, max_length, mode, multiple, prefix_sharing=share, attention_balance=balance, packed_length=packed
    )
    order = list(range(len(rows)))
    counter = TokenCounter(collator, Dataset.from_list(rows), order)
    for start in order:
        for stop in range(start + 1, len(rows) + 1):
            assert counter(order[start:stop]) == collator(rows[start:stop])["input_ids"].numel()


def test_rows_are_read_a_thousand_at_a_time_and_forgotten():
    rows = [{"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [[4]]} for _ in range(2500)]
    dataset = Dataset.from_list(rows)
    reads = []
    read = dataset.__getitems__
    dataset.__getitems__ = lambda indices: reads.append(len(indices)) or read(indices)
    counter = TokenCounter(DataCollatorForMultiPreference(0, prefix_sharing=True), dataset, range(2500))
    for start in range(0, 2500, 4):
        assert counter(range(start, start + 4)) == 2
        assert len(counter._rows) <= 1003
    assert reads == [1000, 1000, 500]
    assert counter([7]) == 2  # long gone


@pytest.mark.parametrize("own", [True, False])
def test_a_collator_of_a_users_own_is_called(own):
    class Doubled(DataCollatorForMultiPreference):
        def torch_call(self, examples):
            return super().torch_call(examples * 2)

    rows = [{"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [[4]]}]
    collator = Doubled(0) if own else DataCollatorForMultiPreference(0)
    assert make_counter(collator, Dataset.from_list(rows), [0])([0]) == (8 if own else 4)
