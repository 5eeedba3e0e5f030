"""How a model computes prefixes: the fastest way that gives its own numbers, decided by numbers."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from ...modeling.loading import base_model_of
from ...modeling.probe import short_windows, tolerance
from .branching import BranchingPrefixes, branch_attention
from .prefixes import CachedPrefixes, Prefixes, RecomputedPrefixes

logger = logging.getLogger(__name__)

# The probe: two prompts, one longer than the windows; for each step the prefixes that go on, and how many tokens each
# is then forced to go on with
_PROMPT_LENGTHS = (9, 24)
_STEPS = [([0, 1, 1, 1], [1, 2, 0, 0]), ([0, 1, 2, 3], [0] * 4), ([3, 0, 0, 1], [0] * 4), ([0, 3], [0] * 2)]
_QUERIES = 32

_chosen: WeakKeyDictionary[PreTrainedModel, type[Prefixes]] = WeakKeyDictionary()


@contextmanager
def open_prefixes(model: Any, prompts: Sequence[Sequence[int]]) -> Iterator[Prefixes]:
    """The prompts as prefixes to extend, in the fastest way that is right for the model.

    Three ways, tried in this order the first time a model is seen, on a few short sequences against the model's own
    numbers: all beams of a user in one row of the cache (models that look their attention up in transformers'
    registry), rows of the cache copied as beams branch (recurrent and hybrid models, ALiBi), and no cache.

    Args:
        model: A causal language model, or a `PeftModel` around one, in evaluation mode.
        prompts: Token ids of each prompt.
    """
    base_model = base_model_of(model)
    if base_model not in _chosen:
        _chosen[base_model] = _choose(model)
    with _attention(_chosen[base_model], base_model):
        yield _chosen[base_model](model, prompts)


def _attention(kind: Any, base_model: Any) -> Any:
    return branch_attention(base_model) if kind is BranchingPrefixes else nullcontext()


def _choose(model: Any) -> type[Prefixes]:
    base_model = base_model_of(model)
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        reason = "virtual tokens before the prompt are not in the cache"
    else:
        with short_windows(base_model.config):
            own = _probe(model, partial(RecomputedPrefixes, tokens_per_forward=1))
            unit = own.std()  # as in the probe of prefix sharing
            tolerated = tolerance(base_model, float((_probe(model, RecomputedPrefixes) - own).abs().max() / unit))
            for kind in (BranchingPrefixes, CachedPrefixes):
                try:
                    difference = float((_probe(model, kind) - own).abs().max() / unit)
                except Exception as error:  # whatever a model raises, recomputing is right for it
                    logger.debug("The probe of %s failed", kind.__name__, exc_info=True)
                    reason = f"its cache raised {type(error).__name__}: {error}"
                    continue
                if difference <= tolerated:
                    return kind
                reason = f"with a cache its log-probs differ by {difference:.2g} standard deviations"
    logger.warning(
        "Beam search without a cache: %s (%s). Every step computes all prefixes from their first token on, which "
        "gives the same results and takes longer.",
        type(base_model).__name__,
        reason,
    )
    return RecomputedPrefixes


def _probe(model: Any, kind: Callable[[Any, list[list[int]]], Prefixes]) -> torch.Tensor:
    """Log-probs of random tokens while the prefixes of two prompts branch, swap, run ahead and vanish."""
    generator = random.Random(0)
    vocab_size = base_model_of(model).config.get_text_config().vocab_size

    def draw(count: int) -> list[int]:
        return [generator.randrange(vocab_size) for _ in range(count)]

    def ask() -> np.ndarray:
        tokens = [known[:1] or draw(_QUERIES) for known in ahead]
        rows = np.repeat(np.arange(len(tokens)), [len(asked) for asked in tokens])
        return prefixes.log_probs(rows, np.concatenate(tokens))

    ahead: list[list[int]] = [[], []]  # tokens that are forced to follow each prefix
    with _attention(kind, base_model_of(model)):
        prefixes = kind(model, [draw(length) for length in _PROMPT_LENGTHS])
        logps = [ask()]
        for parents, lengths in _STEPS:
            known = [ahead[parent] or draw(1) for parent in parents]
            tokens = np.array([tokens[0] for tokens in known])
            ahead = [tokens[1:] or draw(length) for tokens, length in zip(known, lengths, strict=True)]
            prefixes.extend(np.array(parents), tokens, ahead)
            logps.append(ask())
    return torch.tensor(np.concatenate(logps))
