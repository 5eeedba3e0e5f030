"""Splits: examples to train, validate and test on."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import numpy as np
import polars as pl

from ._words import counts_in_words
from .examples import check_positive, examples_of, liked_of, places
from .interactions import Interactions

logger = logging.getLogger(__name__)


def split_leave_one_out(
    data: Interactions,
    *,
    min_rating: float | None = None,
    history_length: int = 10,
    min_history: int = 1,
    per_user: int | None = None,
    growing: bool = False,
) -> dict[str, pl.DataFrame]:
    """Test on the last item of each user, validate on the one before, train on the earlier ones.

    Users with fewer than three examples only train. Times differ from user to user, so a model trains on what others
    liked after a test target, which it could not know when it matters; how much of that there is, is measured and
    logged as a warning. [`split_by_time`] has none of it.

    Args:
        data: The interactions.
        min_rating: As in [`next_items`].
        history_length: As in [`next_items`].
        min_history: As in [`next_items`].
        per_user: At most so many training examples per user, the latest ones; `None` takes all.
        growing: Whether the histories of training examples grow; see [`next_items`].

    Returns:
        `{"train": ..., "validation": ..., "test": ...}`, each as [`next_items`] returns it.

    Raises:
        ValueError: As in [`next_items`], and where no user has three examples.

    Example:
        >>> films = ["alien", "babe", "fargo", "heat"]
        >>> interactions = pl.DataFrame({"user": ["ann"] * 4, "item": films, "timestamp": [1, 2, 3, 4]})
        >>> data = Interactions(interactions, pl.DataFrame({"item": films, "title": films}))
        >>> {name: part["target"].to_list() for name, part in split_leave_one_out(data).items()}
        {'train': ['babe'], 'validation': ['fargo'], 'test': ['heat']}
    """
    check_positive(history_length=history_length, min_history=min_history, per_user=per_user)
    liked = liked_of(data, min_rating)
    before, after = places(liked)
    enough = before + after >= min_history + 2
    test, validation = enough & (after == 0), enough & (after == 1)
    targets = {"train": ~test & ~validation, "validation": validation, "test": test}
    parts = {
        name: examples_of(
            liked, before, which, history_length, min_history, per_user, name, growing=growing and name == "train"
        )
        for name, which in targets.items()
    }
    logger.info("%d users of %d are tested", parts["test"].height, int((after == 0).sum()))
    _warn_of_leak(parts["train"]["timestamp"], parts["test"]["timestamp"], data.order)
    return parts


def split_by_time(
    data: Interactions,
    *,
    validation_from: float,
    test_from: float,
    min_rating: float | None = None,
    history_length: int = 10,
    min_history: int = 1,
    per_user: int | None = None,
    growing: bool = False,
) -> dict[str, pl.DataFrame]:
    """Train before one point in time, validate from there on, test from a later one on, for all users alike.

    A history holds whatever its user liked before the target, also after a cut.

    Args:
        data: The interactions; their `order` must be "time".
        validation_from: Where the validation targets begin: a time in the unit of `timestamp`, or between 0 and 1 the
            share of the interactions (liked or not) that are earlier.
        test_from: Where the test targets begin, likewise; later than `validation_from`.
        min_rating: As in [`next_items`].
        history_length: As in [`next_items`].
        min_history: As in [`next_items`].
        per_user: At most so many examples per user in each part, the latest ones; `None` takes all.
        growing: Whether the histories of training examples grow; see [`next_items`].

    Returns:
        `{"train": ..., "validation": ..., "test": ...}`, each as [`next_items`] returns it.

    Raises:
        ValueError: As in [`next_items`], for interactions without times, for a test that does not begin after the
            validation, and for a part without examples.

    Example:
        >>> films = ["alien", "babe", "fargo", "heat"]
        >>> interactions = pl.DataFrame({"user": ["ann"] * 4, "item": films, "timestamp": [2001, 2002, 2003, 2004]})
        >>> data = Interactions(interactions, pl.DataFrame({"item": films, "title": films}))
        >>> parts = split_by_time(data, validation_from=2003, test_from=2004)
        >>> {name: part["target"].to_list() for name, part in parts.items()}
        {'train': ['babe'], 'validation': ['fargo'], 'test': ['heat']}
    """
    if data.order != "time":
        raise ValueError(
            f"The interactions have no times: their timestamp orders by {data.order!r}, which cannot be compared "
            "between users; use split_leave_one_out or split_users."
        )
    check_positive(history_length=history_length, min_history=min_history, per_user=per_user)
    liked = liked_of(data, min_rating)
    before, _ = places(liked)
    first, second = (_as_time(cut, data.interactions["timestamp"]) for cut in (validation_from, test_from))
    if not first < second:  # also where one is nan
        raise ValueError(
            f"The test must begin after the validation, but validation_from is the time {first} and test_from "
            f"the time {second}; raise test_from or lower validation_from."
        )
    time = liked["timestamp"].to_numpy()
    if time.dtype.kind == "f":  # in the type's own precision a cut could move
        time = time.astype(np.float64)
    targets = {"train": time < first, "validation": (time >= first) & (time < second), "test": time >= second}
    parts = {
        name: examples_of(
            liked, before, which, history_length, min_history, per_user, name, growing=growing and name == "train"
        )
        for name, which in targets.items()
    }
    logger.info(
        "Validation from %s, test from %s; examples: %s",
        *(first, second, counts_in_words({name: len(part) for name, part in parts.items()})),
    )
    return parts


def split_users(examples: pl.DataFrame, sizes: Mapping[str, int], *, seed: int) -> dict[str, pl.DataFrame]:
    """Divide the users of `examples` at random into disjoint groups.

    Args:
        examples: Rows with a column `user`, any number per user.
        sizes: Number of users in each group, by its name, e.g. `{"train": 600, "test": 200}`.
        seed: Of the random order of the users. It does not depend on the order of the rows.

    Returns:
        The rows of each group's users.

    Raises:
        ValueError: Where there are fewer users than the sizes add up to, or a size or the seed is negative.

    Example:
        >>> examples = pl.DataFrame({"user": ["ann", "bob", "cid", "ann"]})
        >>> groups = split_users(examples, {"train": 2, "test": 1}, seed=0)
        >>> {name: rows["user"].to_list() for name, rows in groups.items()}
        {'train': ['ann', 'cid', 'ann'], 'test': ['bob']}
    """
    for name, size in sizes.items():
        if size < 0:
            raise ValueError(f"The size of the group {name!r} must be at least 0, it is {size}.")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, it is {seed}.")
    users = examples["user"].unique().sort().to_numpy()
    if sum(sizes.values()) > len(users):
        raise ValueError(f"The groups {dict(sizes)} need {sum(sizes.values())} users, there are {len(users)}.")
    users = np.random.default_rng(seed).permutation(users)
    groups, start = {}, 0
    for name, size in sizes.items():
        groups[name] = examples.filter(pl.col("user").is_in(users[start : start + size].tolist()))
        start += size
    return groups


def few_shot(examples: pl.DataFrame, users: int, *, seed: int) -> pl.DataFrame:
    """Keep all examples of `users` users drawn at random.

    Args:
        examples: Rows with a column `user`, any number per user.
        users: How many users.
        seed: Of the draw. It does not depend on the order of the rows.

    Returns:
        The rows of the users drawn, in their order.

    Raises:
        ValueError: Where there are fewer users, or `users` is below 1.

    Example:
        >>> few_shot(pl.DataFrame({"user": ["ann", "bob", "ann"]}), 1, seed=0)["user"].to_list()
        ['ann', 'ann']
    """
    check_positive(users=users)
    return split_users(examples, {"few": users}, seed=seed)["few"]


def _as_time(cut: float, timestamps: pl.Series) -> float:
    if 0 < cut < 1:
        # The first of the later interactions: the cut itself belongs to the part that begins with it
        return timestamps.sort()[int(cut * len(timestamps))]
    # Whole numbers are compared as such: as a float, a time in nanoseconds is off by up to 128
    return math.ceil(cut) if timestamps.dtype.is_integer() and math.isfinite(cut) else cut


def _warn_of_leak(train: pl.Series, test: pl.Series, order: str) -> None:
    if order != "time":
        logger.warning(
            "Leave-one-out leaks across users, and without times (order %r) nobody can tell how much; "
            "split_users keeps test users out of training",
            order,
        )
        return
    later = len(train) - np.searchsorted(train.sort().to_numpy(), test.to_numpy(), side="right")
    logger.warning(
        "Leave-one-out leaks across users: %.1f%% of the training targets are later than a test target on average, "
        "and %.1f%% of the test targets have later ones; split_by_time has no such leak",
        100 * later.mean() / len(train),
        100 * (later > 0).mean(),
    )
