"""Result parts: what a run over many users has computed, in files from which the next run of the same one goes on."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from tqdm.auto import tqdm

from ..modeling.fingerprint import hash_of_model, hash_of_tokenizer

logger = logging.getLogger(__name__)

T = TypeVar("T")

USERS_PER_PART = 64  # for each process; what is computed again at most when a run is killed


@dataclass
class ResultParts:
    """Results of users in files of a folder, named by what they depend on: model, tokenizer, options and the users.

    Args:
        folder: Where they are; None in the processes that neither read nor write them.

    Attributes:
        taken: Number of users whose results were in files.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> users = Dataset.from_list([{"prompt": "Alien", "candidates": ["Aliens", "Babe"]}])
        >>> with TemporaryDirectory() as folder:
        ...     for answer in (42.0, 0.0):  # the second run computes nothing
        ...         print(
        ...             ResultParts(Path(folder)).over(
        ...                 lambda rows: [answer for _ in rows],
        ...                 users,
        ...                 made_of={"model": "m1"},
        ...                 to_frame=lambda values: pl.DataFrame({"value": values}),
        ...                 from_frame=lambda frame: frame["value"].to_list(),
        ...             )
        ...         )
        [42.0]
        [42.0]
    """

    folder: Path | None
    taken: int = field(init=False, default=0)
    _seen: set[str] = field(init=False, default_factory=set)

    def over(
        self,
        compute: Callable[[Sequence[int]], Sequence[T]],
        users: Dataset,
        *,
        made_of: Mapping[str, Any],
        to_frame: Callable[[Sequence[T]], pl.DataFrame],
        from_frame: Callable[[pl.DataFrame], Sequence[T]],
        progress: str | None = None,
    ) -> list[T]:
        """Return the results of all users: those of an interrupted run from its files, the others computed.

        Every process must call it.

        Args:
            compute: Takes numbers of rows and returns a result for each; all processes call it together.
            users: The rows, of which every column counts.
            made_of: What else the results depend on, by name; for JSON.
            to_frame: Makes a table of results, a row for each.
            from_frame: Makes the results again.
            progress: Label of a progress bar; None for no bar.

        Returns:
            One result per row, in order.
        """
        size = USERS_PER_PART * PartialState().num_processes
        results: list[T] = []
        before = self.taken
        with tqdm(total=len(users), desc=progress, disable=progress is None) as bar:
            for start in range(0, len(users), size):
                rows = range(start, min(start + size, len(users)))
                file = self.file(users.select(rows), made_of)
                own = self.of_file(file, partial(compute, rows), to_frame=to_frame, from_frame=from_frame)
                results += own
                bar.update(len(own))
        if (taken := self.taken - before) and self.folder is not None:
            logger.info("%d of %d users were done by an interrupted run (%s).", taken, len(users), self.folder)
        return results

    def of_file(
        self,
        file: Path | None,
        compute: Callable[[], Sequence[T]],
        *,
        to_frame: Callable[[Sequence[T]], pl.DataFrame],
        from_frame: Callable[[pl.DataFrame], Sequence[T]],
    ) -> Sequence[T]:
        """Return the results of one part: from its file where there is one, else computed, and written to it.

        Every process must call it.

        Args:
            file: What `file` returned, in each process.
            compute: Returns a result for each of the part's users; all processes call it together.
            to_frame, from_frame: See `over`.
        """
        found = [None if file is None else _read(file)]
        broadcast_object_list(found)  # the folder may be on the main process's disk only
        if found[0] is not None:
            own = from_frame(found[0])
            self.taken += len(own)
            return own
        own = compute()
        if file is not None:
            unfinished = file.with_suffix(".unfinished")
            to_frame(own).write_parquet(unfinished)
            unfinished.replace(file)
        return own

    def unused(self) -> int:
        """Return the number of parts that belong to other models, users or options than this run's."""
        there = set() if self.folder is None else {file.name for file in self.folder.glob("part-*.parquet")}
        return len(there - self._seen)

    def file(self, users: Iterable[Any], made_of: Mapping[str, Any]) -> Path | None:
        """Return the file of some users' results, there or not; None where this process has no folder.

        Args:
            users: All that the results of these users depend on, a value for JSON for each.
            made_of: See `over`.
        """
        if self.folder is None:
            return None
        digest = hashlib.sha256(json.dumps([dict(made_of), version("dmpo-trl")], sort_keys=True).encode())
        for row in users:  # one at a time: each may hold a whole catalogue
            digest.update(f"\n{json.dumps(row, sort_keys=True)}".encode())
        name = f"part-{digest.hexdigest()[:32]}.parquet"
        self._seen.add(name)
        return self.folder / name


def describe_scoring(model: Any, tokenizer: Any, **options: Any) -> dict[str, Any]:
    """Describe what the scores of a user's candidates depend on, besides the user.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        **options: Those of the scoring.

    Returns:
        A short value for each name, for JSON; in processes other than the main one nothing.

    Example:
        >>> describe_scoring(model, tokenizer, tokens_per_batch=4096)  # doctest: +SKIP
    """
    if not PartialState().is_main_process:
        return {}
    return {"model": hash_of_model(model), "tokenizer": hash_of_tokenizer(tokenizer), **options}


def _read(file: Path) -> pl.DataFrame | None:
    if not file.exists():
        return None
    try:
        return pl.read_parquet(file, glob=False)
    except pl.exceptions.PolarsError:  # a power cut; a killed process leaves no file of this name
        logger.warning("%s is damaged; its users are computed again.", file)
        return None
