"""Row format: what a preference row may look like.

A row has `prompt`, `chosen` and `rejected`, standard (text) or conversational (messages), with an explicit or an
implicit prompt, exactly as in TRL, except that `rejected` holds a list of completions, of any length, and `chosen` may
hold one too. One rejected completion instead of a list means a list of one. Numbered columns (`rejected1`, ..., of
S-DPO, `negative_1`, ..., of sentence-transformers) are folded into the list; a null there means that the row has
fewer. A row may also come as token ids: `prompt_ids`, `chosen_ids`, `rejected_ids`. Further columns may hold one
number for each chosen (`CHOSEN_COLUMNS`) or rejected completion (`PAIR_COLUMNS`), or the reference's log-probs
(`REFERENCE_COLUMNS`). What is refused, and why, is in docs/bad-input.md.

Plain Python: `dmpo_trl.data` reads rows too, and must not import torch for it.
"""

import math
import re
from collections.abc import Iterable
from typing import Any

from .._common_prefix import common_prefix_length

TOKEN_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
CHOSEN_COLUMNS = ("chosen_levels",)
"""One number for each chosen completion, in a list where `chosen` is one; see `ScoredBatch`."""
PAIR_COLUMNS = ("margins", "rejected_logq")
"""One number for each rejected completion; see `ScoredBatch`."""
REFERENCE_COLUMNS = ("ref_chosen_logps", "ref_rejected_logps")
"""Log-probs of the chosen and of each rejected completion under the reference policy."""
HIGHEST_LOG_PROB = 0.01
"""What rounding may leave of a log-prob of 0."""
VALUE_COLUMNS = (*CHOSEN_COLUMNS, *PAIR_COLUMNS, *REFERENCE_COLUMNS)
"""All columns of numbers."""
_NUMBERED = re.compile(r"(rejected|negative)_?(\d+)")
LEAVE_OUT = "Leave it out: nothing can be preferred to itself"
LEAVE_ONE_OUT = "Leave one of the two out"


