"""Splits: examples to train, validate and test on, each a history of a user and the item that came next."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

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
) -> pl.DataFrame:
    """Make an example of every item that a user liked, with the items liked before it as history.

    Args:
        data: The interactions.
        min_rating: An item counts as liked from this rating on; `None` counts every interaction.
        history_length: At most so many items before the target, the latest ones.
        min_history: Items with fewer liked items before them are not targets.
        per_user: At most so many examples per user, the latest ones; `None` takes all.

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
    _check_positive(history_length=history_length, min_history=min_history, per_user=per_user)
    liked = _liked(data, min_rating)
    before, _ = _places(liked)
    return _examples(liked, before, before >= 0, history_length, min_history, per_user)


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


def split_leave_one_out(
    data: Interactions,
    *,
    min_rating: float | None = None,
    history_length: int = 10,
    min_history: int = 1,
    per_user: int | None = None,
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
    _check_positive(history_length=history_length, min_history=min_history, per_user=per_user)
    liked = _liked(data, min_rating)
    before, after = _places(liked)
    enough = before + after >= min_history + 2
    test, validation = enough & (after == 0), enough & (after == 1)
    targets = {"train": ~test & ~validation, "validation": validation, "test": test}
    parts = {
        name: _examples(liked, before, which, history_length, min_history, per_user, name)
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
    _check_positive(history_length=history_length, min_history=min_history, per_user=per_user)
    liked = _liked(data, min_rating)
    before, _ = _places(liked)
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
        name: _examples(liked, before, which, history_length, min_history, per_user, name)
        for name, which in targets.items()
    }
    logger.info(
        "Validation from %s, test from %s; examples: %s", first, second, {name: len(parts[name]) for name in parts}
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
    _check_positive(users=users)
    return split_users(examples, {"few": users}, seed=seed)["few"]


def _check_positive(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, it is {number}.")


def _liked(data: Interactions, min_rating: float | None) -> pl.DataFrame:
    if min_rating is None:
        return data.interactions
    if "rating" not in data.interactions.columns:
        raise ValueError("min_rating is given, but the interactions have no column 'rating'; leave it out.")
    liked = data.interactions.filter(pl.col("rating") >= float(min_rating))
    if liked.is_empty():
        highest = data.interactions["rating"].max()
        raise ValueError(f"No rating reaches min_rating={min_rating}; the highest is {highest!r}.")
    return liked


def _places(liked: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return how many rows of its user each row has before and after it; the rows of a user stand together."""
    lengths = liked["user"].rle().struct.field("len").to_numpy().astype(np.int32)
    before = np.arange(liked.height, dtype=np.int32) - np.repeat(np.cumsum(lengths, dtype=np.int32) - lengths, lengths)
    return before, np.repeat(lengths, lengths) - 1 - before


def _latest(targets: np.ndarray, before: np.ndarray, per_user: int | None) -> np.ndarray:
    """Of the rows marked as targets, mark the last `per_user` of each user."""
    if per_user is None:
        return targets
    upto = np.cumsum(targets, dtype=np.int32)
    ends = np.append(np.flatnonzero(before == 0)[1:], len(before)) - 1
    of_user = np.repeat(upto[ends], np.diff(ends, prepend=-1))  # how many there are up to the end of the row's user
    return targets & (of_user - upto < per_user)


def _examples(
    liked: pl.DataFrame,
    before: np.ndarray,
    targets: np.ndarray,
    history_length: int,
    min_history: int,
    per_user: int | None,
    part: str = "",
) -> pl.DataFrame:
    """Make an example of each row of `liked` that is marked as a target and has enough before it."""
    rows = np.flatnonzero(_latest(targets & (before >= min_history), before, per_user))
    if not len(rows):
        where = f" for the {part} part" if part else ""
        raise ValueError(
            f"No user has {min_history} liked items and one more{where}; lower min_history or min_rating, or choose "
            "another split."
        )
    lengths = before[rows].astype(np.int64).clip(max=min(history_length, len(liked)))
    ends = np.cumsum(lengths)
    history = np.repeat(rows - ends, lengths) + np.arange(ends[-1])
    return liked[rows].select(
        pl.col("user").cast(pl.String),
        lists(liked["item"].gather(history).alias("history"), lengths),
        pl.col("item").cast(pl.String).alias("target"),
        "timestamp",
    )


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
