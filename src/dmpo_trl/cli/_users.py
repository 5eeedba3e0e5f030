"""Users to recommend to: those of a file, and those of a split of prepared data."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ..recommend import UserHistory
from ..recommend.catalogue import Catalogue
from ._splits import choose_split

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Users:
    """Users that can be read as often as needed and need not fit into memory.

    Args:
        read: Starts reading them.
        count: Their number.

    Example:
        >>> users = Users(lambda: iter([UserHistory("u1", ["Alien"])]), count=1)
        >>> [user.user for _ in range(2) for user in users]
        ['u1', 'u1']
    """

    read: Callable[[], Iterator[UserHistory]]
    count: int

    def __iter__(self) -> Iterator[UserHistory]:
        """Read them from the first on."""
        return self.read()

    def __len__(self) -> int:
        """Return their number."""
        return self.count


def users_of_file(path: str, catalogue: Callable[[], Catalogue]) -> Users:
    """Check a file of users, one JSON object per line, from its first to its last line.

    Blank lines are skipped, and so is a byte order mark.

    Args:
        path: The file; of a pipe, which can be read only once, the users are kept in memory.
        catalogue: Returns what must have every item of the users; it is asked for once all lines can be read.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is a pipe and there are several processes, a line is faulty, two lines have the same user, or a
            line names an item that the catalogue has not; the message says which line.

    Example:
        >>> users_of_file("no such file", lambda: recommender.catalogue)
        Traceback (most recent call last):
        FileNotFoundError: The file of --users, no such file, does not exist.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"The file of --users, {path}, does not exist.")
    if Path(path).is_file():
        count = _count(_read_users(path), path)
        _check_items(_read_users(path), path, catalogue())
        return Users(lambda: (user for _, user in _read_users(path)), count)
    if PartialState().num_processes > 1:
        raise ValueError(
            f"--users {path} is a pipe, which only one of several processes can read: write it to a file first."
        )
    numbered = list(_read_users(path))
    count = _count(numbered, path)
    _check_items(numbered, path, catalogue())
    users = [user for _, user in numbered]
    return Users(lambda: iter(users), count)


def users_of_split(data: str, split: str) -> Users:
    """Return the users of a split of a prepared folder. Nothing that they had is recommended to them.

    Args:
        data: The folder.
        split: Name of the split.

    Example:
        >>> len(users_of_split("data", "test"))  # doctest: +SKIP
        94
    """
    from ..data import Prepared

    rows = choose_split(Prepared.load(data).ranking, split, "--split").select_columns(["user", "history", "seen"])
    return Users(lambda: (UserHistory(row["user"], row["history"], row["seen"]) for row in rows), count=len(rows))


def _count(users: Iterable[tuple[int, UserHistory]], path: str) -> int:
    """Return the number of users, each of whom must have a name of their own."""
    lines: dict[str, int] = {}
    for number, user in users:
        earlier = lines.setdefault(user.user, number)
        if earlier != number:
            raise ValueError(
                f"{path}, lines {earlier} and {number}: both are of the user {user.user!r}. Take one out, or put them "
                "together."
            )
    return len(lines)


def _check_items(users: Iterable[tuple[int, UserHistory]], path: str, catalogue: Catalogue) -> None:
    for number, user in users:
        for name, items in (("history", user.history), ("seen", user.seen)):
            catalogue.rows(items, f"{path}, line {number}, user {user.user!r}: {name}")


def _read_users(path: str) -> Iterator[tuple[int, UserHistory]]:
    """Read the users, each with the number of its line."""
    with open(path, "rb") as file:  # decoded line by line, so that one that is not UTF-8 is named
        for number, line in enumerate(file, start=1):
            text = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
            if not text.strip():
                continue
            try:
                yield number, _user(json.loads(text.decode("utf-8")))
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise ValueError(
                    f'{path}, line {number}: expected {{"user": ..., "history": [items]}} ({_reason(error)}). Correct '
                    "the line, or take it out."
                ) from error


def _user(row: Any) -> UserHistory:
    if not isinstance(row, dict):
        raise TypeError("it is not an object")
    user, lists = row["user"], [row["history"], row.get("seen", [])]
    if not all(isinstance(items, list) for items in lists):
        raise TypeError("history and seen must be lists")
    for name in (user, *lists[0], *lists[1]):
        if isinstance(name, bool) or not isinstance(name, str | int | float):
            raise TypeError(f"{name!r} must be text or a number")
        if isinstance(name, float) and not math.isfinite(name):
            raise TypeError(f"{name} is not a number that names a user or an item")
    return UserHistory(str(user), *([str(item) for item in items] for items in lists))


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error}"
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
