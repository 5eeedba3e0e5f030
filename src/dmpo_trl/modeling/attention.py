"""Attention masks by depth.

Several sequences with common beginnings share one row of a batch: as a trie (training, scoring) or as branches behind
a key-value cache (beam search). Either is a `Visibility`: the depth of each token in its own sequence, and which
tokens of the row belong to that sequence. The model's own mask (causal, sliding window, chunked) keeps its meaning: it
is evaluated on depths instead of places in the row.

transformers looks attention functions and mask functions up by name. Both are registered here under names of our own
(`trie_sdpa`, ...) that do what the plain ones do, except while a layout is active. `trie_sdpa_blocks` attends to a row
of whole blocks with FlexAttention (`block_attention.py`), and does as `trie_sdpa` otherwise. The names live in the
model's config in memory only; transformers does not save them.
"""

import functools
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..batching.lengths import BLOCK
from .block_attention import attend, block_mask

logger = logging.getLogger(__name__)

MaskFunction = Callable[[Any, Any, Any, Any], torch.Tensor]  # of batch, head, query and key indices

_PREFIX = "trie_"
_BASES = ("sdpa", "eager", "flex_attention")
_IN_BLOCKS = _PREFIX + "sdpa_blocks"
# Trees shorter than this are not worth an attention of their own
_LEAST_LENGTH = 128
# Longer trees, as of several positions of a user, go in parts of so many tokens
_LONG_TREE, _PART = 512, 256
# The mask of a row, built once per forward, has the square of this many values
PACKED_LENGTH = 4096


@dataclass(frozen=True)
class Visibility:
    """How sequences with common beginnings lie in the rows of a batch.

    Attributes:
        depth: Place of each token in its own sequence, (rows, columns).
        table: What `sees` looks up, (rows, ...).
        sees: Whether a token is on the path of another, by `table` and the indices of row, query and key.
        subtree_end: Where a row consists of whole trees, the index just past each token's last descendant.
    """

    depth: torch.Tensor
    table: torch.Tensor
    sees: Callable[[torch.Tensor, Any, Any, Any], torch.Tensor]
    subtree_end: torch.Tensor | None = None


_active_layout: ContextVar[Visibility | None] = ContextVar("layout", default=None)
# Of the boolean mask of a forward, the additive masks of its trees. Keyed by the mask itself, which every layer gets:
# a backward pass with gradient checkpointing runs the layers again when no layout is active any more.
_masks_of_trees: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


@contextmanager
def trie_layout(position_ids: torch.Tensor, subtree_end: torch.Tensor) -> Iterator[None]:
    """Let every forward inside the block see ancestors only.

    The model must have been switched with `use_trie_attention`. The mask is built at the start of a forward, before
    the first layer, so a backward pass with gradient checkpointing may run outside the block.

    Args:
        position_ids: Depth of each token in its tree, (rows, length).
        subtree_end: Index just past each token's last descendant, (rows, length).
    """
    with _active(Visibility(position_ids, subtree_end, _is_ancestor, subtree_end)):
        yield


@contextmanager
def branch_layout(depth: torch.Tensor, path: torch.Tensor) -> Iterator[None]:
    """Let new tokens behind a key-value cache see the tokens of their own branch only.

    The model must be inside `branch_attention`.

    Args:
        depth: Place of each token in its own sequence, cached and new ones, (rows, columns).
        path: Which columns each new token sees, (rows, new, columns).
    """
    first = depth.size(1) - path.size(1)

    def is_on_path(path: torch.Tensor, batch: Any, query: Any, key: Any) -> torch.Tensor:
        return path[batch, query - first, key]

    with _active(Visibility(depth, path, is_on_path)):
        yield


@contextmanager
def _active(layout: Visibility) -> Iterator[None]:
    token = _active_layout.set(layout)
    try:
        yield
    finally:
        _active_layout.reset(token)


def _is_ancestor(subtree_end: torch.Tensor, batch: Any, query: Any, key: Any) -> torch.Tensor:
    return (key <= query) & (query < subtree_end[batch, key])


def _by_depth(mask_function: MaskFunction, layout: Visibility, device: torch.device) -> MaskFunction:
    depth, table, is_on_path = layout.depth.to(device), layout.table.to(device), layout.sees

    def sees(batch_idx: Any, head_idx: Any, q_idx: Any, kv_idx: Any) -> torch.Tensor:
        by_depth = mask_function(batch_idx, head_idx, depth[batch_idx, q_idx], depth[batch_idx, kv_idx])
        return by_depth & is_on_path(table, batch_idx, q_idx, kv_idx)

    return sees


