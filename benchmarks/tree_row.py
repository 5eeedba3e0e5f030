"""TRL's own prefix trie (`TreeRow` of its AsyncGRPO trainer, 1.16) under dmpo-trl's head.

Every segment of the trie attends to gathered keys and values of its path, through FlashAttention-3, which TRL fetches
from the hub by the package `kernels` and which is for Hopper. On a CPU the same is computed segment by segment.
"""

from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

NAME = "trl_tree"


@cache
def obstacle(device_type: str) -> str:
    """Return why TRL's attention cannot run on a device; an empty text if it can."""
    try:
        from trl.experimental.async_grpo import packing

        if device_type == "cuda":
            packing._flash_attn()
    except (
        Exception
    ) as error:  # no network, no package, no kernel for this card or this torch: any of them is a reason
        return f"TRL's kernels are not to be had here: {type(error).__name__}: {error}".splitlines()[0]
    return ""


def one_row(copies: dict[str, Any], examples: list[dict[str, Any]]) -> dict[str, Any]:
    """Turn a batch of copies, one to a row, into the row that TRL makes of the same sequences.

    Args:
        copies: The batch, as dmpo-trl lays it out without prefix sharing.
        examples: What it was made of.
    """
    from trl.experimental.async_grpo.packing import TreeRow

    row = TreeRow()
    for example in examples:
        prompt = example["prompt_ids"]
        for completion in [example["chosen_ids"], *example["rejected_ids"]]:
            row.add(
                {
                    "input_ids": torch.tensor(prompt + completion),
                    "completion_mask": torch.tensor([0] * len(prompt) + [1] * len(completion)),
                    "old_log_probs": torch.zeros(len(prompt) + len(completion)),
                    "advantage": 0.0,
                    "group_id": 0,
                }
            )
    packed = row.pack()
    length = len(packed["input_ids"])
    # A position has one next token: it is scored once, for all samples that share it
    places, pairs = packed["token_index"].unique(return_inverse=True)
    longest_segment, longest_path = packed["tree_max_seqlens"].tolist()
    return copies | {
        "input_ids": packed["input_ids"][None],
        "attention_mask": torch.ones(1, length, dtype=torch.long),
        "position_ids": packed["position_ids"][None],
        "scored_rows": torch.zeros_like(places),
        "scored_columns": places - length,
        "scored_targets": packed["shift_labels"][places],
        "token_pairs": pairs,
        "tree_kv_index": packed["tree_kv_index"],
        "tree_cu_seqlens_q": packed["tree_cu_seqlens_q"],
        "tree_cu_seqlens_k": packed["tree_cu_seqlens_k"],
        "tree_max_seqlen_q": longest_segment,
        "tree_max_seqlen_k": longest_path,
    }


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as the attention functions of transformers do: (1, heads, length, size) to (1, length, heads, size)."""
    if query.device.type == "cuda":
        from trl.experimental.async_grpo.packing import tree_attention

        return tree_attention(module, query, key, value, attention_mask, **kwargs)
    segments, paths = (pairwise(kwargs[f"tree_cu_seqlens_{side}"].tolist()) for side in "qk")
    parts = []
    for (start, end), (first, last) in zip(segments, paths, strict=True):
        path = kwargs["tree_kv_index"][first:last]
        # A path ends with its segment: the last query sees all of it
        sees = torch.ones(end - start, len(path), dtype=torch.bool).tril(len(path) - (end - start))
        parts.append(
            scaled_dot_product_attention(
                query[:, :, start:end],
                key[:, :, path],
                value[:, :, path],
                attn_mask=sees,
                scale=kwargs.get("scaling"),
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, lambda **kwargs: None)
