"""Baselines that choose among candidates without reading the history."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl
from scipy import sparse

_TRAIN_ROWS, _TEST_ROWS = 50_000, 5_000
"""Every test row is compared with every training row: where there are more, with a sample."""

_CHUNK = 250
"""Test rows compared at a time; bounds the memory."""


class Choices(NamedTuple):
    """What two baselines choose on test rows, each (T,).

    Attributes:
        chance: One over the number of candidates.
        popularity: Whether the target is the candidate that is most often a target in train.
        overlap: Whether the target is that of the training row whose candidates overlap most.
        one_per_user: Marks one row of each user.
    """

    chance: np.ndarray
    popularity: np.ndarray
    overlap: np.ndarray
    one_per_user: np.ndarray


def choose_without_history(train: pl.DataFrame, test: pl.DataFrame) -> Choices:
    """Let both baselines choose for at most 5,000 test rows from at most 50,000 training rows. Ties fall at random.

    The overlap baseline chooses among the candidates of the test row, so only training rows whose target is one of
    them take part; where there is none, it guesses.

    Args:
        train: Rows as `comparable` returns them.
        test: Likewise, each with a negative.
    """
    rng = np.random.default_rng(0)
    counts = train.group_by(item="target").len("count")
    train, test = _sample(train, _TRAIN_ROWS, rng), _sample(test, _TEST_ROWS, rng)
    named = pl.concat([train, test]).select(item=pl.concat_list("target", "negatives").explode())
    items = named.unique(maintain_order=True).with_row_index("code")
    trained, train_targets = _candidates(train, items)
    asked, test_targets = _candidates(test, items)
    count = items.join(counts, on="item", how="left", maintain_order="left")["count"].fill_null(0).to_numpy()

    popular = _best(asked.multiply(count + 1.0).tocsr(), rng)
    nearest = np.concatenate(
        [
            _nearest(asked[start : start + _CHUNK], trained, train_targets, rng)
            for start in range(0, test.height, _CHUNK)
        ]
    )
    overlapping = np.where(nearest < 0, _best(asked, rng), train_targets[nearest])
    return Choices(
        chance=1 / np.diff(asked.indptr),
        popularity=popular == test_targets,
        overlap=overlapping == test_targets,
        one_per_user=one_per_user(test).to_numpy(),
    )


def one_per_user(rows: pl.DataFrame) -> pl.Series:
    """Mark the first row of each user; every row where the user is unknown."""
    return rows.select(pl.col("user").is_null() | pl.col("user").is_first_distinct()).to_series()


def _sample(rows: pl.DataFrame, n: int, rng: np.random.Generator) -> pl.DataFrame:
    return rows if rows.height <= n else rows[np.sort(rng.choice(rows.height, n, replace=False))]


def _candidates(rows: pl.DataFrame, items: pl.DataFrame) -> tuple[sparse.csr_array, np.ndarray]:
    """Return which items are candidates, (R, items) of ones, and the code of the target, (R,)."""
    pairs = rows.select(
        at=pl.int_range(pl.len()), item=pl.concat_list("target", "negatives").list.unique(), target="target"
    ).explode("item")
    codes = pairs.join(items, on="item", how="left", maintain_order="left")
    shape = (rows.height, items.height)
    matrix = sparse.csr_array((np.ones(len(codes), np.float32), (codes["at"], codes["code"])), shape=shape)
    target = codes.filter(pl.col("item") == pl.col("target"))["code"].to_numpy()
    return matrix, target


def _nearest(
    asked: sparse.csr_array, trained: sparse.csr_array, targets: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return the training row with the most candidates in common and a candidate as its target; else -1, (T,)."""
    ones = np.ones(len(targets), np.float32)
    is_target = sparse.csr_array((ones, (np.arange(len(targets)), targets)), shape=trained.shape)
    return _best((asked @ trained.T).multiply(asked @ is_target.T).tocsr(), rng)


def _best(scores: sparse.csr_array, rng: np.random.Generator) -> np.ndarray:
    """Return the column of the highest of each row's stored numbers, ties at random; -1 for an empty row."""
    count = np.diff(scores.indptr)
    jittered = scores.data + rng.random(scores.nnz) / 2
    order = np.lexsort((jittered, np.repeat(np.arange(len(count)), count)))
    best = np.full(len(count), -1)
    best[count > 0] = scores.indices[order[scores.indptr[1:][count > 0] - 1]]
    return best
