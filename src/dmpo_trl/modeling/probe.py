"""Probes: whether a model computes the same numbers in another way.

No list of architectures can be trusted, so numbers decide: the scoring head against the model's own logits, and the
trie layout (or a beam search's cache) against one sequence at a time. Answers are remembered for each model.
"""

import functools
import importlib.util
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from ..batching.collator import lay_out
from .attention import attends_in_blocks, plain_attention, use_trie_attention
from .backends import ieee_float32
from .block_attention import block_obstacle
from .head_check import head_obstacle
from .loading import base_model_of, evaluation_mode, learns_prompt
from .quantization import unpacked_layers
from .row_plan import plan_for
from .scoring_head import add_scoring_head
from .verdict import NonFiniteLogitsError, compared, obstacle, remembered

logger = logging.getLogger(__name__)

# Sequences of the probe: two prompts with a common beginning, with completions that begin alike. Sibling branches put
# tokens up to 90 places further apart in the row than in their sequence, which makes a wrong position loud.
_PROMPT_LENGTHS = (24, 40)
_COMMON_BEGINNING = 16
_COMPLETIONS, _COMPLETION_LENGTH = 8, 12
_WINDOW = 12  # shorter than the prompts, so that windows matter
# Layers that look at other tokens through the attention mask only; a recurrence or a convolution does not
_ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


@ieee_float32()
def prepare_for_scoring(
    model: Any, base_model: PreTrainedModel, mode: str | bool, *, device_type: str | None = None
) -> bool:
    """Install the scoring head in a model and decide whether the model may run in the trie layout.

    A model whose logits are not what its scoring head computes is scored through its own logits from then on, with one
    warning. What was found out is remembered: a second call asks and warns no more.

    Args:
        model: What will be called: the model or the wrapper around it (a `PeftModel`).
        base_model: The transformers model inside.
        mode: `"auto"`, True or False; see `DMPOConfig.prefix_sharing`.
        device_type: Where batches of one row will be computed, if the model may attend to them in blocks; None for
            rows of any other kind.

    Returns:
        Whether to use the trie layout. Where not, the model's attention implementation is as it was.

    Raises:
        ValueError: `mode` is True and the model computes something else in the trie layout.
        NonFiniteLogitsError: The model's logits are not finite.
    """
    add_scoring_head(base_model)
    scoring_model: Any = base_model
    # What may change: FSDP and PEFT exchange the head, a prompt-learning adapter and autocast what the model computes
    setting = learns_prompt(model), torch.is_autocast_enabled(base_model.device.type)
    of_head = "head", type(base_model.get_output_embeddings()), *setting
    reason = remembered(base_model, of_head, lambda: head_obstacle(model, base_model))
    scoring_model.scores_own_logits = reason is not None
    if mode is False:
        return False
    not_in_blocks = None
    for blocks in (True, False) if _may_attend_in_blocks(base_model, device_type) else (False,):
        of_trie = "trie", plain_attention(base_model), blocks, *setting
        reason = remembered(base_model, of_trie, functools.partial(_trie_obstacle, model, base_model, blocks))
        if reason is None:
            if not_in_blocks is not None:
                warn = functools.partial(_warn_of_dense_masks, base_model, not_in_blocks)
                remembered(base_model, (*of_trie, "dense"), warn)
            return use_trie_attention(base_model, blocks=blocks)
        not_in_blocks = reason
    if mode is True:
        raise ValueError(
            f"`prefix_sharing=True`, but {type(base_model).__name__} cannot share prefixes: {reason}. Set it to "
            "'auto' or False to train on copies of the prompt."
        )
    remembered(base_model, (*of_trie, "warning"), lambda: _warn_of_copies(base_model, reason))
    return False


def _may_attend_in_blocks(base_model: PreTrainedModel, device_type: str | None) -> bool:
    if device_type is None:
        return False
    triton = importlib.util.find_spec("triton") is not None
    reason = block_obstacle(base_model.config, plain_attention(base_model), device_type, triton=triton)
    if reason is None and len(set(getattr(base_model, "hf_device_map", None) or [None])) > 1:
        reason = "its layers are spread over devices"
    if reason is not None and device_type != "cpu":  # where nothing does
        logger.info("%s does not attend in blocks: %s.", type(base_model).__name__, reason)
    return reason is None


def _warn_of_dense_masks(base_model: PreTrainedModel, reason: str) -> None:
    logger.warning(
        "%s cannot attend in blocks (%s): it goes on with dense masks, which gives the same results and takes more "
        "time and memory. Please open an issue that names the model and the GPU. Set `block_attention=False` to skip "
        "this probe.",
        type(base_model).__name__,
        reason,
    )


def _warn_of_copies(base_model: PreTrainedModel, reason: str | None) -> None:
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


def _trie_obstacle(model: Any, base_model: PreTrainedModel, blocks: bool = False) -> str | None:
    """Why `model` may not run in the trie layout, and its attention as it was; None if it may, and it is switched."""
    layer_types = getattr(base_model.config.get_text_config(), "layer_types", None) or []
    if foreign := sorted(set(layer_types) - _ATTENTION_LAYERS):
        return f"its layers of type {', '.join(foreign)} see other tokens without an attention mask"
    before = base_model.config._attn_implementation
    if use_trie_attention(base_model, blocks=blocks):
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
    packing: dict[str, Any] = {"attention_balance": float("inf")}
    name = base_model_of(model).config._attn_implementation
    if share and attends_in_blocks(name):
        plan = plan_for(device.type, [name], base_model_of(model).config)
        packing = plan.options()
    batch = lay_out(prompts, completions, prefix_sharing=share, pad_token_id=0, **packing)
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
