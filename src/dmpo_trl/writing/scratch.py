"""Scratch folders: unfinished work beside its output, held by one process at a time."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

logger = logging.getLogger(__name__)

_LOCK = "dmpo-trl.lock"  # also tells our folders from others of the same name
_FULL = (errno.ENOSPC, errno.EDQUOT)


def real_path(path: str | os.PathLike[str]) -> Path:
    """Return where an output goes: absolute, and the target where `path` is a symbolic link.

    Args:
        path: The output that the user names.

    Raises:
        FileNotFoundError: It is a link into a folder that does not exist.

    Example:
        >>> real_path("/dev/../out")
        PosixPath('/out')
    """
    target = Path(path).resolve()
    if Path(path).is_symlink() and not target.parent.is_dir():
        raise FileNotFoundError(f"{path} is a link to {target}, and {target.parent} is not there. Is a disk missing?")
    return target


@contextmanager
def scratch(folder: Path, output: Path, *, keep: bool = False) -> Iterator[Path]:
    """Hold a folder for unfinished work on an output, which is gone afterwards.

    What a killed process left in it is removed first, with a log line.

    Args:
        folder: The folder. No other process enters it meanwhile.
        output: What is being written, for messages.
        keep: Keep what a killed process left, and after an error what is there by then, so that the work can go on. At
            the end its files are deleted in the order of their names.

    Raises:
        FileExistsError: `folder` was not made by this function.
        BlockingIOError: Another process holds it.
        OSError: The disk is full; the message names `output`.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as disk, scratch(Path(disk, "work"), Path(disk, "out")) as folder:
        ...     folder.name
        'work'
    """
    _check_ours(folder, output)
    folder.mkdir(exist_ok=True)
    lock = _lock(folder, output)
    try:
        if not keep:
            _clear(folder, output)
        yield folder
    except BaseException as error:
        if not keep or len(list(folder.iterdir())) == 1:  # the lock alone
            _remove(folder)
        if is_full(error):
            number = getattr(error, "errno", None) or errno.ENOSPC
            raise OSError(number, f"No room to write {output}. Free some and run again ({error}).") from error
        raise
    else:
        _remove(folder)
    finally:
        lock.release()


def remove_leftovers(folder: Path, output: Path) -> None:
    """Remove the scratch folder that a killed process left, with a log line.

    Args:
        folder: The scratch folder.
        output: Its output, for messages.

    Raises:
        BlockingIOError: A living process holds it.

    Example:
        >>> remove_leftovers(Path("no such folder"), Path("out"))
    """
    if not folder.is_symlink() and folder.is_dir() and is_scratch(folder):
        with scratch(folder, output):
            pass


def check_scratch(folder: Path, output: Path) -> None:
    """Check before the work that a scratch folder can be held.

    Args:
        folder: The folder.
        output: Its output, for messages.

    Raises:
        FileExistsError: `folder` was not made by [`scratch`].
        BlockingIOError: Another process holds it.

    Example:
        >>> check_scratch(Path("no such folder"), Path("out"))
    """
    _check_ours(folder, output)
    if (folder / _LOCK).is_file():
        _lock(folder, output).release()


def scratch_of(output: Path) -> Path:
    """Return the folder for unfinished work on an output: hidden, beside it."""
    return output.with_name(f".{output.name}.unfinished")


def _check_ours(folder: Path, output: Path) -> None:
    if folder.is_symlink() or (folder.exists() and not is_scratch(folder)):
        raise FileExistsError(f"{folder} is in the way: work on {output} would go there. Move it away.")


def _lock(folder: Path, output: Path) -> BaseFileLock:
    lock = FileLock(folder / _LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise BlockingIOError(
            f"Another process is writing {output}. Wait for its end, or choose another output."
        ) from None
    return lock


def is_scratch(folder: Path) -> bool:
    """Return whether a folder was made by [`scratch`]; an empty one may have been."""
    return folder.is_dir() and ((folder / _LOCK).exists() or not any(folder.iterdir()))


def is_full(error: BaseException) -> bool:
    """Return whether an error says that a disk is full; polars' errors have the number in their text alone.

    Args:
        error: The error.

    Example:
        >>> is_full(OSError(28, "No space left on device"))
        True
    """
    return getattr(error, "errno", None) in _FULL or any(f"(os error {number})" in str(error) for number in _FULL)


def _clear(folder: Path, output: Path) -> None:
    entries = [entry for entry in folder.iterdir() if entry.name != _LOCK]
    if entries:
        logger.warning("Removing %s, which an interrupted run left while it wrote %s.", folder, output)
    for entry in entries:
        _delete(entry)


def _remove(folder: Path) -> None:
    for entry in sorted(folder.iterdir()):
        if entry.name != _LOCK:  # the last to go: without it the rest would be nobody's
            _delete(entry)
    (folder / _LOCK).unlink(missing_ok=True)
    with suppress(OSError):  # another process has come in already
        folder.rmdir()


def _delete(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()
