"""Prior and candidates of `dmpo-trl recommend`: counts of a prepared folder, by the names of `evaluate`, or a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl

from ..data import Prepared
from ..recommend import Candidates, Prior
from .evaluate import COUNTS, NO_HISTORY


def prior_of(name: str, data: str | None) -> Prior:
    """Return the prior that an option names.

    Args:
        name: `popularity`, `item_knn` (of all that the training users had), `popularity_shown`, `item_knn_shown` (of
            what stands in a training example), or a Parquet file of user, item and score.
        data: The prepared folder whose interactions are counted.

    Raises:
        ValueError: Counts are asked for and there is no folder to count in, or the file is faulty.

    Example:
        >>> prior_of("item_knn", "data").name  # doctest: +SKIP
        'item_knn'
    """
    if name not in COUNTS:
        if not Path(name).is_file():
            raise ValueError(
                f"--prior must be one of {', '.join((*COUNTS, NO_HISTORY))} or a file of scores, it is {name!r}."
            )
        return Prior.of_file(name)
    return _counted("prior", name, data)


def candidates_of(name: str, data: str | None, items: Callable[[], pl.DataFrame], per_user: int) -> Candidates:
    """Return the candidates that an option names.

    Args:
        name: As of `prior_of`, or a Parquet file of user and item. Items that are equally similar to a history by
            `item_knn`, as are all that nobody had with it, are proposed by popularity.
        data: The prepared folder whose interactions are counted.
        items: Returns the catalogue, in which the items of a file must be.
        per_user: Most candidates of a user.

    Raises:
        ValueError: As in `prior_of`.

    Example:
        >>> candidates_of("item_knn", "data", catalogue, 200).name  # doctest: +SKIP
        'item_knn'
    """
    if name not in COUNTS:
        if not Path(name).is_file():
            raise ValueError(f"--candidates must be one of {', '.join(COUNTS)} or a Parquet file, it is {name!r}.")
        return Candidates.of_file(name, items(), per_user=per_user)
    counted, popularity = (
        _counted("candidates", kind, data) for kind in (name, name.replace("item_knn", "popularity"))
    )
    return Candidates.best_by(counted, ties=popularity, per_user=per_user)


def _counted(option: str, name: str, data: str | None) -> Prior:
    """Return the prior that counts what the training users had."""
    if data is None:
        raise ValueError(
            f"--{option} {name} counts what the training users had: name the prepared folder with --data."
        )
    prepared = Prepared.load(data)
    if name == "popularity":  # which folders of earlier versions have too
        return Prior.popularity(prepared.popularity())
    had = prepared.interactions
    if name.endswith("_shown"):
        had = had.filter("shown")
    if name == "popularity_shown":
        return Prior.popularity(dict(had.group_by("item").len().iter_rows()), name=name)
    return Prior.item_knn(had, name=name)
