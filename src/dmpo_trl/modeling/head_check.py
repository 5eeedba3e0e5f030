"""Check of the scoring head: whether its log-probs are those of the model's own logits."""

import logging
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel

from .loading import evaluation_mode
from .quantization import unpacked_layers
from .verdict import (
    NOISE_FACTOR,
    TOLERANCE,
    NonFiniteLogitsError,
    Untried,
    computes_in_float32,
    obstacle,
    remembered,
)

logger = logging.getLogger(__name__)

# Short sequences that every model has positions for, and many targets of each position
_SEQUENCES, _LENGTH, _TARGETS = 2, 12, 64
# Of the slope between two ways to compute log-probs in lower precision: standard errors, and what is always tolerated
_SLOPE_DEVIATIONS, _LEAST_SLOPE = 5.0, 1e-3


def head_obstacle(model: Any, base_model: PreTrainedModel) -> str | None:
    """Return why the scoring head of `base_model` may not be used, with a warning; None if it may.

    Args:
        model: What will be called, with a scoring head installed in `base_model`.
        base_model: The transformers model inside.
    """
    if isinstance(base_model.get_output_embeddings(), BaseTunerLayer):
        reason: str | None = "its output embeddings have an adapter, whose effect training changes"
    else:
        reason = obstacle(lambda: head_difference(model, base_model))
    if reason is not None:  # once for policy and reference
        remembered(type(base_model), "warning of its head", lambda: _warn_of_head(base_model, reason))
    return reason


def _warn_of_head(base_model: PreTrainedModel, reason: str) -> bool:
    if isinstance(reason, Untried):
        problem = "could not be compared with what dmpo-trl computes from its hidden states and output embeddings"
    else:
        problem = "are not what dmpo-trl computes from its hidden states and output embeddings"
    logger.warning(
        "The logits of %s %s (%s). It is scored through its own logits, which gives the right results and takes more "
        "time and memory. Please open an issue that names the model.",
        type(base_model).__name__,
        problem,
        reason,
    )
    return True


@torch.no_grad()
def head_difference(model: Any, base_model: PreTrainedModel) -> tuple[float, float]:
    """Compare the scoring head's log-probs with those of the model's own logits, in the same batch.

    Hidden states are the same in both, so that only the rounding of the head remains. In float32 the size of the
    differences decides. In lower precision a model rounds its own logits at their magnitude, and log-probs do not see
    how far they all are from zero: there the slope between the two decides as well, in which rounding averages out.

    Args:
        model: What will be called, with a scoring head installed in `base_model`.
        base_model: The transformers model inside.

    Returns:
        The difference, in standard deviations of the log-probs, and the difference to tolerate: of the root mean
        square, or of the slope's distance from 1 where that exceeds its bound by more.

    Raises:
        NonFiniteLogitsError: The model's logits are not finite.
    """
    device = torch.device(str(base_model.device))
    generator = torch.Generator().manual_seed(0)
    vocab_size = base_model.config.get_text_config().vocab_size
    ids = torch.randint(vocab_size, (_SEQUENCES, _LENGTH), generator=generator)
    rows, columns = torch.ones_like(ids).nonzero(as_tuple=True)
    targets = torch.randint(vocab_size, (len(rows), _TARGETS), generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    once = {"scored_rows": rows, "scored_columns": columns - _LENGTH, "scored_targets": targets[:, 0]}
    many = {name: own.repeat_interleave(_TARGETS) for name, own in once.items()} | {
        "scored_targets": targets.flatten()
    }
    batch, once, many = ({name: own.to(device) for name, own in part.items()} for part in (batch, once, many))
    scoring_model: Any = base_model
    scores_own_logits, scoring_model.scores_own_logits = scoring_model.scores_own_logits, False
    try:
        with evaluation_mode(model), unpacked_layers(base_model):
            logits = model(**batch, **once, scored_outputs=("logits",), use_cache=False).logits.float()
            found = model(**batch, **many, use_cache=False).log_probs
    finally:
        scoring_model.scores_own_logits = scores_own_logits
    own = logits.log_softmax(dim=-1).gather(1, targets.to(logits.device))
    if own.isnan().any():
        raise NonFiniteLogitsError(base_model)
    found = found.to(own).view_as(own)
    finite = own.isfinite()  # a token that the model rules out has -inf
    difference = _root_mean_square(torch.where(found == own, 0.0, found - own))
    # The rounding of float32 counts where logits are next to nothing, as those of a head that is still to be trained
    unit, rounding = own[finite].std(), NOISE_FACTOR * torch.finfo(torch.float32).eps * _root_mean_square(own[finite])
    if computes_in_float32(base_model):
        return _in_units(difference, TOLERANCE * unit + rounding, unit)
    # Logits are rounded two or three times, by at most half an eps each
    tolerated = torch.finfo(base_model.dtype).eps * _root_mean_square(logits[logits.isfinite()]) + rounding
    distance, deviation = _slope(found, own, finite)
    bound = _SLOPE_DEVIATIONS * deviation + _LEAST_SLOPE
    if distance / bound > difference / tolerated:
        return float(distance), float(bound)
    return _in_units(difference, tolerated, unit)


def _in_units(difference: torch.Tensor, tolerated: torch.Tensor, unit: torch.Tensor) -> tuple[float, float]:
    unit = unit.clamp(min=1e-9)
    return float(difference / unit), float(tolerated / unit)


def _slope(found: torch.Tensor, own: torch.Tensor, finite: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distance from 1 of the slope by which log-probs follow others, position by position, and its standard error."""

    def centred(values: torch.Tensor) -> torch.Tensor:
        values = torch.where(finite, values, 0.0)
        return torch.where(
            finite, values - values.sum(1, keepdim=True) / finite.sum(1, keepdim=True).clamp(min=1), 0.0
        )

    x, y = centred(found), centred(own)
    spread = x.square().sum().clamp(min=1e-12)
    slope = (x * y).sum() / spread
    residual = (y - slope * x).square().sum() / finite.sum().clamp(min=2)
    return (slope - 1).abs(), (residual / spread).sqrt()


def _root_mean_square(values: torch.Tensor) -> torch.Tensor:
    return values.square().mean().sqrt()
