"""Recommendations for many users, streamed to Parquet."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from .recommendation import Recommendation, UserHistory

_SCHEMA = pa.schema(
    {"user": pa.string(), "rank": pa.int32(), "item": pa.string(), "title": pa.string(), "score": pa.float64()}
)


def write_recommendations(
    users: Iterable[tuple[str, Sequence[str]] | UserHistory],
    path: Path,
    batch_size: int,
    *,
    recommend: Callable[[list[UserHistory]], list[list[Recommendation]]],
    check: Callable[[UserHistory], object],
) -> int:
    """Write the recommendations of all users, `batch_size` users at a time, to a file that appears when complete.

    Args:
        users: The users, as `Recommender.recommend_all` takes them.
        path: The file; its folder is created if needed.
        batch_size: Number of users per call of `recommend`.
        recommend: Returns the recommendations of each user of a batch, from best to worst.
        check: Raises a `ValueError` where a user's items are faulty; the user's name is added to its message.

    Returns:
        The number of users.

    Raises:
        ValueError: `batch_size` is below 1, or `check` refuses a user.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, it is {batch_size}.")
    total = len(users) if isinstance(users, Sequence) else None
    entries = (UserHistory(*entry) for entry in users)
    count = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part{os.getpid()}")
    try:
        with (
            pq.ParquetWriter(unfinished, _SCHEMA) as writer,
            tqdm(total=total, desc="recommending", unit=" users") as bar,
        ):
            while batch := list(islice(entries, batch_size)):
                for one in batch:
                    _check(one, check)
                rows = [
                    {"user": user, "rank": rank, "item": one.item, "title": one.title, "score": one.score}
                    for (user, *_), own in zip(batch, recommend(batch), strict=True)
                    for rank, one in enumerate(own, start=1)
                ]
                writer.write_table(pa.Table.from_pylist(rows, _SCHEMA))
                count += len(batch)
                bar.update(len(batch))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def _check(user: UserHistory, check: Callable[[UserHistory], object]) -> None:
    try:
        check(user)
    except ValueError as error:
        raise ValueError(f"user {user.user!r}: {error}") from error
