"""The data contract: what a preference row may look like, and the token ids it becomes.

A row has `prompt`, `chosen` and `rejected`, standard (text) or conversational (messages), with an explicit or an
implicit prompt, exactly as in TRL, except that `rejected` holds a list of completions, of any length. One completion
instead of a list means a list of one. Numbered columns (`rejected1`, ..., of S-DPO, `negative_1`, ..., of
sentence-transformers) are folded into the list; a null there means that the row has fewer.
"""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils import logging
from trl.data_utils import _tokenize

from .trie import common_prefix_length

logger = logging.get_logger(__name__)

TOKEN_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
_NUMBERED = re.compile(r"(rejected|negative)_?(\d+)")


def numbered_columns(columns: Iterable[str]) -> list[str]:
    """Columns that each hold one rejected completion, in the order of their numbers."""
    matches = filter(None, map(_NUMBERED.fullmatch, columns))
    return [match.string for match in sorted(matches, key=lambda match: (match[1], int(match[2])))]


class RowError(ValueError):
    """A row that breaks the data contract; says which one, in which column, and what to do."""

    def __init__(self, dataset: str, row: int, column: str, problem: str, remedy: str) -> None:
        super().__init__(f"Row {row} of the {dataset} dataset, column `{column}`: {problem}. {remedy}.")


def tokenize_row(
    example: dict[str, Any],
    index: int,
    *,
    dataset_name: str,
    processing_class: PreTrainedTokenizerBase | ProcessorMixin,
    eos_token: str,
    max_length: int | None,
    truncation_mode: str,
) -> dict[str, Any]:
    """Turn a preference row into `prompt_ids`, `chosen_ids` and `rejected_ids` (a list of lists).

    Args:
        example: The row.
        index: Its number, for messages.
        dataset_name: Its dataset, for messages.
        processing_class: Tokenizer or processor.
        eos_token: Appended to standard completions that do not end with it.
        max_length: See `DMPOConfig`.
        truncation_mode: See `DMPOConfig`; `"keep_completion"` is done here, the others in the collator.

    Returns:
        The three columns, and `prompt_tokens_cut`, the number of tokens that `"keep_completion"` took from the prompt.

    Raises:
        RowError: The row breaks the data contract.
    """

    def error(column: str, problem: str, remedy: str) -> RowError:
        return RowError(dataset_name, index, column, problem, remedy)

    prompt, chosen, rejected = _read_row(example, error)
    if "prompt" not in example:
        prompt, chosen, rejected = _extract_prompt(chosen, rejected)
    template_kwargs: dict[str, Any] = {}
    if _is_messages(prompt):
        tools = example.get("tools")
        template_kwargs["tools"] = json.loads(tools) if isinstance(tools, str) else tools
        template_kwargs |= example.get("chat_template_kwargs") or {}

    prompt_ids, (chosen_ids, *rejected_ids) = tokenize_completions(
        processing_class, prompt, [chosen, *rejected], eos_token=eos_token, **template_kwargs
    )
    for column, ids in (("chosen", chosen_ids), *(("rejected", ids) for ids in rejected_ids)):
        if not ids:
            raise error(column, "a completion has no tokens", "Give it text, or drop the row")

    prompt_tokens_cut = 0
    if max_length is not None and truncation_mode == "keep_completion":
        room = max_length - max(map(len, (chosen_ids, *rejected_ids)))
        if room < 1:
            raise error(
                "chosen` or `rejected",
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


def _read_row(example: dict[str, Any], error: Any) -> tuple[Any, Any, list[Any]]:
    """The row's prompt (None if implicit), chosen completion and list of rejected completions, checked."""
    numbered = numbered_columns(example)
    for column in ("chosen",) if numbered else ("chosen", "rejected"):
        if column not in example:
            raise error(column, "there is no such column", f"Columns are {sorted(example)}; rename the one you mean")
    chosen = example["chosen"]
    messages = _is_messages(chosen)
    kind = "a list of messages" if messages else "text"
    if not messages and not isinstance(chosen, str):
        raise error("chosen", f"expected text or a list of messages, got {_shown(chosen)}", "Fix or drop the row")
    if ("prompt" in example and _is_messages(example["prompt"]) != messages) or not isinstance(
        example.get("prompt", ""), str | list
    ):
        raise error(
            "prompt",
            f"expected {kind}, as in `chosen`, got {_shown(example['prompt'])}",
            "Give prompt, chosen and rejected in one format",
        )

    rejected = example.get("rejected")
    if rejected is None and numbered:
        rejected = []
    elif isinstance(rejected, str) or _is_messages(rejected):
        rejected = [rejected]
    if not isinstance(rejected, list):
        raise error("rejected", f"expected a list of completions, got {_shown(rejected)}", "Fix or drop the row")
    rejected = rejected + [example[column] for column in numbered if example[column] is not None]
    if not rejected:
        raise error("rejected", "the list is empty", "Give at least one rejected completion, or drop the row")
    for position, completion in enumerate(rejected):
        if not (_is_messages(completion) if messages else isinstance(completion, str)):
            raise error(
                "rejected",
                f"entry {position} should be {kind}, as in `chosen`, but is {_shown(completion)}",
                "Fix the entry, or leave it out of the list",
            )
        if completion == chosen:
            raise error(
                "rejected",
                f"entry {position} equals the chosen completion {_shown(chosen)}",
                "Leave it out of the list: nothing can be preferred to itself",
            )
    return example.get("prompt"), chosen, rejected


def _is_messages(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) > 0 and all(isinstance(item, dict) and "role" in item for item in value)
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
