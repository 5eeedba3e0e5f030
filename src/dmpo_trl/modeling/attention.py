"""How the ancestor mask reaches a transformers model.

transformers looks attention functions and mask functions up by name. We register both under names of our own
(`trie_sdpa`, ...) that do what the plain ones do, except inside `trie_layout(...)`, where the mask lets a token see
its ancestors only. The model's own mask (causal, sliding window, chunked) keeps its meaning: it is evaluated on depths
instead of places in the row. The names live in the model's config in memory only; transformers does not save them.
"""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import accumulate
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

logger = logging.getLogger(__name__)

MaskFunction = Callable[[Any, Any, Any, Any], torch.Tensor]

_PREFIX = "trie_"
_BASES = ("sdpa", "eager", "flex_attention")
# Trees shorter than this are not worth an attention of their own
_LEAST_LENGTH = 128
# The mask of a row, built once a forward, has the square of so many values
PACKED_LENGTH = 4096
# (depth, subtree_end), each (rows, length), while a forward runs in the trie layout
_active_layout: ContextVar[tuple[torch.Tensor, torch.Tensor] | None] = ContextVar("trie_layout", default=None)


@contextmanager
def trie_layout(position_ids: torch.Tensor, subtree_end: torch.Tensor) -> Iterator[None]:
    """Let every forward inside the block see ancestors only.

    The model must have been switched with `use_trie_attention`. The mask is built at the start of a forward, before
    the first layer, so a backward pass with gradient checkpointing may run outside the block.

    Args:
        position_ids: Depth of each token in its tree, (rows, length).
        subtree_end: Index just past each token's last descendant, (rows, length).
    """
    token = _active_layout.set((position_ids, subtree_end))
    try:
        yield
    finally:
        _active_layout.reset(token)


def _ancestors_only(mask_function: MaskFunction, depth: torch.Tensor, subtree_end: torch.Tensor) -> MaskFunction:
    def sees(batch_idx: Any, head_idx: Any, q_idx: Any, kv_idx: Any) -> torch.Tensor:
        by_depth = mask_function(batch_idx, head_idx, depth[batch_idx, q_idx], depth[batch_idx, kv_idx])
        return by_depth & (kv_idx <= q_idx) & (q_idx < subtree_end[batch_idx, kv_idx])

    return sees


def _make_mask(base: str) -> Callable[..., Any]:
    plain = ALL_MASK_ATTENTION_FUNCTIONS[base]

    def trie_mask(*, mask_function: MaskFunction, attention_mask: torch.Tensor | None, **kwargs: Any) -> Any:
        layout = _active_layout.get()
        if layout is not None:
            depth, subtree_end = (vector.to(kwargs["device"]) for vector in layout)
            mask_function = _ancestors_only(mask_function, depth, subtree_end)
            # Padding is a tree of its own: every token sees at least itself, and no row of the mask is empty
            attention_mask = None
            kwargs["allow_is_causal_skip"] = False
        mask = plain(mask_function=mask_function, attention_mask=attention_mask, **kwargs)
        if layout is not None and base == "sdpa" and mask.device.type == "cpu" and not torch.compiler.is_compiling():
            # Layers that get another tensor, copied or changed, attend to the whole row: the same, but slower
            mask.trees = _cut(mask, layout[1].tolist(), kwargs.get("dtype", torch.float32))
        return mask

    return trie_mask


def _cut(mask: torch.Tensor, subtree_end: list[list[int]], dtype: torch.dtype) -> list[list[torch.Tensor]]:
    """The masks of the trees of each row, or one of all rows where none has several; to be added to the scores.

    Sdpa would turn a boolean mask into such a one in every layer, and keep each for the backward pass.
    """
    rows = [_tree_lengths(ends) for ends in subtree_end]
    if all(len(lengths) == 1 for lengths in rows):
        return [[_additive(mask, dtype)]]
    return [
        [
            _additive(mask[row : row + 1, :, end - length : end, end - length : end], dtype)
            for end, length in zip(accumulate(lengths), lengths, strict=True)
        ]
        for row, lengths in enumerate(rows)
    ]


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


