"""The cost model against the collator's batches, torch's FLOP counter and the tensors of training runs."""

import math
from contextlib import nullcontext
from dataclasses import replace
from itertools import count

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from support import make_model, ragged_examples
from torch.utils.flop_counter import FlopCounterMode

from dmpo_trl.batching.blocks import visible_blocks
from dmpo_trl.batching.collator import DataCollatorForMultiPreference, lay_out
from dmpo_trl.batching.lengths import BLOCK
from dmpo_trl.modeling.attention import trie_layout, use_trie_attention
from dmpo_trl.modeling.block_attention import block_mask
from dmpo_trl.modeling.row_plan import ONE_ROW, RowPlan
from dmpo_trl.training.cost import HEAD_TILE, PADDED, BatchSize, ModelSize, TrainingOptions, largest, step_cost

LENGTHS = st.lists(
    st.tuples(st.integers(0, 30), st.lists(st.integers(1, 8), min_size=2, max_size=5)), min_size=1, max_size=8
)
IN_BLOCKS = RowPlan(ONE_ROW, BLOCK, math.inf)
FLOPS_TOLERANCE = 0.005  # the angles of rotary embeddings are left out
MODELS = ["llama", "qwen3", "gemma2", "gpt2", "phi3_window", "gpt_neox", "mixtral"]


def lora(name="llama"):
    # Of a mixture of experts all but the experts, whose adapters peft merges into all of them
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"] if name == "mixtral" else "all-linear"
    return LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM")


def batch_of(lengths, *, prefix_sharing, plan=PADDED):
    """A batch of these lengths in which no two tokens are equal, so that nothing is shared."""
    tokens = count()
    prompts = [[next(tokens) for _ in range(prompt)] for prompt, _ in lengths]
    completions = [[[next(tokens) for _ in range(n)] for n in sizes] for _, sizes in lengths]
    options = plan.options() if prefix_sharing else {}
    return lay_out(
        prompts,
        completions,
        prefix_sharing=prefix_sharing,
        pad_token_id=0,
        skip_half_blocks=prefix_sharing,
        **options,
    )


# Tokens


@given(LENGTHS, st.sampled_from([10.0, 4096.0]), st.sampled_from([1, 16]))
def test_predicted_layouts_are_the_collators_where_nothing_is_shared(lengths, balance, multiple):
    plan = RowPlan(None, multiple, balance)
    assert BatchSize.trie(lengths, plan) == BatchSize.measured(batch_of(lengths, prefix_sharing=True, plan=plan))
    assert BatchSize.copies(lengths) == BatchSize.measured(batch_of(lengths, prefix_sharing=False))


@settings(deadline=None)
@example([(200, [1, 90, 128, 129]), (1, [1, 1])])  # completions without a token, and ends at the edges of blocks
@given(
    st.lists(
        st.tuples(st.integers(1, 400), st.lists(st.integers(1, 150), min_size=2, max_size=9)), min_size=1, max_size=6
    )
)
def test_predicted_blocks_are_the_collators(lengths):
    """Of one row of all trees, as on CUDA: `subtree_end` of the real batch, and torch's own mask of it."""
    batch = batch_of(lengths, prefix_sharing=True, plan=IN_BLOCKS)
    predicted, ends = BatchSize.trie(lengths, IN_BLOCKS), batch["subtree_end"]
    assert predicted == BatchSize.measured(batch, in_blocks=True)
    assert (predicted.rows, predicted.length % BLOCK) == (1, 0)
    mask = block_mask(ends, lambda b, h, q, k: (k <= q) & (q < ends[b, k]), ancestors_only=True)
    assert predicted.blocks == int(mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum())
    assert predicted.attention_pairs == predicted.blocks * BLOCK**2 <= predicted.length**2


def test_blocks_of_shared_histories_are_measured():
    prompts = [[1] * 300, [1] * 300 + [2] * 40]
    completions = [[[3 + i] * 20 for i in range(8)]] * 2
    batch = lay_out(prompts, completions, prefix_sharing=True, pad_token_id=0, **IN_BLOCKS.options())
    measured = BatchSize.measured(batch, in_blocks=True)
    assert measured.blocks == int(visible_blocks(batch["subtree_end"])[0].sum())
    assert measured.blocks < BatchSize.trie([(300, [20] * 8), (340, [20] * 8)], IN_BLOCKS).blocks


