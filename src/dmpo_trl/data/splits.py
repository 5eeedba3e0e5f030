"""From interactions to examples: a user's history and the item that came next."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import polars as pl

from .interactions import Interactions

logger = logging.getLogger(__name__)


def leave_one_out(
    data: Interactions,
    *,
    min_rating: float | None = None,
    history_length: int = 10,
    min_history: int = 1,
    targets_per_user: int = 1,
) -> pl.DataFrame:
    """Holds out the last item that each user liked; the items liked before it are the history.

    Args:
        data: the interactions.
        min_rating: an item counts as liked from this rating on; `None` counts every interaction.
        history_length: at most so many items before the target, the latest ones.
        min_history: users with fewer items than this before the target are left out, counted and logged.
        targets_per_user: 1 holds out the last item only. A larger number gives further examples of a user: the item
            before the last with what came before it, and so on, each with a full history of its own. For training;
            an evaluation wants one example a user.

    Returns:
        One row an example, sorted by user, the latest target first: `user` (String), `history` (List[String], items
        from old to new) and `target` (String, an item).

    Raises:
        ValueError: where `min_rating` is given and there are no ratings, or no user has enough items.
    """
    if history_length < 1 or min_history < 1 or targets_per_user < 1:
        raise ValueError("history_length, min_history and targets_per_user must be at least 1")
    liked = data.interactions
    if min_rating is not None:
        if "rating" not in liked.columns:
            raise ValueError("min_rating is given, but the interactions have no column 'rating'; pass min_rating=None")
        liked = liked.filter(pl.col("rating") >= min_rating)
    users = liked.sort("timestamp", maintain_order=True).group_by("user").agg("item").sort("user")

    rows = []
    for user, items in users.iter_rows():
        for end in range(len(items) - 1, max(min_history, len(items) - targets_per_user) - 1, -1):
            rows.append((user, items[max(0, end - history_length) : end], items[end]))
    if not rows:
        raise ValueError(f"No user has {min_history} liked items and one more; lower min_history or min_rating")
    examples = pl.DataFrame(
        rows, schema={"user": pl.String, "history": pl.List(pl.String), "target": pl.String}, orient="row"
    )
    logger.info(
        "%d examples of %d users; %d users have fewer than %d liked items",
        examples.height,
        examples["user"].n_unique(),
        data.interactions["user"].n_unique() - examples["user"].n_unique(),
        min_history + 1,
    )
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
