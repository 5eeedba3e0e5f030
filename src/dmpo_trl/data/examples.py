"""Next-item examples: a history of a user and the item that came next."""

from __future__ import annotations

import logging

import numpy as np
import polars as pl

from ._columns import lists, positions
from .interactions import Interactions

logger = logging.getLogger(__name__)


def next_items(
    data: Interactions,
    *,
    min_rating: float | None = None,
    history_length: int = 10,
    min_history: int = 1,
    per_user: int | None = None,
    growing: bool = False,
) -> pl.DataFrame:
    """Make an example of every item that a user liked, with the items liked before it as history.

    Where histories grow, those of a user are prefixes of each other: they begin at the same item and end one item
    later from example to example. A prefix trie holds them all at little more than the price of the longest. Where a
    history would become longer than `history_length`, a new one begins, with `min_history` items; the last one of a
    user is the longest.

    Args:
        data: The interactions.
        min_rating: An item counts as liked from this rating on; `None` counts every interaction.
        history_length: At most so many items before the target, the latest ones.
        min_history: Items with fewer liked items before them are not targets.
        per_user: At most so many examples per user, the latest ones; `None` takes all.
        growing: Whether histories grow, or else each has the latest items before its target.

    Returns:
        One row per example, by user and time: `user` (String), `history` (List[String], items from old to new),
        `target` (String, an item) and `timestamp` (the target's).

    Raises:
        ValueError: Where `min_rating` is given and there are no ratings, no user has enough items, or a number is
            below 1.

    Example:
        >>> rows = [("ann", "alien", 1), ("ann", "babe", 2), ("ann", "fargo", 3)]
        >>> rows += [("bob", "fargo", 4), ("bob", "alien", 5)]
        >>> interactions = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
        >>> items = pl.DataFrame({"item": ["alien", "babe", "fargo"], "title": ["Alien", "Babe", "Fargo"]})
        >>> data = Interactions(interactions, items)
        >>> next_items(data).select("user", "history", "target").rows()
        [('ann', ['alien'], 'babe'), ('ann', ['alien', 'babe'], 'fargo'), ('bob', ['fargo'], 'alien')]
    """
    check_positive(history_length=history_length, min_history=min_history, per_user=per_user)
    liked = liked_of(data, min_rating)
    before, _ = places(liked)
    return examples_of(liked, before, before >= 0, history_length, min_history, per_user, growing=growing)


def leave_one_out(
    data: Interactions, *, min_rating: float | None = None, history_length: int = 10, min_history: int = 1
) -> pl.DataFrame:
    """Hold out the last item that each user liked; the items liked before it are the history.

    Args:
        data: The interactions.
        min_rating: An item counts as liked from this rating on; `None` counts every interaction.
        history_length: At most so many items before the target, the latest ones.
        min_history: Users with fewer items than this before the target are left out, counted and logged.

    Returns:
        One row per user, sorted by user: `user` (String), `history` (List[String], items from old to new) and
        `target` (String, an item).

    Raises:
        ValueError: Where `min_rating` is given and there are no ratings, or no user has enough items.

    Example:
        >>> rows = [("ann", "alien", 1), ("ann", "babe", 2), ("ann", "fargo", 3)]
        >>> rows += [("bob", "fargo", 4), ("bob", "alien", 5)]
        >>> interactions = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
        >>> items = pl.DataFrame({"item": ["alien", "babe", "fargo"], "title": ["Alien", "Babe", "Fargo"]})
        >>> data = Interactions(interactions, items)
        >>> leave_one_out(data).rows()
        [('ann', ['alien', 'babe'], 'fargo'), ('bob', ['fargo'], 'alien')]
    """
    examples = next_items(
        data, min_rating=min_rating, history_length=history_length, min_history=min_history, per_user=1
    )
    left_out = data.interactions["user"].n_unique() - examples.height
    logger.info("%d examples; %d users have fewer than %d liked items", examples.height, left_out, min_history + 1)
    return examples.drop("timestamp")


def longest_histories(examples: pl.DataFrame) -> pl.DataFrame:
    """Keep, of histories that grow from example to example, those after which a new one begins.

    Args:
        examples: As [`next_items`] returns them with `growing=True`.

    Example:
        >>> grown = pl.DataFrame({"user": ["ann", "ann", "bob"], "history": [["a"], ["a", "b"], ["c"]]})
        >>> longest_histories(grown)["history"].to_list()
        [['a', 'b'], ['c']]
    """
    length = pl.col("history").list.len()
    is_last = (pl.col("user") != pl.col("user").shift(-1)) | (length >= length.shift(-1))
    return examples.filter(is_last.fill_null(True))


