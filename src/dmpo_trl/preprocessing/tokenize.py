"""Tokenisation: from a row to the token ids of its prompt and completions."""

import json
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils import logging
from trl.data_utils import prepare_multimodal_messages

from .._common_prefix import common_prefix_length
from .format import (
    LEAVE_ONE_OUT,
    LEAVE_OUT,
    TOKEN_COLUMNS,
    RowError,
    check_values,
    chosen_entries,
    extract_prompt,
    holds_several,
    read_row,
    read_tokens,
    rejected_entries,
    shown,
)
from .special_tokens import break_up, encode_broken, texts_of_special_tokens
from .ties import text_of

logger = logging.get_logger(__name__)


def tokenize_row(
    example: dict[str, Any],
    index: int,
    *,
    dataset_name: str,
    processing_class: PreTrainedTokenizerBase | ProcessorMixin,
    max_length: int | None,
    truncation_mode: str,
    special_tokens_in_text: bool | None = None,
) -> dict[str, Any]:
    """Turn a preference row into `prompt_ids`, `chosen_ids` and `rejected_ids` (a list of lists).

    `chosen_ids` is a list of lists where the row's chosen completions stand in a list.

    Args:
        example: The row, text or token ids.
        index: Its number, for messages.
        dataset_name: Its dataset, for messages.
        processing_class: Tokenizer or processor.
        max_length: See `DMPOConfig`.
        truncation_mode: See `DMPOConfig`; `"keep_completion"` is done here, the others in the collator.
        special_tokens_in_text: See `DMPOConfig`.

    Returns:
        The three columns, and `prompt_tokens_cut`, the number of tokens that `"keep_completion"` took from the prompt.

    Raises:
        RowError: The row breaks the data contract.
    """

    def error(column: str, problem: str, remedy: str) -> RowError:
        return RowError(dataset_name, index, column, problem, remedy)

    if example.keys() >= set(TOKEN_COLUMNS):
        prompt_column, chosen_column = TOKEN_COLUMNS[:2]
        prompt_ids, chosen_ids, rejected_ids = read_tokens(example, error)
    else:
        prompt_column, chosen_column = "prompt", "chosen"
        prompt_ids, chosen_ids, rejected_ids = _read_text(example, error, processing_class, special_tokens_in_text)
    if not prompt_ids:  # then nothing predicts the completions' first token
        problem = "it has no tokens, or begins with other ones alone than before a completion"
        if prompt_column not in example:
            problem = "there is none, and `chosen` and `rejected` have no beginning in common to take its place"
        raise error(
            prompt_column,
            problem,
            "Give it text that ends where a token ends, and a chat template that renders it as before a completion",
        )
    several = holds_several(example[chosen_column])
    if not several and not chosen_ids[0]:
        raise error(chosen_column, "the completion has no tokens", "Give it text, or drop the row")
    _check_tokens(example, [*chosen_ids, *rejected_ids], len(chosen_ids), error)
    check_values(example, error)

    already_cut = int(example.get("prompt_tokens_cut") or 0)  # by another trainer
    prompt_tokens_cut = 0
    if max_length is not None and truncation_mode == "keep_completion":
        room = max_length - max(map(len, (*chosen_ids, *rejected_ids)))
        if room < 1:
            raise error(
                f"{chosen_column}` or `{'rejected_ids' if chosen_column == 'chosen_ids' else 'rejected'}",
                f"a completion of {max_length - room} tokens leaves no room for a prompt in max_length={max_length}",
                "Raise `max_length`, or shorten the completion",
            )
        prompt_tokens_cut = max(len(prompt_ids) - room, 0)
        prompt_ids = prompt_ids[prompt_tokens_cut:]
    return {
        "prompt_ids": prompt_ids,
        "chosen_ids": chosen_ids if several else chosen_ids[0],
        "rejected_ids": rejected_ids,
        "prompt_tokens_cut": already_cut + prompt_tokens_cut,
    }


def _check_tokens(example: dict[str, Any], ids: list[list[int]], num_chosen: int, error: Any) -> None:
    """Refuse a completion without tokens, and one with the tokens of a chosen one before it."""
    entries = [*chosen_entries(example), *rejected_entries(example)]
    for place, (own, (column, entry, completion)) in enumerate(zip(ids, entries, strict=True)):
        if not own:
            raise error(column, f"{entry} has no tokens", "Give it text, or leave it out")
        if own not in ids[: min(place, num_chosen)]:
            continue
        _, name, chosen = entries[ids.index(own)]
        is_rejected = place >= num_chosen
        same = f"has the same tokens as {'the chosen completion' if is_rejected else name}"
        remedy = LEAVE_OUT if is_rejected else LEAVE_ONE_OUT
        if column not in TOKEN_COLUMNS:
            entry = f"{entry}, {shown(text_of(completion))},"
            same = f"{same}{' ' if is_rejected else ', '}{shown(text_of(chosen))}"
            because = ", and the" if is_rejected else ": the"
            remedy = f"{remedy}{because} tokenizer or the chat template leaves out what the two differ in"
        raise error(column, f"{entry} {same}", remedy)


