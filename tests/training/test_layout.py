"""The layout of a run: one decision for policy, reference and all processes."""

from types import SimpleNamespace

import pytest
import torch
from support import make_model
from trl.trainer.dpo_trainer import DataCollatorForPreference

from dmpo_trl.training import layout
from dmpo_trl.training.layout import Layout, choose_layout

ACCELERATOR = SimpleNamespace(device=torch.device("cpu"))


def attention(model):
    return model.config._attn_implementation


@pytest.mark.parametrize(
    ("policy", "reference", "mode", "shared"),
    [
        ("llama", None, "auto", True),
        ("llama", "llama", "auto", True),
        ("llama", "llama", False, False),
        ("llama", "gpt2", "auto", True),
        ("llama", "bloom", "auto", False),
        ("bloom", "bloom", "auto", False),
    ],
)
def test_policy_and_reference_get_the_same_layout(policy, reference, mode, shared):
    models = [make_model(name) for name in (policy, reference) if name is not None]
    chosen = choose_layout(models[0], models[1] if reference else None, mode, ACCELERATOR)
    assert chosen.prefix_sharing is shared
    assert chosen.attention_balance == 6 * 32
    if shared:
        assert {attention(model) for model in models} == {"trie_sdpa"}
        assert chosen.packed_length == 4096


def test_true_is_refused_where_the_reference_alone_cannot():
    with pytest.raises(ValueError, match="`prefix_sharing=True`, but BloomForCausalLM cannot share prefixes"):
        choose_layout(make_model("llama"), make_model("bloom"), True, ACCELERATOR)


@pytest.mark.parametrize("main_shares", [True, False])
def test_the_main_process_decides_for_all(monkeypatch, main_shares):
    """A probe can come out either way on machines that differ; batches of two layouts would not be comparable."""
    policy, reference = make_model("llama"), make_model("llama")

    def decide(decision, from_process):
        assert from_process == 0
        decision[0] = main_shares

    monkeypatch.setattr(layout, "broadcast_object_list", decide)
    monkeypatch.setattr(layout, "prepare_for_scoring", lambda model, base_model, mode: not main_shares)
    assert choose_layout(policy, reference, "auto", ACCELERATOR).prefix_sharing is main_shares
    if main_shares:
        assert attention(policy) == attention(reference) == "trie_sdpa"


def test_nothing_is_packed_where_a_compiler_would_compile_each_packing():
    assert choose_layout(make_model("llama"), None, "auto", ACCELERATOR, compiles=True).packed_length is None


def test_the_collator_has_trls_parameters():
    theirs = DataCollatorForPreference(pad_token_id=7, max_length=9, truncation_mode="keep_end", pad_to_multiple_of=4)
    ours = Layout(prefix_sharing=True, attention_balance=5.0, packed_length=6).collator(theirs)
    assert (ours.pad_token_id, ours.max_length, ours.truncation_mode, ours.pad_to_multiple_of) == (7, 9, "keep_end", 4)
    assert (ours.prefix_sharing, ours.attention_balance, ours.packed_length) == (True, 5.0, 6)
