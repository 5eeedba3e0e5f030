"""Traditional recommenders as rankers: BPR, SASRec and GRU4Rec, fitted by `fit.py` in an environment of its own."""

import json
import logging
import subprocess
from pathlib import Path
from typing import Any

import polars as pl
from datasets import Dataset

from dmpo_trl.evaluation import RankingResult, rank_by_file

from .fit import DEFAULTS, complete

__all__ = ["DEFAULTS", "METHODS", "environment_python", "rank_by_traditional"]

METHODS = tuple(DEFAULTS)
ENVIRONMENT = Path(__file__).parents[3] / ".venv-traditional"

logger = logging.getLogger(__name__)


def environment_python() -> Path:
    """Return the Python of the environment that the methods run in.

    Raises:
        FileNotFoundError: It was not made.
    """
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        raise FileNotFoundError(
            f"{', '.join(METHODS)} run in an environment of their own, and there is no {ENVIRONMENT}. "
            "Make it: make .venv-traditional"
        )
    return python


def rank_by_traditional(
    method: str,
    known: pl.DataFrame,
    users: Dataset,
    seed: int,
    folder: str | Path,
    **settings: float,
) -> RankingResult:
    """Fit a traditional recommender to known interactions and rank by its scores.

    What the folder has is not computed again where method, seed, settings, interactions, users and candidates are the
    same; else it is replaced.

    Args:
        method: `bpr`, `sasrec` or `gru4rec`, which is also the result's name.
        known: Columns `user`, `item` and `position`, anything that puts each user's items in order, such as a
            timestamp; rows with the same one stay in the order in which they are. No targets of `users`.
        users: Columns of `ranking_dataset`.
        seed: For the initial weights and the order of training.
        folder: Where the files of `fit.py` go, one folder for each call; it is made if needed.
        **settings: Those of the method that shall not have their value in `DEFAULTS`, such as `epochs`.

    Returns:
        The ranking.

    Raises:
        FileNotFoundError: The environment was not made.
        ValueError: There is no such method or setting, `known` is empty or lacks a column or a field, a user is listed
            twice, or a target is known.
        RuntimeError: The fit failed: its message follows.

    Example:
        >>> rows = pl.DataFrame({"user": ["u1", "u1"], "item": ["a", "b"], "position": [0, 1]})
        >>> users = Dataset.from_list([{"user": "u2", "history": ["a"], "items": ["b", "c"], "positive": 0}])
        >>> result = rank_by_traditional("gru4rec", rows, users, 0, "outputs/gru4rec", epochs=5)  # doctest: +SKIP
        >>> result.name  # doctest: +SKIP
        'gru4rec'
    """
    folder, made_by = Path(folder), {"method": method, "seed": seed, "settings": complete(method, settings)}
    asked = _asked(users)
    tables = {"known.parquet": _ordered(known, users), "users.parquet": asked}
    if not _is_made(folder, made_by, tables):
        python = environment_python()
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("scores.parquet", "spent.json"):
            (folder / name).unlink(missing_ok=True)
        for name, table in tables.items():
            table.write_parquet(folder / name)
        _run(python, folder, made_by)
    return rank_by_file(users, folder / "scores.parquet", name=method)


def _ordered(known: pl.DataFrame, users: Dataset) -> pl.DataFrame:
    """Return users and items as text, with whole numbers for positions; refuse what cannot be fitted."""
    if missing := sorted({"user", "item", "position"} - set(known.columns)):
        raise ValueError(f"The known interactions have no column {missing}; they have {known.columns}.")
    if known.is_empty():
        raise ValueError("There are no known interactions.")
    for column in ("user", "item", "position"):
        if empty := known[column].null_count():
            raise ValueError(f"{empty} known interactions have no {column}. Drop them with `drop_nulls`.")
    ordered = known.select(pl.col("user", "item").cast(pl.String), "position").sort(
        "user", "position", maintain_order=True
    )
    targets = pl.DataFrame(
        {
            "user": users["user"][:],
            "item": [items[place] for items, place in zip(users["items"], users["positive"], strict=True)],
        }
    )
    leaks = ordered.join(targets, on=["user", "item"], how="semi")
    if len(leaks):
        user, item, _ = leaks.row(0)
        raise ValueError(f"{len(leaks)} known interactions are targets, for example item {item!r} of user {user!r}.")
    return ordered.select("user", "item", position=pl.int_range(pl.len()).over("user"))


def _asked(users: Dataset) -> pl.DataFrame:
    asked = pl.DataFrame({name: users[name][:] for name in ("user", "history", "items")})
    doubled = asked["user"].is_duplicated()
    if doubled.any():
        raise ValueError(f"User {asked.filter(doubled)['user'][0]!r} is listed more than once. Keep one row.")
    return asked.cast({"history": pl.List(pl.String), "items": pl.List(pl.String)})


def _is_made(folder: Path, made_by: dict[str, Any], tables: dict[str, pl.DataFrame]) -> bool:
    """Whether the folder has the scores of such a fit. They come last: those of a killed run are not there."""
    if not (folder / "scores.parquet").exists():
        return False
    spent = json.loads((folder / "spent.json").read_text(encoding="utf-8"))
    return {name: spent[name] for name in made_by} == made_by and all(
        pl.read_parquet(folder / name).equals(table) for name, table in tables.items()
    )


def _run(python: Path, folder: Path, made_by: dict[str, Any]) -> None:
    options = {"method": made_by["method"], "folder": folder, "seed": made_by["seed"], **made_by["settings"]}
    command = [python, Path(__file__).with_name("fit.py"), *(f"--{name}={value}" for name, value in options.items())]
    logger.info("%s is fitted in %s.", made_by["method"], folder)
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{made_by['method']} could not be fitted in {folder}:\n{done.stderr.strip()}")
