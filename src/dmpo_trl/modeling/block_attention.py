"""Attention block by block: the mask of shared prefixes in FlexAttention, whose kernels leave out hidden blocks.

No tensor has the square of a row's length, so that a batch may be one row of any length. On CUDA `flex_attention` is
compiled, once for all lengths; on a CPU it computes all scores, without a backward pass: there it is for tests.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import PretrainedConfig

from ..batching.blocks import visible_blocks
from ..batching.lengths import BLOCK

MaskFunction = Callable[[Any, Any, Any, Any], torch.Tensor]  # of batch, head, query and key indices

# What some models add to or make of the scores, by the argument that transformers passes it in
_FOREIGN = ("softcap", "s_aux", "position_bias")
_COMPILATIONS = 64
_LEAST_HEAD_SIZE = 16  # of FlexAttention's kernels


def block_mask(subtree_end: torch.Tensor, sees: MaskFunction, *, ancestors_only: bool) -> BlockMask:
    """Return the mask of rows for `flex_attention`.

    Args:
        subtree_end: Index just past each token's last descendant, (rows, length); the length a multiple of 128.
        sees: The mask, true for ancestors at most.
        ancestors_only: Whether `sees` hides no ancestor. If it may (a sliding window), it is evaluated in every block
            that has an ancestor: `create_block_mask` would leave out those beyond the window too, at the price of a
            tensor with the square of the row's length, or of one more function to compile.
    """
    visited, full = visible_blocks(subtree_end)
    if not ancestors_only:
        full = torch.zeros_like(full)
    partial_counts, partial = _in_order(visited & ~full)
    full_counts, whole = _in_order(full)
    length = subtree_end.shape[1]
    return BlockMask.from_kv_blocks(
        partial_counts, partial, full_counts, whole, BLOCK, sees, seq_lengths=(length, length)
    )


def _in_order(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Number of chosen blocks of keys, and their indices, followed by those of the others; for all heads."""
    indices = blocks.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32)[:, None], indices.to(torch.int32)[:, None]


@functools.cache
def _compiled() -> Any:
    # Once for all lengths. As one graph, which is an error where it cannot be compiled or is compiled too often:
    # otherwise torch would go on without the kernel, with all scores in memory, and say nothing
    # The limit: it is compiled anew for each mask of a model, with and without gradients and autocast
    compiled: Any = torch.compile  # whose types leave the limit out
    return compiled(
        flex_attention, dynamic=True, fullgraph=True, recompile_limit=_COMPILATIONS, isolate_recompiles=True
    )


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: BlockMask,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as the attention functions of transformers do.

    Args:
        query: (rows, heads, length, head size).
        key: (rows, key-value heads, length, head size).
        value: Likewise.
        mask: What [`block_mask`] made.
        scaling: Factor of the scores; by default one over the root of the head size.
        dropout: Must be 0.
        **kwargs: Of transformers. What changes the scores must not be among them.

    Returns:
        The output, (rows, length, heads, head size).

    Raises:
        NotImplementedError: Dropout, sinks, a soft-cap or a bias of the scores.
    """
    foreign = [name for name in _FOREIGN if kwargs.get(name) is not None] + ["dropout"] * (dropout > 0)
    if foreign:
        raise NotImplementedError(
            f"FlexAttention over shared prefixes takes no {', '.join(foreign)}: set `block_attention=False`."
        )
    # The rotation of queries and keys leaves them in the precision of the angles
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
    query, key, value = (states.to(dtype) for states in (query, key, value))
    function = _compiled() if device == "cuda" else flex_attention
    output = function(
        query,
        key,
        value,
        block_mask=mask,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        # Not the kernel for a few queries behind many keys, which rows of 128 tokens might get
        kernel_options={"FORCE_USE_FLEX_ATTENTION": True},
    )
    return output.transpose(1, 2).contiguous(), None


def block_obstacle(config: PretrainedConfig, implementation: str, device_type: str, *, triton: bool) -> str | None:
    """Return why a model's shared prefixes are not attended to block by block; None if they may be.

    Args:
        config: Config of the model.
        implementation: Transformers' attention that does the work otherwise.
        device_type: Where the model will compute.
        triton: Whether Triton is installed.

    Example:
        >>> from transformers import LlamaConfig
        >>> block_obstacle(LlamaConfig(), "sdpa", "cpu", triton=True)
        'FlexAttention has a backward pass on CUDA only'
        >>> block_obstacle(LlamaConfig(), "sdpa", "cuda", triton=True)
    """
    config = config.get_text_config()
    if device_type != "cuda":
        return "FlexAttention has a backward pass on CUDA only"
    if not triton:
        return "Triton is not installed"
    if implementation not in ("sdpa", "flex_attention"):  # as models with sinks or soft-caps have
        return f"the model's attention is {implementation}"
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if head_size < _LEAST_HEAD_SIZE:
        return f"its heads are of {head_size}, and FlexAttention's of {_LEAST_HEAD_SIZE} or more"
    for name in ("attention_dropout", "attn_pdrop", "attn_dropout", "attention_probs_dropout_prob"):
        if getattr(config, name, None):
            return f"`{name}` is {getattr(config, name)}"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return "its scores have a soft-cap"
    return None
