import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import layout_logps, make_model, naive_logp, naive_logps, prompts_and_completions, ragged_examples

from dmpo_trl import DataCollatorForMultiPreference
from dmpo_trl.batching.collator import lay_out
from dmpo_trl.modeling.attention import use_trie_attention
from dmpo_trl.modeling.scoring_head import add_scoring_head


@pytest.fixture(scope="module")
def model():
    model = make_model("llama")
    add_scoring_head(model)
    use_trie_attention(model)
    return model


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    counts=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    balance=st.sampled_from([1.0, 100.0, float("inf")]),
    multiple=st.sampled_from([None, 16]),
    packed=st.sampled_from([None, 60, 4096]),
)
@pytest.mark.parametrize("share", [True, False])
def test_layouts_give_the_log_probs_of_one_sequence_at_a_time(model, share, seed, counts, balance, multiple, packed):
    prompts, completions = prompts_and_completions(ragged_examples(seed, counts))
    batch = lay_out(
        prompts,
        completions,
        prefix_sharing=share,
        pad_token_id=0,
        pad_to_multiple_of=multiple,
        attention_balance=balance,
        packed_length=packed,
    )
    assert multiple is None or batch["input_ids"].size(1) % multiple == 0
    with torch.no_grad():
        found = layout_logps(model, batch, sum(map(len, completions)))
        expected = naive_logps(model, prompts, completions)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_rows_of_one_history_become_one_tree():
    examples = ragged_examples(0, [3, 3, 3, 3])
    shared = DataCollatorForMultiPreference(0, prefix_sharing=True, attention_balance=float("inf"))(examples)
    copies = DataCollatorForMultiPreference(0, prefix_sharing=False)(examples)
    sequences = {
        tuple((e["prompt_ids"] + option)[:length])
        for e in examples
        for option in [e["chosen_ids"], *e["rejected_ids"]]
        for length in range(1, len(e["prompt_ids"] + option))
    }
    assert shared["attention_mask"].sum() == len(sequences)
    assert copies["input_ids"].size(0) == 16


def test_the_first_tensor_counts_the_examples():
    batch = DataCollatorForMultiPreference(0)(ragged_examples(0, [1, 4, 2]))
    assert next(iter(batch)) == "num_rejected"
    assert batch["num_rejected"].tolist() == [1, 4, 2]
    assert batch["chosen"].tolist() == [0, 2, 7]
    assert batch["rejected"].tolist() == [1, 3, 4, 5, 6, 8, 9]


def test_padding_sees_itself_alone():
    prompts, completions = [[1, 2, 3, 4], [5]], [[[6, 7]], [[8, 9]]]
    batch = lay_out(prompts, completions, prefix_sharing=True, pad_token_id=0, attention_balance=1e-9)
    padding = batch["attention_mask"] == 0
    assert padding.any()
    places = torch.arange(padding.size(1)).expand_as(padding)
    assert torch.equal(batch["subtree_end"][padding], places[padding] + 1)
    assert (batch["subtree_end"][~padding] <= batch["attention_mask"].sum(1).max()).all()


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_truncation_is_that_of_each_sequence(model, share, mode):
    examples = ragged_examples(3, [2, 3])
    limit = min(len(e["prompt_ids"]) for e in examples) + 2
    collator = DataCollatorForMultiPreference(0, max_length=limit, truncation_mode=mode, prefix_sharing=share)
    batch = collator(examples)
    expected = []
    for example in examples:
        for option in [example["chosen_ids"], *example["rejected_ids"]]:
            whole = example["prompt_ids"] + option
            start = len(example["prompt_ids"])
            if mode == "keep_start":
                whole = whole[:limit]
            else:
                start, whole = max(start - max(len(whole) - limit, 0), 0), whole[-limit:]
            expected.append(naive_logp(model, whole[:start], whole[start:]).item() if len(whole) > start else 0.0)
    with torch.no_grad():
        found = layout_logps(model, batch, len(expected))
    torch.testing.assert_close(found, torch.tensor(expected), atol=2e-5, rtol=1e-5)


def test_reference_log_probs_stay_with_their_completions():
    examples = ragged_examples(0, [1, 2])
    for index, example in enumerate(examples):
        example["ref_chosen_logps"] = float(index)
        example["ref_rejected_logps"] = [10.0 * index + i for i in range(len(example["rejected_ids"]))]
    batch = DataCollatorForMultiPreference(0)(examples)
    assert batch["ref_chosen_logps"].tolist() == [0.0, 1.0]
    assert batch["ref_rejected_logps"].tolist() == [0.0, 10.0, 11.0]


def test_a_way_to_cut_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="got 'nonsense'"):
        DataCollatorForMultiPreference(pad_token_id=0, max_length=4, truncation_mode="nonsense")
    with pytest.raises(ValueError, match="at least 1"):
        DataCollatorForMultiPreference(pad_token_id=0, max_length=0)
