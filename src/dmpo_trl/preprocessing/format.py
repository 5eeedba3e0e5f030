"""The data contract: what a preference row may look like, and the token ids it becomes.

A row has `prompt`, `chosen` and `rejected`, standard (text) or conversational (messages), with an explicit or an
implicit prompt, exactly as in TRL, except that `rejected` holds a list of completions, of any length. One completion
instead of a list means a list of one. Numbered columns (`rejected1`, ..., of S-DPO, `negative_1`, ..., of
sentence-transformers) are folded into the list; a null there means that the row has fewer. A row may also come as
token ids: `prompt_ids`, `chosen_ids`, `rejected_ids`. What is refused, and why, is in docs/bad-input.md.
"""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils import logging
from trl.data_utils import _tokenize

from ..batching.trie import common_prefix_length

logger = logging.get_logger(__name__)

TOKEN_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
_NUMBERED = re.compile(r"(rejected|negative)_?(\d+)")


def numbered_columns(columns: Iterable[str]) -> list[str]:
    """Columns that each hold one rejected completion, in the order of their numbers."""
    matches = filter(None, map(_NUMBERED.fullmatch, columns))
    return [match.string for match in sorted(matches, key=lambda match: (match[1], int(match[2])))]


class RowError(ValueError):
    """A row that breaks the data contract; says which one, in which column, and what to do.

    Args:
        dataset: The dataset's name. With nothing else, the whole message: that is all that processes hand on of an
            exception, and one that cannot be made from it leaves the others waiting for ever.
        row: The row's number, from 0.
        column: The column's name.
        problem: What is wrong there.
        remedy: What to do.
    """

    def __init__(
        self, dataset: str, row: int | None = None, column: str = "", problem: str = "", remedy: str = ""
    ) -> None:
        message = f"Row {row} of the {dataset} dataset, column `{column}`: {problem}. {remedy}."
        super().__init__(dataset if row is None else message)