@pytest.mark.parametrize(
    ("model", "users"),
    [
        (make_model(), [(240, [11] * 16)] * 40),
        # Users of 8,000 tokens: windows hide parts of blocks, none of which is left out
        (make_model("mistral_window", sliding_window=4096), [(7840, [11] * 16)] * 2),
    ],
    ids=["llama", "windows of 4,096"],
)
def test_in_blocks_a_step_grows_with_its_tokens_and_not_with_their_square(model, users):
    size, costs = ModelSize.from_config(model.config), {}
    for name, plan in (("blocks", IN_BLOCKS), ("dense", replace(PADDED, attention_balance=math.inf))):
        for times in (1, 2):
            layout = BatchSize.trie(users * times, plan)
            cost = step_cost(size, layout, TrainingOptions())
            costs[name, times] = layout, cost.step_memory - cost.gradient_memory, cost.flops
    (few, memory, flops), (many, more_memory, more_flops) = costs["blocks", 1], costs["blocks", 2]
    assert many.length == 32_000
    assert (many.length, many.blocks) == (2 * few.length, 2 * few.blocks)
    assert more_memory < 2.05 * memory
    assert more_flops == pytest.approx(2 * flops)
    assert costs["dense", 2][1] > 3 * costs["dense", 1][1]
    assert costs["dense", 2][1] > 20 * more_memory


@pytest.mark.parametrize("ancestors_only", [True, False], ids=["causal", "windows"])
def test_a_mask_of_blocks_has_the_bytes_of_its_tensors(ancestors_only):
    batch = batch_of([(240, [11] * 16)] * 20, prefix_sharing=True, plan=IN_BLOCKS)
    ends = batch["subtree_end"]
    mask = block_mask(ends, lambda b, h, q, k: (k <= q) & (q < ends[b, k]), ancestors_only=ancestors_only)
    held = tensor_bytes(part for part in mask.as_tuple() if isinstance(part, torch.Tensor))
    assert BatchSize.measured(batch, in_blocks=True).mask_bytes(2) == pytest.approx(held, rel=0.05)


@given(st.integers(0, 1000), st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_shared_prefixes_only_save_tokens(seed, counts):
    examples = ragged_examples(seed, counts)
    lengths = [(len(row["prompt_ids"]), [len(row["chosen_ids"]), *map(len, row["rejected_ids"])]) for row in examples]
    measured = BatchSize.measured(DataCollatorForMultiPreference(0, prefix_sharing=True)(examples))
    predicted = BatchSize.trie(lengths)
    assert measured.tokens <= predicted.tokens
    assert measured.scored <= predicted.scored
    assert BatchSize.copies(lengths) == BatchSize.measured(DataCollatorForMultiPreference(0)(examples))


def test_the_formula_by_hand():
    # A prompt of 270 and sixteen completions of 10 tokens: 270 + 16 * 9, and 16 * (270 + 9)
    lengths = [(270, [10] * 16)]
    assert BatchSize.trie(lengths) == BatchSize(tokens=414, rows=1, length=414, scored=160)
    assert BatchSize.copies(lengths) == BatchSize(tokens=4464, rows=16, length=279, scored=160)
    assert BatchSize.copies(lengths).attention_pairs == 16 * 279**2


# Parameters


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_counted_exactly(name):
    model = make_model(name)
    size = ModelSize.from_config(model.config)
    assert size.parameters == sum(p.numel() for p in model.parameters())
    adapted = get_peft_model(make_model(name), lora(name))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert ModelSize.from_config(model.config, lora(name)).adapter == trained > 0


def test_a_token_meets_the_matrices_of_its_experts_only():
    dense = {"router": 32 * 4, "attention": 32 * (32 + 16 + 16 + 32)}
    expert = 3 * 32 * 64
    size = ModelSize.from_config(make_model("mixtral").config)
    assert size.matmul_parameters == 2 * (sum(dense.values()) + 2 * expert)  # two layers, two experts of four
    assert size.feed_forward == 2 * 64


# FLOPs


def counted_flops(model, batch):
    """FLOPs of the forward and of the backward pass, by torch's own counting of products.

    The head is the plain one, on the scored positions: torch does not count all products of the fused one.
    """
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    layout = trie_layout(batch["position_ids"], batch["subtree_end"]) if "subtree_end" in batch else nullcontext()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}
    with FlopCounterMode(display=False) as forward:
        with layout:
            hidden = base.base_model(**inputs, use_cache=False).last_hidden_state
        logits = base.get_output_embeddings()(hidden[batch["scored_rows"], batch["scored_columns"]])
    with FlopCounterMode(display=False) as backward:
        logits.logsumexp(-1).sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("prefix_sharing", [True, False], ids=["trie", "copies"])
