"""Running statistics of logits: the state of an online log-sum-exp after part of the vocabulary."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Computed only when asked for, besides the log-probs; the names and meanings are those of TRL's fused head.
OPTIONAL_OUTPUTS = ("entropy", "mean_logits", "is_top1", "log_sum_sq_probs")


@dataclass(frozen=True)
class TokenLogProbs:
    """Log-probs of S target tokens; a field that was not asked for is ``None``.

    Attributes:
        log_probs: ``(S,)``, log-prob of each target in nats. The only field with a gradient; always computed.
        entropy: ``(S,)``, entropy of each next-token distribution in nats.
        mean_logits: ``(S,)``, mean of the scaled and soft-capped logits over the vocabulary.
        is_top1: ``(S,)`` bool, whether the target is the most likely token (the first of equals).
        log_sum_sq_probs: ``(S,)``, ``log(sum_v p_v^2)``, the log of the collision probability.
    """

    log_probs: Tensor
    entropy: Tensor | None = None
    mean_logits: Tensor | None = None
    is_top1: Tensor | None = None
    log_sum_sq_probs: Tensor | None = None


@dataclass
class RunningStatistics:
    """Per-token statistics of the logits z seen so far, each ``(S,)``; sums of exponentials are relative to `max`."""

    max: Tensor
    sum_exp: Tensor  # Σ e, with e = exp(z - max)
    target_logit: Tensor
    sum_logits: Tensor | None  # Σ z
    sum_exp_logits: Tensor | None  # Σ e z
    sum_sq_exp: Tensor | None  # Σ e²
    argmax: Tensor | None  # vocabulary index of `max`

    @classmethod
    def start(cls, targets: Tensor, dtype: torch.dtype, outputs: tuple[str, ...]) -> "RunningStatistics":
        """Return the state before any logit: nothing summed, the maximum at minus infinity."""

        def zeros() -> Tensor:
            return torch.zeros(targets.shape, device=targets.device, dtype=dtype)

        return cls(
            max=zeros().fill_(-math.inf),
            sum_exp=zeros(),
            target_logit=zeros(),
            sum_logits=zeros() if "mean_logits" in outputs else None,
            sum_exp_logits=zeros() if "entropy" in outputs else None,
            sum_sq_exp=zeros() if "log_sum_sq_probs" in outputs else None,
            argmax=torch.full_like(targets, -1) if "is_top1" in outputs else None,
        )

    def rows(self, rows: slice) -> "RunningStatistics":
        """Return views of some tokens, so that folding into them folds into these."""
        views: dict[str, Any] = {name: None if x is None else x[rows] for name, x in vars(self).items()}
        return RunningStatistics(**views)

    def finish(self, targets: Tensor, vocabulary_size: int) -> TokenLogProbs:
        """Return the outputs, once the whole vocabulary has been folded in."""
        log_sum_exp = self.sum_exp.log()
        log_z = self.max + log_sum_exp
        return TokenLogProbs(
            log_probs=self.target_logit - log_z,
            entropy=None if self.sum_exp_logits is None else log_z - self.sum_exp_logits / self.sum_exp,
            mean_logits=None if self.sum_logits is None else self.sum_logits / vocabulary_size,
            is_top1=None if self.argmax is None else self.argmax == targets,
            log_sum_sq_probs=None if self.sum_sq_exp is None else self.sum_sq_exp.log() - 2 * log_sum_exp,
        )


def fold(
    tile: Tensor,
    start: int,
    targets: Tensor,
    statistics: RunningStatistics,
    logit_scale: float,
    softcap: float | None,
    with_weights: bool,
) -> tuple[Tensor, Tensor]:
    """Fold one vocabulary tile into the statistics of its tokens.

    Args:
        tile: ``(n, v)`` projections y of vocabulary entries ``start`` to ``start + v``; overwritten.
        start: Vocabulary index of the tile's first column.
        targets: ``(n,)`` vocabulary indices.
        statistics: Statistics of these n tokens; updated in place.
        logit_scale: ``z = logit_scale * y``, before the soft-cap.
        softcap: c in ``z = c * tanh(logit_scale * y / c)``; ``None`` for no cap.
        with_weights: Whether the first result will be used.

    Returns:
        ``(n, v)`` weights ``exp(z - max) * (1 - (z / c)^2)``, the softmax times its sum and the slope of the soft-cap,
        and ``(n,)`` factors ``exp(old max - new max)`` that sums over earlier tiles' weights must be multiplied by.
    """
    z = tile.to(statistics.max.dtype)
    if logit_scale != 1.0:
        z.mul_(logit_scale)
    if softcap is not None:
        z.div_(softcap).tanh_().mul_(softcap)

    column = targets - start
    in_tile = (column >= 0) & (column < z.shape[1])
    z_target = z.gather(1, column.clamp(0, z.shape[1] - 1).unsqueeze(1)).squeeze(1)
    torch.where(in_tile, z_target, statistics.target_logit, out=statistics.target_logit)
    if statistics.sum_logits is not None:
        statistics.sum_logits += z.sum(1)

    if statistics.argmax is None:
        tile_max = z.amax(1)
    else:
        tile_max, tile_argmax = z.max(1)
        torch.where(tile_max > statistics.max, tile_argmax + start, statistics.argmax, out=statistics.argmax)
    new_max = torch.maximum(statistics.max, tile_max)
    rescale = torch.exp(statistics.max - new_max)
    statistics.max.copy_(new_max)

    keep_z = statistics.sum_exp_logits is not None or (with_weights and softcap is not None)
    e = torch.sub(z, new_max.unsqueeze(1), out=None if keep_z else z).exp_()
    statistics.sum_exp.mul_(rescale).add_(e.sum(1))
    if statistics.sum_exp_logits is not None:
        statistics.sum_exp_logits.mul_(rescale).add_(torch.linalg.vecdot(e, z))
    if statistics.sum_sq_exp is not None:
        statistics.sum_sq_exp.mul_(rescale * rescale).add_(torch.linalg.vecdot(e, e))
    if with_weights and softcap is not None:
        e.mul_(z.div_(softcap).square_().neg_().add_(1))
    return e, rescale
