"""What a user had before an example's target: more than the history of a prompt shows."""

from __future__ import annotations

import numpy as np
import polars as pl

from ._columns import lists, positions
from .interactions import Interactions


def seen_before(examples: pl.DataFrame, data: Interactions) -> pl.Series:
    """Every item that the user had before the target, liked or not: what must not be recommended again.

    Args:
        examples: columns `user` and `target`.
        data: the interactions.

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
