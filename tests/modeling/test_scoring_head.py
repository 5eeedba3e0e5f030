"""The scoring head leaves everything else that a model does as it was."""

import copy
import gc
import inspect
import json
import pickle
import sys
import weakref

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import LoraConfig, get_peft_model
from support import layout_logps, make_model, naive_logps, prompts_and_completions, ragged_examples
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from dmpo_trl.batching.collator import lay_out
from dmpo_trl.modeling.loading import base_model_of
from dmpo_trl.modeling.probe import prepare_for_scoring
from dmpo_trl.modeling.scoring_head import add_scoring_head

IDS = torch.tensor([[7, 8, 9, 10, 11, 12]])
LORA = LoraConfig(target_modules="all-linear", init_lora_weights=False)


def scored_and_expected(model, share=True):
    prompts, completions = prompts_and_completions(ragged_examples(0, [1, 3]))
    batch = lay_out(prompts, completions, prefix_sharing=share, pad_token_id=0)
    return layout_logps(model, batch, sum(map(len, completions))), naive_logps(model, prompts, completions)


def assert_scores(model, share=True):
    found, expected = scored_and_expected(model, share)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_generation_from_padded_prompts_stays_as_it_was():
    # GPT-2 has absolute positions, which `generate` prepares only where the signature of forward asks for them
    ids = torch.tensor([[0, 0, 0, 7, 8, 9], [10, 11, 12, 13, 14, 15]])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long(), "max_new_tokens": 5, "do_sample": False}
    model = make_model("gpt2")
    model.generation_config.pad_token_id = 0
    before = model.generate(**inputs)
    signature = inspect.signature(model.forward)
    add_scoring_head(model)
    assert inspect.signature(model.forward) == signature
    assert torch.equal(model.generate(**inputs), before)


@pytest.mark.parametrize("peft", [False, True])
def test_a_scored_model_is_freed_by_del(peft):
    model = make_model("llama")
    called = get_peft_model(model, LORA) if peft else model
    prepare_for_scoring(called, model, "auto")
    scored_and_expected(called)
    alive = weakref.ref(model.model.layers[0])
    gc.collect()
    gc.disable()  # references alone decide
    try:
        del model, called
        assert alive() is None
    finally:
        gc.enable()


def test_saved_files_and_lookups_see_the_models_own_class(tmp_path):
    model, plain = make_model("llama"), make_model("llama")
    add_scoring_head(model)
    add_scoring_head(model)
    assert isinstance(model, LlamaForCausalLM)
    assert repr(model) == repr(plain)
    for module, own in ((model, plain), (model.lm_head, plain.lm_head)):
        cls, own = type(module), type(own)
        assert (cls.__name__, cls.__qualname__, cls.__module__) == (own.__name__, own.__qualname__, own.__module__)
        assert sys.modules[cls.__module__] is sys.modules[own.__module__]
        assert cls.__mro__.count(own) == 1
    assert model.state_dict().keys() == plain.state_dict().keys()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is LlamaForCausalLM
    torch.testing.assert_close(loaded(IDS).logits, plain(IDS).logits)


def test_two_models_of_a_class_get_the_same_class():
    first, second = make_model("llama"), make_model("llama", seed=1)
    add_scoring_head(first)
    assert type(first) is not type(second)
    add_scoring_head(second)
    assert type(first) is type(second)


def test_a_deep_copy_scores_with_its_own_weights():
    model = make_model("llama")
    prepare_for_scoring(model, model, True)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.lm_head.weight.mul_(1.5)
        twin.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    assert_scores(twin)
    assert_scores(model)
    assert not torch.allclose(scored_and_expected(twin)[0], scored_and_expected(model)[0], atol=1e-2)


@pytest.mark.parametrize("order", ["peft first", "head first"])
def test_peft_may_wrap_before_or_after(order):
    model = make_model("llama")
    if order == "head first":
        prepare_for_scoring(model, model, True)
    adapted = get_peft_model(model, LORA).eval()
    prepare_for_scoring(adapted, model, True)
    assert_scores(adapted)
    with adapted.disable_adapter():
        assert_scores(adapted)
    assert_scores(adapted.merge_and_unload())


@pytest.mark.parametrize("target", ["modules_to_save", "new head"])
def test_a_head_that_is_exchanged_afterwards_scores_too(target):
    model = make_model("llama")
    prepare_for_scoring(model, model, True)
    if target == "new head":
        model.set_output_embeddings(torch.nn.Linear(32, model.config.vocab_size))  # with a bias
        assert_scores(model)
        return
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])).eval()
    with torch.no_grad():
        adapted.get_base_model().lm_head.weight.add_(0.1)
    assert_scores(adapted)


