"""Special tokens in data: a title "X</s>" stays text.

A tokenizer finds a special token wherever its text stands. So a character that occurs nowhere else is put into each
special token that a text holds, and what stands between two such characters is encoded on its own. This works with any
tokenizer, and the chat template does not see the token either, so it cannot cut the text there.
"""

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from transformers.utils import logging

logger = logging.get_logger(__name__)

_PRIVATE_USE = range(0xE000, 0xF900)


def texts_of_special_tokens(tokenizer: Any, in_text: bool | None, *, messages: bool) -> tuple[str, ...]:
    """Return what must stay text where data holds it.

    Args:
        tokenizer: The tokenizer.
        in_text: See `DMPOConfig.special_tokens_in_text`.
        messages: Whether the data are messages, not plain text.

    Returns:
        Texts of the tokenizer's special tokens; with `in_text=False` also of other added tokens that its chat template
        names, as role markers are that a tokenizer does not call special. Empty where special tokens may stand in the
        data. A token of one character is not among them, because nothing can break it.
    """
    if in_text or (in_text is None and not messages):
        return ()
    template = str(getattr(tokenizer, "chat_template", None) or "") if in_text is False else ""
    try:
        added_tokens = tokenizer.added_tokens_decoder.values()
    except NotImplementedError:  # Mistral's own tokenizers, which find no special token in a text
        return ()
    added = {
        token.content
        for token in added_tokens
        if token.special or (token.content in template and not token.content.isspace())
    }
    return tuple(sorted(text for text in added.union(tokenizer.all_special_tokens) if len(text) > 1))


def break_up(data: list[Any], tokens: tuple[str, ...], *, decided: bool = False) -> tuple[list[Any], str | None]:
    """Break the text of each of `tokens` that the data hold.

    Args:
        data: Texts or conversations. Of messages, everything but `role` and `type` is data.
        tokens: See `texts_of_special_tokens`.
        decided: Whether somebody has said that they are text, as commands do of titles: then no other way is advised.

    Returns:
        The data, and the character that stands where they are broken; None where nothing is.
    """
    if not tokens:
        return data, None
    pattern = _beginnings(tokens)
    texts: list[str] = []
    _each_text(data, lambda text: texts.append(text) or text)  # type: ignore[func-returns-value]
    found = {token for text in texts if pattern.search(text) for token in tokens if token in text}
    if not found:
        return data, None
    advice = "" if decided else "If it is meant as the token, set `special_tokens_in_text=True` (see `DMPOConfig`). "
    for token in sorted(found):
        logger.warning_once(
            f"The data hold the text {token!r}, which is a special token of the tokenizer. It is encoded as the text "
            f"that it is, so that nobody's text can end a turn or begin another. {advice}This warning is shown once "
            "per token."
        )
    used = set().union(*texts)
    mark = next(character for character in map(chr, _PRIVATE_USE) if character not in used)
    return _each_text(data, lambda text: pattern.sub(lambda match: match[0] + mark, text)), mark


def encode_broken(tokenizer: Any, texts: Sequence[str], mark: str, *, add_special_tokens: bool) -> list[list[int]]:
    """Encode texts with what stands between two marks on its own.

    Args:
        tokenizer: The tokenizer.
        texts: Texts with marks, or without.
        mark: See `break_up`.
        add_special_tokens: Whether the tokenizer's own beginning and end of a text are added.
    """

    def encode(pieces: list[str]) -> list[list[int]]:
        ids: list[list[int]] = tokenizer(text=pieces, add_special_tokens=False)["input_ids"] if pieces else []
        return ids

    cut = [text.split(mark) for text in texts]
    # SentencePiece puts a blank before a text, which must not come into the middle of one: a line break before the
    # piece takes it, and is taken off again where its tokens stand apart
    rest = [piece for _, *pieces in cut for piece in pieces]
    line_break, probe, *after = encode(["\n", "A", *(f"\n{piece}" for piece in rest)])
    alone = encode(rest)
    continued = iter(
        ids[len(line_break) :] if ids[: len(line_break)] == line_break else own
        for ids, own in zip(after, alone, strict=True)
    )
    begin: list[int] = []
    end: list[int] = []
    if add_special_tokens:
        (whole,) = tokenizer(text=["A"])["input_ids"]
        first = next(i for i in range(len(whole)) if whole[i : i + len(probe)] == probe)
        begin, end = whole[:first], whole[first + len(probe) :]
    return [
        [*begin, *head, *(token for _ in own[1:] for token in next(continued)), *end]
        for head, own in zip(encode([own[0] for own in cut]), cut, strict=True)
    ]


@cache
def _beginnings(tokens: tuple[str, ...]) -> re.Pattern[str]:
    """Match the first character of each occurrence, also of those that overlap."""
    return re.compile("|".join(f"{re.escape(token[0])}(?={re.escape(token[1:])})" for token in tokens), re.DOTALL)


def _each_text(data: Any, change: Callable[[str], str]) -> Any:
    if isinstance(data, str):
        return change(data)
    if isinstance(data, list):
        return [_each_text(entry, change) for entry in data]
    if isinstance(data, dict):
        return {key: value if key in ("role", "type") else _each_text(value, change) for key, value in data.items()}
    return data
