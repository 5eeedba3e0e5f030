"""Multi-negative preference losses: pure functions of the log-probs of a batch, and their registry.

Notation: B examples, example b with N_b rejected completions, P = sum of N_b pairs. With the log-ratio
`r(y) = log pi(y|x) - log ref(y|x)`, a score `s` is `r` itself or what an f-divergence makes of it, and
`delta = beta * (s+ - s_i)` belongs to the pair of the chosen and the i-th rejected completion.

A loss of your own is one function: `@multi_negative("name")` for one that returns one value per example,
`@pairwise("name")` for one that returns one value per pair, whose mean over the pairs of an example is then taken.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from trl import DPOConfig

from .batching.completions import Completions


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
    f_divergence_type: str = "reverse_kl"
    f_alpha_divergence_coef: float = 0.5

    @classmethod
    def of(
        cls, completions: Completions, *, logps: torch.Tensor, ref_logps: torch.Tensor, **further: Any
    ) -> "ScoredBatch":
        """Make a batch of the log-probs of all its completions.

        Args:
            completions: The completions of the batch.
            logps: Policy, (C,).
            ref_logps: Reference, (C,).
            **further: The other attributes.
        """
        chosen, rejected = completions.split(logps)
        ref_chosen, ref_rejected = completions.split(ref_logps)
        lengths = completions.split(completions.lengths)
        return cls(chosen, rejected, ref_chosen, ref_rejected, completions.num_rejected, *lengths, **further)

    @cached_property
    def example(self) -> torch.Tensor:
        """Index of the example that each rejected completion belongs to, (P,)."""
        indices = torch.arange(len(self.num_rejected), device=self.num_rejected.device)
        return indices.repeat_interleave(self.num_rejected)

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

    def mean_over_rejected(self, values: torch.Tensor) -> torch.Tensor:
        """Average over the pairs of each example: (P,) to (B,)."""
        sums = values.new_zeros(len(self.num_rejected)).index_add(0, self.example, values)
        return sums / self.num_rejected

    def logsumexp_over_rejected(self, values: torch.Tensor) -> torch.Tensor:
        """`log sum exp` over the pairs of each example: (P,) to (B,)."""
        slots = torch.arange(int(self.num_rejected.max()), device=values.device)
        table = values.new_full((len(self.num_rejected), len(slots)), -math.inf)
        return table.masked_scatter(slots < self.num_rejected[:, None], values).logsumexp(dim=1)


Loss = Callable[[ScoredBatch, DPOConfig], torch.Tensor]
MULTI_NEGATIVE_LOSSES: dict[str, Loss] = {}
PAIRWISE_LOSSES: dict[str, Loss] = {}


def multi_negative(name: str) -> Callable[[Loss], Loss]:
    """Register a loss that returns one value per example, (B,), under `name`.

    Registering a name of your own again replaces the loss, as when the cell of a notebook is run again.

    Args:
        name: What `loss_type` calls it.

    Raises:
        ValueError: The name is that of a loss of the package, or of a pairwise one.

    Example:
        >>> @multi_negative("hardest")
        ... def hardest(batch, args):
        ...     table = batch.score_gaps.new_full((len(batch.num_rejected),), torch.inf)
        ...     return F.softplus(-args.beta * table.scatter_reduce(0, batch.example, batch.score_gaps, "amin"))
        >>> DMPOConfig("out", loss_type=["hardest"])  # doctest: +SKIP
    """
    return lambda loss: _register(MULTI_NEGATIVE_LOSSES, PAIRWISE_LOSSES, name, loss)


def pairwise(name: str) -> Callable[[Loss], Loss]:
    """Register a loss that returns one value per pair, (P,), under `name`.

    Registering a name of your own again replaces the loss, as when the cell of a notebook is run again.

    Args:
        name: What `loss_type` calls it.

    Raises:
        ValueError: The name is that of a loss of the package, or of a multi-negative one.

    Example:
        >>> @pairwise("squared_hinge")
        ... def squared_hinge(batch, args):
        ...     return torch.relu(1 - args.beta * batch.score_gaps) ** 2
    """
    return lambda loss: _register(PAIRWISE_LOSSES, MULTI_NEGATIVE_LOSSES, name, loss)


def _register(registry: dict[str, Loss], other: dict[str, Loss], name: str, loss: Loss) -> Loss:
    previous = registry.get(name) or other.get(name)
    if name in other or (previous is not None and previous.__module__ == __name__ != loss.__module__):
        raise ValueError(
            f"There is a loss {name!r} already, from {getattr(previous, '__module__', '?')}, of "
            f"{'the other kind (pairwise or multi-negative)' if name in other else 'the package'}: register yours "
            "under another name."
        )
    registry[name] = loss
    return loss


def preference_loss(
    name: str, batch: ScoredBatch, args: DPOConfig, pair_weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute the loss `name` of each example.

    Args:
        name: A registered loss.
        batch: Log-probs of the batch.
        args: Where the losses find `beta`, `label_smoothing` and `discopop_tau`.
        pair_weights: Factor of each pair (WPO, arXiv 2406.11827), (P,). A loss that is not made of pairs takes the
            mean of an example's factors.

    Returns:
        (B,); the loss of the batch is its mean, so that every example weighs the same, whatever its N.

    Raises:
        ValueError: `name` is not registered.
    """
    if name in MULTI_NEGATIVE_LOSSES:
        values = MULTI_NEGATIVE_LOSSES[name](batch, args)
        return values if pair_weights is None else values * batch.mean_over_rejected(pair_weights)
    if name in PAIRWISE_LOSSES:
        values = PAIRWISE_LOSSES[name](batch, args)
        return batch.mean_over_rejected(values if pair_weights is None else values * pair_weights)
    known = sorted(MULTI_NEGATIVE_LOSSES | PAIRWISE_LOSSES)
    raise ValueError(f"Unknown loss_type {name!r}: choose among {known}.")


