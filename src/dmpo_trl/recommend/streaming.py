"""Recommendations for many users, streamed to Parquet."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

if TYPE_CHECKING:
    from .recommender import Recommender

_SCHEMA = pa.schema(
    {"user": pa.string(), "rank": pa.int32(), "item": pa.string(), "title": pa.string(), "score": pa.float64()}
)


def write_recommendations(
    recommender: Recommender,
    histories: Iterable[tuple[str, Sequence[str]]],
    path: Path,
    k: int,
    exclude: Mapping[str, Iterable[str]],
    num_beams: int,
    batch_size: int,
) -> int:
    """See `Recommender.recommend_all`."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, it is {batch_size}.")
    total = len(histories) if isinstance(histories, Sequence) else None
    pairs = iter(histories)
    count = 0
    unfinished = path.with_name(f"{path.name}.part{os.getpid()}")
    try:
        with (
            pq.ParquetWriter(unfinished, _SCHEMA) as writer,
            tqdm(total=total, desc="recommending", unit=" users") as bar,
        ):
            while batch := list(islice(pairs, batch_size)):
                for user, history in batch:
                    _check(recommender, user, [*history, *exclude.get(user, ())])
                found = recommender.recommend_batch(
                    [history for _, history in batch],
                    k,
                    exclude=[exclude.get(user, ()) for user, _ in batch],
                    num_beams=num_beams,
                )
                rows = [
                    {"user": user, "rank": rank, "item": one.item, "title": one.title, "score": one.score}
                    for (user, _), own in zip(batch, found, strict=True)
                    for rank, one in enumerate(own, start=1)
                ]
                writer.write_table(pa.Table.from_pylist(rows, _SCHEMA))
                count += len(batch)
                bar.update(len(batch))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def _check(recommender: Recommender, user: str, entries: Sequence[str]) -> None:
    try:
        recommender.catalogue.rows(entries, "history or exclude")
    except ValueError as error:
        raise ValueError(f"user {user!r}: {error}") from error
