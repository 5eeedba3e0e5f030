"""Whether a model computes the same in the trie layout: decided by numbers, since no list of names can be trusted."""

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import PretrainedConfig, PreTrainedModel

from ..batching.collator import lay_out
from .attention import use_trie_attention
from .loading import evaluation_mode
from .quantization import unpacked_layers
from .scoring_head import add_scoring_head

logger = logging.getLogger(__name__)

# Sequences of the probe: two prompts with a common beginning, with completions that begin alike. Sibling branches put
# tokens up to 90 places further apart in the row than in their sequence, which makes a wrong position loud.
_PROMPT_LENGTHS = (24, 40)
_COMMON_BEGINNING = 16
_COMPLETIONS, _COMPLETION_LENGTH = 8, 12
_WINDOW = 12  # shorter than the prompts, so that windows matter
# Differences of logits in standard deviations of the logits, a measure that random weights do not blur. Right models
# differ by float32 rounding; in lower precision the rounding of copies in another batch shape is the yardstick. The
# figures behind both are in docs/prefix-sharing.md.
_TOLERANCE = 1e-4
_NOISE_FACTOR = 8.0
_HEAD_TOLERANCE = 0.5  # nats a token
# Layers that look at other tokens through the attention mask only; a recurrence or a convolution does not
_ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


# Models that passed the probe, and the attention implementation they passed it with
_probed: WeakKeyDictionary[PreTrainedModel, str] = WeakKeyDictionary()


class ScoringHeadError(ValueError):
    """The model's logits are not what its hidden states and output embeddings give: no layout can be right."""


class NonFiniteLogitsError(ScoringHeadError):
    """The model's logits are not numbers, whatever its input."""

    def __init__(self, base_model: PreTrainedModel) -> None:
        super().__init__(
            f"The logits of {type(base_model).__name__} are not finite, before any step: its weights are broken, or "
            f"{base_model.dtype} overflows. Load it in float32 or bfloat16 (`dtype` in `model_init_kwargs`); if that "
            "does not help, get the checkpoint anew."
        )


def prepare_for_scoring(model: Any, base_model: PreTrainedModel, mode: str | bool) -> bool:
    """Install the scoring head in a model and decide whether the model may run in the trie layout.

    Args:
        model: What will be called: the model or the wrapper around it (a `PeftModel`).
        base_model: The transformers model inside.
        mode: `"auto"`, True or False; see `DMPOConfig.prefix_sharing`.

    Returns:
        Whether to use the trie layout. Where not, the model's attention implementation is as it was.

    Raises:
        ValueError: `mode` is True and the model computes something else in the trie layout, or the probe meets logits
            that are not finite.
    """
    add_scoring_head(base_model)
    if mode is False:
        return False
    if _probed.get(base_model) == base_model.config._attn_implementation:
        return True
    previous = base_model.config._attn_implementation
    try:
        reason = _find_obstacle(model, base_model)
    except ScoringHeadError:
        raise
    except Exception as error:  # whatever a model raises, copies of the prompt are right for it
        logger.debug("The probe of prefix sharing failed", exc_info=True)
        reason = f"the probe raised {type(error).__name__}: {error}"
    if reason is None:
        _probed[base_model] = base_model.config._attn_implementation
        return True
    if mode is True:
        raise ValueError(
            f"`prefix_sharing=True`, but {type(base_model).__name__} cannot share prefixes: {reason}. Set it to "
            "'auto' or False to train on copies of the prompt."
        )
    base_model.set_attn_implementation(previous)
    logger.warning(
        "Prefix sharing is off: %s computes something else in the trie layout (%s). Every completion gets a copy of "
        "its prompt, which gives the same results and takes longer. Set `prefix_sharing=False` to skip the probe.",
        type(base_model).__name__,
        reason,
    )
    return False


@torch.no_grad()
def require_finite_logits(model: Any, base_model: PreTrainedModel) -> None:
    """Refuse a model whose logits are NaN or infinite for one short sequence.

    Args:
        model: What will be called.
        base_model: The transformers model inside.

    Raises:
        NonFiniteLogitsError: They are.
    """
    prompts, completions = _sequences(base_model.config.get_text_config().vocab_size)
    try:
        with evaluation_mode(model), unpacked_layers(base_model):
            logits = _own_logits(model, prompts[0], completions[0][0], torch.device(str(base_model.device)))
    except Exception:  # it needs more than tokens, such as images
        logger.debug("Whether logits are finite could not be tried", exc_info=True)
        return
    if logits.log_softmax(dim=-1).isnan().any():  # -inf alone is a token that the model rules out
        raise NonFiniteLogitsError(base_model)


