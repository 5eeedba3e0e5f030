import pytest
import torch
from support import ragged_examples

from dmpo_trl import DataCollatorForMultiPreference
from dmpo_trl.modeling.aux_loss import num_copies


@pytest.mark.parametrize("attention_balance", [1.0, 1e6], ids=["several rows, padded", "few rows"])
def test_a_token_counts_as_often_as_its_prefix_occurs_among_the_copies(attention_balance):
    examples = ragged_examples(0, [2, 5, 1, 3, 4])
    examples[2] |= {"prompt_ids": [], "chosen_ids": [7]}  # a completion without a scored token
    batch = DataCollatorForMultiPreference(0, prefix_sharing=True, attention_balance=attention_balance)(examples)
    found = num_copies(batch)
    assert (found[batch["attention_mask"] == 0] == 0).all()
    copies = [
        (example["prompt_ids"] + completion)[:-1]
        for example in examples
        for completion in [example["chosen_ids"], *example["rejected_ids"]]
    ]
    assert found.sum() == sum(map(len, copies))
    # The copies of a token at a depth, wherever in the batch its tree stands
    for depth in range(max(map(len, copies))):
        at_depth = (batch["position_ids"] == depth) & (batch["attention_mask"] == 1)
        tokens = batch["input_ids"][at_depth]
        for token in tokens.unique():
            expected = sum(len(ids) > depth and ids[depth] == token for ids in copies)
            assert found[at_depth][tokens == token].sum() == expected
    assert torch.equal(found.bool(), batch["attention_mask"].bool())