@multi_negative("dmpo")
def dmpo(batch: ScoredBatch, args: DPOConfig) -> torch.Tensor:
    """`-log sigmoid(mean_i delta_i)` (DMPO, arXiv 2405.16127, Eq. 7)."""
    return -F.logsigmoid(args.beta * batch.mean_over_rejected(batch.score_gaps))


@multi_negative("softmax")
def softmax(batch: ScoredBatch, args: DPOConfig) -> torch.Tensor:
    """`-log sigmoid(-log sum_i exp(-delta_i))` (S-DPO, arXiv 2406.09215, Eq. 10), without overflow."""
    return F.softplus(batch.logsumexp_over_rejected(-args.beta * batch.score_gaps))


@multi_negative("sft")
def sft(batch: ScoredBatch, args: DPOConfig) -> torch.Tensor:
    """Mean negative log-prob of the batch's chosen tokens, the same for every example, as in TRL."""
    return batch.chosen_nll.expand(len(batch.num_rejected))


@pairwise("sigmoid")
def sigmoid(batch: ScoredBatch, args: DPOConfig) -> torch.Tensor:
    """`-log sigmoid(delta)` (DPO, arXiv 2305.18290, Eq. 7)."""
    return -F.logsigmoid(args.beta * batch.score_gaps)


@pairwise("hinge")
def hinge(batch: ScoredBatch, args: DPOConfig) -> torch.Tensor:
    """`max(0, 1 - delta)` (RSO, arXiv 2309.06657; SLiC, arXiv 2305.10425)."""
    return torch.relu(1 - args.beta * batch.score_gaps)


def _per_token_gap(batch: ScoredBatch) -> torch.Tensor:
    chosen = batch.chosen_scores / batch.chosen_lengths.clamp(min=1)
    rejected = batch.rejected_scores / batch.rejected_lengths.clamp(min=1)
    return chosen[batch.example] - rejected


@pairwise("ipo")
def ipo(batch: ScoredBatch, args: DPOConfig) -> torch.Tensor:
    """`(gap - 1/(2 beta))^2` with scores per token (IPO, arXiv 2310.12036, Eq. 17, averaged over tokens as in TRL)."""
    return (_per_token_gap(batch) - 1 / (2 * args.beta)) ** 2


@pairwise("sigmoid_norm")
def sigmoid_norm(batch: ScoredBatch, args: DPOConfig) -> torch.Tensor:
    """`-log sigmoid(beta * gap)` with scores per token (length-normalised DPO, Tülu 3, arXiv 2411.15124)."""
    return -F.logsigmoid(args.beta * _per_token_gap(batch))


@pairwise("exo_pair")
def exo_pair(batch: ScoredBatch, args: DPOConfig) -> torch.Tensor:
    """KL from the policy's preference to the smoothed label (EXO, arXiv 2402.00856, Eq. 16)."""
    delta, epsilon = args.beta * batch.score_gaps, args.label_smoothing
    win, lose = F.logsigmoid(delta), F.logsigmoid(-delta)
    return win.exp() * (win - math.log1p(-epsilon)) + lose.exp() * (lose - math.log(epsilon))


@pairwise("nca_pair")
def nca_pair(batch: ScoredBatch, args: DPOConfig) -> torch.Tensor:
    """Absolute rather than relative likelihoods (NCA, arXiv 2402.05369, Eq. 15 for K = 2)."""
    chosen, rejected = args.beta * batch.chosen_logratios[batch.example], args.beta * batch.rejected_logratios
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