def _make_mask(base: str, in_blocks: bool = False) -> Callable[..., Any]:
    plain = ALL_MASK_ATTENTION_FUNCTIONS[base]

    def mask_by_depth(*, mask_function: MaskFunction, attention_mask: torch.Tensor | None, **kwargs: Any) -> Any:
        layout = _active_layout.get()
        if layout is None:
            return plain(mask_function=mask_function, attention_mask=attention_mask, **kwargs)
        if in_blocks and _is_whole_blocks(layout):
            return _block_mask(mask_function, layout, kwargs["device"])
        # Every token sees at least itself, padding too, so that no row of the mask is empty
        mask_function = _by_depth(mask_function, layout, kwargs["device"])
        kwargs["allow_is_causal_skip"] = False
        mask = plain(mask_function=mask_function, attention_mask=None, **kwargs)
        if base == "sdpa" and layout.subtree_end is not None and not torch.compiler.is_compiling():
            device = mask.device.type
            autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
            dtype = autocast or kwargs.get("dtype", torch.float32)
            # Elsewhere than on a CPU, reading where the trees end would wait for all that was launched before
            by_tree = device == "cpu"
            _masks_of_trees[mask] = (
                _cut(mask, layout.subtree_end.tolist(), dtype) if by_tree else [[[_Part.whole(mask, dtype)]]]
            )
        return mask

    return mask_by_depth


def _is_whole_blocks(layout: Visibility) -> bool:
    """Whether a layout is one row of whole trees in whole blocks, as training lays batches out for such attention."""
    rows, length = layout.depth.shape
    return layout.subtree_end is not None and rows == 1 and length % BLOCK == 0


def _block_mask(mask_function: MaskFunction, layout: Visibility, device: torch.device) -> BlockMask:
    ends = layout.table.to(device)
    plain: Any = causal_mask_function
    if mask_function is plain:  # an ancestor is never deeper than the token, so that the causal rule adds nothing

        def sees(batch_idx: Any, head_idx: Any, q_idx: Any, kv_idx: Any) -> torch.Tensor:
            return _is_ancestor(ends, batch_idx, q_idx, kv_idx)

        return block_mask(ends, sees, ancestors_only=True)
    return block_mask(ends, _by_depth(mask_function, layout, device), ancestors_only=False)


class _Part(NamedTuple):
    """Neighbouring tokens of a tree, and what they see of it.

    Attributes:
        queries: How many tokens.
        keys: Places in the tree of the tokens that any of them sees; None: all of the tree's.
        mask: To be added to the scores. Sdpa would turn a boolean mask into such a one in every layer, and keep each
            for the backward pass.
    """

    queries: int
    keys: torch.Tensor | None
    mask: torch.Tensor

    @classmethod
    def whole(cls, mask: torch.Tensor, dtype: torch.dtype) -> "_Part":
        """Return all of a tree, or of rows of whole trees."""
        return cls(mask.shape[-1], None, _additive(mask, dtype))


def _cut(mask: torch.Tensor, subtree_end: list[list[int]], dtype: torch.dtype) -> list[list[list[_Part]]]:
    """Return the parts of the trees of each row, or one for all rows where none has several trees or a long one."""
    rows = [_tree_lengths(ends) for ends in subtree_end]
    if all(len(lengths) == 1 for lengths in rows) and mask.shape[-1] <= _LONG_TREE:
        return [[[_Part.whole(mask, dtype)]]]
    return [
        [
            _parts(mask[row : row + 1, :, end - length : end, end - length : end], dtype)
            for end, length in zip(accumulate(lengths), lengths, strict=True)
        ]
        for row, lengths in enumerate(rows)
    ]


def _parts(mask: torch.Tensor, dtype: torch.dtype) -> list[_Part]:
    """Return the parts of a tree. Branches hide each other: a part of a long one leaves out what it does not see."""
    if mask.shape[-1] <= _LONG_TREE:
        return [_Part.whole(mask, dtype)]
    parts = []
    for own in mask.split(_PART, dim=2):
        keys = own.flatten(0, 2).any(dim=0).nonzero().squeeze(-1)
        parts.append(_Part(own.shape[2], keys, _additive(own[..., keys], dtype)))
    return parts


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
    """Attend tree by tree where the trees of a mask are known: no pair of tokens of two trees sees each other.

    A layer that gets another tensor, a copy or a changed mask, attends to the whole row: the same, but slower.
    """
    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]
    trees = None
    if attention_mask is not None and not torch.compiler.is_compiling():
        trees = _masks_of_trees.get(attention_mask)
    if trees is None or kwargs.get("position_bias") is not None:
        return plain(module, query, key, value, attention_mask, **kwargs)
    if len(trees) == len(trees[0]) == len(trees[0][0]) == 1:
        return plain(module, query, key, value, _as_scores(trees[0][0][0].mask, query), **kwargs)
    rows = []
    # The backward pass of `split` is one concatenation; that of a slice is a tensor of zeros
    for own, *states in zip(trees, query.split(1), key.split(1), value.split(1), strict=True):
        lengths = [sum(part.queries for part in parts) for parts in own]
        outputs = []
        for parts, q, k, v in zip(own, *(state.split(lengths, dim=2) for state in states), strict=True):
            for part, asking in zip(parts, q.split([part.queries for part in parts], dim=2), strict=True):
                seen = (k, v) if part.keys is None else (k.index_select(2, part.keys), v.index_select(2, part.keys))
                outputs.append(plain(module, asking, *seen, _as_scores(part.mask, asking), **kwargs)[0])
        rows.append(torch.cat(outputs, dim=1))
    return torch.cat(rows), None


