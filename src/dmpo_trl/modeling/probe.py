"""Probes: whether a model computes the same numbers in another way.

No list of architectures can be trusted, so numbers decide: the scoring head against the model's own logits, and the
trie layout (or a beam search's cache) against one sequence at a time. Answers are remembered for each model.
"""

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from transformers import PretrainedConfig, PreTrainedModel

from ..batching.collator import lay_out
from .attention import plain_attention, use_trie_attention
from .loading import evaluation_mode, learns_prompt
from .quantization import unpacked_layers
from .scoring_head import add_scoring_head

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Sequences of the probe: two prompts with a common beginning, with completions that begin alike. Sibling branches put
# tokens up to 90 places further apart in the row than in their sequence, which makes a wrong position loud.
_PROMPT_LENGTHS = (24, 40)
_COMMON_BEGINNING = 16
_COMPLETIONS, _COMPLETION_LENGTH = 8, 12
_WINDOW = 12  # shorter than the prompts, so that windows matter
_TARGETS = 16  # of each position, for the check of the scoring head
# Differences of logits in standard deviations of the logits, a measure that random weights do not blur. Right models
# differ by float32 rounding; in lower precision the rounding of copies in another batch shape is the yardstick. The
# figures behind both are in docs/prefix-sharing.md.
_TOLERANCE = 1e-4
_NOISE_FACTOR = 8.0
# Layers that look at other tokens through the attention mask only; a recurrence or a convolution does not
_ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}

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
        answers[question] = ask()
    answer: T = answers[question]
    return answer


def obstacle(compare: Callable[[], tuple[float, float]]) -> str | None:
    """Return why a way to compute a model's numbers is not right for it, or None where it is.

    Args:
        compare: Returns a difference from the model's own numbers and the difference to tolerate. Whatever it raises
            is an obstacle too, except for logits that are not finite.
    """
    try:
        difference, tolerated = compare()
    except NonFiniteLogitsError:
        raise
    except Exception as error:
        logger.debug("A probe failed", exc_info=True)
        return f"the probe raised {type(error).__name__}: {error}"
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
    if _computes_in_float32(base_model):
        return difference, _TOLERANCE
    return difference, _NOISE_FACTOR * max(noise, torch.finfo(base_model.dtype).eps)


def _computes_in_float32(base_model: PreTrainedModel) -> bool:
    return base_model.dtype == torch.float32 and not getattr(base_model, "is_quantized", False)


def prepare_for_scoring(model: Any, base_model: PreTrainedModel, mode: str | bool) -> bool:
    """Install the scoring head in a model and decide whether the model may run in the trie layout.

    A model whose logits are not what its scoring head computes is scored through its own logits from then on, with one
    warning. What was found out is remembered: a second call asks and warns no more.

    Args:
        model: What will be called: the model or the wrapper around it (a `PeftModel`).
        base_model: The transformers model inside.
        mode: `"auto"`, True or False; see `DMPOConfig.prefix_sharing`.

    Returns:
        Whether to use the trie layout. Where not, the model's attention implementation is as it was.

    Raises:
        ValueError: `mode` is True and the model computes something else in the trie layout.
        NonFiniteLogitsError: The model's logits are not finite.
    """
    add_scoring_head(base_model)
    # FSDP and PEFT may exchange the head, a prompt-learning adapter changes what the model computes
    of_head = "head", type(base_model.get_output_embeddings()), learns_prompt(model)
    understood: Any = base_model
    understood.scores_own_logits = (
        remembered(base_model, of_head, lambda: _head_obstacle(model, base_model)) is not None
    )
    if mode is False:
        return False
    of_trie = "trie", plain_attention(base_model), learns_prompt(model)
    reason = remembered(base_model, of_trie, lambda: _trie_obstacle(model, base_model))
    if reason is None:
        return use_trie_attention(base_model)
    if mode is True:
        raise ValueError(
            f"`prefix_sharing=True`, but {type(base_model).__name__} cannot share prefixes: {reason}. Set it to "
            "'auto' or False to train on copies of the prompt."
        )
    remembered(base_model, (*of_trie, "warning"), lambda: _warn_of_copies(base_model, reason))
    return False


