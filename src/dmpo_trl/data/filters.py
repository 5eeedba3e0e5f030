"""k-core filtering."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import polars as pl

from ._columns import positions
from ._words import counts_in_words
from .interactions import Interactions

logger = logging.getLogger(__name__)


def k_core(data: Interactions, *, users: int, items: int) -> Interactions:
    """Keep the largest part in which every user has enough items and every item enough users.

    Leaving out a user may leave an item with too few users and the other way round, so both are left out in turn until
    nothing changes. (The "5-core" files of Amazon Reviews were made so, but hold smaller users and items nonetheless.)

    Args:
        data: The interactions.
        users: Interactions that a user needs.
        items: Interactions that an item needs.

    Returns:
        The interactions of the core and its items. What is outside was added to `dropped`, and logged.

    Raises:
        ValueError: For a number below 1, or where the core is empty.

    Example:
        >>> rows = [("ann", "alien", 1), ("ann", "babe", 2), ("bob", "alien", 1), ("bob", "babe", 2)]
        >>> rows += [("cid", "babe", 3)]
        >>> interactions = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
        >>> data = Interactions(interactions, pl.DataFrame({"item": ["alien", "babe"], "title": ["Alien", "Babe"]}))
        >>> k_core(data, users=2, items=2).dropped
        {'interactions outside the k-core': 1, 'users outside the k-core': 1}
    """
    if users < 1 or items < 1:
        raise ValueError(f"users and items must be at least 1, they are {users} and {items}.")
    names = data.interactions["user"].unique()
    user, item = positions(data.interactions["user"], names), positions(data.interactions["item"], data.items["item"])
    rows = np.arange(len(user))
    while True:
        enough_items, enough_users = (
            np.bincount(user[rows], minlength=len(names)) >= users,
            np.bincount(item[rows], minlength=data.items.height) >= items,
        )
        inside = enough_items[user[rows]] & enough_users[item[rows]]
        if inside.all():
            break
        rows = rows[inside]
    if not len(rows):
        raise ValueError(
            f"No user has {users} items that {items} users have; lower users or items (there are {len(names)} users, "
            f"{data.items.height} items and {len(user)} interactions)."
        )
    outside = {
        "interactions outside the k-core": len(user) - len(rows),
        "users outside the k-core": int((~enough_items).sum()),
        "items outside the k-core": int((~enough_users).sum()),
    }
    logger.info(
        "k-core of %d items per user and %d users per item: left out %s", users, items, counts_in_words(outside)
    )
    dropped = data.dropped | {
        reason: data.dropped.get(reason, 0) + count for reason, count in outside.items() if count
    }
    core, catalogue = data.interactions[pl.Series(rows)], data.items.filter(pl.Series(enough_users))
    return replace(data, interactions=core, items=catalogue, dropped=dropped)
