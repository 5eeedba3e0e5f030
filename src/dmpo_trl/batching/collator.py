"""Collation: from tokenised examples to the tensors of a batch."""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

import torch
from transformers.data.data_collator import DataCollatorMixin

from ..preprocessing.format import VALUE_COLUMNS, holds_several
from .completions import Completions
from .lengths import row_length
from .trie import Row, TokenIds, build_row, join_trees, pack, plan_rows, plan_trees


def lay_out(
    prompts: Sequence[TokenIds],
    completions: Sequence[Sequence[TokenIds]],
    *,
    prefix_sharing: bool,
    pad_token_id: int,
    pad_to_multiple_of: int | None = None,
    attention_balance: float = 4096.0,
    packed_length: int | None = None,
    skip_half_blocks: bool = False,
) -> dict[str, torch.Tensor]:
    """Lay token sequences out as the inputs of a forward that scores every completion.

    Args:
        prompts: Token ids of each prompt.
        completions: For each prompt, the token ids of its completions; their number may differ.
        prefix_sharing: Compute every distinct prefix of a row once (trie layout), or one copy of the prompt for every
            completion. The copies are right for every model, the trie only where the probe says so.
        pad_token_id: Token that fills rows up to the longest.
        pad_to_multiple_of: Round the row length up to a multiple of this.
        attention_balance: See `plan_trees`.
        packed_length: Pack trees into rows of so many tokens, or of the longest tree's. For attention that goes tree
            by tree, to which a long row costs no more than short ones. None: no row is
            longer than the longest tree, and the others are padded.
        skip_half_blocks: Give rows no length at which cuDNN's gradients are NaN; see `row_length`.

    Returns:
        `input_ids`, `attention_mask` (rows, length) and, in the trie layout, `position_ids` and `subtree_end`;
        `scored_rows`, `scored_columns` (counted from the end, hence negative), `scored_targets` (S,): the distinct
        (position, next token) pairs; `token_pairs`, `token_completions` (T,): for each token of each completion, its
        pair and the index of its completion. Completions are numbered in the order given.
    """
    counter = count()
    numbers = [[next(counter) for _ in options] for options in completions]
    if prefix_sharing:
        sizes = [len(prompt) + sum(map(len, options)) for prompt, options in zip(prompts, completions, strict=True)]

        def build(members: list[int]) -> Row:
            return build_row(
                [prompts[i] for i in members],
                [completions[i] for i in members],
                [number for i in members for number in numbers[i]],
            )

        if packed_length is None:
            rows = [build(members) for members in plan_rows(prompts, sizes, attention_balance)]
        else:
            trees = [build(members) for _, members in plan_trees(prompts, sizes, attention_balance)]
            packed = pack([len(tree.input_ids) for tree in trees], packed_length)
            rows = [join_trees([trees[i] for i in members]) for members in packed]
    else:
        rows = [
            build_row([prompt], [[completion]], [number])
            for prompt, options, own_numbers in zip(prompts, completions, numbers, strict=True)
            for completion, number in zip(options, own_numbers, strict=True)
        ]
    longest = max(1, *(len(row.input_ids) for row in rows))
    length = row_length(longest, pad_to_multiple_of, skip_half_blocks=skip_half_blocks)
    return _to_tensors(rows, prefix_sharing, pad_token_id, length)


def _to_tensors(rows: list[Row], prefix_sharing: bool, pad_token_id: int, length: int) -> dict[str, torch.Tensor]:

    lengths = [len(row.input_ids) for row in rows]

    def padded(values: list[list[int]], filler: int) -> torch.Tensor:
        fillers = [[filler] * (length - own) for own in lengths]
        return _tensor(chain.from_iterable(chain.from_iterable(zip(values, fillers, strict=True)))).view(-1, length)

    batch = {
        "input_ids": padded([row.input_ids for row in rows], pad_token_id),
        "attention_mask": (torch.arange(length) < torch.tensor(lengths)[:, None]).long(),
    }
    if prefix_sharing:
        batch["position_ids"] = padded([row.position_ids for row in rows], 0)
        # A padding token is a tree of one: it sees itself and nothing sees it
        ends = [chain(row.subtree_end, range(own + 1, length + 1)) for row, own in zip(rows, lengths, strict=True)]
        batch["subtree_end"] = _tensor(chain.from_iterable(ends)).view(-1, length)

    columns: dict[str, list[int]] = {
        name: [] for name in ("scored_rows", "scored_columns", "scored_targets", "token_pairs", "token_completions")
    }
    for index, row in enumerate(rows):
        offset = len(columns["scored_targets"])
        columns["scored_rows"] += [index] * len(row.scored_nodes)
        # Counted from the end, a position survives virtual tokens that prompt-learning PEFT methods prepend
        columns["scored_columns"] += [node - length for node in row.scored_nodes]
        columns["scored_targets"] += row.scored_targets
        for completion, entries in row.completions.items():
            columns["token_pairs"] += [offset + entry for entry in entries]
            columns["token_completions"] += [completion] * len(entries)
    return batch | {name: _tensor(values) for name, values in columns.items()}


def _tensor(values: Iterable[int]) -> torch.Tensor:
    """Make a tensor of numbers, in a third of the time that `torch.tensor` takes."""
    numbers = array("q", values)
    return torch.frombuffer(numbers, dtype=torch.long) if numbers else torch.empty(0, dtype=torch.long)


