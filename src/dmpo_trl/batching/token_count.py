"""Numbers of tokens of batches, without laying them out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

from datasets import Dataset

from .._common_prefix import common_prefix_length
from .collator import DataCollatorForMultiPreference, sides_of, truncate
from .lengths import row_length
from .trie import TokenIds, count_nodes, pack, plan_rows, plan_trees

_CHUNK = 1000  # rows that are read at once


@dataclass(frozen=True)
class _Part:
    """A prompt with completions as they are laid out: of an example, or of one of its completions alone.

    Attributes:
        prompt: Its token ids.
        completions: Those of each completion.
        nodes: Tokens of the tree that it makes alone.
    """

    prompt: TokenIds
    completions: list[TokenIds]
    nodes: int


class TokenCounter:
    """Counts the tokens of batches of a dataset as a collator lays them out, padding included.

    Of each row the distinct prefixes are counted once. Rows that share a tree are counted by their prompts: of two
    different prompts the common beginning counts once.

    Args:
        collator: The collator.
        dataset: Tokenised examples.
        order: Indices of all rows in the order in which batches will be asked for; a few are held at a time.

    Example:
        >>> rows = [{"prompt_ids": [1, 2, own], "chosen_ids": [3, 4], "rejected_ids": [[5, 6, 7]]} for own in (8, 9)]
        >>> collator = DataCollatorForMultiPreference(0, prefix_sharing=True)
        >>> TokenCounter(collator, Dataset.from_list(rows), [0, 1])([0, 1])
        10
    """

    def __init__(self, collator: DataCollatorForMultiPreference, dataset: Dataset, order: Sequence[int]) -> None:
        self._collator, self._dataset, self._upcoming = collator, dataset, iter(order)
        self._rows: dict[int, list[_Part]] = {}

    def __call__(self, indices: Sequence[int]) -> int:
        """Return the number of tokens of the batch of the rows at `indices`."""
        missing = [index for index in indices if index not in self._rows]
        if missing:
            self._rows = {index: self._rows[index] for index in indices if index in self._rows}
            wanted = list(dict.fromkeys([*missing, *islice(self._upcoming, _CHUNK)]))
            for index, row in zip(wanted, self._dataset.__getitems__(wanted), strict=True):
                self._rows[index] = self._parts(row)
        return self._padded_tokens([part for index in indices for part in self._rows[index]])

    def _parts(self, row: dict[str, Any]) -> list[_Part]:
        collator = self._collator
        chosen, rejected = sides_of(row)
        prompts, completions = [row["prompt_ids"]], [[*chosen, *rejected]]
        if collator.max_length is not None:
            prompts, completions = truncate(prompts, completions, collator.max_length, collator.truncation_mode)
        return [
            _Part(prompt, own, count_nodes([prompt], [own]) if collator.prefix_sharing else 0)
            for prompt, own in zip(prompts, completions, strict=True)
        ]

    def _padded_tokens(self, parts: list[_Part]) -> int:
        collator = self._collator
        lengths = self._row_lengths(parts)
        # As the collator has it
        length = row_length(max([1, *lengths]), collator.pad_to_multiple_of, skip_half_blocks=collator.prefix_sharing)
        return len(lengths) * length

    def _row_lengths(self, parts: list[_Part]) -> list[int]:
        """Return the number of tokens of each row; the last token of a sequence predicts nothing."""
        collator = self._collator
        if not collator.prefix_sharing:
            return [max(len(part.prompt) + len(one) - 1, 0) for part in parts for one in part.completions]
        prompts = [part.prompt for part in parts]
        sizes = [len(part.prompt) + sum(map(len, part.completions)) for part in parts]
        if collator.packed_length is None:
            rows = plan_rows(prompts, sizes, collator.attention_balance)
            return [_tree_nodes([parts[i] for i in members]) for members in rows]
        trees = plan_trees(prompts, sizes, collator.attention_balance)
        nodes = [_tree_nodes([parts[i] for i in members]) for _, members in trees]
        return [sum(nodes[i] for i in members) for members in pack(nodes, collator.packed_length)]


def _tree_nodes(parts: list[_Part]) -> int:
    """Return the number of tokens of a row in which every distinct prefix stands once."""
    parts = sorted(parts, key=lambda part: list(part.prompt))
    nodes = sum(part.nodes for part in parts)
    for before, part in pairwise(parts):
        shared = common_prefix_length(before.prompt, part.prompt)
        if shared == len(before.prompt):  # the beginning of the other: completions may be shared too
            return count_nodes([one.prompt for one in parts], [one.completions for one in parts])
        nodes -= shared
    return nodes


def counts_without_layout(collate: Any) -> bool:
    """Return whether [`TokenCounter`] counts the tokens of a collator's batches: not those of a user's own.

    Args:
        collate: The collator.
    """
    ours = DataCollatorForMultiPreference
    return isinstance(collate, ours) and type(collate).torch_call is ours.torch_call


def make_counter(collate: Any, dataset: Dataset, order: Sequence[int]) -> Callable[[Sequence[int]], int]:
    """Return a function that counts the tokens of batches, by laying them out where that is not known otherwise.

    Args:
        collate: The collator; one of a user's own is called, and its `input_ids` are counted.
        dataset: See [`TokenCounter`].
        order: See [`TokenCounter`].
    """
    if counts_without_layout(collate):
        return TokenCounter(collate, dataset, order)
    return lambda indices: int(collate(dataset.__getitems__(list(indices)))["input_ids"].numel())
