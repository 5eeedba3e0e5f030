"""Output folders: they appear when complete, and replace only earlier folders of the same kind."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .files import free_names
from .scratch import is_scratch, real_path, remove_leftovers, scratch, scratch_of

MANIFEST = "manifest.json"
_UNFINISHED = "unfinished.json"  # stands in for the manifest while files are exchanged one by one
_INSIDE = ".unfinished"
_SHOWN = 5
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)
# The folder is a mount point, or the disk (or the system) cannot exchange two folders
_CANNOT_EXCHANGE = (errno.EBUSY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EACCES)


@dataclass(frozen=True)
class Kind:
    """A kind of output folder.

    Attributes:
        format: The `format` in its manifest, by which a folder is known.
        command: The command that writes it, for messages.
        holds: What it holds, for messages.

    Example:
        >>> Kind("notes, version 1", command="note", holds="notes").holds
        'notes'
    """

    format: str
    command: str
    holds: str


def sha256(path: str | Path) -> str:
    """Return the checksum of a file, in hexadecimal.

    Example:
        >>> sha256("/dev/null")[:8]
        'e3b0c442'
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, format: str) -> dict[str, Any] | None:
    """Read a JSON file of ours; None where there is none, or somebody else's.

    Args:
        path: The file.
        format: The `format` that it must say.

    Example:
        >>> read_json(Path("/dev/null"), "notes, version 1")
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found.get("format") == format else None


def checksums(folder: Path) -> dict[str, str]:
    """Return the checksum of each file in a folder.

    Args:
        folder: The folder.

    Example:
        >>> checksums(Path("no such folder"))
        {}
    """
    return {path.relative_to(folder).as_posix(): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of a folder that is complete but for it.

    Args:
        folder: The folder.
        manifest: What it tells; `format` and `files`, the folder's checksums, among it.

    Example:
        >>> write_manifest(Path("out"), {"format": "notes, version 1", "files": {}})  # doctest: +SKIP
    """
    (folder / MANIFEST).write_text(f"{json.dumps(manifest, indent=2)}\n", encoding="utf-8")


def is_inside(name: str) -> bool:
    """Return whether a name in a manifest is that of a file in its folder, and leads nowhere else.

    Example:
        >>> is_inside("sft/train.parquet"), is_inside("../train.parquet"), is_inside("/train.parquet")
        (True, False, False)
    """
    return not Path(name).is_absolute() and ".." not in Path(name).parts and "://" not in name


def is_unfinished(folder: Path, kind: Kind) -> bool:
    """Return whether a run was killed while it put its files into this folder.

    Args:
        folder: The folder.
        kind: What was to be written there.

    Example:
        >>> is_unfinished(Path("no such folder"), Kind("notes, version 1", "note", "notes"))
        False
    """
    return not (folder / MANIFEST).exists() and read_json(folder / _UNFINISHED, kind.format) is not None


def check_folder(path: str | os.PathLike[str], kind: Kind, *, overwrite: bool) -> Path:
    """Check before the work that a folder can be written after it, and remove what a killed run left.

    Args:
        path: The folder; of a symbolic link the target.
        kind: What will be written.
        overwrite: Whether a folder of this kind may be replaced. One that holds anything else never is: a file that
            its manifest does not list, or one that was changed since.

    Returns:
        Where the folder goes.

    Raises:
        OSError: It may not be replaced, cannot be written, or another process is writing it.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     check_folder(f"{folder}/out", Kind("notes, version 1", "note", "notes"), overwrite=False).name
        'out'
    """
    target = real_path(path)
    remove_leftovers(scratch_of(target), target)
    remove_leftovers(target / _INSIDE, target)
    if read_json(target / MANIFEST, kind.format) is not None and read_json(target / _UNFINISHED, kind.format):
        (target / _UNFINISHED).unlink()  # killed before its first or after its last step
    _check(target, kind, overwrite=overwrite)
    above = target
    while not above.exists():
        above = above.parent
    if not above.is_dir():
        raise NotADirectoryError(f"{path} cannot be written: {above} is a file.")
    if not os.access(above, os.W_OK):
        raise PermissionError(f"{path} cannot be written: {above} is not writable.")
    return target


@contextmanager
def new_folder(path: str | os.PathLike[str], kind: Kind, *, overwrite: bool) -> Iterator[Path]:
    """Give a folder to write to, which takes the name `path` in one step when it is complete, or goes after an error.

    It gets a manifest of `kind` unless there is one in it. A folder that cannot be renamed, such as a mount point, or
    that should not be because the process stands in it, gets its files one by one, and the manifest last: without it,
    it is unfinished, and says so.

    Args:
        path: The folder; of a symbolic link the target. [`check_folder`] was asked before the work.
        kind: What is written.
        overwrite: Whether an earlier folder of this kind is replaced.

    Raises:
        OSError: As in [`check_folder`], where somebody wrote to the folder since; the message says where the new one
            lies instead. Or the disk is full.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> kind = Kind("notes, version 1", "note", "notes")
        >>> with TemporaryDirectory() as disk:
        ...     with new_folder(f"{disk}/out", kind, overwrite=False) as folder:
        ...         _ = (folder / "note.txt").write_text("done")
        ...     sorted(file.name for file in Path(disk, "out").iterdir())
        ['manifest.json', 'note.txt']
    """
    target = real_path(path)
    inside = _stays(target)
    place = target / _INSIDE if inside else scratch_of(target)
    place.parent.mkdir(parents=True, exist_ok=True)
    with scratch(place, target) as work:
        new = work / "new"
        new.mkdir()
        yield new
        if not (new / MANIFEST).exists():
            write_manifest(new, {"format": kind.format, "files": checksums(new)})
        try:
            _check(target, kind, overwrite=overwrite)
            if inside:
                _fill(new, target, kind)
            else:
                _put(new, target, kind)
        except OSError as error:
            if error.errno not in _TAKEN and not isinstance(error, FileExistsError):
                raise
            free = next(name for name in free_names(target) if not name.exists())
            shutil.move(new, free)
            raise FileExistsError(f"{error} This is new since the work began, and the result is in {free}.") from error


