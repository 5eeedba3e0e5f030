"""Output folders of evaluations: what is in one, and the parts beside it until it is complete."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..writing import (
    MANIFEST,
    Kind,
    check_folder,
    check_scratch,
    checksums,
    new_folder,
    real_path,
    remove_leftovers,
    scratch,
    sha256,
    write_manifest,
)

if TYPE_CHECKING:
    from ..evaluation import RankingResult
    from ..work import ResultParts

logger = logging.getLogger(__name__)

EVALUATION = Kind("dmpo-trl evaluation, version 1", command="evaluate", holds="an evaluation")
_WHOLE = "whole.json"  # the checksum of the manifest that the parts became; sorts behind them


def check_output(path: str, *, overwrite: bool) -> None:
    """Check before the work that an evaluation can be written, and remove parts that are in a finished one.

    Args:
        path: The folder.
        overwrite: Whether an earlier evaluation in it may be replaced.

    Raises:
        OSError: As in [`check_folder`] and [`check_scratch`].

    Example:
        >>> check_output("/dev/null", overwrite=False)
        Traceback (most recent call last):
        FileExistsError: /dev/null is a file; name a folder.
    """
    target = real_path(path)
    parts = _parts_of(target)
    check_scratch(parts, target)
    note, manifest = parts / _WHOLE, target / MANIFEST
    finished = note.is_file() and manifest.is_file() and note.read_text(encoding="utf-8") == _note(manifest)
    if finished or not list(parts.glob("part-*.parquet")):
        remove_leftovers(parts, target)
    check_folder(path, EVALUATION, overwrite=overwrite)


@contextmanager
def keep_parts(path: str | None) -> Iterator[ResultParts | None]:
    """Give what keeps the parts of an evaluation, which are gone when it is complete, and stay after an error.

    Args:
        path: The folder that is written in the end; None for no folder, and no parts.

    Raises:
        BlockingIOError: Another process is at the same evaluation.

    Example:
        >>> with keep_parts(None) as parts:
        ...     print(parts)
        None
    """
    from accelerate import PartialState

    from ..work import ResultParts

    if path is None:
        yield None
        return
    if not PartialState().is_main_process:
        yield ResultParts(None)
        return
    target = real_path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(target.parent, os.W_OK):
        logger.warning("%s is not writable: an interrupted evaluation would start over.", target.parent)
        yield ResultParts(None)
        return
    with scratch(_parts_of(target), target, keep=True) as folder:
        parts = ResultParts(folder)
        yield parts
        if unused := parts.unused():
            logger.warning("%d parts in %s were of another evaluation, and are removed.", unused, folder)


def write_evaluation(
    path: str, texts: Mapping[str, str], results: Mapping[str, RankingResult], parts: ResultParts, *, overwrite: bool
) -> None:
    """Write an evaluation to its folder.

    Args:
        path: The folder.
        texts: The report's files by name.
        results: The rankings by name, a file for each.
        parts: Those of this evaluation, which are noted to be in it.
        overwrite: Whether an earlier one is replaced.

    Example:
        >>> write_evaluation("out", report.files(), results, parts, overwrite=False)  # doctest: +SKIP
    """
    with new_folder(path, EVALUATION, overwrite=overwrite) as folder:
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        for name, result in results.items():
            result.to_parquet(folder / f"{name.replace(' ', '-')}.parquet")
        write_manifest(folder, {"format": EVALUATION.format, "files": checksums(folder)})
        if parts.folder is not None:
            (parts.folder / _WHOLE).write_text(_note(folder / MANIFEST), encoding="utf-8")


def _parts_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.parts")


def _note(manifest: Path) -> str:
    return json.dumps({"manifest": sha256(manifest)})
