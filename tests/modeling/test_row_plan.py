"""Rows that suit an attention."""

import math

import pytest
from support import make_model
from transformers import LlamaConfig

from dmpo_trl.modeling.row_plan import ONE_ROW, RowPlan, plan_for

CONFIG = LlamaConfig(hidden_size=64)
PADDED = RowPlan(packed_length=None, multiple=1, attention_balance=384.0)


@pytest.mark.parametrize(
    ("device", "names", "compiles", "plan"),
    [
        ("cpu", ["trie_sdpa"], False, RowPlan(4096, 1, 384.0)),
        ("cpu", ["trie_sdpa", "trie_sdpa"], False, RowPlan(4096, 1, 384.0)),
        ("cpu", ["trie_sdpa"], True, PADDED),
        ("cpu", ["sdpa"], False, PADDED),
        ("cpu", ["trie_eager"], False, PADDED),
        ("cpu", ["trie_sdpa", "trie_eager"], False, PADDED),
        ("cuda", ["trie_sdpa_blocks"], False, RowPlan(ONE_ROW, 128, math.inf)),
        ("cuda", ["trie_sdpa_blocks", "trie_sdpa_blocks"], False, RowPlan(ONE_ROW, 128, math.inf)),
        ("cuda", ["trie_sdpa_blocks", "trie_eager"], False, RowPlan(None, 16, 384.0 / 7.6)),
        ("cuda", ["trie_sdpa"], False, RowPlan(None, 16, 384.0 / 7.6)),
        ("cuda", ["sdpa"], False, RowPlan(None, 16, 384.0 / 7.6)),
    ],
)
def test_by_device_and_attention(device, names, compiles, plan):
    assert plan_for(device, names, CONFIG, compiles=compiles) == plan


def test_of_a_model_that_was_not_switched():
    """It computes copies: nothing to pack."""
    model = make_model("llama")
    assert plan_for("cpu", [model.config._attn_implementation], model.config).packed_length is None
