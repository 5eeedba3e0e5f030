"""The layout of a run: one decision for policy, reference and all processes."""

import copy
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from support import make_model, save_model
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import add_fused_lm_head

from dmpo_trl import DMPOConfig, DMPOTrainer
from dmpo_trl.training import layout
from dmpo_trl.training.layout import Layout, choose_layout, remove_fused_lm_head

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
        decision[:] = [main_shares, main_shares, main_shares]

    monkeypatch.setattr(layout, "broadcast_object_list", decide)
    monkeypatch.setattr(layout, "prepare_for_scoring", lambda model, base_model, mode: not main_shares)
    assert choose_layout(policy, reference, "auto", ACCELERATOR).prefix_sharing is main_shares
    assert policy.scores_own_logits is reference.scores_own_logits is main_shares
    if main_shares:
        assert attention(policy) == attention(reference) == "trie_sdpa"


@pytest.mark.parametrize(
    ("device", "dtype", "lora", "warned"),
    [
        ("cuda", torch.float32, True, True),
        ("cuda", torch.bfloat16, True, False),
        ("cuda", torch.float32, False, False),  # trained weights are float32 for the optimizer
        ("cpu", torch.float32, True, False),
    ],
)
def test_frozen_weights_in_float32_are_named_on_a_gpu(device, dtype, lora, warned, caplog):
    model = make_model("llama").to(dtype)
    if lora:
        model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    choose_layout(model, None, "auto", SimpleNamespace(device=torch.device(device)))
    assert ("frozen weights are float32" in caplog.text) is warned


def test_nothing_is_packed_where_a_compiler_would_compile_each_packing():
    assert choose_layout(make_model("llama"), None, "auto", ACCELERATOR, compiles=True).packed_length is None


def test_the_collator_has_trls_parameters():
    theirs = DataCollatorForPreference(pad_token_id=7, max_length=9, truncation_mode="keep_end", pad_to_multiple_of=4)
    ours = Layout(prefix_sharing=True, attention_balance=5.0, packed_length=6).collator(theirs)
    assert (ours.pad_token_id, ours.max_length, ours.truncation_mode, ours.pad_to_multiple_of) == (7, 9, "keep_end", 4)
    assert (ours.prefix_sharing, ours.attention_balance, ours.packed_length) == (True, 5.0, 6)


@pytest.fixture
def trainer(tmp_path):
    save_model(tmp_path / "model")
    rows = [{"prompt": "Next:", "chosen": " Alien", "rejected": [" Babe", " Heidi"]}]
    args = DMPOConfig(str(tmp_path / "out"), bf16=False, use_cpu=True, report_to="none")
    return DMPOTrainer(str(tmp_path / "model"), args=args, train_dataset=Dataset.from_list(rows))


def test_a_deep_copy_of_the_trained_model_computes_with_its_own_weights(trainer):
    """TRL's head closes over the model: a copy computed with the original's weights."""
    snapshot = copy.deepcopy(trainer.model)
    ids = torch.tensor([[5, 6, 7]])
    before = trainer.model(ids).logits
    with torch.no_grad():
        trainer.model.lm_head.weight.mul_(2)
        torch.testing.assert_close(snapshot(ids).logits, before)
        assert not torch.allclose(trainer.model(ids).logits, before)
        batch = trainer.data_collator([trainer.train_dataset[0]])
        scored = {name: batch[name] for name in ("scored_rows", "scored_columns", "scored_targets")}
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids", "subtree_end")}
        assert not torch.allclose(trainer.model(**inputs, **scored).log_probs, snapshot(**inputs, **scored).log_probs)


def test_models_are_freed_with_their_trainer(trainer, tmp_path):
    models = [weakref.ref(trainer.model), weakref.ref(trainer.ref_model)]
    trainer.__dict__.clear()
    gc.collect()  # a trainer is part of cycles, models are not to be
    assert [model() for model in models] == [None, None]


def test_a_forward_that_trl_replaced_is_put_back():
    """A hook of accelerate, which moves inputs and weights of a model that is spread over devices."""
    model = make_model("llama")
    calls = []
    own = model.forward
    model.forward = hooked = lambda *args, **kwargs: calls.append(1) or own(*args, **kwargs)
    add_fused_lm_head(model)
    remove_fused_lm_head(model)
    assert model.forward is hooked
    model(torch.tensor([[5, 6]]))
    assert calls == [1]
    remove_fused_lm_head(model)  # nothing of TRL's is left
    assert model.forward is hooked
