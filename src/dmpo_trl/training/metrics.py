"""Metrics of a training step: TRL's under TRL's names, and those that only many negatives have.

Notation of `losses`; `delta_i = rewards+ - reward_i` is the margin of a pair, with `reward = beta * r(y)`.

| name | per row | |
|---|---|---|
| `rewards/chosen`, `logps/chosen` | `reward+`; `log pi(y+)` | TRL's |
| `rewards/rejected`, `logps/rejected` | mean of `reward_i`; of `log pi(y_i)` | TRL's |
| `rewards/accuracies` | share of its pairs with `delta_i > 0` | TRL's |
| `rewards/margins` | mean of `delta_i` | TRL's |
| `rewards/margins_min` | smallest `delta_i`: the margin to the hardest negative | ours |
| `rewards/top1` | 1 where that is above 0: the chosen beats all negatives | ours |
| `rewards/saturated` | share of its pairs with `sigmoid(-delta_i) < 0.01` | ours |
| `logps/margins_min` | smallest `log pi(y+) - log pi(y_i)`: above 0 the policy ranks the chosen first | ours |
| `num_rejected` | its number of negatives, N | ours |

The mean over rows is logged, so that every row weighs the same, whatever its N. Of a row with several chosen
completions, what the table says of the one is the mean over all of them; but `rewards/margins_min`, `rewards/top1` and
`logps/margins_min` are those of the worst: theirs is the smallest margin of any pair, and `rewards/top1` asks that all
of them beat all negatives.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator

from ..batching.completions import Completions
from ..losses import ScoredBatch

SATURATED = 0.01
"""A pair whose weight `sigmoid(-delta_i)` is below this is saturated; it is where `delta_i` exceeds 4.6.

The gradient of `-log sigmoid(delta)` is that of `-delta` times `sigmoid(-delta)`, which begins at 0.5. Under the
pairwise loss `"sigmoid"` a saturated pair teaches nothing any more. Under `"dmpo"` an example's pairs share the weight
`sigmoid(-mean_i delta_i)`: where easy pairs are saturated while `rewards/margins_min` is still low, they hide the hard
ones. The definition is the same for every loss, so that runs can be compared.
"""


def example_metrics(batch: ScoredBatch) -> dict[str, torch.Tensor]:
    """Return the metrics of each row by name, (R,) each; the module's table defines them.

    Args:
        batch: Log-probs of the batch, all its negatives among them.
    """
    chosen_rewards = batch.beta * batch.chosen_logratios
    rejected_rewards = batch.beta * batch.rejected_logratios
    margins = chosen_rewards[batch.example] - rejected_rewards  # (P,)
    logp_margins = batch.chosen_logps[batch.example] - batch.rejected_logps
    mean, worst = batch.mean_over_row, batch.min_over_row
    hardest = worst(batch.min_over_rejected(margins))
    return {
        "rewards/chosen": mean(chosen_rewards),
        "rewards/rejected": mean(batch.mean_over_rejected(rejected_rewards)),
        "rewards/accuracies": mean(batch.mean_over_rejected((margins > 0).float())),
        "rewards/margins": mean(batch.mean_over_rejected(margins)),
        "rewards/margins_min": hardest,
        "rewards/top1": (hardest > 0).float(),
        "rewards/saturated": mean(batch.mean_over_rejected((torch.sigmoid(-margins) < SATURATED).float())),
        "logps/chosen": mean(batch.chosen_logps),
        "logps/rejected": mean(batch.mean_over_rejected(batch.rejected_logps)),
        "logps/margins_min": worst(batch.min_over_rejected(logp_margins)),
        "num_rejected": mean(batch.num_rejected.float()),
    }


def token_metrics(outputs: Any, completions: Completions) -> dict[str, torch.Tensor]:
    """Return TRL's metrics of the completions' tokens, one value per token, and `aux_loss` where there is one.

    Args:
        outputs: Of the scoring head: `entropy`, `mean_logits`, `is_top1`, (S,) each, and `aux_loss`.
        completions: The completions of the batch.
    """
    chosen, rejected = completions.chosen_tokens, completions.rejected_tokens
    mean_logits = completions.per_token(outputs.mean_logits)
    metrics = {
        "entropy": completions.per_token(outputs.entropy),
        "logits/chosen": mean_logits[chosen],
        "logits/rejected": mean_logits[rejected],
        "mean_token_accuracy": completions.per_token(outputs.is_top1)[chosen],
    }
    return metrics if outputs.aux_loss is None else metrics | {"aux_loss": outputs.aux_loss[None]}


@dataclass(frozen=True)
class Totals:
    """Sums of metrics over all processes, still on the device that computes them.

    Attributes:
        names: Of the metrics.
        table: Their means, their sums, and the number of values of each; the tokens last, (3, metrics + 1).
    """

    names: Sequence[str]
    table: torch.Tensor

    def means(self) -> tuple[dict[str, float], int, int]:
        """Wait for the sums, and return the means by name (0 without a value), the examples, and the tokens."""
        means, sums, counts = self.table.tolist()
        num_examples = int(counts[list(self.names).index("num_rejected")])
        return dict(zip(self.names, means[:-1], strict=True)), num_examples, int(sums[-1])


def totals_over_processes(
    metrics: Mapping[str, torch.Tensor], num_tokens: torch.Tensor, accelerator: Accelerator, *, counted: bool = True
) -> Totals:
    """Add each metric up over all processes, in one gather whatever the number of negatives in each of them.

    Args:
        metrics: The values of this process by name, (any number,) each; the same names in every process.
        num_tokens: Number of tokens of this process's batch, a scalar.
        accelerator: Knows the other processes.
        counted: Whether this process's values count. Those that do not may be anything, NaN included.
    """
    sums = torch.stack([values.float().sum() for values in metrics.values()] + [num_tokens.float()])
    # Written by the device itself: a copy from the CPU would be waited for
    counts = torch.stack([sums.new_full((), len(values)) for values in metrics.values()] + [sums.new_zeros(())])
    table = torch.stack([sums, counts])[None]
    sums, counts = accelerator.gather(table if counted else torch.zeros_like(table)).sum(dim=0)
    return Totals(list(metrics), torch.stack([sums / counts.clamp(min=1), sums, counts]))
