"""Rows that suit an attention: how long they may be, and what a long one costs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

from ..batching.lengths import BLOCK
from .attention import PACKED_LENGTH, attends_in_blocks, attention_balance

ONE_ROW = 2**31
"""Tokens of a row that holds all trees of any batch."""

# FLOPs per second of matrix products on a GPU, divided by those of attention with a dense mask (cutlass' efficient
# kernel, 80 TFLOP/s of 600). From published rates: no GPU has run this package yet
_DENSE_ON_GPU = 7.6
# That kernel copies a mask whose rows do not begin at multiples of so many values, in every layer
_MASK_ALIGNMENT = 16


@dataclass(frozen=True)
class RowPlan:
    """How the trees of a batch are laid out in rows; see `lay_out`.

    Attributes:
        packed_length: Tokens of a row that trees are packed into; None for no packing.
        multiple: Rows are rounded up to a multiple of this.
        attention_balance: Length at which attention costs as much as the rest of the model; see `plan_trees`.
    """

    packed_length: int | None
    multiple: int
    attention_balance: float

    @property
    def in_blocks(self) -> bool:
        """Whether all trees stand in one row of whole blocks, of which attention visits those with a visible pair."""
        return self.packed_length == ONE_ROW

    def options(self) -> dict[str, Any]:
        """Return the arguments of `lay_out`, and of the collator, that lay batches out so."""
        return {
            "packed_length": self.packed_length,
            "pad_to_multiple_of": self.multiple,
            "attention_balance": self.attention_balance,
        }


def plan_for(device_type: str, names: Sequence[str], config: PretrainedConfig, *, compiles: bool = False) -> RowPlan:
    """Return the rows that suit the attention of models on a device.

    - In blocks: all trees in one row, whose length is a multiple of a block. Other users' blocks are not visited, so
      it costs nothing to join examples.
    - Sdpa on a CPU goes tree by tree: rows of up to `PACKED_LENGTH`, whose mask is built once a forward.
    - A dense mask: rows no longer than the longest tree. On a GPU attention is slower than matrix products, so fewer
      examples are joined.

    Args:
        device_type: Where the models will compute; FSDP and DeepSpeed move them there late.
        names: Attention implementations of policy and reference.
        config: Config of the policy.
        compiles: Whether `torch.compile` will compile the policy, anew for each packing of trees.

    Example:
        >>> from transformers import LlamaConfig
        >>> plan_for("cpu", ["trie_sdpa"], LlamaConfig(hidden_size=64))
        RowPlan(packed_length=4096, multiple=1, attention_balance=384.0)
        >>> plan_for("cuda", ["trie_sdpa_blocks"], LlamaConfig(hidden_size=64))
        RowPlan(packed_length=2147483648, multiple=128, attention_balance=inf)
    """
    if all(map(attends_in_blocks, names)):
        return RowPlan(ONE_ROW, BLOCK, math.inf)
    balance = attention_balance(config)
    if device_type == "cpu":
        by_tree = all(name == "trie_sdpa" for name in names) and not compiles
        return RowPlan(PACKED_LENGTH if by_tree else None, 1, balance)
    return RowPlan(None, _MASK_ALIGNMENT, balance / _DENSE_ON_GPU)