def _as_scores(mask: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """The mask in the precision that sdpa asks for; autocast, for which it was made, converts queries instead."""
    return mask if torch.is_autocast_enabled(query.device.type) else mask.to(query.dtype)


def _eager_attention(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    # Eager attention is not in transformers' registry: each modeling file has its own
    return sys.modules[type(module).__module__].eager_attention_forward(module, *args, **kwargs)


_OURS: dict[str, Callable[..., Any]] = {"eager": _eager_attention, "sdpa": _sdpa_attention}

for _base in _BASES:
    AttentionInterface.register(_PREFIX + _base, _OURS.get(_base) or ALL_ATTENTION_FUNCTIONS[_base])
    AttentionMaskInterface.register(_PREFIX + _base, _make_mask(_base))


def _attention_in_blocks(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
) -> tuple[torch.Tensor, Any]:
    attention = attend if isinstance(mask, BlockMask) else functools.partial(_sdpa_attention, module)
    return attention(query, key, value, mask, **kwargs)


AttentionInterface.register(_IN_BLOCKS, _attention_in_blocks)
AttentionMaskInterface.register(_IN_BLOCKS, _make_mask("sdpa", in_blocks=True))


def attends_in_blocks(name: str | None) -> bool:
    """Return whether the attention implementation of a name is the one that attends in blocks.

    Example:
        >>> attends_in_blocks("trie_sdpa_blocks"), attends_in_blocks("trie_sdpa")
        (True, False)
    """
    return name == _IN_BLOCKS


def plain_attention(model: PreTrainedModel, bases: Sequence[str] = _BASES) -> str:
    """Return the name of transformers' implementation that does the work inside of ours.

    Args:
        model: A transformers model, switched or not.
        bases: Implementations to keep; for any other it is `"sdpa"`.
    """
    name = (model.config._attn_implementation or "sdpa").removeprefix(_PREFIX).removesuffix("_blocks")
    return name if name in bases else "sdpa"


def use_trie_attention(model: PreTrainedModel, *, blocks: bool = False) -> bool:
    """Switch `model` to the attention that `trie_layout` steers; outside of it nothing changes.

    A model loaded with an attention that takes no such mask (FlashAttention) is switched to sdpa, with a warning.

    Args:
        model: A transformers model.
        blocks: Attend to one row of whole blocks with FlexAttention, and to what else there is with sdpa; False leaves
            a model that does as it is.

    Returns:
        Whether the model could be switched: older architectures do not look their attention up in the registry.
    """
    current = model.config._attn_implementation
    ours = current is not None and current.startswith(_PREFIX)
    if ours and (attends_in_blocks(current) or not blocks):
        return True
    base = plain_attention(model)
    if base != current and not ours:
        logger.warning(
            "Attention implementation %r cannot take the mask of shared prefixes: the model is switched to 'sdpa'. "
            "Set `prefix_sharing=False` to keep %r and compute a copy of the prompt for every completion.",
            current,
            current,
        )
    name = _IN_BLOCKS if blocks else _PREFIX + base
    model.set_attn_implementation(name)
    return model.config._attn_implementation == name


@contextmanager
def attention_restored(model: PreTrainedModel) -> Iterator[None]:
    """Give `model` back the attention implementation that it has now, whatever happens inside the block.

    Args:
        model: A transformers model.
    """
    before = model.config._attn_implementation
    try:
        yield
    finally:
        if model.config._attn_implementation != before:
            model.set_attn_implementation(before)


@contextmanager
def branch_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let `branch_layout` steer the attention of `model` inside the block.

    Args:
        model: A transformers model.
    """
    with attention_restored(model):
        name = _PREFIX + plain_attention(model, bases=("sdpa", "eager"))
        if model.config._attn_implementation != name:
            model.set_attn_implementation(name)
        yield


def attention_balance(config: PretrainedConfig) -> float:
    """Return the length of a row, in tokens, at which attention costs as much as the rest of the model.

    Of a layer with hidden size H, attention over a row of L tokens takes about 4 L H FLOPs per token, and the matrices
    24 H^2 (4 H^2 parameters of attention, 8 H^2 of the MLP, two FLOPs each): they are equal at L = 6 H. `plan_trees`
    uses it.

    Args:
        config: Config of the model.

    Example:
        >>> from transformers import LlamaConfig
        >>> attention_balance(LlamaConfig(hidden_size=64))
        384.0
    """
    return 6.0 * float(config.get_text_config().hidden_size)
