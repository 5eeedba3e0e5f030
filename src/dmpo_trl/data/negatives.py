"""Items that a user never had."""

from __future__ import annotations

import zlib

import numpy as np
import polars as pl

from .interactions import Interactions


def sample_negatives(examples: pl.DataFrame, data: Interactions, n: int, *, seed: int) -> pl.DataFrame:
    """Adds `n` different items to each example, uniformly from all the items that its user never had.

    "Had" means any interaction at any time and with any rating: an item of the user's history, of the future or one
    that was disliked is never drawn. The generator is seeded by `seed` and the user, never by the target, so that the
    negatives do not give the target away (candidates seeded by the target do: the published LastFM files of S-DPO can
    be solved from the candidate lists alone). All examples of a user get the same negatives.

    Args:
        examples: rows with a column `user`.
        data: the interactions, of all users.
        n: negatives an example.
        seed: another seed gives other negatives.

    Returns:
        `examples` with a column `negatives` (List[String] of `n` items).

    Raises:
        ValueError: where a user never had fewer than `n` items.
    """
    catalogue = data.items.select(pl.col("item").sort()).with_row_index("position")
    had_by_user = dict(
        data.interactions.join(catalogue, on="item").group_by("user").agg(pl.col("position").sort()).iter_rows()
    )
    items = catalogue["item"].to_list()
    negatives = []
    for user in examples["user"]:
        had = np.array(had_by_user.get(user, []), dtype=np.int64)
        left = len(items) - len(had)
        if left < n:
            raise ValueError(
                f"{n} negatives are wanted, but user {user!r} has had {len(had)} of {len(items)} items; lower n"
            )
        rng = np.random.default_rng([seed, zlib.crc32(user.encode())])
        # Draw among the items left, then step over those the user had: `had[i] - i` items left precede `had[i]`
        drawn = rng.choice(left, size=n, replace=False)
        drawn += np.searchsorted(had - np.arange(len(had)), drawn, side="right")
        negatives.append([items[position] for position in drawn])
    return examples.with_columns(pl.Series("negatives", negatives, dtype=pl.List(pl.String)))
