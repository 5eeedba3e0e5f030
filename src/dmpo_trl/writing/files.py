"""Output files: they appear when complete, and replace an existing file only if asked to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from .scratch import real_path, remove_leftovers, scratch, scratch_of


def check_file(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Check before the work that a file can be written after it, and remove what a killed run left beside it.

    Args:
        path: The file; of a symbolic link the target.
        overwrite: Whether a file that is there may be replaced.

    Returns:
        Where the file goes.

    Raises:
        OSError: It is there already, it is not a file, its folder does not exist or is not writable, or another
            process is writing it.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     check_file(f"{folder}/out.parquet", overwrite=False).name
        'out.parquet'
    """
    target = real_path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: the folder {target.parent} does not exist. Make it first.")
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(f"{path} cannot be written: the folder {target.parent} is not writable.")
    remove_leftovers(scratch_of(target), target)
    if target.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file to write.")
    if target.exists() and not target.is_file():
        raise FileExistsError(f"{path} is not a regular file; name another.")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already; choose another file, or set `overwrite`.")
    return target


@contextmanager
def new_file(path: str | os.PathLike[str], *, overwrite: bool) -> Iterator[Path]:
    """Give a file to write to, which takes the name `path` when it is complete, or goes after an error.

    Args:
        path: The file; of a symbolic link the target. [`check_file`] was asked before the work.
        overwrite: Whether a file that is there by then is replaced.

    Raises:
        OSError: As in [`place_file`], another process is writing the file, or the disk is full.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     with new_file(f"{folder}/note.txt", overwrite=False) as file:
        ...         _ = file.write_text("done")
        ...     Path(folder, "note.txt").read_text()
        'done'
    """
    target = real_path(path)
    with scratch(scratch_of(target), target) as folder:
        yield folder / target.name
        place_file(folder / target.name, target, overwrite=overwrite)


def place_file(file: Path, target: Path, *, overwrite: bool) -> None:
    """Give a finished file its name in one step. It may keep its old name too, which is the caller's to remove.

    Args:
        file: The finished file, on the same disk as `target`.
        target: The name.
        overwrite: Whether a file of that name is replaced.

    Raises:
        FileExistsError: There is one and it may not be replaced. The finished file is then beside it, and the message
            says where.

    Example:
        >>> place_file(Path("scratch/out.parquet"), Path("out.parquet"), overwrite=False)  # doctest: +SKIP
    """
    if overwrite:
        os.replace(file, target)
        return
    for free in free_names(target):
        with suppress(FileExistsError):
            _name(file, free)
            break
    if free != target:
        raise FileExistsError(f"{target} appeared during the work and was left as it is; the result is in {free}.")


def free_names(target: Path) -> Iterator[Path]:
    """Yield a name and those to fall back on where it is taken: `out.txt`, `out-2.txt`, `out-3.txt`, ..."""
    yield target
    for number in count(2):
        yield target.with_name(f"{target.stem}-{number}{target.suffix}")


def _name(file: Path, free: Path) -> None:
    """Move a file to a name that nobody has; a link fails where somebody has it, a rename would replace it."""
    try:
        os.link(file, free)
    except FileExistsError:
        raise
    except OSError:  # a disk without links: the name is claimed first
        open(free, "xb").close()
        os.replace(file, free)
