"""Requests and results: the history of a user, and a recommended item."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple


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
        score: What the items are ordered by, the higher the better: log-prob of the title given the prompt, in nats,
            or the mean per token, as the recommender's `score` says; with a prior both together (see [`Prior`]).
        model_score: With a prior, the log-prob or its mean per token; else None.
        prior_score: With a prior, its own score, in its own unit; else None.

    Example:
        >>> Recommendation("7", "Heidi", -3.5).title
        'Heidi'
    """

    item: str
    title: str
    score: float
    model_score: float | None = None
    prior_score: float | None = None


def as_json(user: Mapping[str, Any], found: Sequence[Recommendation], score: str) -> str:
    """Return what was recommended to a user as one line of JSON.

    Args:
        user: Who it is, or the history.
        found: The items, from best to worst.
        score: The kind of their score, `"sum"` or `"mean"`.

    Returns:
        An object with what `user` holds, `score`, and a list `recommendations` of `rank`, `item`, `title` and `score`,
        and where there is a prior also `model_score` and `prior_score`.

    Example:
        >>> print(as_json({"user": "u1"}, [Recommendation("7", "Heidi", -3.5)], "sum"))
        {"user": "u1", "score": "sum", "recommendations": [{"rank": 1, "item": "7", "title": "Heidi", "score": -3.5}]}
    """
    items = [
        {"rank": rank, **{name: value for name, value in asdict(one).items() if value is not None}}
        for rank, one in enumerate(found, start=1)
    ]
    return json.dumps({**user, "score": score, "recommendations": items}, ensure_ascii=False)
