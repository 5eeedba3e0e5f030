"""Attention in blocks: FlexAttention's numbers against one sequence at a time, and where it is chosen.

On a CPU it has no backward pass; `tests/test_on_gpu.py` has gradients.
"""

import math
from unittest import mock

import pytest
import torch
from support import SHARING, layout_logps, make_model, naive_logps, prompts_and_completions, ragged_examples
from transformers import GPT2Config, GptOssConfig, LlamaConfig

from dmpo_trl.batching.collator import lay_out
from dmpo_trl.modeling import attention, block_attention, probe
from dmpo_trl.modeling.attention import use_trie_attention
from dmpo_trl.modeling.block_attention import attend, block_obstacle
from dmpo_trl.modeling.row_plan import plan_for
from dmpo_trl.modeling.scoring_head import add_scoring_head

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
# The others load with eager attention: sinks (gpt_oss) and a soft-cap of the scores (gemma2)
SDPA = [name for name in SHARING if name not in ("gemma2", "gpt_oss")]
compile_plainly = torch.compile
PLAN = plan_for("cuda", ["trie_sdpa_blocks"], LlamaConfig())


def batch_of(seed=0, longer=100, counts=(15, 3, 7, 15, 1)):
    """Five users in one row of several blocks, of which some are hidden and some seen as a whole."""
    prompts, completions = prompts_and_completions(ragged_examples(seed, counts))
    prompts = [[20 + index] * (longer * index) + prompt for index, prompt in enumerate(prompts)]
    batch = lay_out(prompts, completions, prefix_sharing=True, pad_token_id=0, **PLAN.options())
    return prompts, completions, batch


def scoring_model(name="llama", **changes):
    model = make_model(name, **changes)
    add_scoring_head(model)
    assert use_trie_attention(model, blocks=True)
    assert model.config._attn_implementation == "trie_sdpa_blocks"
    return model


@pytest.fixture
def masks(monkeypatch):
    """The masks of each call of FlexAttention."""
    seen = []

    def noted(query, key, value, mask, **kwargs):
        seen.append(mask)
        return attend(query, key, value, mask, **kwargs)

    monkeypatch.setattr(attention, "attend", noted)
    return seen


@torch.no_grad()
@pytest.mark.parametrize("name", SDPA)
def test_log_probs_are_those_of_one_sequence_at_a_time(name, masks):
    model = scoring_model(name)
    prompts, completions, batch = batch_of()
    assert batch["input_ids"].shape[0] == 1
    assert batch["input_ids"].shape[1] >= 1024
    found = layout_logps(model, batch, sum(map(len, completions)))
    assert len(masks) == model.config.num_hidden_layers
    torch.testing.assert_close(found, naive_logps(model, prompts, completions), atol=5e-5, rtol=1e-5)
    # One mask for all layers of a kind; blocks that are seen as a whole only where no window can hide a part
    windows = {mask.full_kv_num_blocks.sum().item() == 0 for mask in masks}
    hides = {"qwen2_windows": {True, False}, "gemma3": {True}, "mistral_window": {True}, "phi3_window": {True}}
    assert windows == hides.get(name, {False})
    assert len({id(mask) for mask in masks}) == len(windows)


