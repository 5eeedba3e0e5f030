"""Attention tree by tree: what the mask of the whole row gives, values and gradients."""

import gc

import pytest
import torch
from support import layout_logps, make_model, naive_logps, prompts_and_completions, ragged_examples
from transformers import DynamicCache

from dmpo_trl.batching.collator import lay_out
from dmpo_trl.modeling import attention
from dmpo_trl.modeling.attention import use_trie_attention
from dmpo_trl.modeling.scoring_head import add_scoring_head
from dmpo_trl.recommend.decoding.prefixes import cache_argument

SDPA = ["llama", "qwen2_windows", "qwen3", "gemma3", "mistral_window", "phi3_window", "gpt2", "gpt_neox", "mixtral"]
SDPA += ["granite", "cohere"]


@pytest.fixture(autouse=True)
def short_trees(monkeypatch):
    """Trees of tests are short: on their own nonetheless."""
    monkeypatch.setattr(attention, "_LEAST_LENGTH", 1)


@pytest.fixture
def calls(monkeypatch):
    """How many tokens each call of torch's attention had."""
    lengths = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def counted(query, *args, **kwargs):
        lengths.append(query.shape[2])
        return plain(query, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    return lengths


def scoring_model(name):
    model = make_model(name)
    add_scoring_head(model)
    assert use_trie_attention(model)
    return model


def batch_of(packed, counts=(3, 1, 2, 4)):
    prompts, completions = prompts_and_completions(ragged_examples(1, counts))
    batch = lay_out(
        prompts,
        completions,
        prefix_sharing=True,
        pad_token_id=0,
        attention_balance=1e-9,
        packed_length=packed,
    )
    return prompts, completions, batch


@pytest.mark.parametrize("long_tree", [None, 12], ids=["whole trees", "in parts"])
@pytest.mark.parametrize("packed", [None, 60, 4096], ids=["padded rows", "two rows", "one row"])
@pytest.mark.parametrize("name", SDPA)
def test_log_probs_and_gradients_are_those_of_one_sequence_at_a_time(name, packed, long_tree, calls, monkeypatch):
    if long_tree is not None:
        monkeypatch.setattr(attention, "_LONG_TREE", long_tree)
        monkeypatch.setattr(attention, "_PART", 5)
    model = scoring_model(name)
    prompts, completions, batch = batch_of(packed)
    assert batch["input_ids"].shape[0] == 1 or packed != 4096
    weights = torch.randn(sum(map(len, completions)), generator=torch.Generator().manual_seed(0))

    found = layout_logps(model, batch, len(weights))
    trees = [length for length in calls if length < batch["input_ids"].shape[1]]
    assert (max(trees) > 12) == (long_tree is None)
    assert len(trees) >= 4 * model.config.num_hidden_layers  # the four examples apart, in every layer
    (weights * found).sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    expected = naive_logps(model, prompts, completions)
    (weights * expected).sum().backward()
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    for name, parameter in model.named_parameters():
        scale = parameter.grad.norm().clamp(min=1e-3)
        assert (gradients[name] - parameter.grad).norm() <= 1e-4 * scale, name


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_same_gradient(reentrant):
    _, completions, batch = batch_of(4096)
    gradients = []
    for checkpointing in (False, True):
        model = scoring_model("llama").train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        layout_logps(model, batch, sum(map(len, completions))).sum().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
def test_the_backward_pass_of_checkpointing_attends_tree_by_tree_too(reentrant, calls):
    """It runs when no layout is active any more."""
    model = scoring_model("llama").train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    _, completions, batch = batch_of(4096)
    found = layout_logps(model, batch, sum(map(len, completions)))
    forward = list(calls)
    found.sum().backward()
    assert max(forward) < batch["input_ids"].shape[1]
    assert sorted(calls) == sorted(2 * forward)


def test_a_part_of_a_long_tree_attends_to_what_it_sees_alone(monkeypatch):
    """One example in the row, whose completions do not see each other."""
    seen = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def counted(query, key, *args, **kwargs):
        seen.append((query.shape[2], key.shape[2]))
        return plain(query, key, *args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    monkeypatch.setattr(attention, "_LONG_TREE", 12)
    monkeypatch.setattr(attention, "_PART", 6)
    model = scoring_model("llama")
    prompts, completions, batch = batch_of(4096, counts=(6,))
    found = layout_logps(model, batch, sum(map(len, completions)))
    length = batch["input_ids"].shape[1]
    assert sum(queries for queries, _ in seen) == length * model.config.num_hidden_layers
    assert max(keys for _, keys in seen) < length
    torch.testing.assert_close(found, naive_logps(model, prompts, completions), atol=2e-5, rtol=1e-5)


def test_masks_of_trees_go_with_their_mask():
    model = scoring_model("llama")
    _, completions, batch = batch_of(4096)
    layout_logps(model, batch, sum(map(len, completions))).sum().backward()
    gc.collect()
    assert len(attention._masks_of_trees) == 0


def test_branches_are_a_layout_of_the_same_registry():
    """Two branches of one token each behind a cached prompt, on a model with windows shorter than the prompt."""
    model = make_model("mistral_window")
    prompt, branches = list(range(10, 22)), [30, 40]
    before = model.config._attn_implementation
    with torch.no_grad(), attention.branch_attention(model):
        assert model.config._attn_implementation == f"trie_{before}"
        cache = {cache_argument(model): DynamicCache()}
        model(torch.tensor([prompt]), **cache)
        depth = torch.tensor([[*range(len(prompt)), len(prompt), len(prompt)]])
        path = torch.ones(1, 2, len(prompt) + 2, dtype=torch.bool)
        path[0, :, len(prompt) :] = torch.eye(2, dtype=torch.bool)
        with attention.branch_layout(depth, path):
            found = model(torch.tensor([branches]), position_ids=depth[:, -2:], **cache).logits[0]
    assert model.config._attn_implementation == before
    for logits, token in zip(found, branches, strict=True):
        expected = model(torch.tensor([[*prompt, token]])).logits[0, -1]
        torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-5)


def test_a_mask_that_is_another_tensor_is_attended_to_whole(monkeypatch, calls):
    """As where a model changes the mask that it was given."""
    model = scoring_model("llama")
    _, completions, batch = batch_of(4096)
    number = sum(map(len, completions))
    with torch.no_grad():
        expected = layout_logps(model, batch, number)
        calls.clear()
        own = attention.ALL_ATTENTION_FUNCTIONS["trie_sdpa"]
        monkeypatch.setitem(
            attention.ALL_ATTENTION_FUNCTIONS._global_mapping,
            "trie_sdpa",
            lambda module, query, key, value, mask, **kwargs: own(module, query, key, value, mask.clone(), **kwargs),
        )
        found = layout_logps(model, batch, number)
    assert set(calls) == {batch["input_ids"].shape[1]}
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("trees", [1, 4])
def test_sdpa_gets_one_mask_of_numbers_for_all_layers(trees, monkeypatch):
    """Not a boolean one, which it would turn into numbers anew in each layer."""
    masks = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def noted(query, *args, attn_mask, **kwargs):
        masks.append(attn_mask)
        return plain(query, *args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    model = scoring_model("llama")
    _, completions, batch = batch_of(4096, (3, 1, 2, 4)[:trees])
    with torch.no_grad():
        layout_logps(model, batch, sum(map(len, completions)))
    assert {mask.dtype for mask in masks} == {torch.float32}
    assert len(masks) == trees * model.config.num_hidden_layers
    assert len({mask.data_ptr() for mask in masks}) == trees


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=str)
def test_no_layer_converts_the_mask_again(autocast, monkeypatch):
    """Under autocast sdpa asks for its precision, whatever that of queries is."""
    masks, conversions = [], []
    plain = attention._as_scores

    def noted(mask, query):
        masks.append(mask)
        conversions.append(plain(mask, query) is not mask)
        return plain(mask, query)

    monkeypatch.setattr(attention, "_as_scores", noted)
    model = scoring_model("llama")
    _, completions, batch = batch_of(4096)
    with torch.no_grad(), torch.autocast("cpu", autocast, enabled=autocast is not None):
        layout_logps(model, batch, sum(map(len, completions)))
    assert {mask.dtype for mask in masks} == {autocast or torch.float32}
    assert not any(conversions)


def test_short_neighbours_are_taken_together(monkeypatch):
    monkeypatch.setattr(attention, "_LEAST_LENGTH", 4)
    # trees of 3, 1, 2, 6, 1, 1 tokens
    assert attention._tree_lengths([3, 3, 3, 4, 6, 6, 12, 12, 12, 12, 12, 12, 13, 14]) == [4, 2, 6, 2]
