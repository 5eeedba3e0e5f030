"""The layout of a run: one decision for policy, reference and all processes."""

import copy
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from support import make_model, make_rows, make_trainer, naive_dmpo_loss, naive_reference, perturb, save_model
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import add_fused_lm_head

from dmpo_trl import DMPOConfig, DMPOTrainer
from dmpo_trl.modeling import attention as attention_module
from dmpo_trl.modeling import probe
from dmpo_trl.modeling.row_plan import ONE_ROW, RowPlan
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
    assert chosen.plan.attention_balance == 6 * 32
    if shared:
        assert {attention(model) for model in models} == {"trie_sdpa"}
        assert chosen.plan.packed_length == 4096


def test_true_is_refused_where_the_reference_alone_cannot():
    with pytest.raises(ValueError, match="`prefix_sharing=True`, but BloomForCausalLM cannot share prefixes"):
        choose_layout(make_model("llama"), make_model("bloom"), True, ACCELERATOR)


@pytest.mark.parametrize("main_shares", [True, False])
def test_the_main_process_decides_for_all(monkeypatch, main_shares):
    """A probe can come out either way on machines that differ; batches of two layouts would not be comparable."""
    policy, reference = make_model("llama"), make_model("llama")

    def decide(decision, from_process):
        assert from_process == 0
        decision[:] = [main_shares, False, main_shares, main_shares]

    monkeypatch.setattr(layout, "broadcast_object_list", decide)
    monkeypatch.setattr(layout, "prepare_for_scoring", lambda model, base_model, mode, **where: not main_shares)
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
    assert choose_layout(make_model("llama"), None, "auto", ACCELERATOR, compiles=True).plan.packed_length is None


def test_the_collator_has_trls_parameters():
    theirs = DataCollatorForPreference(pad_token_id=7, max_length=9, truncation_mode="keep_end", pad_to_multiple_of=4)
    ours = Layout(prefix_sharing=True, plan=RowPlan(6, 6, 5.0)).collator(theirs)
    # rows of lengths that suit both the user and the attention
    assert ours.pad_to_multiple_of == 12
    assert (ours.pad_token_id, ours.max_length, ours.truncation_mode) == (7, 9, "keep_end")
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


# Attention in blocks, as on CUDA; a CPU has its forward pass


@pytest.fixture
def as_on_cuda(monkeypatch):
    monkeypatch.setattr(probe, "block_obstacle", lambda *args, **kwargs: None)


@pytest.mark.parametrize(
    ("policy", "reference", "options", "blocks"),
    [
        ("llama", None, {}, True),
        ("llama", "llama", {}, True),
        ("llama", "gpt2", {}, True),
        ("llama", "llama", {"in_blocks": False}, False),
        ("llama", "llama", {"compiles": True}, False),
    ],
)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_policy_and_reference_attend_in_blocks_or_neither(as_on_cuda, policy, reference, options, blocks):
    models = [make_model(name) for name in (policy, reference) if name is not None]
    chosen = choose_layout(models[0], models[1] if reference else None, True, ACCELERATOR, **options)
    assert {attention(model) for model in models} == {"trie_sdpa_blocks" if blocks else "trie_sdpa"}
    assert (chosen.plan.packed_length == ONE_ROW) is blocks
    assert (chosen.plan.multiple == 128) is blocks


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_a_reference_that_cannot_attend_in_blocks(monkeypatch):
    """Rows are for both: padded, through sdpa."""
    monkeypatch.setattr(
        probe, "block_obstacle", lambda config, *_, **__: "no" if config.model_type == "gpt2" else None
    )
    policy, reference = make_model("llama"), make_model("gpt2")
    cuda = SimpleNamespace(device=torch.device("cuda"))
    monkeypatch.setattr(layout, "warn_of_float32_weights", lambda model: None)
    chosen = choose_layout(policy, reference, True, cuda)
    assert attention(reference) == "trie_sdpa"
    assert (chosen.plan.packed_length, chosen.plan.multiple) == (None, 16)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_a_trainers_loss_over_one_row_of_blocks(as_on_cuda, tmp_path, monkeypatch):
    """From the constructor to the loss: the paper's formula, through FlexAttention in policy and reference."""
    calls = []
    attend = attention_module.attend
    monkeypatch.setattr(attention_module, "attend", lambda *args, **kwargs: calls.append(1) or attend(*args, **kwargs))
    trainer = make_trainer(tmp_path, make_rows((7, 1, 3)), model=make_model(), ref_model=make_model())
    perturb(trainer.model)
    trainer.model.eval()
    examples = list(trainer.train_dataset)
    batch = trainer.data_collator(examples)
    assert batch["input_ids"].shape == (1, 128)
    calls.clear()
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch))
        expected = naive_dmpo_loss(trainer.model, naive_reference(make_model(), examples), examples, trainer.beta)
    assert len(calls) == 2 * trainer.model.config.num_hidden_layers
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("options", [{"in_blocks": False}, {"compiles": True}], ids=str)
def test_a_model_of_a_run_in_blocks_is_free_for_another(as_on_cuda, options):
    """Which may be on a CPU, where FlexAttention has no backward pass."""
    model = make_model("llama")
    choose_layout(model, None, True, ACCELERATOR)
    assert attention(model) == "trie_sdpa_blocks"
    chosen = choose_layout(model, None, True, ACCELERATOR, **options)
    assert attention(model) == "trie_sdpa"
    assert chosen.plan.multiple == 1


def test_attention_in_blocks_can_be_switched_off(as_on_cuda, tmp_path):
    trainer = make_trainer(tmp_path, make_rows((2, 1)), block_attention=False)
    assert attention(trainer.model) == "trie_sdpa"
    assert trainer.data_collator.packed_length == 4096
