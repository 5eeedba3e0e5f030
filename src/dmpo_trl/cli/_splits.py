"""Splits of a data set, chosen by an option."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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
