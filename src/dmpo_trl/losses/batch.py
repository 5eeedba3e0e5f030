"""Log-probs of a batch's completions, and what losses derive from them.

Notation: B examples, example b with N_b rejected completions, P = sum of N_b pairs. With the log-ratio
`r(y) = log pi(y|x) - log ref(y|x)`, a score `s` is `r` itself or what an f-divergence makes of it, and
`delta = beta * (s+ - s_i)` belongs to the pair of the chosen and the i-th rejected completion.

An example has one chosen completion. A row of the dataset with several is as many examples, side by side, each with
all of the row's rejected completions: R rows, B examples. So a loss of one chosen completion holds for several too, as
the mean over a row's examples, and a loss that looks at all of them finds them by their `row`.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F

from ..batching.completions import Completions, ragged_table
from ..preprocessing.format import CHOSEN_COLUMNS, PAIR_COLUMNS


@dataclass(frozen=True)
class ScoredBatch:
    """Log-probs of the completions of a batch, in nats, and what losses derive from them.

    Attributes:
        chosen_logps: Policy, chosen completions, (B,).
        rejected_logps: Policy, rejected completions, example by example, (P,).
        ref_chosen_logps: Reference, (B,).
        ref_rejected_logps: Reference, (P,).
        num_rejected: Number of rejected completions of each example, (B,).
        chosen_lengths: Tokens of each chosen completion, (B,).
        rejected_lengths: Tokens of each rejected completion, (P,).
        chosen_nll: Mean negative log-prob of the batch's chosen tokens, a scalar.
        chosen_probs: Mean probability of each chosen completion's tokens, (B,); None where it is not known.
        rejected_probs: That of each rejected completion, (P,).
        beta: Strength of the reference, or the inverse of a temperature; see `DPOConfig`.
        beta_factors: Factor of beta for each pair, (P,); None for 1.
        margins: What `delta` of each pair has to exceed, in the units of `delta`, (P,); None for 0.
        rejected_logq: Logarithm of how often each rejected item is expected among the N drawn, (P,); None for 0.
        pair_weights: Weight of each pair in a loss, (P,); None for 1.
        num_chosen: Number of examples of each row, (R,); None where each example is a row of its own.
        chosen_levels: How good each chosen completion is, higher is better, (B,); None where all are alike.
        f_divergence_type: Divergence that regularises the policy; see `DPOConfig`.
        f_alpha_divergence_coef: Its alpha.

    Example:
        >>> one, two = torch.tensor([-1.0]), torch.tensor([-2.0, -4.0])  # an example with two rejected completions
        >>> zeros, lengths = torch.zeros_like, torch.ones_like
        >>> batch = ScoredBatch(
        ...     one, two, zeros(one), zeros(two), torch.tensor([2]), lengths(one), lengths(two), torch.tensor(1.0)
        ... )
        >>> batch.score_gaps, batch.mean_over_rejected(batch.score_gaps)
        (tensor([1., 3.]), tensor([2.]))
    """

    chosen_logps: torch.Tensor
    rejected_logps: torch.Tensor
    ref_chosen_logps: torch.Tensor
    ref_rejected_logps: torch.Tensor
    num_rejected: torch.Tensor
    chosen_lengths: torch.Tensor
    rejected_lengths: torch.Tensor
    chosen_nll: torch.Tensor
    chosen_probs: torch.Tensor | None = None
    rejected_probs: torch.Tensor | None = None
    beta: float = 0.1
    beta_factors: torch.Tensor | None = None
    margins: torch.Tensor | None = None
    rejected_logq: torch.Tensor | None = None
    pair_weights: torch.Tensor | None = None
    num_chosen: torch.Tensor | None = None
    chosen_levels: torch.Tensor | None = None
    f_divergence_type: str = "reverse_kl"
    f_alpha_divergence_coef: float = 0.5

    @classmethod
    def of(
        cls,
        completions: Completions,
        pair_logps: torch.Tensor,
        ref_logps: torch.Tensor | None,
        *,
        ld_alpha: float | None = None,
        **further: Any,
    ) -> "ScoredBatch":
        """Make a batch of the log-probs of all its completions' tokens.

        Args:
            completions: The completions of the batch.
            pair_logps: Policy, log-probs of the scored pairs of a position and its next token, (S,).
            ref_logps: Reference, log-probs of the completions, (C,); None where no loss needs them: they are 0.
            ld_alpha: See `Completions.logps`.
            **further: Other attributes; `margins` and `rejected_logq` are those of each rejected completion. Values of
                completions beyond those of `completions` are left out.
        """
        rejected_of_pairs = completions.pairs[1]

        def split(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            """Give each example the value of its chosen completion, and each pair that of its rejected one."""
            chosen, rejected = completions.split(values)
            return chosen, rejected[rejected_of_pairs]

        logps = completions.logps(pair_logps, ld_alpha)
        chosen, rejected = split(logps)
        ref_chosen, ref_rejected = split(torch.zeros_like(logps) if ref_logps is None else ref_logps)
        probs = completions.sum(completions.per_token(pair_logps.exp())) / completions.lengths.clamp(min=1)
        chosen_probs, rejected_probs = split(probs)
        own = {name: further[name][rejected_of_pairs] for name in PAIR_COLUMNS if further.get(name) is not None}
        own |= {name: further[name][: len(chosen)] for name in CHOSEN_COLUMNS if further.get(name) is not None}
        return cls(
            chosen,
            rejected,
            ref_chosen,
            ref_rejected,
            completions.num_rejected[completions.example[completions.chosen]],
            *split(completions.lengths),
            chosen_nll=-completions.per_token(pair_logps)[completions.chosen_tokens].mean(),
            chosen_probs=chosen_probs,
            rejected_probs=rejected_probs,
            num_chosen=completions.num_chosen,
            **(further | own),
        )

    def only(self, pairs: torch.Tensor) -> "ScoredBatch":
        """Return the batch with some of its rejected completions.

        Args:
            pairs: Which, (P,), at least one of each example.
        """
        kept = {name: value[pairs] for name in _OF_PAIRS if (value := getattr(self, name)) is not None}
        counts = torch.zeros_like(self.num_rejected).index_add(0, self.example, pairs.to(self.num_rejected.dtype))
        return replace(self, num_rejected=counts, **kept)

    @cached_property
    def example(self) -> torch.Tensor:
        """Index of the example that each rejected completion belongs to, (P,)."""
        indices = torch.arange(len(self.num_rejected), device=self.num_rejected.device)
        return indices.repeat_interleave(self.num_rejected, output_size=len(self.rejected_logps))

    @cached_property
    def row(self) -> torch.Tensor:
        """Index of the row that each example belongs to, (B,)."""
        examples = torch.arange(len(self.num_rejected), device=self.num_rejected.device)
        if self.num_chosen is None:
            return examples
        return examples[: len(self.num_chosen)].repeat_interleave(self.num_chosen, output_size=len(examples))

    @cached_property
    def chosen_logratios(self) -> torch.Tensor:
        """`r(y+)`, (B,)."""
        return self.chosen_logps - self.ref_chosen_logps

    @cached_property
    def rejected_logratios(self) -> torch.Tensor:
        """`r(y_i)`, (P,)."""
        return self.rejected_logps - self.ref_rejected_logps

    @cached_property
    def chosen_scores(self) -> torch.Tensor:
        """`s+`, (B,)."""
        return self._score(self.chosen_logratios)

    @cached_property
    def rejected_scores(self) -> torch.Tensor:
        """`s_i`, (P,)."""
        return self._score(self.rejected_logratios)

    @cached_property
    def score_gaps(self) -> torch.Tensor:
        """`s+ - s_i`, (P,)."""
        return self.chosen_scores[self.example] - self.rejected_scores

    @cached_property
    def deltas(self) -> torch.Tensor:
        """`beta_i * (s+ - s_i) - margin_i`, (P,)."""
        return self._delta(self.score_gaps)

    @cached_property
    def logp_deltas(self) -> torch.Tensor:
        """`beta_i * (log pi(y+) - log pi(y_i)) - margin_i`, (P,): `deltas` without a reference."""
        return self._delta(self.chosen_logps[self.example] - self.rejected_logps)

    def _delta(self, gaps: torch.Tensor) -> torch.Tensor:
        deltas = self.beta * gaps
        if self.beta_factors is not None:
            deltas = deltas * self.beta_factors
        return deltas if self.margins is None else deltas - self.margins

    def _score(self, logratios: torch.Tensor) -> torch.Tensor:
        """`f'(pi / ref)` up to a constant (f-DPO, arXiv 2309.16240, Table 1)."""
        if self.f_divergence_type == "reverse_kl":
            return logratios
        if self.f_divergence_type == "forward_kl":
            return 1 - torch.exp(-logratios)
        if self.f_divergence_type == "js_divergence":
            return math.log(2) + F.logsigmoid(logratios)
        if self.f_divergence_type == "alpha_divergence":
            exponent = self.f_alpha_divergence_coef - 1
            if abs(exponent) < 1e-6:  # the limit is the reverse KL
                return logratios
            largest = 11.0 if logratios.dtype == torch.float16 else 80.0  # exp of more overflows
            powers = torch.expm1((exponent * logratios.float()).clamp(max=largest))
            return powers.to(logratios.dtype) / exponent
        raise ValueError(
            f"Unknown f_divergence_type {self.f_divergence_type!r}: choose 'reverse_kl', 'forward_kl', "
            "'js_divergence' or 'alpha_divergence'."
        )

    def sum_over_rejected(self, values: torch.Tensor) -> torch.Tensor:
        """Add up the values of the pairs of each example: (P,) to (B,)."""
        return values.new_zeros(len(self.num_rejected)).index_add(0, self.example, values)

    def mean_over_rejected(self, values: torch.Tensor) -> torch.Tensor:
        """Average over the pairs of each example: (P,) to (B,)."""
        return self.sum_over_rejected(values) / self.num_rejected

    def min_over_rejected(self, values: torch.Tensor) -> torch.Tensor:
        """Return the smallest value of the pairs of each example: (P,) to (B,)."""
        return values.new_full(self.num_rejected.shape, math.inf).scatter_reduce(0, self.example, values, "amin")

    def logsumexp_over_rejected(self, values: torch.Tensor) -> torch.Tensor:
        """`log sum exp` over the pairs of each example: (P,) to (B,)."""
        # Not by a table: its width would have to be read from the GPU
        largest = values.detach().new_full(self.num_rejected.shape, -math.inf)
        largest = largest.scatter_reduce(0, self.example, values.detach(), "amax")
        largest = largest.masked_fill(largest.isinf(), 0.0)  # as in `torch.logsumexp`
        return self.sum_over_rejected((values - largest[self.example]).exp()).log() + largest

    def table_over_rejected(self, values: torch.Tensor, filler: float) -> torch.Tensor:
        """Lay the values of the pairs of each example out in a row of its own: (P,) to (B, largest N)."""
        return ragged_table(values, self.num_rejected, int(self.num_rejected.max()), filler)

    def table_over_row(self, values: torch.Tensor, filler: float) -> torch.Tensor:
        """Give each example the values of all examples of its row, in their order: (B,) to (B, most of a row)."""
        if self.num_chosen is None:
            return values[:, None]
        return ragged_table(values, self.num_chosen, int(self.num_chosen.max()), filler)[self.row]

    def mean_over_row(self, values: torch.Tensor) -> torch.Tensor:
        """Average over the examples of each row: (B,) to (R,)."""
        if self.num_chosen is None:
            return values
        return values.new_zeros(len(self.num_chosen)).index_add(0, self.row, values) / self.num_chosen

    def min_over_row(self, values: torch.Tensor) -> torch.Tensor:
        """Return the smallest value of the examples of each row: (B,) to (R,)."""
        if self.num_chosen is None:
            return values
        return values.new_full(self.num_chosen.shape, math.inf).scatter_reduce(0, self.row, values, "amin")


# Attributes with one value per pair
_OF_PAIRS = (
    "rejected_logps",
    "ref_rejected_logps",
    "rejected_lengths",
    "rejected_probs",
    "beta_factors",
    "margins",
    "rejected_logq",
    "pair_weights",
)
