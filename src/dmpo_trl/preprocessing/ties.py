"""Token ties: completions of different texts that have the same tokens, which a model cannot tell apart."""

from collections.abc import Iterable, Sequence
from typing import Any

from transformers.utils import logging

logger = logging.get_logger(__name__)

_NAMED = 5

Pair = tuple[str, str]


def pairs_of_equal_tokens(completions: Sequence[Any], ids: Sequence[Sequence[int]]) -> list[Pair]:
    """Return pairs of different texts that have the same tokens: each completion with the first that has its tokens.

    Args:
        completions: Texts or lists of messages.
        ids: Token ids of each.

    Example:
        >>> pairs_of_equal_tokens(["Alien", "alien", "Babe", "Babe"], [[5], [5], [6], [6]])
        [('Alien', 'alien')]
    """
    if len(set(map(tuple, ids))) == len(ids):
        return []
    first: dict[tuple[int, ...], Any] = {}
    pairs = []
    for completion, own in zip(completions, ids, strict=True):
        other = first.setdefault(tuple(own), completion)
        if other != completion:
            pairs.append((text_of(other), text_of(completion)))
    return pairs


def warn_of_equal_tokens(pairs: Iterable[Pair]) -> None:
    """Name texts that the model cannot tell apart, once; without pairs say nothing.

    Args:
        pairs: See `pairs_of_equal_tokens`.
    """
    distinct = list(dict.fromkeys(pairs))
    if distinct:
        logger.warning_once(
            "Completions have the same tokens as another one, so that the model gives both the same score "
            f"({len(distinct)} in all): {'; '.join(f'{one!r} and {other!r}' for one, other in distinct[:_NAMED])}"
            f"{'; ...' if len(distinct) > _NAMED else ''}. The tokenizer or the chat template leaves out what they "
            "differ in (case, blanks at the ends, what stands before a mark). Give them texts that differ in what "
            "it keeps, or leave one of the two out."
        )


def text_of(completion: Any) -> str:
    """Return a completion as text: that of its last message where it has messages."""
    return completion if isinstance(completion, str) else str(completion[-1].get("content"))
