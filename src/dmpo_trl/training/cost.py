"""Cost of a training step in tokens, FLOPs and bytes, from its lengths and the model's config. Nothing is loaded.

docs/cost.md derives the formulas and holds them against measured runs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from ..batching.blocks import count_visible_blocks, visible_blocks
from ..batching.lengths import BLOCK, row_length
from ..batching.trie import plan_rows
from ..modeling.row_plan import RowPlan

if TYPE_CHECKING:
    from peft import PeftConfig

Lengths = Sequence[tuple[int, Sequence[int]]]  # for each example, tokens of its prompt and of each completion

HEAD_TILE = 4096 * 32768  # most logits that exist at once in training, `logprobs.GPU_TILE`
QUANTIZED_BYTES = 0.5 + 4 / 64  # NF4 and a float32 scale for every 64 weights (QLoRA, arXiv 2305.14314)
BLOCK_BYTES = 4 * 4  # four int32 of a `BlockMask`: partial and full blocks, by queries and by keys


PADDED = RowPlan(packed_length=None, multiple=1, attention_balance=4096.0)
"""Rows of the longest tree's length, attended to as a whole."""


@dataclass(frozen=True)
class BatchSize:
    """Size of a batch as the model gets it.

    Attributes:
        tokens: Tokens without padding.
        rows: Rows of the batch.
        length: Tokens of a row, padding included.
        scored: Scored (position, next token) pairs, S.
        blocks: Blocks of 128 queries and 128 keys that attention visits; None where it is dense.
    """

    tokens: int
    rows: int
    length: int
    scored: int
    blocks: int | None = None

    @property
    def padded_tokens(self) -> int:
        """Tokens that are computed, T = rows * length."""
        return self.rows * self.length

    @property
    def attention_pairs(self) -> int:
        """(Query, key) pairs that attention computes, A: rows * length^2, or those of the visited blocks."""
        return self.rows * self.length**2 if self.blocks is None else self.blocks * BLOCK**2

    def mask_bytes(self, value_bytes: int) -> int:
        """Bytes of the attention mask: a dense one as booleans and as numbers, or the indices of the blocks."""
        if self.blocks is None:
            return self.attention_pairs * (1 + value_bytes)
        return self.rows * (self.length // BLOCK) ** 2 * BLOCK_BYTES

    @classmethod
    def trie(cls, lengths: Lengths, plan: RowPlan = PADDED) -> BatchSize:
        """Return the trie layout where examples share nothing and completions begin differently: an upper bound.

        An example has ``p + sum_i (c_i - 1)`` nodes: the prompt once, and every completion but its last token, which
        predicts nothing. Where prefixes are shared, `measured` tells what is left.

        Args:
            lengths: For each example, tokens of the prompt, p, and of each completion, c_i. In blocks they stand in
                this order; another one visits a few blocks more or less.
            plan: The rows. Packed ones that are attended to tree by tree, on a CPU, are counted as padded ones.

        Example:
            >>> BatchSize.trie([(270, [10] * 16)])
            BatchSize(tokens=414, rows=1, length=414, scored=160, blocks=None)
            >>> in_blocks = RowPlan(2**31, 128, float("inf"))
            >>> BatchSize.trie([(270, [10] * 16)], in_blocks)
            BatchSize(tokens=414, rows=1, length=512, scored=160, blocks=10)
        """
        nodes = [prompt + sum(completions) - len(completions) for prompt, completions in lengths]
        sizes = [prompt + sum(completions) for prompt, completions in lengths]
        if plan.in_blocks:
            rows = [list(range(len(sizes)))]
        else:
            rows = plan_rows([[i] for i in range(len(sizes))], sizes, plan.attention_balance)
        longest = max(sum(nodes[i] for i in members) for members in rows)
        length = row_length(longest, plan.multiple, skip_half_blocks=True)
        blocks = count_visible_blocks(_runs(lengths), length) if plan.in_blocks else None
        return cls(sum(nodes), len(rows), length, _scored(lengths), blocks)

    @classmethod
    def copies(cls, lengths: Lengths) -> BatchSize:
        """Return the layout of copies of the prompt: ``p + c_i - 1`` tokens each, padded to the longest."""
        sequences = [prompt + completion - 1 for prompt, completions in lengths for completion in completions]
        return cls(sum(sequences), len(sequences), max(*sequences, 1), _scored(lengths))

    @classmethod
    def measured(cls, batch: dict[str, torch.Tensor], *, in_blocks: bool = False) -> BatchSize:
        """Return the layout of a batch that `DataCollatorForMultiPreference` made.

        Args:
            batch: The batch.
            in_blocks: Whether it is attended to in blocks, as `RowPlan.in_blocks` says.
        """
        rows, length = batch["input_ids"].shape
        blocks = int(visible_blocks(batch["subtree_end"])[0].sum()) if in_blocks else None
        return cls(int(batch["attention_mask"].sum()), rows, length, len(batch["scored_targets"]), blocks)


def _runs(lengths: Lengths) -> Iterator[tuple[int, int]]:
    """Yield the tokens of each prompt and of each completion, and how many tokens later their subtree ends."""
    for prompt, completions in lengths:
        yield prompt, prompt + sum(completions) - len(completions)
        for completion in completions:
            yield completion - 1, completion - 1


def _scored(lengths: Lengths) -> int:
    # The first token of a sequence has no predecessor
    return sum(sum(completions) - (0 if prompt else len(completions)) for prompt, completions in lengths)


@dataclass(frozen=True)
class ModelSize:
    """Numbers of a model that decide what a token costs.

    Attributes:
        parameters: All parameters of the base model; shared ones count once.
        matmul_parameters: Weights of the backbone that a token is multiplied with, M. Of a mixture of experts, those
            of the experts that a token visits.
        quantizable: Weights of the backbone's linear layers, which 4-bit loading quantizes.
        head: Weights of the head, H * V.
        layers: Number of layers.
        hidden: Width of the residual stream, H.
        attention: Width of all attention heads of a layer, W.
        feed_forward: Intermediate width that a token sees, I.
        adapter: LoRA weights, R; 0 where all parameters are trained.
    """

    parameters: int
    matmul_parameters: int
    quantizable: int
    head: int
    layers: int
    hidden: int
    attention: int
    feed_forward: int
    adapter: int = 0

    @classmethod
    def from_config(cls, config: PreTrainedConfig, lora: PeftConfig | None = None) -> ModelSize:
        """Build the model without memory (on torch's `meta` device) and count.

        Every parameter with two or more dimensions is a matrix that tokens are multiplied with, but for embeddings.

        Args:
            config: Config of a causal language model with attention layers.
            lora: Adapter; None where all parameters are trained.
        """
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config)
        config = config.get_text_config()
        chosen = getattr(config, "num_experts_per_tok", None) or 1
        head = model.get_output_embeddings().weight
        not_multiplied = {id(head)} | {
            id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)
        }
        matmul = quantizable = 0
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2 or name.endswith("bias") or id(parameter) in not_multiplied:
                continue
            experts = parameter.shape[0] if parameter.ndim == 3 else 1
            matmul += parameter.numel() * min(chosen, experts) // experts
            quantizable += parameter.numel() if parameter.ndim == 2 else 0
        hidden, heads = config.hidden_size, config.num_attention_heads
        feed_forward = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * hidden
        parameters = model.num_parameters()
        return cls(
            parameters=parameters,
            matmul_parameters=matmul,
            quantizable=quantizable,
            head=head.numel(),
            layers=config.num_hidden_layers,
            hidden=hidden,
            attention=heads * (getattr(config, "head_dim", None) or hidden // heads),
            feed_forward=(getattr(config, "moe_intermediate_size", None) or feed_forward) * chosen,
            adapter=0 if lora is None else _adapter_parameters(model, lora),
        )


def _adapter_parameters(model: Any, lora: PeftConfig) -> int:
    from peft import get_peft_model

    return int(get_peft_model(model, lora).get_nb_trainable_parameters()[0])


@dataclass(frozen=True)
class TrainingOptions:
    """How the step is trained.

    Attributes:
        weight_bytes: Bytes of a weight of the loaded model: 4 (float32) or 2.
        half_precision: Computed in bf16 or fp16, by autocast where the weights are float32.
        gradient_checkpointing: Layers keep their input only and are computed again.
        precomputed_reference: `precompute_ref_log_probs`: no reference in the step.
        load_in_4bit: The backbone's linear layers are quantized (with LoRA only).
        optimizer_states: Values that the optimizer keeps for each trained one: 2 for AdamW, 0 without an optimizer.
    """

    weight_bytes: int = 4
    half_precision: bool = False
    gradient_checkpointing: bool = False
    precomputed_reference: bool = False
    load_in_4bit: bool = False
    optimizer_states: int = 2


@dataclass(frozen=True)
class StepCost:
    """FLOPs of a step (a multiply-add is two) and bytes at its peak.

    Attributes:
        layout: What is computed.
        forward: FLOPs of the policy's forward pass.
        backward: FLOPs of its backward pass.
        recomputation: FLOPs of gradient checkpointing.
        reference: FLOPs of the reference's forward pass.
        weight_memory: Policy and adapter.
        reference_memory: The reference's own weights; none with LoRA, whose reference is the base model.
        gradient_memory: One for each trained parameter.
        optimizer_memory: The optimizer's states.
        activation_memory: What the backward pass needs of the forward pass.
        head_memory: Logits that exist at once, float32, and the derivative by the hidden states.
        mask_memory: The attention mask: dense, as booleans and as numbers, or the indices of its blocks.
    """

    layout: BatchSize
    forward: float
    backward: float
    recomputation: float
    reference: float
    weight_memory: float
    reference_memory: float
    gradient_memory: float
    optimizer_memory: float
    activation_memory: float
    head_memory: float
    mask_memory: float

    @property
    def flops(self) -> float:
        """FLOPs of the whole step."""
        return self.forward + self.backward + self.recomputation + self.reference

    @property
    def step_memory(self) -> float:
        """Bytes that a step adds to those of the loaded models and of the optimizer."""
        return self.gradient_memory + self.activation_memory + self.head_memory + self.mask_memory

    @property
    def memory(self) -> float:
        """Bytes of the whole training."""
        return self.weight_memory + self.reference_memory + self.optimizer_memory + self.step_memory


def step_cost(model: ModelSize, layout: BatchSize, options: TrainingOptions) -> StepCost:
    """Return the cost of a forward and a backward pass over a batch, with the reference's forward pass.

    With T computed tokens, A attention pairs, S scored pairs (`BatchSize`) and the letters of `ModelSize`:

    - backbone forward ``2*M*T + 4*layers*W*A``, adapter ``2*R*T``, head ``2*H*V*S``. Kaplan et al. (arXiv 2001.08361,
      section 2.1) with the head where it is scored only;
    - backward twice that; with LoRA once through the frozen matrices and the head, which get no gradient;
    - activations ``layers * T * (6*H + 5*W + 4*I)`` values, as Korthikanti et al. (arXiv 2205.05198, section 4) count
      them, for a pre-norm layer with a gated MLP and fused attention; with checkpointing ``layers * T * H`` and one
      layer's. With LoRA an upper bound.

    Gradients and activations are added up although backward passes free the ones while they form the others, and
    working memory of single operations is left out.
    """
    tokens, pairs, scored = layout.padded_tokens, layout.attention_pairs, layout.scored
    linear = 2 * model.matmul_parameters * tokens
    attention = 4 * model.layers * model.attention * pairs
    adapter, head = 2 * model.adapter * tokens, 2 * model.head * scored
    forward = linear + attention + adapter + head

    compute_bytes = 2 if options.half_precision else options.weight_bytes
    trained = model.adapter or model.parameters
    # peft keeps adapters in float32 whatever the base model's dtype
    trained_bytes = 4 if model.adapter else options.weight_bytes
    quantized = model.quantizable if options.load_in_4bit else 0
    weights = (model.parameters - quantized) * options.weight_bytes + quantized * QUANTIZED_BYTES
    own_reference = not (model.adapter or options.precomputed_reference)
    stream = tokens * options.weight_bytes * model.hidden
    layer = 6 * stream + tokens * compute_bytes * (5 * model.attention + 4 * model.feed_forward)
    checkpoints = model.layers * stream
    # Autocast keeps a half-precision copy of the matrices that are trained
    casts = 2 * model.matmul_parameters if compute_bytes < options.weight_bytes and not model.adapter else 0
    return StepCost(
        layout=layout,
        forward=forward,
        backward=(linear + head if model.adapter else 2 * (linear + head)) + 2 * (attention + adapter),
        recomputation=linear + attention + adapter if options.gradient_checkpointing else 0,
        reference=0 if options.precomputed_reference else linear + attention + head,
        weight_memory=weights + model.adapter * trained_bytes,
        reference_memory=weights if own_reference else 0,
        gradient_memory=trained * trained_bytes,
        optimizer_memory=trained * trained_bytes * options.optimizer_states,
        activation_memory=(checkpoints + layer if options.gradient_checkpointing else model.layers * layer) + casts,
        head_memory=4 * min(scored * (model.head // model.hidden), HEAD_TILE) + 4 * scored * model.hidden,
        mask_memory=layout.mask_bytes(compute_bytes),
    )


def largest(fits: Callable[[int], bool], limit: int = 2**20) -> int:
    """Return the largest number from 1 to `limit` that fits, 0 if 1 does not; what fits must fit when smaller.

    Example:
        >>> largest(lambda size: size**2 <= 50)
        7
    """
    high = 1
    while high <= limit and fits(high):  # not bisection at once: the layout of half a million examples takes minutes
        high *= 2
    low = high // 2
    return low + bisect_left(range(low + 1, min(high, limit + 1)), True, key=lambda size: not fits(size))
