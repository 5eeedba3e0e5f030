"""Recommendations for many users, streamed to Parquet."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

if TYPE_CHECKING:
    from .recommender import Recommender

_SCHEMA = pa.schema(
    {"user": pa.string(), "rank": pa.int32(), "item": pa.string(), "title": pa.string(), "score": pa.float64()}
)


class UserHistory(NamedTuple):
    """A user to recommend to.

    Attributes:
        user: Its name in the outcome.
        history: Items from old to new, for the prompt.
        seen: Further items that are not recommended, such as what the user had before the history.
    """

    user: str
    history: Sequence[str]
    seen: Sequence[str] = ()


def write_recommendations(
    recommender: Recommender,
    users: Iterable[tuple[str, Sequence[str]] | UserHistory],
    path: Path,
    k: int,
    batch_size: int,
    **search: Any,
) -> int:
    """See `Recommender.recommend_all`."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, it is {batch_size}.")
    total = len(users) if isinstance(users, Sequence) else None
    entries = (UserHistory(*entry) for entry in users)
    count = 0
    unfinished = path.with_name(f"{path.name}.part{os.getpid()}")
    try:
        with (
            pq.ParquetWriter(unfinished, _SCHEMA) as writer,
            tqdm(total=total, desc="recommending", unit=" users") as bar,
        ):
            while batch := list(islice(entries, batch_size)):
                for one in batch:
                    _check(recommender, one)
                found = recommender.recommend_batch(
                    [one.history for one in batch], k, exclude=[one.seen for one in batch], **search
                )
                rows = [
                    {"user": user, "rank": rank, "item": one.item, "title": one.title, "score": one.score}
                    for (user, *_), own in zip(batch, found, strict=True)
                    for rank, one in enumerate(own, start=1)
                ]
                writer.write_table(pa.Table.from_pylist(rows, _SCHEMA))
                count += len(batch)
                bar.update(len(batch))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def _check(recommender: Recommender, user: UserHistory) -> None:
    for what in ("history", "seen"):
        try:
            recommender.catalogue.rows(getattr(user, what), what)
        except ValueError as error:
            raise ValueError(f"user {user.user!r}: {error}") from error
