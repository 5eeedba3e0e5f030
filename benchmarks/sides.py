"""Sides of the step benchmark: different ways to compute the same loss and the same gradients.

    full logits                  N+1 copies of the prompt, logits and log-softmax of every position, as in S-DPO,
                                 DynamicPO and RecPO; written from their description
    trl fused                    N+1 copies through TRL's fused head
    trl fused, checkpointing     the same with gradient checkpointing, TRL's default
    copies                       N+1 copies in dmpo-trl: the head on scored positions only
    copies, one varlen row       the same without padding, through FlashAttention's kernel for many lengths: the
                                 strongest way to compute copies; on a GPU, or where it is named
    copies, one varlen row, checkpointing
                                 the same with gradient checkpointing, for copies that do not fit otherwise; where it
                                 is named
    copies, FlashAttention       the same with kernels that do not accept the trie's mask; on a GPU with flash-attn
    trl tree                     TRL's own prefix trie and its attention, under dmpo-trl's head; on a GPU of the Hopper
                                 generation with TRL's kernels, or where it is named
    cached prompt                the prompt once, its keys and values expanded over the completions; gradients flow
                                 through the cache
    trie                         dmpo-trl: every distinct prefix of a batch once
    trie, one at a time          one trie per example; for batches of several examples
    trie, padded rows            rows no longer than the longest tree, attended to as a whole; for batches of several
                                 examples. On a GPU this is `trie` where attention in blocks is off
    trie, FlexAttention          one row, of which hidden blocks are not visited; on a GPU
    trie, precomputed reference  without the reference's forward pass
    trie, compiled               through `torch.compile`; with --compile
    trl pairs                    TRL's `DPOTrainer`: one row per pair in TRL's own layout, fused head. The loss is a
                                 different one, the mean of the pairs' sigmoid losses
    trie, sigmoid                dmpo-trl with that loss
    sft                          plain fine-tuning on the same number of tokens, rows and scored positions, without a
                                 reference: the share of the machine's rate that a plain step reaches

Sides with copies run at most `copies_at_once` sequences per forward pass (at least those of one example or one pair)
and add gradients up over several passes. On the CPU TRL's fused head projects every position and computes the logits
again in the backward pass. With Triton it projects scored positions only; `copies` is closer to what it does there.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import tree_row
import varlen
from cases import Examples
from models import Work
from transformers import DynamicCache, LlamaConfig
from transformers.utils import is_flash_attn_2_available
from trl.trainer.dpo_trainer import DataCollatorForPreference

from dmpo_trl import DataCollatorForMultiPreference
from dmpo_trl.batching.completions import Completions, model_inputs
from dmpo_trl.losses import ScoredBatch, preference_loss
from dmpo_trl.modeling.loading import base_model_of
from dmpo_trl.modeling.row_plan import RowPlan, plan_for

BASELINE = "full logits"

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Side:
    """How a batch is split into forward passes, collated and scored.

    `score` returns one log-prob per completion, example by example, the chosen one first.
    """

    split: Callable[[Examples], list[Examples]]
    collate: Callable[[Examples], Batch]
    score: Callable[[Any, Batch], torch.Tensor]
    count: Callable[[Batch], Work]
    loss: str = "dmpo"
    attention: str = "sdpa"
    checkpointing: bool = False
    precomputed: bool = False
    compiled: bool = False
    absent: str = ""  # why it cannot run here


def make_sides(
    hidden_size: int,
    *,
    device: str,
    copies_at_once: int,
    several: bool,
    compiled: bool,
    baseline: bool = True,
    only: Iterable[str] | None = None,
) -> dict[str, Side]:
    """Return the sides by name, `BASELINE` first.

    Args:
        hidden_size: The model's, which decides when the trie's wider attention pays, as in the trainer.
        device: On the CPU rows of the trie are packed, as in the trainer; a GPU has attention kernels of its own.
        copies_at_once: Largest number of sequences per forward pass of the sides with copies.
        several: Whether batches hold several examples.
        compiled: Whether to use `torch.compile` as well.
        baseline: Whether to keep `BASELINE` where `only` does not name it.
        only: Names of the sides to keep, beside `BASELINE`; one that does not exist under these conditions is left
            out.
    """

    on_gpu = device != "cpu"
    config = LlamaConfig(hidden_size=hidden_size, num_attention_heads=1)  # of which a plan asks the width alone

    def plan(attention: str, **options: Any) -> RowPlan:
        return plan_for(torch.device(device).type, [attention], config, **options)

    def copies(score: Callable[..., torch.Tensor], **options: Any) -> Side:
        return Side(partial(by_copies, copies_at_once), collate_copies, score, **options)

    def trie(rows: RowPlan | None = None, **options: Any) -> Side:
        ours = {"split": at_once, "score": score_with_ours, "count": count_scored, "attention": "trie_sdpa"}
        return Side(collate=collator(True, rows or plan("trie_sdpa")), **ours | options)

    def collator(prefix_sharing: bool, rows: RowPlan) -> Callable[[Examples], Batch]:
        return DataCollatorForMultiPreference(
            0,
            prefix_sharing=prefix_sharing,
            pad_to_multiple_of=rows.multiple,
            attention_balance=rows.attention_balance,
            packed_length=rows.packed_length,
        )

    in_blocks = "trie_sdpa_blocks"
    rows_of_texts = collator(True, plan("sdpa"))
    fused = {"score": score_with_trl, "count": count_fused}
    own_copies = Side(partial(by_copies, copies_at_once), collator(False, plan("sdpa")), score_with_ours, count_scored)
    one_row, frugal = "copies, one varlen row", "copies, one varlen row, checkpointing"
    varlen_copies = replace(
        own_copies, collate=lambda examples: varlen.one_row(own_copies.collate(examples)), attention=varlen.NAME
    )
    tree = "trl tree"
    trl_tree = Side(at_once, collate_tree, score_with_ours, count_scored, attention=tree_row.NAME)
    flash = replace(own_copies, attention="flash_attention_2")
    sides = {
        BASELINE: copies(score_with_full_logits, count=count_all),
        "trl fused": copies(**fused),
        "trl fused, checkpointing": copies(**fused, checkpointing=True),
        "copies": own_copies,
        one_row: varlen_copies if on_gpu or one_row in (only or ()) else None,
        frugal: replace(varlen_copies, checkpointing=True) if frugal in (only or ()) else None,
        tree: trl_tree if on_gpu or tree in (only or ()) else None,
        "copies, FlashAttention": flash if on_gpu and is_flash_attn_2_available() else None,
        "cached prompt": Side(one_by_one, collate_for_cache, score_with_cache, count_cached),
        "trie": trie(),
        "trie, one at a time": trie(split=one_by_one) if several else None,
        "trie, padded rows": trie(plan("trie_sdpa", compiles=True)) if several and not on_gpu else None,
        "trie, FlexAttention": trie(plan(in_blocks), attention=in_blocks) if on_gpu else None,
        "trie, precomputed reference": trie(precomputed=True),
        "trie, compiled": trie(plan("trie_sdpa", compiles=True), compiled=True) if compiled else None,
        "trl pairs": Side(partial(by_pairs, copies_at_once), collate_pairs, score_pairs, count_fused, loss="sigmoid"),
        "trie, sigmoid": trie(loss="sigmoid"),
        "sft": Side(at_once, partial(collate_plain, rows_of_texts), score_plain, count_scored, loss="sft"),
    }
    wanted = set(sides if only is None else only)
    if baseline:
        wanted.add(BASELINE)
    if unknown := wanted - set(sides):
        raise SystemExit(f"No side is called {sorted(unknown)}: there are {sorted(sides)}.")
    kept = {name: side for name, side in sides.items() if side is not None and name in wanted}
    if tree in kept:
        kept[tree] = replace(trl_tree, absent=tree_row.obstacle(torch.device(device).type))
    return kept


# How a batch is cut into forwards


def at_once(examples: Examples) -> list[Examples]:
    return [examples]


def one_by_one(examples: Examples) -> list[Examples]:
    return [[example] for example in examples]


def by_copies(most: int, examples: Examples) -> list[Examples]:
    step = max(1, most // (len(examples[0]["rejected_ids"]) + 1))
    return [examples[i : i + step] for i in range(0, len(examples), step)]


def by_pairs(most: int, examples: Examples) -> list[Examples]:
    pairs = [example | {"rejected_ids": [rejected]} for example in examples for rejected in example["rejected_ids"]]
    return by_copies(most, pairs)


# Collating and scoring


def collate_copies(examples: Examples) -> Batch:
    """Prompt and completion, once for every completion, padded on the right; labels of prompt and padding are -100."""
    sequences = [
        (example["prompt_ids"], completion)
        for example in examples
        for completion in [example["chosen_ids"], *example["rejected_ids"]]
    ]
    return {
        "input_ids": pad([prompt + completion for prompt, completion in sequences], 0),
        "attention_mask": pad([[1] * (len(prompt) + len(completion)) for prompt, completion in sequences], 0),
        "labels": pad([[-100] * len(prompt) + completion for prompt, completion in sequences], -100),
    }


def pad(rows: list[list[int]], filler: int) -> torch.Tensor:
    length = max(map(len, rows))
    return torch.tensor([row + [filler] * (length - len(row)) for row in rows])


def score_with_full_logits(model: Any, batch: Batch) -> torch.Tensor:
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    targets = batch["labels"][:, 1:]
    logps = logits[:, :-1].float().log_softmax(dim=-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return (logps * (targets != -100)).sum(dim=-1)


def score_with_trl(model: Any, batch: Batch) -> torch.Tensor:
    return model(**batch, fused_lm_head=True, use_cache=False).log_probs.sum(dim=-1)


def collate_tree(examples: Examples) -> Batch:
    return tree_row.one_row(DataCollatorForMultiPreference(0)(examples), examples)


def collate_pairs(pairs: Examples) -> Batch:
    """Collate as TRL does: the chosen in the first half of the batch, the rejected in the second."""
    batch = DataCollatorForPreference(0)([pair | {"rejected_ids": pair["rejected_ids"][0]} for pair in pairs])
    labels = batch["input_ids"].masked_fill(batch.pop("completion_mask") == 0, -100)
    return batch | {"labels": labels}


def score_pairs(model: Any, batch: Batch) -> torch.Tensor:
    return score_with_trl(model, batch).view(2, -1).T.flatten()


def score_with_ours(model: Any, batch: Batch) -> torch.Tensor:
    token_logps = score_plain(model, batch)[batch["token_pairs"]]
    return Completions.of(batch).sum(token_logps)


def score_plain(model: Any, batch: Batch) -> torch.Tensor:
    """Return one log-prob per scored pair of position and token."""
    return model(**model_inputs(batch)).log_probs


def collate_plain(collator: Callable[[Examples], Batch], examples: Examples) -> Batch:
    """The rows that `collator` lays out, as if each were one text."""
    return {k: v for k, v in collator(examples).items() if k not in ("position_ids", "subtree_end")}


def collate_for_cache(examples: Examples) -> Batch:
    """The prompt, and what follows it: completions without their last token, which predicts nothing."""
    (example,) = examples
    prompt, completions = example["prompt_ids"], [example["chosen_ids"], *example["rejected_ids"]]
    scored = [(i, j, ids[j + 1]) for i, ids in enumerate(completions) for j in range(len(ids) - 1)]
    rows, columns, targets = (torch.tensor(values, dtype=torch.long) for values in zip(*scored, strict=True))
    return {
        "prompt_ids": torch.tensor([prompt]),
        "first_tokens": torch.tensor([ids[0] for ids in completions]),
        "input_ids": pad([ids[:-1] for ids in completions], 0),
        "attention_mask": pad([[1] * (len(prompt) + len(ids) - 1) for ids in completions], 0),
        "scored_rows": rows,
        "scored_columns": columns,
        "scored_targets": targets,
    }


def score_with_cache(model: Any, batch: Batch) -> torch.Tensor:
    from dmpo_trl.recommend.decoding.prefixes import cache_argument  # which reads catalogues, by polars

    inputs = dict(batch)
    prompt, first = inputs.pop("prompt_ids"), inputs.pop("first_tokens")
    cache = DynamicCache(config=model.config)
    held = {cache_argument(base_model_of(model)): cache}
    last = {"scored_rows": torch.zeros_like(first), "scored_columns": torch.full_like(first, -1)}
    logps = model(
        input_ids=prompt, **held, use_cache=True, scored_targets=first, **last
    ).log_probs  # first tokens', (C,)
    cache.batch_repeat_interleave(len(first))
    rest = model(**inputs, **held, use_cache=True).log_probs
    return logps.index_add(0, batch["scored_rows"], rest)


# What is computed


def count_all(batch: Batch) -> Work:
    tokens, seen = _tokens(batch)
    return Work(tokens, seen, tokens)


def count_fused(batch: Batch) -> Work:
    tokens, seen = _tokens(batch)
    compact = batch["labels"].device.type != "cpu"
    return Work(tokens, seen, int((batch["labels"][:, 1:] != -100).sum()) if compact else tokens)


def count_scored(batch: Batch) -> Work:
    return Work(*_tokens(batch), len(batch["scored_targets"]))


def count_cached(batch: Batch) -> Work:
    prompt, branches = batch["prompt_ids"].shape[1], len(batch["first_tokens"])
    tokens, seen = _tokens(batch)  # as if every branch had the prompt's tokens as its own
    shared = branches - 1
    return Work(
        tokens - shared * prompt,
        seen - shared * prompt * (prompt + 1) // 2,
        len(batch["first_tokens"]) + len(batch["scored_targets"]),
    )


def _tokens(batch: Batch) -> tuple[int, int]:
    mask = batch["attention_mask"]
    depth = batch["position_ids"] + 1 if "position_ids" in batch else mask.cumsum(dim=1)
    return int(mask.sum()), int((depth * mask).sum())


def loss_of(name: str, logps: torch.Tensor, ref_logps: torch.Tensor | None, examples: int) -> torch.Tensor:
    """Mean loss. Completions stand example by example, the chosen one first, as many for each example."""
    if ref_logps is None:
        return -logps.mean()
    logps, ref_logps = logps.view(examples, -1), ref_logps.view(examples, -1)  # (B, N+1)
    rejected = logps[:, 1:].flatten()
    batch = ScoredBatch(
        chosen_logps=logps[:, 0],
        rejected_logps=rejected,
        ref_chosen_logps=ref_logps[:, 0],
        ref_rejected_logps=ref_logps[:, 1:].flatten(),
        num_rejected=torch.full((examples,), logps.shape[1] - 1, device=logps.device),
        chosen_lengths=torch.ones(examples),  # neither loss looks at lengths
        rejected_lengths=torch.ones(len(rejected)),
        chosen_nll=torch.zeros(()),  # nor at the likelihood of the chosen completion
    )
    return preference_loss(name, batch, SimpleNamespace(label_smoothing=0.0)).mean()
