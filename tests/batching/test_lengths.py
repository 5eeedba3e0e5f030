"""Lengths that rows are padded to."""

from hypothesis import given
from hypothesis import strategies as st
from support import ragged_examples

from dmpo_trl import DataCollatorForMultiPreference
from dmpo_trl.batching.lengths import row_length

LENGTHS, MULTIPLES = st.integers(0, 5000), st.none() | st.integers(1, 1000)


@given(LENGTHS, MULTIPLES, st.booleans())
def test_the_least_length_that_is_allowed(longest, multiple, skip):
    found = row_length(longest, multiple, skip_half_blocks=skip)
    allowed = (
        length
        for length in range(max(longest, 1), 2**14)
        if length % (multiple or 1) == 0 and not (skip and length % 128 == 64)
    )
    assert found == next(allowed)


@given(st.integers(1, 300), st.sampled_from([None, 8, 64]), st.booleans())
def test_no_batch_has_a_length_at_which_cudnns_gradients_are_nan(prompt, multiple, share):
    """At 64 modulo 128, whatever the user asks rows to be padded to."""
    collator = DataCollatorForMultiPreference(0, pad_to_multiple_of=multiple, prefix_sharing=share)
    batch = collator([{"prompt_ids": [5] * prompt, "chosen_ids": [6, 2], "rejected_ids": [[7, 2]]}])
    length = batch["input_ids"].shape[1]
    if share:
        assert length % 128 != 64
        assert length >= prompt + 2
        assert length % (multiple or 1) == 0
    else:  # no position that the model may not have
        assert length == row_length(prompt + 1, multiple)


def test_what_is_scored_stays_where_it_is():
    """Positions are counted from the end, which moves where a length is skipped."""
    examples = ragged_examples(0, (3, 1))
    for example in examples:
        example["prompt_ids"] = [5] * (64 - len(example["chosen_ids"]))
        example["rejected_ids"] = [[*example["chosen_ids"][:-1], 9]]
    batch = DataCollatorForMultiPreference(0)(examples)
    assert batch["input_ids"].shape[1] != 64
    follows = batch["input_ids"][batch["scored_rows"], batch["scored_columns"] + 1]
    assert (follows == batch["scored_targets"])[batch["scored_columns"] < -2].all()
