"""Losses of an example with all its negatives: pure functions of a batch's log-probs, one value per example.

`delta_i` is what `ScoredBatch.deltas` says it is.
"""

import torch
import torch.nn.functional as F
from trl import DPOConfig

from .batch import ScoredBatch
from .registry import multi_negative


@multi_negative("dmpo")
def dmpo(batch: ScoredBatch, args: DPOConfig) -> torch.Tensor:
    """`-log sigmoid(mean_i delta_i)` (DMPO, arXiv 2405.16127, Eq. 7)."""
    return -F.logsigmoid(batch.mean_over_rejected(batch.deltas))


@multi_negative("softmax")
def softmax(batch: ScoredBatch, args: DPOConfig) -> torch.Tensor:
    """`-log sigmoid(-log sum_i exp(-delta_i))` (S-DPO, arXiv 2406.09215, Eq. 10), without overflow."""
    return F.softplus(batch.logsumexp_over_rejected(-batch.deltas))


@multi_negative("mult_dpo")
def mult_dpo(batch: ScoredBatch, args: DPOConfig) -> torch.Tensor:
    """`sum_j log sum_{y in C_j} exp(beta (s(y) - s_j))` over the chosen completions j of a row (Mult-DPO).

    `C_j` are the candidates of j: all rejected completions, j itself, and the other chosen ones that are not of a
    higher level. It is a sum of cross-entropies, S-DPO's loss where a row has one chosen completion.

    From the paper (arXiv 2606.10078): the likelihood of several chosen completions is a multinomial over all
    candidates of a row, in the place of the orders of Plackett and Luce; it asks for no order among the chosen ones,
    its loss bounds theirs from above, and it extends to several levels. Our reading, since we have no more of the
    paper than its abstract and this formula: what levels mean (a multinomial per level, over what is left when the
    levels above are gone), and that `margins`, a beta for each pair and weights apply to the pairs of a chosen and a
    rejected completion as in the other losses.
    """
    others = batch.beta * (batch.table_over_row(batch.chosen_scores, 0.0) - batch.chosen_scores[:, None])
    levels = torch.zeros_like(batch.chosen_scores) if batch.chosen_levels is None else batch.chosen_levels
    is_candidate = batch.table_over_row(levels, torch.inf) <= levels[:, None]
    itself = batch.table_over_row(torch.arange(len(levels), device=levels.device), -1)
    is_candidate &= itself != torch.arange(len(levels), device=levels.device)[:, None]
    terms = [batch.table_over_rejected(-batch.deltas, -torch.inf), others.masked_fill(~is_candidate, -torch.inf)]
    loss = F.softplus(torch.cat(terms, dim=1).logsumexp(dim=1))
    return loss if batch.num_chosen is None else loss * batch.num_chosen[batch.row]  # the mean over a row is taken


@multi_negative("sampled_softmax", reference=False)
def sampled_softmax(batch: ScoredBatch, args: DPOConfig) -> torch.Tensor:
    """`-log(e^{beta l+} / (e^{beta l+} + sum_i e^{beta l_i - log q_i}))` with `l = log pi(y|x)`, without a reference.

    Cross-entropy over the chosen item and the sampled ones (arXiv 2402.06216 for its worth in recommendation). With
    `q_i`, how often item i is expected among the N drawn, it estimates the softmax over the whole catalogue (Bengio
    and Senecal, 2008); `beta` is the inverse of its temperature.
    """
    terms = -batch.logp_deltas
    if batch.rejected_logq is not None:
        terms = terms - batch.rejected_logq
    return F.softplus(batch.logsumexp_over_rejected(terms))


@multi_negative("mppo", reference=False, score="mean")
def mppo(batch: ScoredBatch, args: DPOConfig) -> torch.Tensor:
    """`-log sigmoid(sum_i (p+ - p_i))` (MPPO, arXiv 2412.15244).

    `p` is the mean probability of a completion's tokens. It has neither a reference nor `beta`.
    """
    if batch.chosen_probs is None or batch.rejected_probs is None:
        raise ValueError("The loss 'mppo' needs chosen_probs and rejected_probs.")
    gaps = batch.chosen_probs[batch.example] - batch.rejected_probs
    return -F.logsigmoid(batch.sum_over_rejected(gaps))


@multi_negative("sft", reference=False)
def sft(batch: ScoredBatch, args: DPOConfig) -> torch.Tensor:
    """Mean negative log-prob of the batch's chosen tokens, of all chosen completions, the same for every example."""
    return batch.chosen_nll.expand(len(batch.num_rejected))


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
    delta = batch.beta * (policy.sort().values - reference.sort().values)
    return _smoothed(delta, args).mean().expand(len(batch.num_rejected))


@multi_negative("aot_unpaired")
def aot_unpaired(batch: ScoredBatch, args: DPOConfig) -> torch.Tensor:
    """Stochastic dominance of chosen over rejected log-ratios (AOT, arXiv 2406.05882, unpaired)."""
    chosen = batch.chosen_logratios[batch.example].sort().values
    delta = batch.beta * (chosen - batch.rejected_logratios.sort().values)
    return _smoothed(delta, args).mean().expand(len(batch.num_rejected))