def tokenize_completions(
    processing_class: PreTrainedTokenizerBase | ProcessorMixin,
    prompt: Any,
    completions: Sequence[Any],
    *,
    special_tokens_in_text: bool | None = None,
    **template_kwargs: Any,
) -> tuple[list[int], list[list[int]]]:
    """Tokenise a prompt and each of its completions.

    Prompt and completion are tokenised together, as TRL does, and split where the prompt's tokens end; where the
    tokenised prompt is no prefix of the whole, the completion starts where they diverge. Text completions end with the
    tokenizer's end-of-sequence token, where it has one.

    Args:
        processing_class: Tokenizer or processor.
        prompt: Text, or a list of messages.
        completions: Each the same kind as the prompt.
        special_tokens_in_text: See `DMPOConfig`.
        **template_kwargs: For the chat template.

    Returns:
        The prompt's ids and, for each completion, its ids.
    """
    if isinstance(prompt, str):
        end = tokenizer_of(processing_class).eos_token or ""
        may_end = special_tokens_in_text is not False  # a text that ends with the end has it
        # Of a text without an end, the tokens show whether the tokenizer appends one by itself
        prompt_ids, *wholes, without_end = _encode(
            processing_class,
            [prompt, *(prompt + text for text in completions), "A"],
            ["", *("" if may_end and text.endswith(end) else end for text in completions), ""],
            special_tokens_in_text,
        )
        if end and without_end[-1:] == [tokenizer_of(processing_class).convert_tokens_to_ids(end)]:
            wholes = [whole[:-1] for whole in wholes]
    else:
        options = {"special_tokens_in_text": special_tokens_in_text, **template_kwargs}
        (prompt_ids,) = _render(processing_class, [prompt], add_generation_prompt=True, **options)
        wholes = _render(processing_class, [prompt + messages for messages in completions], **options)
    prompt_length = min(common_prefix_length(prompt_ids, whole) for whole in wholes)
    if prompt_length < len(prompt_ids):
        logger.warning_once(
            "The tokenized prompt is not a prefix of the tokenized prompt+completion. The completion starts where "
            "they diverge, and this end of the prompt is left out: "
            f"{processing_class.decode(prompt_ids[prompt_length:])!r}. End the prompt on a token boundary, or use a "
            "chat template that renders it alone as it does before a completion. This warning is shown once."
        )
    return prompt_ids[:prompt_length], [whole[prompt_length:] for whole in wholes]


def _encode(
    processing_class: Any, texts: list[str], ends: list[str], special_tokens_in_text: bool | None
) -> list[list[int]]:
    """Return the token ids of texts, each with its end, in one call."""
    tokenizer = tokenizer_of(processing_class)
    tokens = texts_of_special_tokens(tokenizer, special_tokens_in_text, messages=False)
    texts, mark = break_up(texts, tokens, decided=special_tokens_in_text is False)
    texts = [text + end for text, end in zip(texts, ends, strict=True)]
    if mark is not None:
        return encode_broken(tokenizer, texts, mark, add_special_tokens=True)
    ids: list[list[int]] = processing_class(text=texts)["input_ids"]
    return ids


def _render(
    processing_class: Any, conversations: list[Any], *, special_tokens_in_text: bool | None, **template_kwargs: Any
) -> list[list[int]]:
    """Return the token ids of conversations, in one call."""
    tokenizer = tokenizer_of(processing_class)
    tokens = texts_of_special_tokens(tokenizer, special_tokens_in_text, messages=True)
    conversations, mark = break_up(conversations, tokens, decided=special_tokens_in_text is False)
    is_processor = isinstance(processing_class, ProcessorMixin)
    if is_processor:
        conversations = [prepare_multimodal_messages(messages) for messages in conversations]
    if mark is None:
        rendered = processing_class.apply_chat_template(
            conversations, tokenize=True, return_dict=True, **template_kwargs
        )
        ids: list[list[int]] = rendered["input_ids"]
        return ids
    texts = processing_class.apply_chat_template(conversations, tokenize=False, **template_kwargs)
    # A processor adds what its template does not write
    add_special_tokens = is_processor and not (tokenizer.bos_token and texts[0].startswith(tokenizer.bos_token))
    return encode_broken(tokenizer, texts, mark, add_special_tokens=add_special_tokens)


def tokenizer_of(processing_class: Any) -> Any:
    """Return the tokenizer of a processor of text and images, or the tokenizer that is given.

    Args:
        processing_class: A trainer's.
    """
    return getattr(processing_class, "tokenizer", processing_class)


def _read_text(
    example: dict[str, Any],
    error: Any,
    processing_class: Any,
    special_tokens_in_text: bool | None,
) -> tuple[list[int], list[list[int]], list[list[int]]]:
    prompt, chosen, rejected = read_row(example, error)
    completions = [*chosen, *rejected]
    if "prompt" not in example:
        prompt, completions = extract_prompt(completions)
    template_kwargs: dict[str, Any] = {}
    if isinstance(prompt, list):
        tools = example.get("tools")
        template_kwargs["tools"] = json.loads(tools) if isinstance(tools, str) else tools
        template_kwargs |= example.get("chat_template_kwargs") or {}
    if isinstance(prompt, str) and tokenizer_of(processing_class).eos_token is None:
        logger.warning_once(
            "The tokenizer has no end-of-sequence token, so nothing is appended to the completions and the model does "
            "not learn where they end. Set `processing_class.eos_token`. This warning is shown once."
        )
    try:
        prompt_ids, ids = tokenize_completions(
            processing_class,
            prompt,
            completions,
            special_tokens_in_text=special_tokens_in_text,
            **template_kwargs,
        )
    except Exception as problem:  # a template may raise anything
        raise error(
            "prompt`, `chosen` or `rejected",
            f"the {'chat template' if isinstance(prompt, list) else 'tokenizer'} refuses it "
            f"({type(problem).__name__}: {problem})",
            "Fix or drop the row, or give `processing_class` a chat template that takes it"
            if isinstance(prompt, list)
            else "Fix or drop the row",
        ) from problem
    return prompt_ids, ids[: len(chosen)], ids[len(chosen) :]
