"""Random numbers that depend on a seed and a user, and on nothing else: not on other users, not on the rows' order."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import polars as pl

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def uniform(seed: int, users: np.ndarray | pl.Series, draw: np.ndarray, *, stream: str = "") -> np.ndarray:
    """Numbers in [0, 1), each given by `seed`, `stream`, its user and its `draw`.

    Every user has a generator (splitmix64, Steele et al. 2014, https://doi.org/10.1145/2660193.2660195) that starts
    from a hash of seed, stream and the user's text (BLAKE2b). Its numbers are addressed by place instead of being
    drawn one after the other, so whole columns come at once, and the same on every machine and with every version of
    numpy and polars.

    Args:
        seed: any integer.
        users: text, (E,).
        draw: which of its user's numbers, integers from 0, (E,) or (E, n).
        stream: what the numbers are for. Streams of one seed are independent of each other, so that, for example, the
            place of the target tells nothing about the negatives.

    Returns:
        Doubles, of the shape of `draw`.

    Example:
        >>> uniform(0, pl.Series(["ann", "bob"]), np.array([0, 0])).round(4)
        array([0.2951, 0.3467])
    """
    users = pl.Series(users).cast(pl.String)
    if draw.shape[:1] != (len(users),):
        raise ValueError(f"draw must have a row for each of the {len(users)} users, its shape is {draw.shape}")
    key = f"{seed}/{stream}/".encode()
    distinct = users.unique()
    hashes = [int.from_bytes(blake2b(key + user.encode(), digest_size=8).digest(), "little") for user in distinct]
    starts = users.replace_strict(distinct, pl.Series(hashes, dtype=pl.UInt64), return_dtype=pl.UInt64).to_numpy()
    starts = starts.reshape(-1, *[1] * (draw.ndim - 1))
    # uint64 arithmetic wraps around, which is what splitmix64 means
    bits = starts + (draw.astype(np.uint64) + np.uint64(1)) * _GAMMA
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits = bits ^ (bits >> np.uint64(31))
    return (bits >> np.uint64(11)) * 2.0**-53
