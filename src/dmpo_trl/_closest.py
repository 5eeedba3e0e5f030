"""Closest names: what somebody may have meant who wrote a name that is not known. Shared by data and command line."""

import re
from collections.abc import Collection
from difflib import get_close_matches

_FEW = 3


def closest(unknown: str, known: Collection[str]) -> list[str]:
    """Return the known names that are closest to an unknown one, at most three, the closest first.

    Args:
        unknown: The name, in any case.
        known: Names in lower case.

    Example:
        >>> closest("modle", ["model", "data"])
        ['model']
        >>> closest("ml-100k", ["amazon", "movielens"])
        ['movielens']
    """
    unknown = unknown.lower()
    begin_alike = sorted(name for name in known if unknown and name.startswith(unknown))
    found = list(dict.fromkeys([*begin_alike, *get_close_matches(unknown, sorted(known))]))
    return found[:_FEW] or _abbreviated(unknown, known)


def _abbreviated(unknown: str, known: Collection[str]) -> list[str]:
    """Return the names that the first letters of the unknown one may be short for, if they are few."""
    letters = re.match("[a-z]{2,}", unknown)
    if letters is None:
        return []
    short = re.compile(".*".join(letters[0]))
    found = [name for name in sorted(known) if short.match(name)]
    return found if len(found) <= _FEW else []
