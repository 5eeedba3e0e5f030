"""Verdicts: whether two ways to compute a model's numbers agree, asked once for each model.

No list of architectures can be trusted, so numbers decide.
"""

import logging
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Differences of logits in standard deviations of the logits, a measure that random weights do not blur. Right models
# differ by float32 rounding; in lower precision the rounding of copies in another batch shape is the yardstick. The
# figures behind both are in docs/prefix-sharing.md.
TOLERANCE = 1e-4
NOISE_FACTOR = 8.0

# Of each model (or class of models) the answers so far, by question
_answers: WeakKeyDictionary[Any, dict[Any, Any]] = WeakKeyDictionary()


class NonFiniteLogitsError(ValueError):
    """The model's logits are not numbers, whatever its input."""

    def __init__(self, base_model: PreTrainedModel) -> None:
        super().__init__(
            f"The logits of {type(base_model).__name__} are not finite, before any step: its weights are broken, or "
            f"{base_model.dtype} overflows. Load it in float32 or bfloat16 (`dtype` in `model_init_kwargs`); if that "
            "does not help, get the checkpoint anew."
        )


def remembered(subject: Any, question: Any, ask: Callable[[], T]) -> T:
    """Return the answer to a question about a model, which is asked once.

    Args:
        subject: A transformers model, or the class of several.
        question: What the answer depends on besides the model, hashable.
        ask: Finds the answer.

    Example:
        >>> model = torch.nn.Linear(1, 1)
        >>> remembered(model, "size", lambda: print("asked") or 2)
        asked
        2
        >>> remembered(model, "size", lambda: print("asked") or 2)
        2
    """
    answers = _answers.setdefault(subject, {})
    if question not in answers:
        answer = ask()
        if isinstance(answer, Untried):  # it may be tried again
            return answer
        answers[question] = answer
    found: T = answers[question]
    return found


class Untried(str):
    """An obstacle that says nothing of the model: the probe itself failed. It is not remembered."""

    __slots__ = ()


def obstacle(compare: Callable[[], tuple[float, float]]) -> str | None:
    """Return why a way to compute a model's numbers is not right for it, or None where it is.

    Args:
        compare: Returns a difference from the model's own numbers and the difference to tolerate. What it raises is
            an obstacle too (`Untried`), except for logits that are not finite and memory that does not suffice.
    """
    try:
        difference, tolerated = compare()
    except (NonFiniteLogitsError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        logger.debug("A probe failed", exc_info=True)
        return Untried(f"the probe raised {type(error).__name__}: {error}")
    if difference <= tolerated:
        return None
    return f"its numbers differ by {difference:.2g} standard deviations (tolerance {tolerated:.2g})"


def compared(
    base_model: PreTrainedModel, own: torch.Tensor, again: torch.Tensor, found: torch.Tensor
) -> tuple[float, float]:
    """Compare numbers with the model's own.

    Args:
        base_model: The transformers model that they come from.
        own: The numbers by definition.
        again: The same in another way that is right for every model, which differs by rounding alone.
        found: The numbers in the way that is tried.

    Returns:
        The largest difference, in standard deviations of the numbers, and the difference to tolerate.
    """
    difference, noise = (float((numbers - own).abs().max() / own.std()) for numbers in (found, again))
    if computes_in_float32(base_model):
        return difference, TOLERANCE
    return difference, NOISE_FACTOR * max(noise, torch.finfo(base_model.dtype).eps)


def computes_in_float32(base_model: PreTrainedModel) -> bool:
    """Return whether a model's rounding is that of float32."""
    return base_model.dtype == torch.float32 and not getattr(base_model, "is_quantized", False)
