"""Recommendations for many users, shared among processes and written in parts to one Parquet file."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm

from ..work import ResultParts, over_processes, parts
from ..writing import check_file, check_scratch, place_file, real_path, remove_leftovers, scratch
from .recommendation import Recommendation, UserHistory

logger = logging.getLogger(__name__)

_SCHEMA = pa.schema(
    {"user": pa.string(), "rank": pa.int32(), "item": pa.string(), "title": pa.string(), "score": pa.float64()}
)
_SCORES = pa.schema({"model_score": pa.float64(), "prior_score": pa.float64()})  # where there is a prior
_MANIFEST = "run.json"  # what the parts are made of
_WHOLE = "whole.parquet"  # sorts behind the parts and the manifest, and so is the last to be removed
_SIZE = "users per part"


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
    folder = _parts_of(target)
    check_scratch(folder, target)
    if folder.is_dir():  # of a run that was killed when it had nothing yet, or when its file was there already
        whole = folder / _WHOLE
        if not list(folder.glob("*.parquet")) or (whole.exists() and target.exists() and whole.samefile(target)):
            remove_leftovers(folder, target)
    check_file(path, overwrite=overwrite)


def write_recommendations(
    users: Iterable[tuple[str, Sequence[str]] | UserHistory],
    path: Path,
    batch_size: int,
    *,
    run: Mapping[str, Any],
    recommend: Callable[[list[UserHistory]], list[list[Recommendation]]],
    check: Callable[[UserHistory], object],
    model: Any,
    with_prior: bool = False,
    overwrite: bool = False,
) -> int:
    """Write the recommendations of all users, `batch_size` users at a time, to a file that appears when complete.

    Until then they are in parts, files of a fixed number of users each, in a folder `<path>.parts` with a manifest of
    what they are made of. A run that was interrupted goes on at its next part. Several processes, which must all call
    this function, share the users of each part; the main one writes.

    Args:
        users: The users, as `Recommender.recommend_all` takes them.
        path: The file; its folder is created if needed.
        batch_size: Number of users per call of `recommend`.
        run: What the recommendations of a user depend on, by name; it counts in the main process.
        recommend: Returns the recommendations of each user of a batch, from best to worst.
        check: Raises a `ValueError` for a user who cannot be searched for; the name is added to its message. All
            users are checked before the first is searched for, those of a generator a part at a time, and so is that
            no two have one name.
        model: Decides whether the work can be shared, see `over_processes`.
        with_prior: Whether the file gets the columns `model_score` and `prior_score` too.
        overwrite: Whether a file that is there is replaced.

    Returns:
        The number of users.

    Raises:
        ValueError: `batch_size` is below 1, two users have one name, `check` refuses a user, or the parts are those of
            another run.
        OSError: The file may not be replaced, or another process is writing it.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, it is {batch_size}.")
    state = PartialState()
    target, main = real_path(path), state.is_main_process
    if main:
        target.parent.mkdir(parents=True, exist_ok=True)
        check_output(target, overwrite=overwrite)
    one_pass = isinstance(users, Iterator)
    if not one_pass:
        _check_names((UserHistory(*user) for user in users), {})
        for user in islice(users, state.process_index, None, state.num_processes):  # the others' are theirs
            _check(UserHistory(*user), check)
    total = len(users) if isinstance(users, Sized) else None
    entries = (UserHistory(*entry) for entry in users)
    schema = pa.unify_schemas([_SCHEMA, _SCORES]) if with_prior else _SCHEMA
    done = 0
    with (
        scratch(_parts_of(target), target, keep=True) if main else nullcontext() as folder,
        tqdm(total=total, desc="recommending", unit=" users", disable=not main) as bar,
    ):
        kept = ResultParts(folder)
        size = _size(folder, run, max(batch_size, parts.USERS_PER_PART) * state.num_processes)
        earlier = set() if folder is None else set(folder.glob("part-*.parquet"))
        if earlier:
            logger.info("Going on behind the %d parts of an interrupted run in %s.", len(earlier), folder)
        files: list[Path] = []
        names: dict[str, int] = {}
        while part := list(islice(entries, size)):
            file = kept.file(([one.user, list(one.history), list(one.seen)] for one in part), run)
            if file is not None:
                files.append(file)
                if file not in earlier and earlier.difference(files):  # they are made one after the other
                    raise ValueError(_other(folder, ["list of users"]))
            if one_pass:
                _check_names(part, names)
                for user in part:
                    _check(user, check)

            def find(own: Sequence[int], part: list[UserHistory] = part) -> list[list[Recommendation]]:
                found = []
                for start in range(0, len(own), batch_size):
                    batch = [part[place] for place in own[start : start + batch_size]]
                    found += recommend(batch)
                    bar.update(len(batch))
                return found

            def frame(found: Sequence[list[Recommendation]], part: list[UserHistory] = part) -> pl.DataFrame:
                _write_manifest(folder, run, size)  # not before there is a part
                return _frame(part, schema, found)

            kept.of_file(
                file,
                partial(over_processes, find, range(len(part)), model),
                to_frame=frame,
                from_frame=lambda frame: [],  # the file is all that is needed
            )
            done += len(part)
            bar.n = done  # the other processes' users too, and those of the earlier run
            bar.refresh()
        if earlier.difference(files):
            raise ValueError(_other(folder, [f"number of users (was {len(earlier)} parts, is {len(files)})"]))
        if folder is not None:
            with pq.ParquetWriter(folder / _WHOLE, schema) as writer:
                for file in files:
                    writer.write_table(pq.read_table(file).cast(schema))
            place_file(folder / _WHOLE, target, overwrite=overwrite)
    return done