@torch.no_grad()
def test_what_sdpa_computes():
    _, completions, batch = batch_of(1)
    results = []
    for blocks in (True, False):
        model = make_model("llama")
        add_scoring_head(model)
        use_trie_attention(model, blocks=blocks)
        results.append(layout_logps(model, batch, sum(map(len, completions))))
    torch.testing.assert_close(*results, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_under_autocast_as_sdpa_does(monkeypatch):
    """The rotation may leave queries and keys in float32, beside values in bfloat16."""
    _, completions, batch = batch_of(1)
    given, computed = set(), set()
    flex = block_attention.flex_attention
    monkeypatch.setattr(
        block_attention,
        "flex_attention",
        lambda *states, **options: computed.add(tuple(one.dtype for one in states)) or flex(*states, **options),
    )
    monkeypatch.setattr(
        attention,
        "attend",
        lambda *states, **options: given.add(tuple(one.dtype for one in states[:3])) or attend(*states, **options),
    )
    count = sum(map(len, completions))
    exact = layout_logps(scoring_model(), batch, count)
    with torch.autocast("cpu", torch.bfloat16):
        computed.clear()
        found = layout_logps(scoring_model(), batch, count)
        assert (torch.float32, torch.float32, torch.bfloat16) in given
        assert computed == {(torch.bfloat16,) * 3}
        plain = make_model("llama")
        add_scoring_head(plain)
        use_trie_attention(plain)
        expected = layout_logps(plain, batch, count)
    assert (found - exact).norm() <= 2 * (expected - exact).norm()


@torch.no_grad()
def test_a_row_of_other_lengths_goes_through_sdpa(masks):
    """As `score_completions` and padded rows have them: a kernel would be compiled for each kind."""
    model = scoring_model()
    prompts, completions, _ = batch_of()
    for options in ({"attention_balance": 1e-9}, {"attention_balance": math.inf, "pad_to_multiple_of": 100}):
        batch = lay_out(prompts, completions, prefix_sharing=True, pad_token_id=0, **options)
        assert batch["input_ids"].shape[0] > 1 or batch["input_ids"].shape[1] % 128
        found = layout_logps(model, batch, sum(map(len, completions)))
        torch.testing.assert_close(found, naive_logps(model, prompts, completions), atol=5e-5, rtol=1e-5)
    assert not masks


@torch.no_grad()
@pytest.mark.parametrize(("name", "kinds"), [("llama", 1), ("qwen2_windows", 2)])
def test_one_compilation_serves_all_lengths(name, kinds):
    """The first length, and then any: as one graph, or it would be an error. The kernels themselves are a GPU's."""
    graphs = []

    def counted(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    with mock.patch.object(torch, "compile", lambda function, **o: compile_plainly(function, backend=counted, **o)):
        block_attention._compiled.cache_clear()
        compiled = block_attention._compiled()
    block_attention._compiled.cache_clear()
    model, lengths = scoring_model(name), []
    with mock.patch.object(block_attention, "flex_attention", compiled):
        for seed in range(5):
            prompts, completions, batch = batch_of(seed, longer=10 + 30 * seed)
            lengths.append(batch["input_ids"].shape[1])
            found = layout_logps(model, batch, sum(map(len, completions)))
            torch.testing.assert_close(found, naive_logps(model, prompts, completions), atol=5e-5, rtol=1e-5)
            if seed == 1:
                after_two = len(graphs)
    assert len(set(lengths)) >= 3
    assert len(graphs) == after_two <= 1 + kinds


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"dropout": 0.1}, "dropout"),
        ({"softcap": 30.0}, "softcap"),
        ({"s_aux": torch.zeros(4)}, "s_aux"),
        ({"position_bias": torch.zeros(1, 4, 128, 128)}, "position_bias"),
    ],
)
def test_what_changes_the_scores_is_refused(options, named):
    states = torch.randn(1, 4, 128, 16)
    mask = block_attention.block_mask(torch.full((1, 128), 128), lambda b, h, q, k: q >= k, ancestors_only=True)
    with pytest.raises(NotImplementedError, match=f"takes no {named}: set `block_attention=False`"):
        attend(states, states, states, mask, **options)


@pytest.mark.parametrize(
    ("config", "options", "reason"),
    [
        (LlamaConfig(), {}, None),
        (LlamaConfig(), {"device_type": "cpu"}, "a backward pass on CUDA only"),
        (LlamaConfig(), {"triton": False}, "Triton is not installed"),
        (GptOssConfig(), {"implementation": "eager"}, "attention is eager"),
        (LlamaConfig(hidden_size=32, num_attention_heads=4), {}, "heads are of 8"),
        (LlamaConfig(attention_dropout=0.1), {}, "`attention_dropout` is 0.1"),
        (GPT2Config(), {}, "`attn_pdrop` is 0.1"),
    ],
)
def test_where_it_is_chosen(config, options, reason):
    options = {"implementation": "sdpa", "device_type": "cuda", "triton": True} | options
    found = block_obstacle(config, options["implementation"], options["device_type"], triton=options["triton"])
    assert (found is None) if reason is None else (reason in found)


@pytest.fixture
def as_on_cuda(monkeypatch):
    """Nothing is in the way of attention in blocks, but that a CPU has its forward pass only."""
    monkeypatch.setattr(probe, "block_obstacle", lambda *args, **kwargs: None)


def test_the_probe_tries_it_first(as_on_cuda, masks):
    model = make_model("mistral_window")
    assert probe.prepare_for_scoring(model, model, True, device_type="cuda") is True
    assert model.config._attn_implementation == "trie_sdpa_blocks"
    assert masks


def test_a_model_that_is_scored_meanwhile_keeps_it(as_on_cuda):
    """As where a `RankingCallback` runs during training."""
    model = make_model("llama")
    probe.prepare_for_scoring(model, model, True, device_type="cuda")
    assert probe.prepare_for_scoring(model, model, True) is True
    assert model.config._attn_implementation == "trie_sdpa_blocks"
    assert attention.plain_attention(model) == "sdpa"


@pytest.mark.parametrize("failure", ["wrong", "raises"])
def test_dense_masks_where_it_computes_something_else(as_on_cuda, failure, monkeypatch, caplog):
    def broken(query, key, value, mask, **kwargs):
        if failure == "raises":
            raise RuntimeError("no valid Triton configs")
        return attend(query.flip(1), key, value, mask, **kwargs)

    monkeypatch.setattr(attention, "attend", broken)
    model = make_model("llama")
    for _ in range(2):
        assert probe.prepare_for_scoring(model, model, True, device_type="cuda") is True
    assert model.config._attn_implementation == "trie_sdpa"
    assert caplog.text.count("cannot attend in blocks") == 1
    assert caplog.text.count("Prefix sharing is off") == 0


def test_layers_that_are_spread_over_devices_keep_sdpa(as_on_cuda):
    """A mask of blocks holds tensors of one device."""
    model = make_model("llama")
    model.hf_device_map = {"model.layers.0": 0, "model.layers.1": 1}
    probe.prepare_for_scoring(model, model, True, device_type="cuda")
    assert model.config._attn_implementation == "trie_sdpa"
