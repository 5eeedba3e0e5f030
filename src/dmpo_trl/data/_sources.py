"""Raw files of a data set, in a folder, in an archive or beside one another."""

from __future__ import annotations

import errno
import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, cast

from ..writing import is_full
from ._files import require_file

# `fsspec` could open the members of an archive too, but the readers need paths. So members are copied to a folder of
# ours in any case, and what makes that safe would stay: base names only, no links, and errors that name the archive.
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")


class SourceFiles:
    """Files of a folder or an archive, found by their base names; made by [`open_source`].

    Attributes:
        source: The folder, archive or file.
        given: The file itself where the source is a single file, else None.
        names: Base names of all files there, the least deep first.
        used: Paths on disk of what was found so far: the files, or the archive that holds them.
    """

    def __init__(
        self, source: Path, members: list[str], open_member: Callable[[str], Path], given: Path | None = None
    ):
        self.source = source
        self._members = sorted(members, key=lambda member: (member.count("/"), member))
        self._open_member = open_member
        self._found: dict[str, Path] = {}
        self.given = given
        self.names = [_base_name(member) for member in self._members]

    @property
    def used(self) -> tuple[str, ...]:
        """Paths of the files that were read, for a manifest."""
        if self.source.is_dir():
            return tuple(str(path) for path in self._found.values())
        return (str(self.source),) if self._found else ()

    def find(self, *names: str) -> Path | None:
        """Return the path of the first of these names that is there, itself or as `name.gz`, else None.

        A name is a base name, or that with the folder that it must lie in (`test/items.csv`). Of several files with
        the name the least deep counts. A member of an archive is extracted to a temporary
        folder that lasts as long as the source is open.

        Raises:
            ValueError: Where two files of the name lie equally deep, or the archive is damaged.
        """
        wanted = [candidate for name in names for candidate in (name, f"{name}.gz")]
        if self.given and self.given.name in wanted:
            wanted = [self.given.name]
        for name in wanted:
            members = [member for member in self._members if _ends_in(member, name)]
            if not members:
                continue
            if len(members) > 1 and members[0].count("/") == members[1].count("/"):
                raise ValueError(
                    f"{self.source} holds {name} more than once: {members[0]} and {members[1]}. "
                    "Give the folder of one of them."
                )
            if members[0] not in self._found:
                self._found[members[0]] = self._open_member(members[0])
            return self._found[members[0]]
        return None

    def in_folder(self, folder: str) -> list[str]:
        """Return the base names of all files that lie in a folder of this name."""
        return sorted(
            {_base_name(member) for member in self._members if _ends_in(member, f"{folder}/{_base_name(member)}")}
        )

    def ending(self, suffix: str) -> list[str]:
        """Return the base names that end in `suffix`, without `.gz`, of the least deep files that do.

        Beside a file that was given, only those that are called like it count.
        """
        plain = [member.removesuffix(".gz") for member in self._members]
        members = [member for member in plain if member.endswith(suffix)]
        if self.given:
            stem = PurePosixPath(self.given.name.removesuffix(".gz")).stem
            members = [member for member in members if PurePosixPath(member).stem == stem]
        depths = [member.count("/") for member in members]
        return sorted({_base_name(m) for m, depth in zip(members, depths, strict=True) if depth == min(depths)})

    def need(self, *names: str) -> Path:
        """Return what `find` returns, but raise an error where there is none.

        Raises:
            FileNotFoundError: Naming what was looked for and what is there.
            ValueError: As `find`.
        """
        path = self.find(*names)
        if path is None:
            there = ", ".join(self.names[:20]) or "no file"
            more = f" and {len(self.names) - 20} more" if len(self.names) > 20 else ""
            raise FileNotFoundError(f"{self.source} does not hold {' or '.join(names)}. It holds {there}{more}.")
        return path


@contextmanager
def open_source(path: str | Path) -> Iterator[SourceFiles]:
    """Open a folder, an archive (`.zip`, `.tar`, `.tar.gz`, `.tgz`) or a single file with the files beside it.

    Nothing of an archive reaches the disk but the files asked for. Each is written under the base name that was asked
    for, so no path or link inside the archive can lead anywhere.

    Raises:
        FileNotFoundError: Where `path` does not exist.
        ValueError: Where `path` is a pipe or a device, and where an archive cannot be read.

    Example:
        >>> folder = tempfile.TemporaryDirectory()
        >>> _ = Path(folder.name, "ratings.csv").write_text("user,item")
        >>> with open_source(folder.name) as files:
        ...     files.need("ratings.csv").read_text()
        'user,item'
        >>> folder.cleanup()
    """
    path = Path(path).expanduser()
    if path.is_dir():
        members = [
            (Path(folder) / name).relative_to(path).as_posix() for folder, _, names in os.walk(path) for name in names
        ]
        yield SourceFiles(path, members, lambda member: require_file(path / member))
    elif not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist. Give a folder, an archive ({', '.join(_ARCHIVES)}) or a file."
        )
    elif not path.is_file():
        require_file(path)
    elif path.name.lower().endswith(_ARCHIVES):
        with ExitStack() as stack:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dmpo-trl-")))
            with _problems_named(path):
                members, open_stream = _open_archive(path, stack)

            def extract(member: str) -> Path:
                # In a folder of its own: two members may have one base name
                target = Path(tempfile.mkdtemp(dir=scratch)) / _base_name(member)
                with _problems_named(path), open_stream(member) as stream, target.open("wb") as file:
                    shutil.copyfileobj(stream, file, 1 << 20)
                return target

            yield SourceFiles(path, members, extract)
    else:
        siblings = [sibling.name for sibling in path.parent.iterdir() if not sibling.is_dir()]
        yield SourceFiles(path.parent, siblings, lambda name: require_file(path.parent / name), given=path)


def _base_name(member: str) -> str:
    # Archives made on Windows may hold backslashes
    return PurePosixPath(member.replace("\\", "/")).name


def _ends_in(member: str, name: str) -> bool:
    return f"/{PurePosixPath(member.replace(chr(92), '/'))}".endswith(f"/{name}")


def _open_archive(path: Path, stack: ExitStack) -> tuple[list[str], Callable[[str], IO[bytes]]]:
    """Return the names of the regular files, links and devices left out, and a function that opens one of them."""
    if path.name.lower().endswith(".zip"):
        archive = stack.enter_context(zipfile.ZipFile(path))
        regular = [info.filename for info in archive.infolist() if not info.is_dir() and not _is_link(info)]
        return regular, archive.open
    tar = stack.enter_context(tarfile.open(path, "r:" if path.name.lower().endswith(".tar") else "r:gz"))  # noqa: SIM115, closed by the stack
    regular = [info.name for info in tar if info.isreg()]
    return regular, lambda member: cast(IO[bytes], tar.extractfile(member))


def _is_link(info: zipfile.ZipInfo) -> bool:
    return (info.external_attr >> 16) & 0o170000 == 0o120000


@contextmanager
def _problems_named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise OSError(
                error.errno, f"No room in {tempfile.gettempdir()} to unpack {path}. Free some, or set TMPDIR."
            ) from error
        if error.errno not in (None, errno.EINVAL):  # bz2's and gzip's errors, and a place before the file's beginning
            raise
        raise _damaged(path, error) from error
    except MemoryError:
        raise
    # Whatever else the standard library raises, the bytes were the cause, and no list of it was ever complete: an
    # IndexError for a member without a name, a struct.error, an OverflowError, errors of each compression
    except Exception as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} cannot be read as an archive: {error}. Delete it and get it again.")