def tokenize_row(
    example: dict[str, Any],
    index: int,
    *,
    dataset_name: str,
    processing_class: PreTrainedTokenizerBase | ProcessorMixin,
    eos_token: str | None,
    max_length: int | None,
    truncation_mode: str,
) -> dict[str, Any]:
    """Turn a preference row into `prompt_ids`, `chosen_ids` and `rejected_ids` (a list of lists).

    Args:
        example: The row, text or token ids.
        index: Its number, for messages.
        dataset_name: Its dataset, for messages.
        processing_class: Tokenizer or processor.
        eos_token: Appended to standard completions that do not end with it; None for none.
        max_length: See `DMPOConfig`.
        truncation_mode: See `DMPOConfig`; `"keep_completion"` is done here, the others in the collator.

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
        prompt_ids, chosen_ids, rejected_ids = _read_text(example, error, processing_class, eos_token)
    if not prompt_ids:  # then nothing predicts the completions' first token
        problem = "it has no tokens, or begins with other ones alone than before a completion"
        if prompt_column not in example:
            problem = "there is none, and `chosen` and `rejected` have no beginning in common to take its place"
        raise error(
            prompt_column,
            problem,
            "Give it text that ends where a token ends, and a chat template that renders it as before a completion",
        )
    if not chosen_ids:
        raise error(chosen_column, "the completion has no tokens", "Give it text, or drop the row")
    for ids, (column, entry, _) in zip(rejected_ids, _rejected_entries(example), strict=True):
        if not ids:
            raise error(column, f"{entry} has no tokens", "Give it text, or leave it out")
        if ids == chosen_ids:
            raise error(column, f"{entry} has the same tokens as the chosen completion", _LEAVE_OUT)

    prompt_tokens_cut = 0
    if max_length is not None and truncation_mode == "keep_completion":
        room = max_length - max(map(len, (chosen_ids, *rejected_ids)))
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
        "chosen_ids": chosen_ids,
        "rejected_ids": rejected_ids,
        "prompt_tokens_cut": prompt_tokens_cut,
    }


def tokenize_completions(
    processing_class: PreTrainedTokenizerBase | ProcessorMixin,
    prompt: Any,
    completions: Sequence[Any],
    *,
    eos_token: str | None,
    **template_kwargs: Any,
) -> tuple[list[int], list[list[int]]]:
    """Token ids of a prompt and of each of its completions.

    Prompt and completion are tokenised together, as TRL does, and split where the prompt's tokens end; where the
    tokenised prompt is no prefix of the whole, the completion starts where they diverge.

    Args:
        processing_class: Tokenizer or processor.
        prompt: Text, or a list of messages.
        completions: Each the same kind as the prompt.
        eos_token: Appended to text completions that do not end with it; None for none.
        **template_kwargs: For the chat template.

    Returns:
        The prompt's ids and, for each completion, its ids.
    """

    def ids_of(text: Any, **kwargs: Any) -> list[int]:
        return _tokenize(processing_class, text, **kwargs)["input_ids"]

    if isinstance(prompt, str):
        end = eos_token or ""
        prompt_ids = ids_of(prompt)
        wholes = [ids_of(prompt + text + ("" if text.endswith(end) else end)) for text in completions]
    else:
        prompt_ids = ids_of(prompt, add_generation_prompt=True, **template_kwargs)
        wholes = [ids_of(prompt + messages, **template_kwargs) for messages in completions]
    prompt_length = min(common_prefix_length(prompt_ids, whole) for whole in wholes)
    if prompt_length < len(prompt_ids):
        logger.warning_once(
            "The tokenized prompt is not a prefix of the tokenized prompt+completion. The completion starts where "
            "they diverge, and this end of the prompt is left out: "
            f"{processing_class.decode(prompt_ids[prompt_length:])!r}. End the prompt on a token boundary, or use a "
            "chat template that renders it alone as it does before a completion. This warning is shown once."
        )
    return prompt_ids[:prompt_length], [whole[prompt_length:] for whole in wholes]


def _read_text(
    example: dict[str, Any], error: Any, processing_class: Any, eos_token: str | None
) -> tuple[list[int], list[int], list[list[int]]]:
    prompt, chosen, rejected = read_row(example, error)
    if "prompt" not in example:
        prompt, chosen, rejected = _extract_prompt(chosen, rejected)
    template_kwargs: dict[str, Any] = {}
    if isinstance(prompt, list):
        tools = example.get("tools")
        template_kwargs["tools"] = json.loads(tools) if isinstance(tools, str) else tools
        template_kwargs |= example.get("chat_template_kwargs") or {}
    if eos_token is None and isinstance(prompt, str):
        logger.warning_once(
            "The tokenizer has no end-of-sequence token, so nothing is appended to the completions and the model does "
            "not learn where they end. Set `processing_class.eos_token`. This warning is shown once."
        )
    try:
        prompt_ids, (chosen_ids, *rejected_ids) = tokenize_completions(
            processing_class, prompt, [chosen, *rejected], eos_token=eos_token, **template_kwargs
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
    return prompt_ids, chosen_ids, rejected_ids


def read_tokens(example: dict[str, Any], error: Any) -> tuple[list[int], list[int], list[list[int]]]:
    """`read_row` for a row that is tokenised already: ids of the prompt, the chosen and each rejected completion."""
    entries = _rejected_entries(example)
    for column, entry, ids in (
        *((name, "it", example[name]) for name in TOKEN_COLUMNS[:2]),
        *entries,
    ):
        if not (isinstance(ids, list) and all(isinstance(token, int) and token >= 0 for token in ids)):
            raise error(column, f"{entry} should be a list of token ids, but is {_shown(ids)}", "Fix or drop the row")
    if not entries:
        raise error(TOKEN_COLUMNS[2], "the list is empty", "Give at least one rejected completion, or drop the row")
    return example["prompt_ids"], example["chosen_ids"], [ids for _, _, ids in entries]


def _rejected_entries(example: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """The rejected completions of a row: column, name within it for messages, and value."""
    if example.keys() >= set(TOKEN_COLUMNS):
        column, numbered = TOKEN_COLUMNS[2], []
        rejected = example[column]
        single = isinstance(rejected, list) and len(rejected) > 0 and all(isinstance(ids, int) for ids in rejected)
    else:
        column, numbered = "rejected", numbered_columns(example)
        rejected = example.get(column)
        single = isinstance(rejected, str) or _is_messages(rejected)
    if rejected is None and numbered:
        entries = []
    elif isinstance(rejected, list) and not single:
        entries = [(column, f"entry {position}", value) for position, value in enumerate(rejected)]
    else:
        entries = [(column, "it", rejected)]
    return entries + [(name, "it", example[name]) for name in numbered if example[name] is not None]


_LEAVE_OUT = "Leave it out: nothing can be preferred to itself"


def read_row(example: dict[str, Any], error: Any) -> tuple[Any, Any, list[Any]]:
    """The row's prompt (None if implicit), chosen completion and list of rejected completions, checked.

    Args:
        example: The row, text.
        error: Makes the exception of a column, a problem and a remedy.
    """
    numbered = numbered_columns(example)
    for column in ("chosen",) if numbered else ("chosen", "rejected"):
        if column not in example:
            raise error(column, "there is no such column", f"Columns are {sorted(example)}; rename the one you mean")
    chosen = example["chosen"]
    messages = _is_messages(chosen)
    kind = "a list of messages" if messages else "text"
    if not messages and not isinstance(chosen, str):
        raise error("chosen", f"expected text or a list of messages, got {_shown(chosen)}", "Fix or drop the row")

    def is_kind(value: Any) -> bool:
        return _is_messages(value) if messages else isinstance(value, str)

    if "prompt" in example and not is_kind(example["prompt"]):
        raise error(
            "prompt",
            f"expected {kind}, as in `chosen`, got {_shown(example['prompt'])}",
            "Give prompt, chosen and rejected in one format",
        )
    rejected = example.get("rejected")
    if not (isinstance(rejected, list | str) or (rejected is None and numbered)):
        raise error("rejected", f"expected a list of completions, got {_shown(rejected)}", "Fix or drop the row")
    entries = _rejected_entries(example)
    if not entries:
        raise error("rejected", "the list is empty", "Give at least one rejected completion, or drop the row")
    for column, entry, completion in entries:
        if not is_kind(completion):
            raise error(
                column,
                f"{entry} should be {kind}, as in `chosen`, but is {_shown(completion)}",
                "Fix it, or leave it out of the list",
            )
        if completion == chosen:
            raise error(column, f"{entry} equals the chosen completion {_shown(chosen)}", _LEAVE_OUT)
    if messages:
        for column, text in (
            ("prompt", example.get("prompt", [])),
            ("chosen", chosen),
            *((column, completion) for column, _, completion in entries),
        ):
            for message in text:
                # Templates write "None" without a word
                if message.get("content") is None and not message.get("tool_calls"):
                    raise error(
                        column,
                        f"a message has neither content nor tool calls: {_shown(message)}",
                        "Give it content (an empty text is one), or drop the row",
                    )
    return example.get("prompt"), chosen, [completion for _, _, completion in entries]


def _is_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(item, dict) and isinstance(item.get("role"), str) for item in value)
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _extract_prompt(chosen: Any, rejected: list[Any]) -> tuple[Any, Any, list[Any]]:
    """Split off what all completions have in common: TRL's rule for pairs, over any number."""
    shortest = min(map(len, (chosen, *rejected)))
    length = min(common_prefix_length(chosen, completion) for completion in rejected)
    if length == shortest or (length > 0 and chosen[length - 1] == " "):  # no completion may become empty
        length -= 1
    return chosen[:length], chosen[length:], [completion[length:] for completion in rejected]
