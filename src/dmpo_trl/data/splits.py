"""From interactions to examples: a user's history and the item that came next."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import polars as pl

from .interactions import Interactions

logger = logging.getLogger(__name__)


def leave_one_out(
    data: Interactions, *, min_rating: float | None = None, history_length: int = 10, min_history: int = 1
) -> pl.DataFrame:
    """Holds out the last item that each user liked; the items liked before it are the history.

    Args:
        data: the interactions.
        min_rating: an item counts as liked from this rating on; `None` counts every interaction.
        history_length: at most so many items before the target, the latest ones.
        min_history: users with fewer items than this before the target are left out, counted and logged.

    Returns:
        One row a user, sorted by user: `user` (String), `history` (List[String], items from old to new) and `target`
        (String, an item).

    Raises:
        ValueError: where `min_rating` is given and there are no ratings, or no user has enough items.
    """
    if history_length < 1 or min_history < 1:
        raise ValueError("history_length and min_history must be at least 1")
    liked = data.interactions
    if min_rating is not None:
        if "rating" not in liked.columns:
            raise ValueError("min_rating is given, but the interactions have no column 'rating'; pass min_rating=None")
        liked = liked.filter(pl.col("rating") >= min_rating)
    users = liked.sort("timestamp", maintain_order=True).group_by("user").agg("item")
    examples = (
        users.filter(pl.col("item").list.len() > min_history)
        .select(
            "user",
            history=pl.col("item").list.head(pl.col("item").list.len() - 1).list.tail(history_length),
            target=pl.col("item").list.last(),
        )
        .sort("user")
    )
    if examples.is_empty():
        raise ValueError(f"No user has {min_history} liked items and one more; lower min_history or min_rating")
    left_out = data.interactions["user"].n_unique() - examples.height
    logger.info("%d examples; %d users have fewer than %d liked items", examples.height, left_out, min_history + 1)
    return examples


def split_users(examples: pl.DataFrame, sizes: Mapping[str, int], *, seed: int) -> dict[str, pl.DataFrame]:
    """Divides the users of `examples` at random into disjoint groups.

    Args:
        examples: rows with a column `user`, any number a user.
        sizes: number of users in each group, by its name, e.g. `{"train": 600, "test": 200}`.
        seed: of the random order of the users. It does not depend on the order of the rows.

    Returns:
        The rows of each group's users.

    Raises:
        ValueError: where there are fewer users than the sizes add up to.
    """
    users = examples["user"].unique().sort().to_numpy()
    if sum(sizes.values()) > len(users):
        raise ValueError(f"The groups {dict(sizes)} need {sum(sizes.values())} users, there are {len(users)}")
    users = np.random.default_rng(seed).permutation(users)
    groups, start = {}, 0
    for name, size in sizes.items():
        groups[name] = examples.filter(pl.col("user").is_in(users[start : start + size].tolist()))
        start += size
    return groups