def numbered_columns(columns: Iterable[str]) -> list[str]:
    """Return the columns that each hold one rejected completion, in the order of their numbers."""
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

    Example:
        >>> print(RowError("train", 3, "rejected", "the list is empty", "Drop the row"))
        Row 3 of the train dataset, column `rejected`: the list is empty. Drop the row.
    """

    def __init__(
        self, dataset: str, row: int | None = None, column: str = "", problem: str = "", remedy: str = ""
    ) -> None:
        message = f"Row {row} of the {dataset} dataset, column `{column}`: {problem}. {remedy}."
        super().__init__(dataset if row is None else message)


def read_row(example: dict[str, Any], error: Any) -> tuple[Any, list[Any], list[Any]]:
    """Return the row's prompt (None if implicit), chosen completions and rejected completions, checked.

    Args:
        example: The row, text.
        error: Makes the exception of a column, a problem and a remedy.
    """
    numbered = numbered_columns(example)
    for column in ("chosen",) if numbered else ("chosen", "rejected"):
        if column not in example:
            raise error(column, "there is no such column", f"Columns are {sorted(example)}; rename the one you mean")
    if example["chosen"] == []:
        raise error("chosen", "the list is empty", "Give at least one chosen completion, or drop the row")
    chosen = chosen_entries(example)
    messages = any(_is_messages(completion) for _, _, completion in chosen)
    kind = "a list of messages" if messages else "text"

    def is_kind(value: Any) -> bool:
        return _is_messages(value) if messages else isinstance(value, str)

    for place, (column, entry, completion) in enumerate(chosen):
        if not is_kind(completion):
            if len(chosen) == 1 and entry == "it":
                problem, remedy = (
                    f"expected text or a list of messages, got {shown(completion)}",
                    "Fix or drop the row",
                )
            else:
                problem, remedy = f"{entry} should be {kind}, but is {shown(completion)}", "Fix it, or leave it out"
            raise error(column, problem, remedy)
        for _, other, earlier in chosen[:place]:
            if completion == earlier:
                raise error(column, f"{entry} equals {other}, {shown(completion)}", LEAVE_ONE_OUT)
    if "prompt" in example and not is_kind(example["prompt"]):
        raise error(
            "prompt",
            f"expected {kind}, as in `chosen`, got {shown(example['prompt'])}",
            "Give prompt, chosen and rejected in one format",
        )
    rejected = example.get("rejected")
    if not (isinstance(rejected, list | str) or (rejected is None and numbered)):
        raise error("rejected", f"expected a list of completions, got {shown(rejected)}", "Fix or drop the row")
    entries = rejected_entries(example)
    if not entries:
        raise error("rejected", "the list is empty", "Give at least one rejected completion, or drop the row")
    for column, entry, completion in entries:
        if not is_kind(completion):
            raise error(
                column,
                f"{entry} should be {kind}, as in `chosen`, but is {shown(completion)}",
                "Fix it, or leave it out of the list",
            )
        if any(completion == one for _, _, one in chosen):
            raise error(column, f"{entry} equals the chosen completion {shown(completion)}", LEAVE_OUT)
    if messages:
        for column, text in (
            ("prompt", example.get("prompt", [])),
            *((column, completion) for column, _, completion in (*chosen, *entries)),
        ):
            for message in text:
                # Templates write "None" without a word
                if message.get("content") is None and not message.get("tool_calls"):
                    raise error(
                        column,
                        f"a message has neither content nor tool calls: {shown(message)}",
                        "Give it content (an empty text is one), or drop the row",
                    )
    return example.get("prompt"), _values(chosen), _values(entries)


def read_tokens(example: dict[str, Any], error: Any) -> tuple[list[int], list[list[int]], list[list[int]]]:
    """Return ids of the prompt, of each chosen and of each rejected completion of a tokenised row, checked."""
    chosen, entries = chosen_entries(example), rejected_entries(example)
    for column, entry, ids in ((TOKEN_COLUMNS[0], "it", example[TOKEN_COLUMNS[0]]), *chosen, *entries):
        if not (isinstance(ids, list) and all(isinstance(token, int) and token >= 0 for token in ids)):
            raise error(column, f"{entry} should be a list of token ids, but is {shown(ids)}", "Fix or drop the row")
    if not entries:
        raise error(TOKEN_COLUMNS[2], "the list is empty", "Give at least one rejected completion, or drop the row")
    return example["prompt_ids"], _values(chosen), _values(entries)


def check_values(example: dict[str, Any], error: Any) -> None:
    """Refuse numbers of a row that do not belong to its completions one to one.

    Args:
        example: The row, whose completions have been checked.
        error: Makes the exception of a column, a problem and a remedy.
    """
    sides = {
        "chosen": (chosen_entries(example), (*CHOSEN_COLUMNS, REFERENCE_COLUMNS[0])),
        "rejected": (rejected_entries(example), (*PAIR_COLUMNS, REFERENCE_COLUMNS[1])),
    }
    for side, (entries, columns) in sides.items():
        count = len(entries)
        single = side == "chosen" and not holds_several(example[entries[0][0]])
        expected = "a finite number" if single else f"{count} finite numbers, one for each {side} completion"
        for column in filter(example.__contains__, columns):
            values = [example[column]] if single else example[column]
            if not (isinstance(values, list) and len(values) == count and all(map(_is_number, values))):
                raise error(
                    column, f"expected {expected}, got {shown(example[column])}", "Fix the row, or remove the column"
                )
            if column in REFERENCE_COLUMNS and max(values) > HIGHEST_LOG_PROB:
                raise error(
                    column,
                    f"a log-prob is at most 0, got {shown(example[column])}",
                    "Give log-probs, not their negatives, or remove the columns of the reference",
                )
    one, other = REFERENCE_COLUMNS if REFERENCE_COLUMNS[0] in example else REFERENCE_COLUMNS[::-1]
    if one in example and other not in example:
        raise error(other, f"there is no such column, and there is `{one}`", f"Add it, or remove `{one}`")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _values(entries: list[tuple[str, str, Any]]) -> list[Any]:
    return [value for _, _, value in entries]


def holds_several(chosen: Any) -> bool:
    """Return whether `chosen` or `chosen_ids` of a row holds a list of completions, even if of one, not a completion.

    Example:
        >>> holds_several("Alien"), holds_several(["Alien"]), holds_several([5, 2]), holds_several([[5, 2], [6]])
        (False, True, False, True)
    """
    return isinstance(chosen, list) and any(isinstance(entry, str | list) for entry in chosen)


def chosen_entries(example: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """Return the chosen completions of a row: column, name within it for messages, and value."""
    column = TOKEN_COLUMNS[1] if example.keys() >= set(TOKEN_COLUMNS) else "chosen"
    chosen = example[column]
    if not holds_several(chosen):
        return [(column, "it", chosen)]
    return [(column, f"entry {place}", value) for place, value in enumerate(chosen)]


def rejected_entries(example: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """Return the rejected completions of a row: column, name within it for messages, and value."""
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


def extract_prompt(completions: list[Any]) -> tuple[Any, list[Any]]:
    """Split off what all completions of a row have in common: TRL's rule for pairs, over any number."""
    first, *others = completions
    shortest = min(map(len, completions))
    length = min(common_prefix_length(first, completion) for completion in others)
    if length == shortest or (length > 0 and first[length - 1] == " "):  # no completion may become empty
        length -= 1
    return first[:length], [completion[length:] for completion in completions]


def _is_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(item, dict) and isinstance(item.get("role"), str) for item in value)
    )


def shown(value: Any) -> str:
    """Return a value as messages show it: its beginning where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