def _warn_of_copies(base_model: PreTrainedModel, reason: str) -> None:
    logger.warning(
        "Prefix sharing is off: %s computes something else in the trie layout (%s). Every completion gets a copy of "
        "its prompt, which gives the same results and takes longer. Set `prefix_sharing=False` to skip the probe.",
        type(base_model).__name__,
        reason,
    )


@torch.no_grad()
def require_finite_logits(model: Any, base_model: PreTrainedModel) -> None:
    """Refuse a model whose logits are NaN or infinite for one short sequence.

    Args:
        model: What will be called.
        base_model: The transformers model inside.

    Raises:
        NonFiniteLogitsError: The logits are not finite.
    """
    add_scoring_head(base_model)
    prompts, completions = _sequences(base_model.config.get_text_config().vocab_size)
    try:
        with evaluation_mode(model), unpacked_layers(base_model):
            logits = _own_logits(model, prompts[0], completions[0][0], torch.device(str(base_model.device)))
    except Exception:  # it needs more than tokens, such as images
        logger.debug("Whether logits are finite could not be tried", exc_info=True)
        return
    if logits.log_softmax(dim=-1).isnan().any():  # -inf alone is a token that the model rules out
        raise NonFiniteLogitsError(base_model)


# The scoring head


def _head_obstacle(model: Any, base_model: PreTrainedModel) -> str | None:
    """Why the scoring head of `base_model` may not be used, with a warning; None if it may."""
    reason = obstacle(lambda: head_difference(model, base_model))
    if reason is not None:  # once for policy and reference
        remembered(type(base_model), "warning of its head", lambda: _warn_of_head(base_model, reason))
    return reason


def _warn_of_head(base_model: PreTrainedModel, reason: str) -> None:
    logger.warning(
        "The logits of %s are not what dmpo-trl computes from its hidden states and output embeddings (%s). It is "
        "scored through its own logits, which gives the right results and takes more time and memory. Please open an "
        "issue that names the model.",
        type(base_model).__name__,
        reason,
    )


@torch.no_grad()
def head_difference(model: Any, base_model: PreTrainedModel) -> tuple[float, float]:
    """Compare the scoring head's log-probs with those of the model's own logits, in the same batch.

    Hidden states are the same in both, so that only the rounding of the head remains, and averaged over many logits
    that is far below the effect of a transformation.

    Args:
        model: What will be called, with a scoring head installed in `base_model`.
        base_model: The transformers model inside.

    Returns:
        The root mean square of the differences, in standard deviations of the log-probs, and the difference to
        tolerate.

    Raises:
        NonFiniteLogitsError: The model's logits are not finite.
    """
    device = torch.device(str(base_model.device))
    vocab_size = base_model.config.get_text_config().vocab_size
    prompts, completions = _sequences(vocab_size)
    # One completion of each prompt, and of each position the targets of many tokens
    batch = lay_out(prompts, [options[:1] for options in completions], prefix_sharing=False, pad_token_id=0)
    del batch["token_pairs"], batch["token_completions"]
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    targets = torch.randint(
        vocab_size, (len(batch["scored_targets"]), _TARGETS), generator=torch.Generator().manual_seed(0)
    )
    many = {name: batch[name].repeat_interleave(_TARGETS) for name in ("scored_rows", "scored_columns")}
    many["scored_targets"] = targets.flatten().to(device)
    with evaluation_mode(model), unpacked_layers(base_model):
        logits = model(**batch, scored_outputs=("logits",), use_cache=False).logits.float()
        _score_own_logits(base_model, False)
        found = model(**batch | many, use_cache=False).log_probs
    own = logits.log_softmax(dim=-1).gather(1, targets.to(logits.device)).flatten()
    if own.isnan().any():
        raise NonFiniteLogitsError(base_model)
    found = found.to(own)
    difference = _root_mean_square(torch.where(found == own, 0.0, found - own))
    finite = own.isfinite()  # a token that the model rules out has -inf
    # The rounding of float32 counts where logits are next to nothing, as those of a head that is still to be trained
    unit, rounding = own[finite].std(), _NOISE_FACTOR * torch.finfo(torch.float32).eps * _root_mean_square(own[finite])
    if _computes_in_float32(base_model):
        tolerated = _TOLERANCE * unit + rounding
    else:  # logits are rounded two or three times, by at most half an eps each
        tolerated = torch.finfo(base_model.dtype).eps * _root_mean_square(logits[logits.isfinite()]) + rounding
    unit = unit.clamp(min=1e-9)
    return float(difference / unit), float(tolerated / unit)