@pytest.fixture
def bf16():
    """An accelerator of another precision than what other tests of this process may have made."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(mixed_precision="bf16", cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("order", ["accelerate first", "head first"])
def test_what_accelerate_puts_on_the_instance_stays(order, bf16):
    """Autocast around the forward; what was put on after the head can be taken off again."""
    model, accelerator = make_model("llama"), bf16
    if order == "head first":
        prepare_for_scoring(model, model, True)
    prepared = accelerator.prepare_model(model)
    prepare_for_scoring(prepared, model, True)
    plain = make_model("llama")
    with torch.autocast("cpu", torch.bfloat16):
        expected = plain(IDS).logits.float()
    torch.testing.assert_close(prepared(IDS).logits, expected)
    assert prepared(IDS).logits.dtype == torch.float32
    found, own = scored_and_expected(prepared)
    torch.testing.assert_close(found, own, atol=0.3, rtol=0.05)
    unwrapped = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    assert unwrapped is model
    unwrapped(IDS)
    found, own = scored_and_expected(unwrapped)
    torch.testing.assert_close(found, own, atol=0.3 if order == "accelerate first" else 2e-5, rtol=0.05)


def test_hooks_of_the_head_run_in_a_scored_forward():
    """As FSDP2's, ZeRO-3's and tensor parallelism's do, which make its weight whole."""
    model = make_model("llama")
    prepare_for_scoring(model, model, True)
    weight, ran = model.lm_head.weight.data, []

    def gather(module, args, kwargs):
        module.weight.data = weight
        ran.append("gather")

    def shard(module, args, output):
        module.weight.data = weight[:0]
        ran.append("shard")

    model.lm_head.weight.data = weight[:0]
    model.lm_head.register_forward_pre_hook(gather, with_kwargs=True)
    model.lm_head.register_forward_hook(shard)
    prompts, completions = prompts_and_completions(ragged_examples(0, [1, 3]))
    batch = lay_out(prompts, completions, prefix_sharing=True, pad_token_id=0)
    found = layout_logps(model, batch, sum(map(len, completions)))
    assert ran == ["gather", "shard"]
    with torch.no_grad():
        expected = naive_logps(model, prompts, completions)
    torch.testing.assert_close(found.detach(), expected, atol=2e-5, rtol=1e-5)


def test_a_backward_hook_of_the_head_sees_its_gradient():
    model, seen = make_model("llama"), []
    prepare_for_scoring(model, model, True)
    model.lm_head.register_full_backward_hook(lambda module, grad_input, grad_output: seen.append(grad_input[0]))
    scored_and_expected(model)[0].sum().backward()
    assert len(seen) == 1
    assert seen[0].abs().sum() > 0


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)  # of torch's tracer
def test_a_compiled_model_scores():
    model = make_model("llama")
    prepare_for_scoring(model, model, True)
    expected = scored_and_expected(model)[0]
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(IDS).logits, model(IDS).logits)
    prompts, completions = prompts_and_completions(ragged_examples(0, [1, 3]))
    batch = lay_out(prompts, completions, prefix_sharing=True, pad_token_id=0)
    found = layout_logps(compiled, batch, len(expected))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("lora", [False, True])
def test_a_scored_model_can_be_pickled(lora):
    """As `torch.save(model)` and spawned processes do: the class has the name of another."""
    model = get_peft_model(make_model("llama"), LORA) if lora else make_model("llama")
    prepare_for_scoring(model, base_model_of(model), True)
    again = pickle.loads(pickle.dumps(model))
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits)
    assert type(base_model_of(again)) is type(base_model_of(model))
    prepare_for_scoring(again, base_model_of(again), True)
    found, own = scored_and_expected(again)
    torch.testing.assert_close(found, own, atol=2e-5, rtol=1e-5)


def test_positions_are_picked_on_the_device_of_the_states():
    """Layers may be spread over devices (`device_map`): the last one need not be where the batch is."""
    model = make_model()
    add_scoring_head(model)
    model = model.to("meta")
    scored = {"scored_rows": [0, 0], "scored_columns": [-2, -1], "scored_targets": [5, 6]}
    devices = []

    class Picked(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten.index.Tensor:
                devices.append({own.device.type for own in (args[0], *args[1])})
            return function(*args, **(kwargs or {}))

    ids = torch.zeros(1, 4, dtype=torch.long, device="meta")
    scored = {name: torch.tensor(values) for name, values in scored.items()}  # on the CPU
    with Picked(), torch.no_grad(), pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        model(ids, **scored, scored_outputs=("logits",))  # the outcome is brought back to the targets
    assert {"meta"} in devices
    assert {"meta", "cpu"} not in devices
