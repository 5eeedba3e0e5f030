"""Completions of a batch: which scored tokens make up which completion, and which completions make up which example.

Notation: B examples, example b with M_b chosen and N_b rejected completions, M and N in all (M = B where each example
has one chosen completion); P = sum of M_b N_b pairs of a chosen and a rejected completion, C = M + N completions, T
tokens of completions, S scored pairs of a position and its next token (fewer than T, since completions that begin
alike share them).
"""

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
        is_chosen: Whether each completion is a chosen one of its example, (C,); at least one of each is.
        token_pairs: Index of each token's scored pair, (T,). The tokens of a completion stand in their order.
        token_completions: Index of the completion that each token belongs to, (T,).

    Example:
        >>> completions = Completions(
        ...     num_rejected=torch.tensor([1]),
        ...     is_chosen=torch.tensor([True, False]),
        ...     token_pairs=torch.tensor([0, 1, 0]),  # both completions begin with the same token
        ...     token_completions=torch.tensor([0, 0, 1]),
        ... )
        >>> completions.split(completions.logps(torch.tensor([-1.0, -2.0])))
        (tensor([-3.]), tensor([-1.]))
    """

    num_rejected: torch.Tensor
    is_chosen: torch.Tensor
    token_pairs: torch.Tensor
    token_completions: torch.Tensor

    @classmethod
    def of(cls, batch: Mapping[str, torch.Tensor]) -> "Completions":
        """Pick the completions out of a collated batch."""
        return cls(**{field.name: batch[field.name] for field in fields(cls)})

    def first(self, rows: int) -> "Completions":
        """Return the completions of the first `rows` examples. The forward, and so the scored pairs, stay whole."""
        num_rejected = self.num_rejected[:rows]
        number = int((self.example < rows).sum())
        kept = self.token_completions < number
        return Completions(num_rejected, self.is_chosen[:number], self.token_pairs[kept], self.token_completions[kept])

    def per_token(self, pair_values: torch.Tensor) -> torch.Tensor:
        """Give each token the value of its scored pair: (S,) to (T,)."""
        return pair_values[self.token_pairs]

    def sum(self, token_values: torch.Tensor) -> torch.Tensor:
        """Add up the values of each completion's tokens: (T,) to (C,)."""
        return token_values.new_zeros(len(self.is_chosen)).index_add(0, self.token_completions, token_values)

    def split(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Separate the values of the chosen completions, (M,), from those of the rejected ones, (N,)."""
        return values[self.is_chosen], values[~self.is_chosen]

    def join(self, chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        """Undo `split`, (C,). Values of further examples than those of these completions are left out.

        Args:
            chosen: Values of the chosen completions, (M or more,).
            rejected: Values of the rejected ones, (N or more,), or (B, 1) as of TRL collators.
        """
        rejected = rejected.flatten()
        values = chosen.new_empty(len(self.is_chosen))
        num_chosen = int(self.is_chosen.sum())
        values[self.is_chosen] = chosen[:num_chosen]
        values[~self.is_chosen] = rejected[: len(values) - num_chosen]
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
            chosen if first is None else _table(chosen, self.num_chosen, first),
            rejected if second is None else _table(rejected, self.num_rejected, second),
        )

    @cached_property
    def lengths(self) -> torch.Tensor:
        """Number of scored tokens of each completion, (C,)."""
        return self.sum(torch.ones_like(self.token_completions))

    @cached_property
    def example(self) -> torch.Tensor:
        """Index of the example that each completion belongs to, (C,)."""
        rejected = (~self.is_chosen).long()
        before = rejected.cumsum(0) - rejected  # rejected completions that stand before it
        return torch.searchsorted(self.num_rejected.cumsum(0), before, right=True)

    @cached_property
    def num_chosen(self) -> torch.Tensor:
        """Number of chosen completions of each example, (B,)."""
        return torch.zeros_like(self.num_rejected).index_add(
            0, self.example, self.is_chosen.to(self.num_rejected.dtype)
        )

    @cached_property
    def pairs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Each chosen completion with all rejected ones of its example, one chosen completion after the other.

        Index of each pair's completion among the chosen ones, (P,), and among the rejected ones, (P,).
        """
        example = self.example[self.is_chosen]
        counts = self.num_rejected[example]
        chosen = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        place = torch.arange(len(chosen), device=counts.device) - (counts.cumsum(0) - counts)[chosen]
        first = (self.num_rejected.cumsum(0) - self.num_rejected)[example]
        return chosen, first[chosen] + place

    @cached_property
    def token_is_chosen(self) -> torch.Tensor:
        """Whether each token belongs to a chosen completion, (T,)."""
        return self.is_chosen[self.token_completions]

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
        shortest = self.lengths.new_full((len(self.num_rejected),), int(self.lengths.max()))
        shortest = shortest.scatter_reduce(0, self.example, self.lengths, "amin")
        tokens = torch.arange(len(self.token_completions), device=self.token_completions.device)
        starts = tokens.new_full((len(self.is_chosen),), len(tokens))
        starts = starts.scatter_reduce(0, self.token_completions, tokens, "amin")
        return tokens - starts[self.token_completions] >= shortest[self.example[self.token_completions]]


def _table(values: torch.Tensor, counts: torch.Tensor, width: int) -> torch.Tensor:
    table = values.new_full((len(counts), width), float("nan"))
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
    return {
        # The trainer counts the examples of a batch by the length of its first tensor
        "num_rejected": torch.ones(pairs, dtype=torch.long, device=ids.device),
        "is_chosen": torch.arange(2 * pairs, device=ids.device) % 2 == 0,
        **rest,
        "scored_rows": rows,
        "scored_columns": columns - mask.size(1),  # from the end, as `lay_out` counts
        "scored_targets": ids[rows, columns + 1],
        "token_pairs": torch.arange(len(rows), device=ids.device),
        "token_completions": 2 * (rows % pairs) + rows // pairs,
    }
