"""What is taken of a data set by options: a split, and how many rejected completions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from ..preprocessing.format import PAIR_COLUMNS, REFERENCE_COLUMNS, numbered_columns, rejected_entries

_LOGQ = "rejected_logq"


def choose_split(data: Mapping[str, Any], name: str, option: str) -> Any:
    """Return one split of a data set.

    Args:
        data: The splits by name.
        name: Name of the split.
        option: The option that names it, for the message.

    Raises:
        ValueError: There is no such split.

    Example:
        >>> choose_split({"train": [1, 2]}, "train", "--dataset_train_split")
        [1, 2]
    """
    if name not in data:
        raise ValueError(f"The data have no split {name!r}; set {option} to one of {', '.join(data)}.")
    return data[name]


def first_negatives(data: Any, number: int | None) -> Any:
    """Return rows with the first rejected completions only, and the numbers that belong to them.

    `rejected_logq` is the log of how many times a completion is drawn on average: of fewer draws in all it is less.

    Args:
        data: A dataset or a stream of rows.
        number: How many of each row's; None for all. A row with fewer keeps those that it has.

    Raises:
        ValueError: The rejected completions stand in numbered columns.

    Example:
        >>> from datasets import Dataset
        >>> rows = Dataset.from_list([{"prompt": "Next:", "chosen": " Aliens", "rejected": [" Babe", " Heidi"]}])
        >>> first_negatives(rows, 1)["rejected"][0]
        [' Babe']
    """
    if number is None:
        return data
    if numbered := numbered_columns(data.column_names or ()):
        raise ValueError(
            f"--max_negatives takes the first entries of lists, and the data have the columns {', '.join(numbered)}: "
            "put them into one column `rejected`, a list, or leave --max_negatives out."
        )
    return data.map(partial(_first, number=number))


def _first(row: dict[str, Any], *, number: int) -> dict[str, Any]:
    entries = rejected_entries(row)
    if len(entries) <= number:  # none at all is refused with the other rows
        return {}
    listed = [entries[0][0], *PAIR_COLUMNS, REFERENCE_COLUMNS[1]]
    kept = {key: row[key][:number] for key in listed if isinstance(row.get(key), list)}
    if _LOGQ in kept:
        fewer = math.log(number / len(entries))
        kept[_LOGQ] = [value if value is None else value + fewer for value in kept[_LOGQ]]
    return kept