def seen_before(examples: pl.DataFrame, data: Interactions) -> pl.Series:
    """Return every item that the user had before the target, liked or not: what must not be recommended again.

    Args:
        examples: Columns `user` and `target`.
        data: The interactions.

    Returns:
        A column `seen` (List[String], from old to new). Where `data` does not hold the target of the user, all the
        user's items.
    """
    users = examples["user"].unique()
    rank = positions(data.interactions["user"], users)
    rows = np.flatnonzero(rank >= 0)
    rank, item = rank[rows], data.interactions["item"].gather(rows)
    count = np.bincount(rank, minlength=len(users))
    start = np.zeros(len(users), np.int64)
    first_rows = np.flatnonzero(np.diff(rank, prepend=-1))  # the rows of a user stand together
    start[rank[first_rows]] = first_rows

    catalogue, who = data.items["item"], positions(examples["user"], users)
    pairs = rank.astype(np.int64) * len(catalogue) + positions(item, catalogue)
    wanted = who.astype(np.int64) * len(catalogue) + positions(examples["target"], catalogue)
    order = np.argsort(pairs)
    place = np.searchsorted(pairs, wanted, sorter=order)
    place = order[place.clip(max=max(len(order) - 1, 0))] if len(order) else place
    found = (pairs[place] == wanted) if len(order) else np.zeros(len(wanted), bool)

    lengths = np.where(found, place - start[who], count[who])
    ends = np.cumsum(lengths)
    own = np.repeat(start[who] - (ends - lengths), lengths) + np.arange(lengths.sum())
    return lists(item.gather(own).alias("seen"), lengths)


def check_positive(**numbers: int | None) -> None:
    """Refuse numbers below 1, naming them."""
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, it is {number}.")


def liked_of(data: Interactions, min_rating: float | None) -> pl.DataFrame:
    """Return the interactions that count as liked; see [`next_items`]."""
    if min_rating is None:
        return data.interactions
    if "rating" not in data.interactions.columns:
        raise ValueError("min_rating is given, but the interactions have no column 'rating'; leave it out.")
    liked = data.interactions.filter(pl.col("rating") >= float(min_rating))
    if liked.is_empty():
        highest = data.interactions["rating"].max()
        raise ValueError(f"No rating reaches min_rating={min_rating}; the highest is {highest!r}.")
    return liked


def places(liked: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return how many rows of its user each row has before and after it; the rows of a user stand together."""
    lengths = liked["user"].rle().struct.field("len").to_numpy().astype(np.int32)
    before = np.arange(liked.height, dtype=np.int32) - np.repeat(np.cumsum(lengths, dtype=np.int32) - lengths, lengths)
    return before, np.repeat(lengths, lengths) - 1 - before


def examples_of(
    liked: pl.DataFrame,
    before: np.ndarray,
    targets: np.ndarray,
    history_length: int,
    min_history: int,
    per_user: int | None,
    part: str = "",
    *,
    growing: bool = False,
) -> pl.DataFrame:
    """Make an example of each row of `liked` that is marked as a target and has enough before it."""
    if growing and history_length < min_history:
        raise ValueError(
            f"history_length must be at least min_history where histories grow; they are {history_length} and "
            f"{min_history}."
        )
    rows = np.flatnonzero(_latest(targets & (before >= min_history), before, per_user))
    if not len(rows):
        where = f" for the {part} part" if part else ""
        raise ValueError(
            f"No user has {min_history} liked items and one more{where}; lower min_history or min_rating, or choose "
            "another split."
        )
    history_length = min(history_length, len(liked))
    lengths = np.minimum(before[rows], history_length).astype(np.int64)
    if growing:
        # Counted from the user's last target, so that its history is the longest; every `span` targets one begins anew
        starts = rows - before[rows]  # where the rows of each target's user begin
        last = before[rows[np.searchsorted(starts, starts, side="right") - 1]]
        span = history_length - min_history + 1
        first = last - (last - before[rows]) // span * span - history_length
        lengths = (before[rows] - np.maximum(first, 0)).astype(np.int64)
    ends = np.cumsum(lengths)
    history = np.repeat(rows - ends, lengths) + np.arange(ends[-1])
    return liked[rows].select(
        pl.col("user").cast(pl.String),
        lists(liked["item"].gather(history).alias("history"), lengths),
        pl.col("item").cast(pl.String).alias("target"),
        "timestamp",
    )


def _latest(targets: np.ndarray, before: np.ndarray, per_user: int | None) -> np.ndarray:
    """Of the rows marked as targets, mark the last `per_user` of each user."""
    if per_user is None:
        return targets
    upto = np.cumsum(targets, dtype=np.int32)
    ends = np.append(np.flatnonzero(before == 0)[1:], len(before)) - 1
    of_user = np.repeat(upto[ends], np.diff(ends, prepend=-1))  # how many there are up to the end of the row's user
    return targets & (of_user - upto < per_user)