@pytest.mark.parametrize("name", MODELS)
def test_flops_are_those_that_torch_counts(name, prefix_sharing, adapted):
    adapter = lora(name) if adapted else None
    # Eager attention: torch does not count the CPU's fused one
    model = make_model(name, attn_implementation="eager")
    if name == "mixtral":
        model.set_experts_implementation("eager")
    size = ModelSize.from_config(model.config, adapter)
    if prefix_sharing:
        use_trie_attention(model)
    if adapter is not None:
        model = get_peft_model(model, adapter)
        model.enable_input_require_grads()  # or the first layer's input would need no derivative
    model.train()
    batch = batch_of([(40, [6, 3, 5, 7]), (31, [4, 4])], prefix_sharing=prefix_sharing)
    batch["input_ids"] = batch["input_ids"] % 384
    batch["scored_targets"] = batch["scored_targets"] % 384
    cost = step_cost(size, BatchSize.measured(batch), TrainingOptions())
    forward, backward = counted_flops(model, batch)
    assert forward == pytest.approx(cost.forward, rel=FLOPS_TOLERANCE)
    assert backward == pytest.approx(cost.backward, rel=FLOPS_TOLERANCE)


def test_checkpointing_and_the_reference_are_forward_passes():
    size = ModelSize.from_config(make_model().config)
    layout = BatchSize.trie([(40, [6, 3, 5, 7])])
    plain, frugal = (step_cost(size, layout, TrainingOptions(gradient_checkpointing=on)) for on in (False, True))
    assert plain.reference == plain.forward
    assert plain.recomputation == 0
    assert frugal.recomputation == frugal.forward - 2 * size.head * layout.scored
    without = step_cost(size, layout, TrainingOptions(precomputed_reference=True))
    assert plain.flops - without.flops == plain.forward


# Memory


def tensor_bytes(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", MODELS)
def test_memory_of_weights_gradients_and_optimizer_is_exact(name, adapted, dtype):
    adapter = lora(name) if adapted else None
    model = make_model(name).to(dtype)
    size = ModelSize.from_config(model.config, adapter)
    reference = tensor_bytes(model.parameters())
    if adapter is not None:
        model = get_peft_model(model, adapter)
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    options = TrainingOptions(weight_bytes=dtype.itemsize)
    cost = step_cost(size, BatchSize.trie([(4, [2, 2])]), options)
    assert cost.weight_memory == tensor_bytes(model.parameters())
    assert cost.reference_memory == (reference if adapter is None else 0)
    assert cost.gradient_memory == tensor_bytes(p.grad for p in model.parameters() if p.grad is not None)
    states = [state[key] for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    assert cost.optimizer_memory == tensor_bytes(states)


def saved_bytes(model, batch):
    """Bytes of distinct storages that autograd keeps for the backward pass, weights aside."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
    total = sum(kept.values())
    del output
    return total


@pytest.mark.parametrize("name", ["llama", "qwen3", "phi3_window"])
def test_activations_are_about_those_that_autograd_keeps(name):
    wide = {"hidden_size": 64, "intermediate_size": 176, "num_key_value_heads": 4, "num_hidden_layers": 4}
    backbone = make_model(name, **wide).base_model.train()
    size = ModelSize.from_config(backbone.config)
    batch = batch_of([(40, [6, 3, 5, 7])], prefix_sharing=True)
    batch["input_ids"] = batch["input_ids"] % 384
    cost = step_cost(size, BatchSize.measured(batch), TrainingOptions())
    assert cost.activation_memory == pytest.approx(saved_bytes(backbone, batch), rel=0.25)


def test_options_change_the_memory_they_should():
    size = ModelSize.from_config(make_model().config, lora())
    layout = BatchSize.trie([(40, [6, 3, 5, 7])])

    def cost(**options):
        return step_cost(size, layout, TrainingOptions(**options))

    plain = cost()
    four_bit = cost(load_in_4bit=True)
    linear = 2 * (32 * (32 + 16 + 16 + 32) + 3 * 32 * 64)
    assert plain.weight_memory - four_bit.weight_memory == linear * (4 - 0.5625)
    assert cost(optimizer_states=0).optimizer_memory == 0
    assert cost(gradient_checkpointing=True).activation_memory < plain.activation_memory
    parts = plain.weight_memory + plain.optimizer_memory + plain.gradient_memory + plain.activation_memory
    assert plain.memory == parts + plain.head_memory + plain.mask_memory
    full = ModelSize.from_config(make_model().config)
    assert step_cost(full, layout, TrainingOptions(precomputed_reference=True)).reference_memory == 0


def test_logits_are_held_a_tile_at_a_time():
    size = ModelSize(0, 0, 0, head=8 * 100_000, layers=1, hidden=8, attention=8, feed_forward=8)
    layouts = [BatchSize(1, 1, 1, scored) for scored in (10, 10**6)]
    few, many = (step_cost(size, layout, TrainingOptions()).head_memory for layout in layouts)
    assert few == 4 * 10 * 100_000 + 4 * 10 * 8
    assert many == 4 * HEAD_TILE + 4 * 10**6 * 8


@given(st.integers(0, 200), st.integers(1, 150))
def test_largest_is_the_last_that_fits(bound, limit):
    assert largest(lambda n: n <= bound, limit) == min(bound, limit)
