"""Tables of a report: what each method ranks, and what it adds to SFT that goes on for as many tokens.

Metrics are means over users and, in brackets, the standard deviation over seeds. Differences are paired by user (each
user's mean over the seeds that both have), with a permutation test; the p-values of one table are corrected for how
many there are (Holm).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from dmpo_trl.evaluation import paired_difference

from .explaining import ORDERS, STEPS
from .methods import SFT_MORE, STAGES
from .records import PROTOCOLS, Record, by_ranker

Row = dict[str, str]
_LEVEL = 0.05


@dataclass
class Table:
    """Rows under a title, and what they say in a sentence or more."""

    title: str
    rows: list[Row]
    notes: list[str] = field(default_factory=list)


def tables(records: Sequence[Record]) -> list[Table]:
    """Return all tables that the records have something for."""
    found = [*_comparisons(records), *_across(records), *_collapse(records), *_deletions(records)]
    return [table for table in found if table.rows]


def _comparisons(records: Sequence[Record]) -> Iterator[Table]:
    own = [record for record in records if record.dataset == record.trained_on]
    order = {name: place for place, name in enumerate(("catalogue", "test", "popular"))}

    def key(record: Record) -> tuple[str, int, int]:
        return record.dataset, record.users, order[record.protocol]

    for (dataset, users, _), group in groupby(sorted(own, key=key), key=key):
        members = list(group)
        table = comparison(by_ranker(members))
        yield Table(f"{dataset}, {users} training users, {PROTOCOLS[members[0].protocol]}", *table)


def comparison(rankers: dict[str, dict[int, Record]]) -> tuple[list[Row], list[str]]:
    """Return one row per ranker, and a verdict for each that differs from the control beyond chance."""
    control = rankers.get(SFT_MORE, {})
    rows, tested = [], []
    for name, seeds in rankers.items():
        row = {"ranker": name, "seeds": str(len(seeds))}
        for metric in ("hr@1", "ndcg@5", "auc"):
            row[metric] = spread([record.figures[metric] for record in seeds.values()])
        gaps = [record.figures["mean gap to the hardest"] for record in seeds.values()]
        row["gap to the hardest"] = f"{np.mean(gaps):.2f}"
        row["tokens"] = next((f"{one.training['tokens']:,}" for one in seeds.values() if one.training), "")
        row |= {f"ndcg@5 - {SFT_MORE}": "", "p": ""}
        if (shared := sorted(seeds.keys() & control.keys())) and name != SFT_MORE:
            difference = paired_difference(_per_user(seeds, shared), _per_user(control, shared))
            row[f"ndcg@5 - {SFT_MORE}"] = f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
            tested.append((difference.p_value, difference.mean, row))
        rows.append(row)
    notes = []
    corrected = 0.0
    for place, (p, mean, row) in enumerate(sorted(tested, key=lambda one: one[0])):
        corrected = max(corrected, min(1.0, p * (len(tested) - place)))
        row["p"] = f"{corrected:.2g}"
        if corrected < _LEVEL:
            notes.append(f"{row['ranker']} is {'better' if mean > 0 else 'worse'} than {SFT_MORE} (p = {row['p']}).")
    if tested and not notes:
        notes.append(f"Nothing can be told apart from {SFT_MORE}.")
    return sorted(rows, key=lambda row: row["ndcg@5"], reverse=True), notes


def _per_user(seeds: dict[int, Record], shared: list[int]) -> np.ndarray:
    """Return NDCG@5 of each user, the mean over some seeds, (users,)."""
    return np.mean([seeds[seed].figures["ndcg@5 per user"] for seed in shared], axis=0)


def spread(values: Sequence[float]) -> str:
    """Return the mean and, of several values, their standard deviation."""
    return f"{np.mean(values):.3f}" + (f" ({np.std(values, ddof=1):.3f})" if len(values) > 1 else "")


def across(records: Sequence[Record], method: str) -> dict[tuple[str, str], float]:
    """Return NDCG@5 by what was trained on and what was ranked, of a method, with the fewest training users."""
    own = [one for one in records if one.ranker == method and one.protocol == "test"]
    crossed = [one.users for one in own if one.dataset != one.trained_on]
    if not crossed:
        return {}
    values: dict[tuple[str, str], list[float]] = {}
    for one in own:
        if one.users == min(crossed):
            values.setdefault((one.trained_on, one.dataset), []).append(one.figures["ndcg@5"])
    return {pair: float(np.mean(found)) for pair, found in sorted(values.items())}


def _across(records: Sequence[Record]) -> Iterator[Table]:
    for method in sorted({record.method for record in records if record.dataset != record.trained_on}):
        found = across(records, method)
        ranked = sorted({dataset for _, dataset in found})
        rows = [
            {"trained on": source}
            | {name: f"{found[source, name]:.3f}" if (source, name) in found else "" for name in ranked}
            for source in sorted({source for source, _ in found})
        ]
        yield Table(f"Across domains: {method}, NDCG@5 on ...", rows)


def margins(record: Record) -> tuple[list[float], list[float], list[float]]:
    """Return tokens, the logged mean margin and that to the hardest negative, in plain log-probs or rewards."""
    log = [entry for entry in record.training.get("log", ()) if "rewards/margins_min" in entry]
    return tuple([entry[key] for entry in log] for key in ("num_tokens", "rewards/margins", "rewards/margins_min"))  # type: ignore[return-value]


def _collapse(records: Sequence[Record]) -> Iterator[Table]:
    rows: list[Row] = []
    for one in records:
        if (
            one.method in STAGES
            and one.ranker == one.method
            and one.protocol == "test"
            and one.dataset == one.trained_on
        ):
            _, mean, hardest = margins(one)
            if mean:
                rows.append(
                    {
                        "training": f"{one.dataset}, {one.users} users, {one.method}, seed {one.seed}",
                        "N": str(STAGES[one.method].negatives),
                        "mean margin, first to last": f"{mean[0]:.2f} to {mean[-1]:.2f}",
                        "hardest margin, first to last": f"{hardest[0]:.2f} to {hardest[-1]:.2f}",
                    }
                )
    yield Table("Margins while training: to all negatives, and to the hardest", rows)


def deletions(records: Sequence[Record]) -> dict[str, dict[str, np.ndarray]]:
    """Return deletion curves, (users, steps), by model and by order of removal."""
    return {
        f"{one.dataset}, {one.users} users, {one.method}, seed {one.seed}": {
            order: np.array(one.deletion[order]) for order in ORDERS
        }
        for one in records
        if one.deletion
    }


def _deletions(records: Sequence[Record]) -> Iterator[Table]:
    rows, notes = [], []
    for model, curves in deletions(records).items():
        row: dict[str, Any] = {"model": model}
        row |= {f"{order}, 1 removed": f"{curves[order][:, 0].mean():.2f}" for order in ORDERS}
        row |= {f"{order}, {STEPS} removed": f"{curves[order][:, -1].mean():.2f}" for order in ORDERS}
        rows.append(row)
        for other in ORDERS[1:]:
            difference = paired_difference(curves["explained"][:, -1], curves[other][:, -1])
            beyond = "more" if difference.low > 0 else "less" if difference.high < 0 else "neither more nor less"
            notes.append(
                f"{model}: removing the {STEPS} items that the explanation puts first costs {beyond} than removing "
                f"{STEPS} {other} ones ({difference.mean:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}] nats)."
            )
    if rows:
        notes.append("With 1 removed the explanation has most by definition: it is the order of these effects.")
    yield Table("Explanations: nats lost when items of the history are removed", rows, notes)
