"""Recommendations for many users, written in parts to one Parquet file."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import asdict
from itertools import count, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from ..writing import check_file, check_scratch, place_file, real_path, remove_leftovers, scratch
from .recommendation import Recommendation, UserHistory

logger = logging.getLogger(__name__)

_SCHEMA = pa.schema(
    {"user": pa.string(), "rank": pa.int32(), "item": pa.string(), "title": pa.string(), "score": pa.float64()}
)
_SCORES = pa.schema({"model_score": pa.float64(), "prior_score": pa.float64()})  # where there is a prior
_USERS_PER_PART = 64  # at least; what is lost at most when a run is killed
_WHOLE = "whole.parquet"  # sorts behind the parts, and so is the last to be removed
_RUN = b"dmpo_trl_run"
_USERS, _SIZE = "users of the part", "users per part"


def check_output(path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Check before the work that recommendations can be written to a file.

    Args:
        path: The file.
        overwrite: Whether it may be replaced.

    Raises:
        OSError: It may not be replaced, cannot be written, or another process is writing it.

    Example:
        >>> check_output("no such folder/recommendations.parquet", overwrite=False)
        Traceback (most recent call last):
        FileNotFoundError: no such folder/recommendations.parquet cannot be written: the folder ... does not exist. ...
    """
    target = real_path(path)
    parts = _parts_of(target)
    check_scratch(parts, target)
    if parts.is_dir():  # of a run that was killed when it had nothing yet, or when its file was there already
        whole = parts / _WHOLE
        if not list(parts.glob("*.parquet")) or (whole.exists() and target.exists() and whole.samefile(target)):
            remove_leftovers(parts, target)
    check_file(path, overwrite=overwrite)


def write_recommendations(
    users: Iterable[tuple[str, Sequence[str]] | UserHistory],
    path: Path,
    batch_size: int,
    *,
    run: Mapping[str, Any],
    recommend: Callable[[list[UserHistory]], list[list[Recommendation]]],
    check: Callable[[UserHistory], object],
    with_prior: bool = False,
    overwrite: bool = False,
) -> int:
    """Write the recommendations of all users, `batch_size` users at a time, to a file that appears when complete.

    Until then they are in parts, files of a fixed number of users each, in a folder `<path>.parts`. A run that was
    interrupted goes on at its next part.

    Args:
        users: The users, as `Recommender.recommend_all` takes them.
        path: The file; its folder is created if needed.
        batch_size: Number of users per call of `recommend`.
        run: What the recommendations of a user depend on, by name.
        recommend: Returns the recommendations of each user of a batch, from best to worst.
        check: Raises a `ValueError` for a user who cannot be searched for; the name is added to its message. All
            users are checked before the first is searched for, those of a generator a part at a time.
        with_prior: Whether the file gets the columns `model_score` and `prior_score` too.
        overwrite: Whether a file that is there is replaced.

    Returns:
        The number of users.

    Raises:
        ValueError: `batch_size` is below 1, `check` refuses a user, or the parts are those of another run.
        OSError: The file may not be replaced, or another process is writing it.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, it is {batch_size}.")
    target = real_path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    check_output(target, overwrite=overwrite)
    one_pass = isinstance(users, Iterator)
    if not one_pass:
        for user in users:
            _check(UserHistory(*user), check)
    total = len(users) if isinstance(users, Sized) else None
    entries = (UserHistory(*entry) for entry in users)
    schema = pa.unify_schemas([_SCHEMA, _SCORES]) if with_prior else _SCHEMA
    done = 0
    with (
        scratch(_parts_of(target), target, keep=True) as folder,
        tqdm(total=total, desc="recommending", unit=" users") as bar,
    ):
        earlier = _earlier_parts(folder, run)
        size = earlier[0][_SIZE] if earlier else max(batch_size, _USERS_PER_PART)
        if earlier:
            logger.info("Going on behind the %d parts of an interrupted run in %s.", len(earlier), folder)
        parts = []
        for number in count():
            part = list(islice(entries, size))
            if not part:
                break
            parts.append(_part(folder, number))
            made_of = {**run, _SIZE: size, _USERS: _hash(part)}
            if number < len(earlier):
                _check_same(earlier[number], made_of, folder)
            else:
                if one_pass:
                    for user in part:
                        _check(user, check)
                batches = [part[start : start + batch_size] for start in range(0, len(part), batch_size)]
                _write_part(parts[-1], schema.with_metadata({_RUN: json.dumps(made_of)}), batches, recommend, bar)
            done += len(part)
            bar.n = done
            bar.refresh()
        if len(earlier) > len(parts):
            raise ValueError(_other(folder, [f"number of users (was {len(earlier)} parts, is {len(parts)})"]))
        with pq.ParquetWriter(folder / _WHOLE, schema) as writer:
            for file in parts:
                writer.write_table(pq.read_table(file).replace_schema_metadata())
        place_file(folder / _WHOLE, target, overwrite=overwrite)
    return done


def _parts_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.parts")


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05}.parquet"


def _write_part(
    path: Path,
    schema: pa.Schema,
    batches: Sequence[list[UserHistory]],
    recommend: Callable[[list[UserHistory]], list[list[Recommendation]]],
    bar: Any,
) -> None:
    rows = []
    for batch in batches:
        rows += [
            {"user": user, "rank": rank, **asdict(one)}
            for (user, *_), own in zip(batch, recommend(batch), strict=True)
            for rank, one in enumerate(own, start=1)
        ]
        bar.update(len(batch))
    unfinished = path.with_suffix(".unfinished")
    pq.write_table(pa.Table.from_pylist(rows, schema), unfinished)
    unfinished.replace(path)


def _earlier_parts(folder: Path, run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what the parts of an interrupted run are made of, in their order, and remove what is half-written."""
    found: list[dict[str, Any]] = []
    for file in sorted(folder.glob("*.*")):
        if file.name == _part(folder, len(found)).name:
            try:
                found.append(json.loads(pq.read_schema(file).metadata[_RUN]))
                continue
            except (ValueError, KeyError, TypeError):
                logger.warning("%s is damaged; its users are searched for again.", file)
        if file.suffix in (".parquet", ".unfinished"):
            file.unlink()
    for made_of in found:
        _check_same(made_of, {**made_of, **run}, folder)
    return found


def _check_same(earlier: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    names = sorted(name for name in {*earlier, *now} if earlier.get(name) != now.get(name))
    if names:
        raise ValueError(_other(folder, [f"{name} (was {earlier.get(name)}, is {now.get(name)})" for name in names]))


def _other(folder: Path, what: Sequence[str]) -> str:
    return (
        f"{folder} holds the parts of an interrupted run that had another {', '.join(what)}. Run that one to its end, "
        "choose another output, or delete the folder to start anew."
    )


def _hash(users: Sequence[UserHistory]) -> str:
    text = json.dumps([[one.user, list(one.history), list(one.seen)] for one in users])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _check(user: UserHistory, check: Callable[[UserHistory], object]) -> None:
    try:
        check(user)
    except ValueError as error:
        raise ValueError(f"user {user.user!r}: {error}") from error