def _parts_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.parts")


def _size(folder: Path | None, run: Mapping[str, Any], size: int) -> int:
    """Return the number of users of a part: that of an interrupted run, which must have been the same one, or `size`.

    The interrupted one may have had another batch size, or number of processes.
    """
    sizes = [size]
    if folder is not None and (folder / _MANIFEST).exists():
        try:
            earlier = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
            sizes = [earlier.pop(_SIZE)]
        except (json.JSONDecodeError, KeyError, AttributeError):  # a power cut
            logger.warning("%s is damaged. Each part is named by what it is of, too.", folder / _MANIFEST)
        else:
            _check_same(earlier, run, folder)
    broadcast_object_list(sizes)
    return sizes[0]


def _write_manifest(folder: Path | None, run: Mapping[str, Any], size: int) -> None:
    if folder is not None and not (folder / _MANIFEST).exists():
        unfinished = (folder / _MANIFEST).with_suffix(".unfinished")
        unfinished.write_text(json.dumps({**run, _SIZE: size}, indent=2), encoding="utf-8")
        unfinished.replace(folder / _MANIFEST)


def _frame(users: Sequence[UserHistory], schema: pa.Schema, found: Sequence[Sequence[Recommendation]]) -> pl.DataFrame:
    rows = [
        {"user": str(one.user), "rank": rank, **asdict(item)}
        for one, own in zip(users, found, strict=True)
        for rank, item in enumerate(own, start=1)
    ]
    return pl.DataFrame(pa.Table.from_pylist(rows, schema))


def _check_same(earlier: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    names = sorted(name for name in {*earlier, *now} if earlier.get(name) != now.get(name))
    if names:
        raise ValueError(_other(folder, [f"{name} (was {earlier.get(name)}, is {now.get(name)})" for name in names]))


def _other(folder: Path | None, what: Sequence[str]) -> str:
    return (
        f"{folder} holds the parts of an interrupted run that had another {', '.join(what)}. Run that one to its end, "
        "choose another output, or delete the folder to start anew."
    )


def _check_names(users: Iterable[UserHistory], places: dict[str, int]) -> None:
    """Refuse a user of the name of another, and add their places in the list, from 1, to `places`."""
    for place, user in enumerate(users, start=len(places) + 1):
        earlier = places.setdefault(str(user.user), place)
        if earlier != place:
            raise ValueError(
                f"Users {earlier:,} and {place:,} of the list are both called {str(user.user)!r}, and the file tells "
                "users apart by name. Leave one out, or give each a name of its own."
            )


def _check(user: UserHistory, check: Callable[[UserHistory], object]) -> None:
    try:
        check(user)
    except ValueError as error:
        raise ValueError(f"user {user.user!r}: {error}") from error