def _check(folder: Path, kind: Kind, *, overwrite: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not _entries(folder)):
        return
    if not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; name a folder.")
    known = _known(folder, kind)
    if known is None:
        raise FileExistsError(
            f"{folder} is not empty and was not written by dmpo-trl {kind.command}; choose another folder."
        )
    if not overwrite and not is_unfinished(folder, kind):
        raise FileExistsError(f"{folder} holds {kind.holds} already; choose another folder, or set `overwrite`.")
    if foreign := list(_foreign(folder, known)):
        names = ", ".join(foreign[:_SHOWN]) + (f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else "")
        raise FileExistsError(
            f"{folder} holds what dmpo-trl {kind.command} did not write, or what was changed since: {names}. Move it "
            "away, or choose another folder."
        )


def _entries(folder: Path) -> list[Path]:
    """List an output folder; what a mount point has of itself and our own scratch folder do not count."""
    own = {"lost+found"} if os.path.ismount(folder) else set()
    if is_scratch(folder / _INSIDE):
        own.add(_INSIDE)
    return [entry for entry in sorted(folder.iterdir()) if entry.name not in own]


def _known(folder: Path, kind: Kind) -> dict[str, set[str]] | None:
    """Return the checksums that each of our files in a folder may have; None where the folder is not ours."""
    known: dict[str, set[str]] = {}
    found = [read_json(folder / name, kind.format) for name in (MANIFEST, _UNFINISHED)]
    for manifest in found:
        files = {} if manifest is None else manifest.get("files")
        if not isinstance(files, dict) or not all(map(is_inside, files)):
            return None
        for name, checksums in files.items():
            several = checksums if isinstance(checksums, list) else [checksums]
            known.setdefault(name, set()).update(one for one in several if isinstance(one, str))
    return None if found == [None, None] else known


def _foreign(folder: Path, known: Mapping[str, set[str]]) -> Iterator[str]:
    """Name what is in a folder and not ours; of a folder in it that holds nothing of ours, the name alone."""
    folders = {parent.as_posix() for name in known for parent in Path(name).parents}

    def look(here: Path) -> Iterator[str]:
        for entry in _entries(folder) if here == folder else sorted(here.iterdir()):
            name = entry.relative_to(folder).as_posix()
            if entry.is_dir() and not entry.is_symlink():
                if name in folders:
                    yield from look(entry)
                else:
                    yield f"{name}/"
            elif name not in (MANIFEST, _UNFINISHED) and (
                not entry.is_file() or sha256(entry) not in known.get(name, ())
            ):
                yield name

    return look(folder)


def _stays(target: Path) -> bool:
    """Return whether a folder must keep its place: a mount point, where this process is, or below a read-only one."""
    return target.is_dir() and (
        os.path.ismount(target) or Path.cwd().is_relative_to(target) or not os.access(target.parent, os.W_OK)
    )


def _put(new: Path, target: Path, kind: Kind) -> None:
    """Give a folder its name, in one step where the system can do that."""
    try:
        if target.exists() and _entries(target):
            _exchange(new, target)
        else:
            os.rename(new, target)
    except OSError as error:
        if error.errno not in _CANNOT_EXCHANGE or not target.is_dir():
            raise
        with scratch(target / _INSIDE, target) as work:
            shutil.move(new, work / "new")
            _fill(work / "new", target, kind)


def _exchange(one: Path, other: Path) -> None:
    """Exchange the names of two folders, atomically; Linux has a call for that, which Python does not know."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    at_fdcwd, rename_exchange = -100, 2
    if renameat2(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), rename_exchange):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))


def _fill(new: Path, target: Path, kind: Kind) -> None:
    """Replace the files of a folder by those of another on the same disk, one by one, the manifest last."""
    old = _known(target, kind) or {}
    files = checksums(new)
    del files[MANIFEST]
    known = {name: sorted(old.get(name, set())) for name in {*old, *files}}
    for name, checksum in files.items():
        known[name].append(checksum)
    note = new.with_name(_UNFINISHED)
    note.write_text(json.dumps({"format": kind.format, "files": known}), encoding="utf-8")
    os.replace(note, target / _UNFINISHED)
    (target / MANIFEST).unlink(missing_ok=True)
    for name in old.keys() - files.keys():
        (target / name).unlink(missing_ok=True)
        with suppress(OSError):  # others are in it
            (target / name).parent.rmdir()
    for name in files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(new / name, target / name)
    os.replace(new / MANIFEST, target / MANIFEST)
    (target / _UNFINISHED).unlink()
