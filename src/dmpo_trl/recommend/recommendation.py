"""Requests and results: the history of a user, and a recommended item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class UserHistory(NamedTuple):
    """A user to recommend to.

    Attributes:
        user: Name of the user in the output.
        history: Items from old to new, for the prompt.
        seen: Further items that are not recommended, such as what the user had before the history.

    Example:
        >>> UserHistory("u1", history=["Alien", "Heidi"])
        UserHistory(user='u1', history=['Alien', 'Heidi'], seen=())
    """

    user: str
    history: Sequence[str]
    seen: Sequence[str] = ()


@dataclass(frozen=True)
class Recommendation:
    """A recommended item.

    Attributes:
        item: Its id.
        title: Its title.
        score: Log-prob of the title given the prompt, in nats, or the mean per token; the higher the better.

    Example:
        >>> Recommendation("7", "Heidi", -3.5).title
        'Heidi'
    """

    item: str
    title: str
    score: float
