"""Completions of a batch: which scored tokens make up which completion, and which completions make up which example.

Notation: B examples, example b with M_b chosen and N_b rejected completions, M and N in all (M = B where each example
has one chosen completion); P = sum of M_b N_b pairs of a chosen and a rejected completion, C = M + N completions, T
tokens of completions, S scored pairs of a position and its next token (fewer than T, since completions that begin
alike share them).

Which completion is a chosen one, and which tokens are its, is known when a batch is collated. The collator writes it
down as indices: a mask would have to be read from the GPU before anything it selects has a size.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch

from ..preprocessing.format import VALUE_COLUMNS


@dataclass(frozen=True)
class Completions:
    """The completions of a batch, numbered example by example, the chosen ones of each example first.

    Attributes:
        num_rejected: Number of rejected completions of each example, (B,); at least 1.
        num_chosen: Number of chosen completions of each example, (B,); at least 1.
        chosen: Index of each chosen completion, (M,).
        rejected: Index of each rejected completion, (N,).
        pairs: Each chosen completion with all rejected ones of its example, one chosen completion after the other:
            index of each pair's completion among the chosen ones, and among the rejected ones, (2, P).
        token_pairs: Index of each token's scored pair, (T,). The tokens of a completion stand in their order.
        token_completions: Index of the completion that each token belongs to, (T,).
        chosen_tokens: Index of each token of a chosen completion, (at most T,).
        rejected_tokens: Index of each token of a rejected completion, (at most T,).

    Example:
        >>> completions = Completions.make(
        ...     num_chosen=torch.tensor([1]),
        ...     num_rejected=torch.tensor([1]),
        ...     token_pairs=torch.tensor([0, 1, 0]),  # both completions begin with the same token
        ...     token_completions=torch.tensor([0, 0, 1]),
        ... )
        >>> completions.split(completions.logps(torch.tensor([-1.0, -2.0])))
        (tensor([-3.]), tensor([-1.]))
    """

    # First, since the trainer counts the examples of a batch by the length of its first tensor
    num_rejected: torch.Tensor
    num_chosen: torch.Tensor
    chosen: torch.Tensor
    rejected: torch.Tensor
    pairs: torch.Tensor
    token_pairs: torch.Tensor
    token_completions: torch.Tensor
    chosen_tokens: torch.Tensor
    rejected_tokens: torch.Tensor

    @classmethod
    def make(
        cls,
        num_chosen: torch.Tensor,
        num_rejected: torch.Tensor,
        token_pairs: torch.Tensor,
        token_completions: torch.Tensor,
    ) -> "Completions":
        """Find the indices of both sides; it reads values, for which a GPU has to be waited for.

        Args:
            num_chosen: See the class, as for the others.
            num_rejected: (B,).
            token_pairs: (T,).
            token_completions: (T,).
        """
        examples = torch.arange(len(num_rejected), device=num_rejected.device)
        example = examples.repeat_interleave(num_chosen + num_rejected)
        place = _places(num_chosen + num_rejected)
        is_chosen = place < num_chosen[example]
        chosen, rejected = is_chosen.nonzero()[:, 0], (~is_chosen).nonzero()[:, 0]
        counts = num_rejected[example[chosen]]
        chosen_of_pairs = torch.arange(len(chosen), device=counts.device).repeat_interleave(counts)
        first = (num_rejected.cumsum(0) - num_rejected)[example[chosen]]  # rejected completion of each chosen one
        token_is_chosen = is_chosen[token_completions]
        return cls(
            num_rejected,
            num_chosen,
            chosen,
            rejected,
            torch.stack([chosen_of_pairs, first[chosen_of_pairs] + _places(counts)]),
            token_pairs,
            token_completions,
            chosen_tokens=token_is_chosen.nonzero()[:, 0],
            rejected_tokens=(~token_is_chosen).nonzero()[:, 0],
        )

    @classmethod
    def of(cls, batch: Mapping[str, torch.Tensor]) -> "Completions":
        """Pick the completions out of a collated batch."""
        return cls(**{field.name: batch[field.name] for field in fields(cls)})

    def first(self, rows: int) -> "Completions":
        """Return the completions of the first `rows` examples. The forward, and so the scored pairs, stay whole."""
        if rows == len(self.num_rejected):
            return self
        num_chosen, num_rejected = self.num_chosen[:rows], self.num_rejected[:rows]
        kept = self.token_completions < num_chosen.sum() + num_rejected.sum()
        return Completions.make(num_chosen, num_rejected, self.token_pairs[kept], self.token_completions[kept])

    def __len__(self) -> int:
        """Return the number of completions, C."""
        return len(self.chosen) + len(self.rejected)

    def per_token(self, pair_values: torch.Tensor) -> torch.Tensor:
        """Give each token the value of its scored pair: (S,) to (T,)."""
        return pair_values[self.token_pairs]

    def sum(self, token_values: torch.Tensor) -> torch.Tensor:
        """Add up the values of each completion's tokens: (T,) to (C,)."""
        return token_values.new_zeros(len(self)).index_add(0, self.token_completions, token_values)

    def split(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Separate the values of the chosen completions, (M,), from those of the rejected ones, (N,)."""
        return values[self.chosen], values[self.rejected]

    def join(self, chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        """Undo `split`, (C,). Values of further examples than those of these completions are left out.

        Args:
            chosen: Values of the chosen completions, (M or more,).
            rejected: Values of the rejected ones, (N or more,), or (B, 1) as of TRL collators.
        """
        rejected = rejected.flatten()
        values = chosen.new_empty(len(self))
        values[self.chosen] = chosen[: len(self.chosen)]
        values[self.rejected] = rejected[: len(self.rejected)]
        return values

    def tables(
        self, chosen: torch.Tensor, rejected: torch.Tensor, widths: tuple[int | None, int | None]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Lay values of the chosen and of the rejected completions out as one row per example, filled up with NaN.

        Args:
            chosen: The values, example by example, (M,).
            rejected: The same of the rejected ones, (N,).
            widths: Of both tables; at least the largest number of such completions of an example. None for no table.

        Returns:
            (B, width) each, or the values as they are.
        """
        first, second = widths
        return (
            chosen if first is None else ragged_table(chosen, self.num_chosen, first, math.nan),
            rejected if second is None else ragged_table(rejected, self.num_rejected, second, math.nan),
        )

    @cached_property
    def lengths(self) -> torch.Tensor:
        """Number of scored tokens of each completion, (C,)."""
        return self.sum(torch.ones_like(self.token_completions))

    @cached_property
    def example(self) -> torch.Tensor:
        """Index of the example that each completion belongs to, (C,)."""
        examples = torch.arange(len(self.num_rejected), device=self.num_rejected.device)
        return examples.repeat_interleave(self.num_chosen + self.num_rejected, output_size=len(self))

    def logps(self, pair_logps: torch.Tensor, ld_alpha: float | None = None) -> torch.Tensor:
        """Add up the log-probs of each completion's tokens: (S,) to (C,).

        Args:
            pair_logps: Log-probs of the scored pairs, (S,).
            ld_alpha: Weight of the tokens past the length of their example's shortest completion (LD-DPO, arXiv
                2409.06411, Eq. 10); None for 1.
        """
        token_logps = self.per_token(pair_logps)
        if ld_alpha is not None:
            token_logps = torch.where(self._is_past_shared_length(), ld_alpha * token_logps, token_logps)
        return self.sum(token_logps)

    def _is_past_shared_length(self) -> torch.Tensor:
        """Return whether each token lies past the length of its example's shortest completion, (T,)."""
        tokens = torch.arange(len(self.token_completions), device=self.token_completions.device)
        shortest = self.lengths.new_full((len(self.num_rejected),), len(tokens))
        shortest = shortest.scatter_reduce(0, self.example, self.lengths, "amin")
        starts = tokens.new_full((len(self),), len(tokens))
        starts = starts.scatter_reduce(0, self.token_completions, tokens, "amin")
        return tokens - starts[self.token_completions] >= shortest[self.example[self.token_completions]]


def _places(counts: torch.Tensor) -> torch.Tensor:
    """Number each group's members from 0 on: of [2, 1] it is [0, 1, 0]."""
    starts = counts.cumsum(0) - counts
    return torch.arange(int(counts.sum()), device=counts.device) - starts.repeat_interleave(counts)


def ragged_table(values: torch.Tensor, counts: torch.Tensor, width: int, filler: float) -> torch.Tensor:
    """Lay the values of each group out in a row of its own.

    Args:
        values: Those of the first group, then of the second, and so on, (V,).
        counts: How many each group has, (G,).
        width: Of the table, at least the largest count.
        filler: What stands where a group has no more values.

    Returns:
        (G, width).

    Example:
        >>> ragged_table(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2, 1]), 2, filler=0.0)
        tensor([[1., 2.],
                [3., 0.]])
    """
    table = values.new_full((len(counts), width), filler)
    return table.masked_scatter(torch.arange(width, device=values.device) < counts[:, None], values)


_OUTCOME = {field.name for field in fields(Completions)} | set(VALUE_COLUMNS)


def model_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the forward takes of a collated batch; the rest says how its outcome is read."""
    return {name: value for name, value in batch.items() if name not in _OUTCOME} | {"use_cache": False}


def from_pairs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a batch in TRL's layout into one of ours, with one rejected completion per example.

    Args:
        batch: What TRL's collators return: the chosen completions in the first half of the rows, the rejected ones in
            the second, and `completion_mask` (rows, length), which is 1 at the tokens of a completion.

    Returns:
        The batch with the scored pairs of `lay_out` and the fields of `Completions` in the place of `completion_mask`.
    """
    rest = dict(batch)
    mask, ids = rest.pop("completion_mask"), rest["input_ids"]
    pairs = len(ids) // 2
    rows, columns = mask[:, 1:].nonzero(as_tuple=True)  # the first token of a row is predicted by nothing
    one_each = torch.ones(pairs, dtype=torch.long, device=ids.device)
    tokens = torch.arange(len(rows), device=ids.device), 2 * (rows % pairs) + rows // pairs
    return {
        **vars(Completions.make(one_each, one_each, *tokens)),
        **rest,
        "scored_rows": rows,
        "scored_columns": columns - mask.size(1),  # from the end, as `lay_out` counts
        "scored_targets": ids[rows, columns + 1],
    }
