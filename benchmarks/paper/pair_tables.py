"""Tables of the DMPO authors' pairs: AUC over all answers of all rows (pooled), and of each row's pair.

The pooled AUC, the authors' figure, also asks whether scores mean the same for different users. Intervals are
bootstraps over rows; of several seeds the pooled AUC has its standard deviation over them instead.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from dmpo_trl.evaluation import bootstrap_mean

from .methods import COUNTS, SFT_MORE
from .pairs import PAIRS
from .records import Record, by_ranker
from .tables import MEAN, Row, Table, compare, spread


def pair_tables(records: Sequence[Record]) -> Iterator[Table]:
    """Yield one table for each data set ranked, data set trained on, and number of training histories."""
    own = [one for one in records if one.protocol == PAIRS]

    def key(record: Record) -> tuple[str, str, int]:
        return record.dataset, record.trained_on, record.users

    for (dataset, trained_on, users), group in groupby(sorted(own, key=key), key=key):
        rankers = by_ranker(group)
        rows = {name: _row(seeds) for name, seeds in rankers.items()}
        models = [
            name
            for name, seeds in rankers.items()
            if not name.endswith(MEAN) and name != SFT_MORE and _any(seeds).method != COUNTS
        ]
        notes = compare(rows, rankers, SFT_MORE, models, "auc minus", _per_row)
        across = "" if trained_on == dataset else f", trained on {trained_on}"
        ordered = sorted(rows.items(), key=lambda pair: pair[1]["pooled auc"], reverse=True)
        table = [{"ranker": name} | row for name, row in ordered]
        yield Table(f"{dataset}{across}, {users} training histories, pairs", table, notes)


def _any(seeds: dict[int, Record]) -> Record:
    return next(iter(seeds.values()))


def _row(seeds: dict[int, Record]) -> Row:
    first, all_of_them = _any(seeds).figures, [one.figures for one in seeds.values()]
    pooled = spread([one["pooled_auc"] for one in all_of_them])
    if len(seeds) == 1:
        low, high = first["pooled_auc interval"]
        pooled += f" [{low:.3f}, {high:.3f}]"
    row = {"seeds": str(len(seeds)), "pooled auc": pooled, "auc": str(bootstrap_mean(_per_row(seeds, list(seeds))))}
    if "without repeats" in first:
        for name, metric in (("pooled auc", "pooled_auc"), ("auc", "auc")):
            row[f"{name} without repeats"] = spread([one["without repeats"][metric] for one in all_of_them])
    row["gap to the other"] = f"{np.mean([one['mean gap to the hardest'] for one in all_of_them]):.2f}"
    row["tokens"] = next((f"{one.training['tokens']:,}" for one in seeds.values() if one.training), "")
    return row | {"auc minus": "", "p": ""}


def _per_row(seeds: dict[int, Record], shared: list[int]) -> np.ndarray:
    """Return the AUC of each row, 2 minus the rank among two, the mean over some seeds, (rows,)."""
    return 2 - np.mean([seeds[seed].figures["ranks"] for seed in shared], axis=0)
