"""Summary of a preparation: what became of the interactions, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def examples_in_words(manifest: Mapping[str, Any]) -> str:
    """Return how many interactions became how many training examples, and why.

    Args:
        manifest: That of a prepared folder.

    Returns:
        Three lines.

    Example:
        >>> options = {"examples_per_user": 1, "min_history": 2, "min_rating": 4.0}
        >>> users, rows = {"all": 943, "train": 754}, {"preference": {"train": 754, "validation": 94}}
        >>> print(examples_in_words({"options": options, "users": users, "interactions": 99991, "rows": rows}))
        99,991 interactions of 943 users became 754 training examples of 754 users.
        An example is an item rated 4 or more, after at least 2 such items of the same user.
        Of each user the latest 1 (examples_per_user; 0 takes all).
    """
    options, users = manifest["options"], manifest["users"]
    rating, least, per_user = options["min_rating"], options["min_history"], options["examples_per_user"]
    item, such = ("item", "") if rating is None else (f"item rated {rating:g} or more", "such ")
    return (
        f"{manifest['interactions']:,} interactions of {users['all']:,} users became "
        f"{manifest['rows']['preference']['train']:,} training examples of {users['train']:,} users.\n"
        f"An example is an {item}, after at least {least:,} {such}item{'' if least == 1 else 's'} of the same user.\n"
        f"Of each user {f'the latest {per_user:,}' if per_user else 'all'} (examples_per_user; 0 takes all)."
    )
