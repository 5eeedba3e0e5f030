"""Choice of a cache: the fastest way to compute prefixes that gives the model's own numbers."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch

from ...modeling.attention import branch_attention, plain_attention
from ...modeling.loading import base_model_of, learns_prompt
from ...modeling.probe import short_windows
from ...modeling.verdict import compared, obstacle, remembered
from .branching import BranchingPrefixes
from .prefixes import CachedPrefixes, Prefixes, RecomputedPrefixes

logger = logging.getLogger(__name__)

# The probe: two prompts, one longer than the windows; for each step the prefixes that go on, and how many tokens each
# is then forced to go on with
_PROMPT_LENGTHS = (9, 24)
_STEPS = [([0, 1, 1, 1], [1, 2, 0, 0]), ([0, 1, 2, 3], [0] * 4), ([3, 0, 0, 1], [0] * 4), ([0, 3], [0] * 2)]
_QUERIES = 32


@contextmanager
def open_prefixes(model: Any, prompts: Sequence[Sequence[int]]) -> Iterator[Prefixes]:
    """Yield the prompts as prefixes to extend, in the fastest way that is right for the model.

    Three ways, tried in this order the first time a model is seen, on a few short sequences against the model's own
    numbers: all beams of a user in one row of the cache (models that look their attention up in transformers'
    registry), rows of the cache copied as beams branch (recurrent and hybrid models, ALiBi), and no cache.

    Args:
        model: A causal language model, or a `PeftModel` around one, in evaluation mode.
        prompts: Token ids of each prompt.
    """
    kind = chosen_prefixes(model)
    with _attention(kind, base_model_of(model)):
        yield kind(model, prompts)


def chosen_prefixes(model: Any) -> type[Prefixes]:
    """Return the fastest way that is right for the model; the search for it is made once.

    Args:
        model: See `open_prefixes`.
    """
    base_model = base_model_of(model)
    question = "prefixes", plain_attention(base_model), learns_prompt(model)
    return remembered(base_model, question, lambda: _choose(model))


def _attention(kind: Any, base_model: Any) -> Any:
    return branch_attention(base_model) if kind is BranchingPrefixes else nullcontext()


def _choose(model: Any) -> type[Prefixes]:
    base_model = base_model_of(model)
    reason: str | None = "virtual tokens before the prompt are not in the cache"
    if not learns_prompt(model):
        with short_windows(base_model.config):
            own = _probe(model, partial(RecomputedPrefixes, tokens_per_forward=1))
            again = _probe(model, RecomputedPrefixes)
            for kind in (BranchingPrefixes, CachedPrefixes):
                reason = obstacle(partial(_compare, model, kind, own, again))
                if reason is None:
                    return kind
    logger.warning(
        "Beam search without a cache: %s (%s). Every step computes all prefixes from their first token on, which "
        "gives the same results and takes longer.",
        type(base_model).__name__,
        reason,
    )
    return RecomputedPrefixes


def _compare(model: Any, kind: type[Prefixes], own: torch.Tensor, again: torch.Tensor) -> tuple[float, float]:
    return compared(base_model_of(model), own, again, _probe(model, kind))


def _probe(model: Any, kind: Callable[[Any, list[list[int]]], Prefixes]) -> torch.Tensor:
    """Return log-probs of random tokens while the prefixes of two prompts branch, swap, run ahead and vanish."""
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
            owners = np.repeat(np.arange(len(ahead)), [len(known) for known in ahead])
            prefixes.extend(
                np.array(parents), tokens, owners, np.array(list(chain.from_iterable(ahead)), dtype=np.int64)
            )
            logps.append(ask())
    return torch.tensor(np.concatenate(logps))