def _tree_lengths(subtree_end: list[int]) -> list[int]:
    """Lengths of a row's trees, the short ones taken together with their neighbours."""
    lengths: list[int] = []
    start = 0
    while start < len(subtree_end):
        length = subtree_end[start] - start
        if lengths and lengths[-1] + length <= _LEAST_LENGTH:
            lengths[-1] += length
        else:
            lengths.append(length)
        start += length
    return lengths


def _sdpa_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, Any]:
    """Attention tree by tree where the mask says which there are: no pair of tokens of two trees sees each other."""
    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]
    trees = getattr(attention_mask, "trees", None)
    if trees is None or kwargs.get("position_bias") is not None:
        return plain(module, query, key, value, attention_mask, **kwargs)
    if len(trees) == len(trees[0]) == 1:
        return plain(module, query, key, value, trees[0][0].to(query.dtype), **kwargs)
    rows = []
    # The backward pass of `split` is one concatenation; that of a slice is a tensor of zeros
    for masks, *states in zip(trees, query.split(1), key.split(1), value.split(1), strict=True):
        lengths = [mask.shape[-1] for mask in masks]
        parts = zip(*(state.split(lengths, dim=2) for state in states), masks, strict=True)
        outputs = [plain(module, q, k, v, mask.to(q.dtype), **kwargs)[0] for q, k, v, mask in parts]
        rows.append(torch.cat(outputs, dim=1))
    return torch.cat(rows), None


def _eager_attention(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    # Eager attention is not in transformers' registry: each modeling file has its own
    return sys.modules[type(module).__module__].eager_attention_forward(module, *args, **kwargs)


_OURS: dict[str, Callable[..., Any]] = {"eager": _eager_attention, "sdpa": _sdpa_attention}

for _base in _BASES:
    AttentionInterface.register(_PREFIX + _base, _OURS.get(_base) or ALL_ATTENTION_FUNCTIONS[_base])
    AttentionMaskInterface.register(_PREFIX + _base, _make_mask(_base))


def use_trie_attention(model: PreTrainedModel) -> bool:
    """Switch `model` to the attention that `trie_layout` steers; outside of it nothing changes.

    A model loaded with an attention that takes no such mask (FlashAttention) is switched to sdpa, with a log line.

    Returns:
        Whether the model could be switched: older architectures do not look their attention up in the registry.
    """
    current = model.config._attn_implementation
    if current is not None and current.startswith(_PREFIX):
        return True
    base = current if current in _BASES else "sdpa"
    if base != current:
        logger.warning(
            "Attention implementation %r cannot take the mask of shared prefixes: the model is switched to 'sdpa'. "
            "Set `prefix_sharing=False` to keep %r and compute a copy of the prompt for every completion.",
            current,
            current,
        )
    model.set_attn_implementation(_PREFIX + base)
    return model.config._attn_implementation == _PREFIX + base


def attention_balance(config: PretrainedConfig) -> float:
    """Length of a row, in tokens, at which attention costs as much as the rest of the model; see `plan_trees`.

    Of a layer with hidden size H, attention over a row of L tokens takes about 4 L H FLOPs per token, and the matrices
    24 H^2 (4 H^2 parameters of attention, 8 H^2 of the MLP, two FLOPs each): they are equal at L = 6 H.

    Args:
        config: Of the model.
    """
    return 6.0 * float(config.get_text_config().hidden_size)


def packed_length(device: torch.device, *models: PreTrainedModel) -> int | None:
    """Tokens of a row that trees may be packed into for `models`, which were switched; see `lay_out`.

    Sdpa on a CPU attends tree by tree. On a GPU, where that was not measured, rows are attended to whole: None, as for
    the other implementations.

    Args:
        device: Where the models will compute; FSDP and DeepSpeed move them there late.
        models: Policy and reference.
    """
    by_tree = all(model.config._attn_implementation == _PREFIX + "sdpa" for model in models)
    return PACKED_LENGTH if device.type == "cpu" and by_tree else None