def check_truncation(max_length: int, truncation_mode: str) -> None:
    """Check how sequences that are too long are to be cut.

    Args:
        max_length: Longest sequence, in tokens.
        truncation_mode: See `DMPOConfig`.

    Raises:
        ValueError: There is no such mode, or no token is left.

    Example:
        >>> check_truncation(512, "keep_completions")
        Traceback (most recent call last):
        ValueError: `truncation_mode` must be 'keep_start', 'keep_completion' or 'keep_end', got 'keep_completions'.
    """
    if truncation_mode not in ("keep_start", "keep_completion", "keep_end"):
        raise ValueError(
            f"`truncation_mode` must be 'keep_start', 'keep_completion' or 'keep_end', got {truncation_mode!r}."
        )
    if max_length < 1:
        raise ValueError(f"`max_length` must be at least 1, or None for no limit, got {max_length}.")


def truncate(
    prompts: list[TokenIds], completions: list[list[TokenIds]], max_length: int, truncation_mode: str
) -> tuple[list[TokenIds], list[list[TokenIds]]]:
    """Cut sequences of a prompt and a completion to `max_length` tokens.

    Args:
        prompts: Token ids of each prompt.
        completions: For each prompt, the token ids of its completions.
        max_length: Longest sequence, in tokens.
        truncation_mode: See `DataCollatorForMultiPreference`.

    Returns:
        Prompts and completions; with `"keep_end"` each completion has a prompt of its own.
    """
    if truncation_mode == "keep_end":
        # Each completion keeps another part of the prompt, so each becomes a prompt with one completion
        split = [
            (prompt[max(len(prompt) + len(option) - max_length, 0) :], [option[-max_length:]])
            for prompt, options in zip(prompts, completions, strict=True)
            for option in options
        ]
        return [prompt for prompt, _ in split], [options for _, options in split]
    return (
        [prompt[:max_length] for prompt in prompts],
        [
            [option[: max(max_length - len(prompt), 0)] for option in options]
            for prompt, options in zip(prompts, completions, strict=True)
        ],
    )


def sides_of(example: dict[str, Any]) -> tuple[list[TokenIds], list[TokenIds]]:
    """Return the chosen and the rejected completions of a tokenised example, each of which may be one alone."""
    chosen, rejected = example["chosen_ids"], example["rejected_ids"]
    if not holds_several(chosen):
        chosen = [chosen]
    if rejected and not isinstance(rejected[0], list):
        rejected = [rejected]
    return chosen, rejected


@dataclass
class DataCollatorForMultiPreference(DataCollatorMixin):
    """Collate tokenised preference examples with any number of chosen and rejected completions each.

    Examples hold `prompt_ids` (a list of token ids), `chosen_ids` and `rejected_ids` (each a list of such lists, or
    one such list), and may hold `ref_chosen_logps` and `chosen_levels` (a list of floats, one for each chosen
    completion, or one float), `ref_rejected_logps`, `margins` and `rejected_logq` (a list of floats, one for each
    rejected completion). The batch holds the tensors of `lay_out`, those of `Completions`, and these numbers side by
    side, one for each completion that they belong to. Completions are numbered example by example, the chosen ones
    first.

    Args:
        pad_token_id: Token that fills rows up to the longest.
        max_length: Longest sequence (prompt and completion), in tokens; None for no limit.
        truncation_mode: Which end of a longer sequence to keep: `"keep_start"` or `"keep_end"`; with
            `"keep_completion"` rows come shortened already, and one that is not is cut as with `"keep_start"`.
        pad_to_multiple_of: Round the row length up to a multiple of this.
        prefix_sharing: Trie layout, or one copy of the prompt for every completion.
        attention_balance: Length at which attention costs as much as the rest of the model; see `plan_trees`.
        packed_length: Pack trees into rows of so many tokens; see `lay_out`.

    Example:
        >>> collator = DataCollatorForMultiPreference(pad_token_id=0, prefix_sharing=True)
        >>> batch = collator([{"prompt_ids": [1, 2], "chosen_ids": [3, 4], "rejected_ids": [[3, 5], [6]]}])
        >>> batch["input_ids"], batch["subtree_end"]
        (tensor([[1, 2, 3]]), tensor([[3, 3, 3]]))
        >>> batch["num_rejected"]
        tensor([2])
    """

    pad_token_id: int
    max_length: int | None = None
    truncation_mode: str = "keep_start"
    pad_to_multiple_of: int | None = None
    prefix_sharing: bool = False
    attention_balance: float = 4096.0
    packed_length: int | None = None
    return_tensors: str = "pt"

    def __post_init__(self) -> None:
        if self.max_length is not None:
            check_truncation(self.max_length, self.truncation_mode)

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate `examples`; see the class."""
        sides = [sides_of(example) for example in examples]
        prompts: list[TokenIds] = [example["prompt_ids"] for example in examples]
        completions = [[*chosen, *rejected] for chosen, rejected in sides]
        num_chosen = [len(chosen) for chosen, _ in sides]
        num_rejected = [len(options) - chosen for options, chosen in zip(completions, num_chosen, strict=True)]
        if self.max_length is not None:
            prompts, completions = truncate(prompts, completions, self.max_length, self.truncation_mode)
        batch = lay_out(
            prompts,
            completions,
            prefix_sharing=self.prefix_sharing,
            pad_token_id=self.pad_token_id,
            pad_to_multiple_of=self.pad_to_multiple_of,
            attention_balance=self.attention_balance,
            packed_length=self.packed_length,
            # On any device: who makes a collator need not know where its batches will be computed. Not for copies,
            # whose padding has positions of its own, which a model that learned its positions may not have
            skip_half_blocks=self.prefix_sharing,
        )
        tokens = batch.pop("token_pairs"), batch.pop("token_completions")
        batch = vars(Completions.make(torch.tensor(num_chosen), torch.tensor(num_rejected), *tokens)) | batch
        for name in VALUE_COLUMNS:
            if name in examples[0]:
                lists = [one if isinstance(one := example[name], list) else [one] for example in examples]
                batch[name] = torch.tensor([value for values in lists for value in values], dtype=torch.float32)
        return batch
