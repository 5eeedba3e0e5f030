"""Names of the subcommands, and what is said to a name that is not known."""

from __future__ import annotations

import re
from collections.abc import Collection
from difflib import get_close_matches

COMMANDS = {
    "prepare": "turn raw files into a folder of datasets for training and evaluation",
    "leaks": "look for shortcuts and for test rows in the training data",
    "estimate": "estimate tokens, FLOPs and memory of a training step, from a model's config alone",
    "train": "train with DMPO, with the options of `trl dpo`",
    "evaluate": "rank the candidates of held-out users with a model",
    "recommend": "recommend from the whole catalogue, for one user or a file of them",
    "explain": "show which items of a history carry a recommendation",
    "env": "print versions and hardware, for a bug report",
    "completion": "print a script that completes commands and options in a shell",
}


def suggestion(unknown: str, known: Collection[str], dashes: str = "") -> str:
    """Return the end of an error message about an unknown name: the closest that are known, or nothing.

    Example:
        >>> suggestion("modle", ["model", "data"], "--")
        '; did you mean --model?'
        >>> suggestion("ml-100k", ["amazon", "movielens"])
        '; did you mean movielens?'
    """
    unknown = unknown.lower()
    begin_alike = sorted(name for name in known if unknown and name.startswith(unknown))
    found = (begin_alike + get_close_matches(unknown, sorted(known)))[:3] or _abbreviated(unknown, known)
    return f"; did you mean {' or '.join(dashes + name for name in dict.fromkeys(found))}?" if found else ""


def _abbreviated(unknown: str, known: Collection[str]) -> list[str]:
    """Return the names that the first letters of the unknown one may be short for, if they are few."""
    letters = re.match("[a-z]{2,}", unknown)
    short = re.compile("" if letters is None else ".*".join(letters[0]))
    found = [name for name in sorted(known) if letters is not None and short.match(name)]
    return found if len(found) <= 3 else []