@pairwise("robust")
def robust(batch: ScoredBatch, args: DPOConfig) -> torch.Tensor:
    """DPO unbiased under flipped labels (Robust DPO, arXiv 2403.00409, Eq. 10)."""
    delta, flipped = args.beta * batch.score_gaps, args.label_smoothing
    return (flipped * F.logsigmoid(-delta) - (1 - flipped) * F.logsigmoid(delta)) / (1 - 2 * flipped)


@pairwise("bco_pair")
def bco_pair(batch: ScoredBatch, args: DPOConfig) -> torch.Tensor:
    """A binary classifier of chosen against rejected, without reward shift (BCO, arXiv 2404.04656)."""
    chosen, rejected = args.beta * batch.chosen_logratios[batch.example], args.beta * batch.rejected_logratios
    return -F.logsigmoid(chosen) - F.logsigmoid(-rejected)


@pairwise("sppo_hard")
def sppo_hard(batch: ScoredBatch, args: DPOConfig) -> torch.Tensor:
    """Squared distance of the log-ratios from +-1/(2 beta) (SPPO, arXiv 2405.00675, Eq. 4.7, hard labels)."""
    target = 0.5 / args.beta
    return (batch.chosen_logratios[batch.example] - target) ** 2 + (batch.rejected_logratios + target) ** 2


@pairwise("apo_zero")
def apo_zero(batch: ScoredBatch, args: DPOConfig) -> torch.Tensor:
    """Chosen up, rejected down (APO, arXiv 2408.06266, Eq. 7)."""
    chosen, rejected = args.beta * batch.chosen_logratios[batch.example], args.beta * batch.rejected_logratios
    return 1 - torch.sigmoid(chosen) + torch.sigmoid(rejected)


@pairwise("apo_down")
def apo_down(batch: ScoredBatch, args: DPOConfig) -> torch.Tensor:
    """Chosen down, rejected further down (APO, arXiv 2408.06266, Eq. 8)."""
    chosen, rejected = batch.chosen_logratios[batch.example], batch.rejected_logratios
    return torch.sigmoid(args.beta * chosen) + 1 - torch.sigmoid(args.beta * (chosen - rejected))


@pairwise("discopop")
def discopop(batch: ScoredBatch, args: DPOConfig) -> torch.Tensor:
    """Logistic and exponential loss blended by the log-ratio (DiscoPOP, arXiv 2406.08414, Eq. 5)."""
    delta = args.beta * batch.score_gaps
    blend = torch.sigmoid(delta / args.discopop_tau)
    return -F.logsigmoid(delta) * (1 - blend) + torch.exp(-delta) * blend


def _smoothed(delta: torch.Tensor, args: DPOConfig) -> torch.Tensor:
    smoothing = args.label_smoothing
    return -F.logsigmoid(delta) * (1 - smoothing) - F.logsigmoid(-delta) * smoothing


# AOT compares the sorted values of the whole batch, so a sorted pair belongs to no example: the mean over the batch's
# pairs stands for each of them.
@multi_negative("aot")
def aot(batch: ScoredBatch, args: DPOConfig) -> torch.Tensor:
    """Stochastic dominance of the policy's gaps over the reference's (AOT, arXiv 2406.05882, paired)."""
    policy = batch.chosen_logps[batch.example] - batch.rejected_logps
    reference = batch.ref_chosen_logps[batch.example] - batch.ref_rejected_logps
    delta = args.beta * (policy.sort().values - reference.sort().values)
    return _smoothed(delta, args).mean().expand(len(batch.num_rejected))


@multi_negative("aot_unpaired")
def aot_unpaired(batch: ScoredBatch, args: DPOConfig) -> torch.Tensor:
    """Stochastic dominance of chosen over rejected log-ratios (AOT, arXiv 2406.05882, unpaired)."""
    chosen = batch.chosen_logratios[batch.example].sort().values
    delta = args.beta * (chosen - batch.rejected_logratios.sort().values)
    return _smoothed(delta, args).mean().expand(len(batch.num_rejected))


@torch.no_grad()
def wpo_weights(outputs: Any, completions: Completions) -> torch.Tensor:
    """Weigh each pair by the policy's own likelihood of both completions (WPO, arXiv 2406.11827, Eq. 2), (P,).

    Args:
        outputs: Of the scoring head: `log_probs` and `log_sum_sq_probs`, (S,) each.
        completions: The completions of the batch.
    """
    logps = completions.sum(completions.per_token(outputs.log_probs - outputs.log_sum_sq_probs))
    chosen, rejected = completions.split(torch.exp(logps / completions.lengths.clamp(min=1)))
    return chosen.repeat_interleave(completions.num_rejected) * rejected
