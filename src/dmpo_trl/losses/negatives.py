"""Which negatives of an example count in its loss, and how much."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ..batching.completions import Completions
from .batch import ScoredBatch

CLUSTERS = 3
"""Number of clusters into which DynamicPO sorts negatives that all rank below the chosen completion."""


@torch.no_grad()
def boundary(batch: ScoredBatch) -> ScoredBatch:
    """Keep the negatives at the decision boundary, each with a beta of its own (DynamicPO, arXiv 2605.00327).

    With `l = log pi(y|x)`, the negatives that rank above the chosen completion are kept, `l_i >= l+`. Where there are
    none, those of the topmost of three clusters of the `l_i` are (k-means in one dimension, solved exactly; with fewer
    than four negatives each is a cluster). Kept negative i is given
    `beta_i = beta * (1 + tanh((m1 - m2 - 2) / (|m1| + |m2|)) / 2)`, where `m1 = l+ - l_i`, and `m2` is `l_i` minus
    the mean over the negatives that are not kept, or over all where all are kept.

    It goes with any loss: the kept negatives are all that the loss sees. `beta_i` acts through `deltas` and
    `logp_deltas`; losses that are not made of them keep the one `beta`.

    Args:
        batch: Log-probs of the batch. Its selection has no gradient.

    Returns:
        The batch with the kept negatives, one or more of each example.

    Example:
        >>> one, four = torch.tensor([-3.0]), torch.tensor([-9.0, -1.0, -2.0, -8.0])
        >>> zeros, lengths = torch.zeros_like, torch.ones_like
        >>> batch = ScoredBatch(
        ...     one, four, zeros(one), zeros(four), torch.tensor([4]), lengths(one), lengths(four), torch.tensor(1.0)
        ... )
        >>> boundary(batch).rejected_logps
        tensor([-1., -2.])
    """
    chosen, rejected = batch.chosen_logps.double()[batch.example], batch.rejected_logps.double()
    kept = rejected >= chosen
    has_any = batch.mean_over_rejected(kept.double()) > 0
    kept |= ~has_any[batch.example] & _in_top_cluster(batch, rejected)
    others = torch.where(batch.mean_over_rejected((~kept).double())[batch.example] > 0, ~kept, kept).double()
    mean_of_others = batch.mean_over_rejected(rejected * others) / batch.mean_over_rejected(others)
    m1, m2 = chosen - rejected, rejected - mean_of_others[batch.example]
    tiny = torch.finfo(torch.float64).tiny  # both are 0 where all completions are equally likely
    factors = 1 + torch.tanh((m1 - m2 - 2) / (m1.abs() + m2.abs()).clamp(min=tiny)) / 2
    with torch.enable_grad():
        return replace(batch, beta_factors=factors.to(batch.rejected_logps.dtype)).only(kept)


def _in_top_cluster(batch: ScoredBatch, values: torch.Tensor) -> torch.Tensor:
    """Return whether each value is in the topmost cluster of its example's values, (P,)."""
    counts = batch.num_rejected
    table = batch.table_over_rejected(values, -torch.inf)
    slots = torch.arange(table.size(1), device=values.device)
    is_slot = slots < counts[:, None]
    ordered, order = table.sort(dim=1, descending=True)
    centred = torch.where(is_slot, ordered - ordered[:, :1], 0.0)  # padding sorts last
    # sums[:, k] are those of the first k; a cluster of the values from i to j costs its sum of squared deviations
    first, second = (torch.nn.functional.pad((centred**power).cumsum(1), (1, 0)) for power in (1, 2))

    def cost(start: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        size = (end - start).clamp(min=1)
        return (
            second.gather(1, end)
            - second.gather(1, start)
            - (first.gather(1, end) - first.gather(1, start)) ** 2 / size
        )

    top, middle = torch.cartesian_prod(slots, slots).T  # sizes of the topmost cluster, and of it with the next
    top, middle = (sizes.expand(len(counts), -1).contiguous() for sizes in (top, middle))
    end = counts[:, None].expand_as(top).contiguous()
    costs = cost(torch.zeros_like(top), top) + cost(top, middle) + cost(middle, end)
    costs = torch.where((top >= 1) & (top < middle) & (middle < end), costs, torch.inf)
    sizes = torch.where(counts > CLUSTERS, top.gather(1, costs.argmin(dim=1, keepdim=True))[:, 0], 1)
    in_top = torch.zeros_like(is_slot).scatter(1, order, slots.expand_as(order) < sizes[:, None])
    return in_top[is_slot]


SELECTIONS: dict[str, Callable[[ScoredBatch], ScoredBatch]] = {"all": lambda batch: batch, "boundary": boundary}
"""What `negative_selection` may name."""


@torch.no_grad()
def wpo_weights(outputs: Any, completions: Completions) -> torch.Tensor:
    """Weigh each pair by the policy's own likelihood of both completions (WPO, arXiv 2406.11827, Eq. 2), (P,).

    Args:
        outputs: Of the scoring head: `log_probs` and `log_sum_sq_probs`, (S,) each.
        completions: The completions of the batch.

    Example:
        >>> from types import SimpleNamespace
        >>> pairs = torch.arange(2)  # a chosen and a rejected completion of one token each
        >>> completions = Completions.make(torch.tensor([1]), torch.tensor([1]), pairs, pairs)
        >>> probs, sums = torch.tensor([0.5, 0.25]), torch.tensor([0.5, 0.5])
        >>> wpo_weights(SimpleNamespace(log_probs=probs.log(), log_sum_sq_probs=sums.log()), completions)
        tensor([0.5000])
    """
    logps = completions.sum(completions.per_token(outputs.log_probs - outputs.log_sum_sq_probs))
    chosen, rejected = completions.split(torch.exp(logps / completions.lengths.clamp(min=1)))
    chosen_of_pairs, rejected_of_pairs = completions.pairs
    return chosen[chosen_of_pairs] * rejected[rejected_of_pairs]