def _root_mean_square(values: torch.Tensor) -> torch.Tensor:
    return values.square().mean().sqrt()


def _score_own_logits(base_model: Any, value: bool) -> None:
    base_model.scores_own_logits = value


# The trie layout


def _trie_obstacle(model: Any, base_model: PreTrainedModel) -> str | None:
    """Why `model` may not run in the trie layout, and its attention as it was; None if it may, and it is switched."""
    layer_types = getattr(base_model.config.get_text_config(), "layer_types", None) or []
    if foreign := sorted(set(layer_types) - _ATTENTION_LAYERS):
        return f"its layers of type {', '.join(foreign)} see other tokens without an attention mask"
    before = base_model.config._attn_implementation
    if use_trie_attention(base_model):
        reason = obstacle(lambda: probe(model, base_model))
    else:
        reason = "its attention is not looked up in transformers' registry, so the mask cannot reach it"
    if reason is not None and base_model.config._attn_implementation != before:
        base_model.set_attn_implementation(before)
    return reason


@torch.no_grad()
def probe(model: Any, base_model: PreTrainedModel) -> tuple[float, float]:
    """Compare the logits of the trie layout with those of one sequence at a time.

    Args:
        model: What will be called, with a scoring head installed in `base_model`.
        base_model: The transformers model inside, switched to trie attention.

    Returns:
        The largest difference of a logit, in standard deviations of the logits, and the difference to tolerate.
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
        trie = _layout_logits(model, prompts, completions, True, device)
        copies = _layout_logits(model, prompts, completions, False, device)
    return compared(base_model, own, copies, trie)


def _sequences(vocab_size: int) -> tuple[list[list[int]], list[list[list[int]]]]:
    generator = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [generator.randrange(vocab_size) for _ in range(count)]

    beginning, common = tokens(_COMMON_BEGINNING), tokens(2)
    prompts = [beginning + tokens(length - _COMMON_BEGINNING) for length in _PROMPT_LENGTHS]
    completions = [[common + tokens(_COMPLETION_LENGTH - 2) for _ in range(_COMPLETIONS)] for _ in prompts]
    return prompts, completions


def _own_logits(model: Any, prompt: list[int], completion: list[int], device: torch.device) -> torch.Tensor:
    return _layout_logits(model, [prompt], [[completion]], False, device)


def _layout_logits(
    model: Any, prompts: list[list[int]], completions: list[list[list[int]]], share: bool, device: torch.device
) -> torch.Tensor:
    """Logits of the completions' tokens, completion by completion, (T, V)."""
    batch = lay_out(prompts, completions, prefix_sharing=share, pad_token_id=0, attention_balance=float("inf"))
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    pairs = batch.pop("token_pairs")[batch.pop("token_completions").argsort(stable=True)]
    logits: torch.Tensor = model(**batch, scored_outputs=("logits",), use_cache=False).logits
    return logits[pairs].float()


@contextmanager
def short_windows(config: PretrainedConfig) -> Iterator[None]:
    """Shorten sliding windows and attention chunks inside the block, so that a short probe exercises them.

    Args:
        config: Config of the model.

    Example:
        >>> from transformers import MistralConfig
        >>> config = MistralConfig(sliding_window=4096)
        >>> with short_windows(config):
        ...     config.sliding_window
        12
        >>> config.sliding_window
        4096
    """
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
