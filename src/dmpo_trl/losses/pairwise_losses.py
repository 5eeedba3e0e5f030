"""Losses of pairs: pure functions of a batch's log-probs, one value per pair.

All are `DPOConfig`'s; averaged over the pairs of an example they take any number of negatives. `delta` is what
`ScoredBatch.deltas` says it is.
"""

import math

import torch
import torch.nn.functional as F
from trl import DPOConfig

from .batch import ScoredBatch
from .registry import pairwise


@pairwise("sigmoid")
def sigmoid(batch: ScoredBatch, args: DPOConfig) -> torch.Tensor:
    """`-log sigmoid(delta)` (DPO, arXiv 2305.18290, Eq. 7)."""
    return -F.logsigmoid(batch.deltas)


@pairwise("hinge")
def hinge(batch: ScoredBatch, args: DPOConfig) -> torch.Tensor:
    """`max(0, 1 - delta)` (RSO, arXiv 2309.06657; SLiC, arXiv 2305.10425)."""
    return torch.relu(1 - batch.deltas)


def _per_token_gap(batch: ScoredBatch) -> torch.Tensor:
    chosen = batch.chosen_scores / batch.chosen_lengths.clamp(min=1)
    rejected = batch.rejected_scores / batch.rejected_lengths.clamp(min=1)
    return chosen[batch.example] - rejected


@pairwise("ipo", score="mean")
def ipo(batch: ScoredBatch, args: DPOConfig) -> torch.Tensor:
    """`(gap - 1/(2 beta))^2` with scores per token (IPO, arXiv 2310.12036, Eq. 17, averaged over tokens as in TRL)."""
    return (_per_token_gap(batch) - 1 / (2 * batch.beta)) ** 2


@pairwise("sigmoid_norm", score="mean")
def sigmoid_norm(batch: ScoredBatch, args: DPOConfig) -> torch.Tensor:
    """`-log sigmoid(beta * gap)` with scores per token (length-normalised DPO, Tülu 3, arXiv 2411.15124)."""
    return -F.logsigmoid(batch.beta * _per_token_gap(batch))


@pairwise("exo_pair")
def exo_pair(batch: ScoredBatch, args: DPOConfig) -> torch.Tensor:
    """KL from the policy's preference to the smoothed label (EXO, arXiv 2402.00856, Eq. 16)."""
    delta, epsilon = batch.deltas, args.label_smoothing
    win, lose = F.logsigmoid(delta), F.logsigmoid(-delta)
    return win.exp() * (win - math.log1p(-epsilon)) + lose.exp() * (lose - math.log(epsilon))


@pairwise("nca_pair")
def nca_pair(batch: ScoredBatch, args: DPOConfig) -> torch.Tensor:
    """Absolute rather than relative likelihoods (NCA, arXiv 2402.05369, Eq. 15 for K = 2)."""
    chosen, rejected = batch.beta * batch.chosen_logratios[batch.example], batch.beta * batch.rejected_logratios
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


@pairwise("robust")
def robust(batch: ScoredBatch, args: DPOConfig) -> torch.Tensor:
    """DPO unbiased under flipped labels (Robust DPO, arXiv 2403.00409, Eq. 10)."""
    delta, flipped = batch.deltas, args.label_smoothing
    return (flipped * F.logsigmoid(-delta) - (1 - flipped) * F.logsigmoid(delta)) / (1 - 2 * flipped)


@pairwise("bco_pair")
def bco_pair(batch: ScoredBatch, args: DPOConfig) -> torch.Tensor:
    """A binary classifier of chosen against rejected, without reward shift (BCO, arXiv 2404.04656)."""
    chosen, rejected = batch.beta * batch.chosen_logratios[batch.example], batch.beta * batch.rejected_logratios
    return -F.logsigmoid(chosen) - F.logsigmoid(-rejected)


@pairwise("sppo_hard")
def sppo_hard(batch: ScoredBatch, args: DPOConfig) -> torch.Tensor:
    """Squared distance of the log-ratios from +-1/(2 beta) (SPPO, arXiv 2405.00675, Eq. 4.7, hard labels)."""
    target = 0.5 / batch.beta
    return (batch.chosen_logratios[batch.example] - target) ** 2 + (batch.rejected_logratios + target) ** 2


@pairwise("apo_zero")
def apo_zero(batch: ScoredBatch, args: DPOConfig) -> torch.Tensor:
    """Chosen up, rejected down (APO, arXiv 2408.06266, Eq. 7)."""
    chosen, rejected = batch.beta * batch.chosen_logratios[batch.example], batch.beta * batch.rejected_logratios
    return 1 - torch.sigmoid(chosen) + torch.sigmoid(rejected)


@pairwise("apo_down")
def apo_down(batch: ScoredBatch, args: DPOConfig) -> torch.Tensor:
    """Chosen down, rejected further down (APO, arXiv 2408.06266, Eq. 8)."""
    chosen, rejected = batch.chosen_logratios[batch.example], batch.rejected_logratios
    return torch.sigmoid(batch.beta * chosen) + 1 - torch.sigmoid(batch.beta * (chosen - rejected))


@pairwise("discopop")
def discopop(batch: ScoredBatch, args: DPOConfig) -> torch.Tensor:
    """Logistic and exponential loss blended by the log-ratio (DiscoPOP, arXiv 2406.08414, Eq. 5)."""
    delta = batch.deltas
    scaled = delta / args.discopop_tau
    # exp(-delta) times the blend, put into one power: for large gaps the first is infinite and the second 0
    return -F.logsigmoid(delta) * torch.sigmoid(-scaled) + torch.exp(F.logsigmoid(scaled) - delta)
