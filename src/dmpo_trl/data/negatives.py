"""Items that a user never had."""

from __future__ import annotations

import zlib

import numpy as np
import polars as pl

from .interactions import Interactions


def sample_negatives(examples: pl.DataFrame, data: Interactions, n: int, *, seed: int) -> pl.DataFrame:
    """Adds `n` different items to each example, uniformly from all the items that its user never had.

    "Had" means any interaction at any time and with any rating: an item of the user's history, of the future or one
    that was disliked is never drawn. The generator is seeded by `seed`, the user and the number of the example among
    the user's, never by the target, so that the negatives do not give the target away (candidates seeded by the target
    do: the published LastFM files of S-DPO can be solved from the candidate lists alone).

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
    catalogue = data.items["item"].sort().to_numpy()
    had_items = dict(
        data.interactions.with_columns(position=pl.lit(catalogue.searchsorted(data.interactions["item"].to_numpy())))
        .group_by("user")
        .agg(pl.col("position").sort())
        .iter_rows()
    )
    seen: dict[str, int] = {}
    negatives = []
    for user in examples["user"]:
        had = np.asarray(had_items.get(user, []), dtype=np.int64)
        if len(catalogue) - len(had) < n:
            raise ValueError(
                f"{n} negatives are wanted, but user {user!r} has had {len(had)} of {len(catalogue)} items; lower n"
            )
        seen[user] = seen.get(user, -1) + 1
        rng = np.random.default_rng([seed, zlib.crc32(user.encode()), seen[user]])
        # Draw among the items left, then step over those the user had: `had[i] - i` items left precede `had[i]`.
        drawn = rng.choice(len(catalogue) - len(had), size=n, replace=False)
        drawn += np.searchsorted(had - np.arange(len(had)), drawn, side="right")
        negatives.append(catalogue[drawn].tolist())
    return examples.with_columns(pl.Series("negatives", negatives, dtype=pl.List(pl.String)))