def _find_obstacle(model: Any, base_model: PreTrainedModel) -> str | None:
    """Why `model` may not run in the trie layout; None if it may."""
    layer_types = getattr(base_model.config.get_text_config(), "layer_types", None) or []
    if foreign := sorted(set(layer_types) - _ATTENTION_LAYERS):
        return f"its layers of type {', '.join(foreign)} see other tokens without an attention mask"
    if not use_trie_attention(base_model):
        return "its attention is not looked up in transformers' registry, so the mask cannot reach it"
    difference, tolerated = probe(model, base_model)
    if difference <= tolerated:
        return None
    return f"its logits differ by {difference:.2g} standard deviations (tolerance {tolerated:.2g})"


@torch.no_grad()
def probe(model: Any, base_model: PreTrainedModel) -> tuple[float, float]:
    """Compare the logits of the trie layout with those of one sequence at a time.

    Args:
        model: What will be called, with a scoring head installed in `base_model`.
        base_model: The transformers model inside, switched to trie attention.

    Returns:
        The largest difference of a logit, in standard deviations of the logits, and the difference to tolerate.

    Raises:
        ScoringHeadError: The scoring head's log-probs are not those of the model's own logits.
    """
    device = torch.device(str(base_model.device))
    prompts, completions = _sequences(base_model.config.get_text_config().vocab_size)
    with evaluation_mode(model), short_windows(base_model.config), unpacked_layers(base_model):
        own = torch.cat(
            [
                _own_logits(model, prompt, completion, device)
                for prompt, options in zip(prompts, completions, strict=True)
                for completion in options
            ]
        )  # (tokens of all completions, V)
        trie, _ = _logits_and_logps(model, prompts, completions, True, device)
        copies, logps = _logits_and_logps(model, prompts, completions, False, device)
    targets = torch.tensor([token for options in completions for option in options for token in option], device=device)
    own_logps = own.log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]
    if own_logps.isnan().any():
        raise NonFiniteLogitsError(base_model)
    head_error = float((logps - own_logps).abs().mean())
    if not head_error <= _HEAD_TOLERANCE:
        raise ScoringHeadError(
            f"The log-probs of {type(base_model).__name__} cannot be computed from its hidden states and output "
            f"embeddings: they differ from those of its own logits by {head_error:.2g} nats a token. The model "
            "transforms its logits in a way that dmpo-trl does not know; please open an issue that names it."
        )
    unit = own.std()
    difference, noise = (float((logits - own).abs().max() / unit) for logits in (trie, copies))
    return difference, tolerance(base_model, noise)


def tolerance(base_model: PreTrainedModel, noise: float) -> float:
    """The difference that rounding explains, in standard deviations of what is compared.

    Args:
        base_model: A transformers model.
        noise: Difference of two ways to compute the same that are right for every model, in the same unit.
    """
    if base_model.dtype == torch.float32 and not getattr(base_model, "is_quantized", False):
        return _TOLERANCE
    return _NOISE_FACTOR * max(noise, torch.finfo(base_model.dtype).eps)


def _sequences(vocab_size: int) -> tuple[list[list[int]], list[list[list[int]]]]:
    generator = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [generator.randrange(vocab_size) for _ in range(count)]

    beginning, common = tokens(_COMMON_BEGINNING), tokens(2)
    prompts = [beginning + tokens(length - _COMMON_BEGINNING) for length in _PROMPT_LENGTHS]
    completions = [[common + tokens(_COMPLETION_LENGTH - 2) for _ in range(_COMPLETIONS)] for _ in prompts]
    return prompts, completions


def _own_logits(model: Any, prompt: list[int], completion: list[int], device: torch.device) -> torch.Tensor:
    ids = torch.tensor([prompt + completion], device=device)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
    # Counted from the end: prompt-learning PEFT methods prepend virtual tokens
    return logits[-len(completion) - 1 : -1].float()


def _logits_and_logps(
    model: Any, prompts: list[list[int]], completions: list[list[list[int]]], share: bool, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (T, V) and log-probs (T,) of the completions' tokens, completion by completion."""
    batch = lay_out(prompts, completions, prefix_sharing=share, pad_token_id=0, attention_balance=float("inf"))
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    owners = batch.pop("token_completions")
    pairs = batch.pop("token_pairs")[owners.argsort(stable=True)]
    logps = model(**batch, use_cache=False).log_probs[pairs]
    rows, columns, _ = (batch.pop(f"scored_{name}")[pairs] for name in ("rows", "columns", "targets"))
    return model(**batch, use_cache=False).logits[rows, columns].float(), logps


@contextmanager
def short_windows(config: PretrainedConfig) -> Iterator[None]:
    """Shorten sliding windows and attention chunks for a moment, so that a short probe exercises them."""
    saved = []
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        for name in ("sliding_window", "attention_chunk_size"):
            if isinstance(getattr(part, name, None), int):
                saved.append((part, name, getattr(part, name)))
                setattr(part, name, _WINDOW)
    try:
        yield
    finally:
        for part, name, value in saved:
            setattr(part, name, value)
