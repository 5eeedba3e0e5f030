"""Names of the subcommands, and suggestions for names that are not known."""

from __future__ import annotations

from collections.abc import Collection

from .._closest import closest

COMMANDS = {
    "prepare": "turn raw files into a folder of datasets for training and evaluation",
    "leaks": "look for shortcuts and for test rows in the training data",
    "estimate": "estimate tokens, FLOPs and memory of a training step, from a model's config alone",
    "train": "train with DMPO, with the options of `trl dpo`",
    "tune": "search for the options of training that rank validation users best",
    "evaluate": "rank the candidates of held-out users with a model",
    "recommend": "recommend from the whole catalogue, for one user or a file of them",
    "explain": "show which items of a history carry a recommendation",
    "export": "merge an adapter into its model, with all that serving needs, in one folder",
    "serve": "answer requests for recommendations over HTTP",
    "demo": "show a page to pick titles and look at recommendations and explanations",
    "env": "print versions and hardware, for a bug report",
    "completion": "print a script that completes commands and options in a shell",
}


def suggestion(unknown: str, known: Collection[str], dashes: str = "") -> str:
    """Return the end of an error message about an unknown name: the closest that are known, or nothing.

    Args:
        unknown: The name.
        known: The names that there are.
        dashes: What stands before each name on the command line.

    Example:
        >>> suggestion("modle", ["model", "data"], "--")
        '; did you mean --model?'
        >>> suggestion("xyzzy", ["model", "data"])
        ''
    """
    found = closest(unknown, known)
    return f"; did you mean {' or '.join(dashes + name for name in found)}?" if found else ""
