"""Copies of the prompt as one row without padding, through FlashAttention's kernel for sequences of many lengths.

The strongest way to compute copies: nothing is padded, and each sequence attends to itself alone. torch has the kernel
(`torch.nn.attention.varlen`) for CUDA; on a CPU the same is computed sequence by sequence.
"""

from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "varlen"


def one_row(batch: dict[str, Any]) -> dict[str, Any]:
    """Turn a batch of copies, one to a row, into one row of all of them."""
    mask = batch["attention_mask"].bool()
    lengths = mask.sum(dim=1)
    ends = lengths.cumsum(0)
    total, width = int(ends[-1]), mask.shape[1]
    places = (ends - lengths)[batch["scored_rows"]] + batch["scored_columns"] + width
    return batch | {
        "input_ids": batch["input_ids"][mask][None],
        "attention_mask": torch.ones(1, total, dtype=torch.long),
        "position_ids": (mask.cumsum(dim=1) - 1)[mask][None],
        "scored_rows": torch.zeros_like(places),
        "scored_columns": places - total,
        "cu_seq_lens_q": torch.cat([ends.new_zeros(1), ends]).to(torch.int32),
        "max_length_q": int(lengths.max()),
    }


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as the attention functions of transformers do: (1, heads, length, size) to (1, length, heads, size)."""
    grouped = query.shape[1] != key.shape[1]
    if query.device.type == "cuda":
        from torch.nn.attention.varlen import varlen_attn

        states = (state[0].transpose(0, 1).to(value.dtype) for state in (query, key, value))
        lengths = (cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q)
        causal = (-1, 0)  # all before, none after
        return varlen_attn(*states, *lengths, scale=scaling, window_size=causal, enable_gqa=grouped)[None], None
    options: dict[str, Any] = {"is_causal": True, "scale": scaling, "enable_gqa": grouped}
    parts = [
        scaled_dot_product_attention(*(state[:, :, start:end] for state in (query, key, value)), **options)
        for start, end in pairwise(cu_seq_lens_q.tolist())
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attention)
