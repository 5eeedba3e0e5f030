"""What the cells' files say, as one record for each ranker."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .methods import COUNTS, TRADITIONAL
from .pairs import PAIRS

VALIDATION = "validation"
PROTOCOLS = {
    "test": "uniform candidates",
    "popular": "candidates drawn by popularity",
    "catalogue": "the whole catalogue",
    PAIRS: "pairs of DMPO's authors",
    VALIDATION: "validation users, of whom there are no figures per user",
}
_KINDS = {
    "sum": "{}",
    "mean": "{}, mean per token",
    "no history": "{} + no history",
    "fused": "{} + item knn",
    "all": "{} + no history + item knn",
}


@dataclass(frozen=True)
class Record:
    """One ranker of one cell.

    Attributes:
        dataset: What was ranked.
        trained_on: What was trained on.
        users: Number of training users.
        protocol: A key of `PROTOCOLS`.
        method: Of the cell.
        ranker: The method and how it ranks.
        seed: Of the cell.
        figures: Metrics, and `ndcg@5 per user`; of pairs those of `pairs.pair_figures`.
        training: Tokens, seconds and what was logged; empty where nothing was trained.
        deletion: Deletion curves by the order of removal; empty where none were measured.
        cold: Places of the test users whose target no training user had, which cells of counts say; else None.
    """

    dataset: str
    trained_on: str
    users: int
    protocol: str
    method: str
    ranker: str
    seed: int
    figures: dict[str, Any]
    training: dict[str, Any]
    deletion: dict[str, list[list[float]]]
    cold: list[int] | None

    @property
    def is_model(self) -> bool:
        """Whether a language model ranks, perhaps together with counts."""
        return self.method != COUNTS and self.method not in TRADITIONAL


def read_cells(folder: Path) -> list[dict[str, Any]]:
    """Read all cells of a folder, in the order of their names.

    Raises:
        SystemExit: There are none.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise SystemExit(f"{folder} holds no cells.")
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def records_of(cell: dict[str, Any]) -> Iterator[Record]:
    """Yield what a cell says of each ranker."""
    settings, method = cell["settings"], cell["method"]
    for name, own in cell.items():
        if not (isinstance(own, dict) and "ranker" in own):
            continue
        protocol, _, rest = name.partition(" ")
        if protocol not in PROTOCOLS:  # counts of the plain protocol are called by their names alone
            protocol, rest = "test", name
        if method == COUNTS:
            ranker = rest
        elif method in TRADITIONAL:
            ranker = method + name.removeprefix("test")
            protocol = "test"
        else:
            ranker = _KINDS[rest].format(method)
        yield Record(
            dataset=settings["dataset"],
            trained_on=settings.get("trained_on", settings["dataset"]),
            users=settings["users"],
            protocol=protocol,
            method=method,
            ranker=ranker,
            seed=cell["seed"],
            figures=own,
            training=cell.get("training") or {},
            deletion=cell.get("deletion") or {} if rest == "sum" and protocol == "test" else {},
            cold=cell.get("cold start"),
        )


def by_ranker(records: Iterable[Record]) -> dict[str, dict[int, Record]]:
    """Return records of one data set by ranker, then by seed."""
    found: dict[str, dict[int, Record]] = {}
    for record in records:
        found.setdefault(record.ranker, {})[record.seed] = record
    return found
