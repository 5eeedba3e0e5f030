"""Tables of a report: what each method ranks, and what it adds to SFT that goes on for as many tokens.

Metrics are means over users and, in brackets, the standard deviation over seeds; `cold start` is NDCG@5 of the test
users whose target no training user had. Models are compared with SFT that goes on, and with SFT as it was, both of
them with or both without what they say when there is no history; models and counts together with the counts; SFT alone
with counts and traditional recommenders on the same interactions; models of another domain with that of the ranked
one, and with the model that was not trained. Differences are paired by user (each user's mean over the seeds that both
have), with bootstrap intervals and a permutation test; the p-values of one table and control are corrected for how
many there are (Holm).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, TypeVar

import numpy as np

from dmpo_trl.evaluation import Difference, paired_difference

from .explaining import ORDERS, STEPS
from .methods import SFT, SFT_MORE, STAGES, TRADITIONAL, ZERO_SHOT
from .records import PROTOCOLS, VALIDATION, Record, by_ranker
from .sources import SOURCES, Source

Row = dict[str, str]
Values = Callable[[dict[int, Record], list[int]], np.ndarray]
Name = TypeVar("Name")
POPULARITY, COUNTS = "popularity", "item knn"
MEAN = "mean per token"
NO_HISTORY = " + no history"
NOTHING = "nothing"
BETA = " beta "
_LEVEL = 0.05


@dataclass
class Table:
    """Rows under a title, and what they say in a sentence or more."""

    title: str
    rows: list[Row]
    notes: list[str] = field(default_factory=list)


def tables(records: Sequence[Record]) -> list[Table]:
    """Return all tables that the records have something for."""
    found = [
        *_comparisons(records),
        *_wordings(records),
        *_across(records),
        *_chosen(records),
        *_collapse(records),
        *_deletions(records),
    ]
    return [table for table in found if table.rows]


def _comparisons(records: Sequence[Record]) -> Iterator[Table]:
    order = {name: place for place, name in enumerate(("catalogue", "test", "popular"))}
    own = [one for one in records if one.dataset == one.trained_on and one.protocol in order]

    def key(record: Record) -> tuple[str, int, int]:
        return record.dataset, record.users, order[record.protocol]

    for (dataset, users, _), group in groupby(sorted(own, key=key), key=key):
        members = list(group)
        table = comparison(by_ranker(members), {one.seed: one.cold for one in members if one.cold is not None})
        yield Table(f"{dataset}, {users} training users, {PROTOCOLS[members[0].protocol]}", *table)


def comparison(
    rankers: dict[str, dict[int, Record]], cold: Mapping[int, Sequence[int]]
) -> tuple[list[Row], list[str]]:
    """Return one row per ranker, and a verdict on each that was compared with a control.

    Args:
        rankers: Their records, by seed.
        cold: Places of the test users whose target no training user had, by seed.
    """
    rows = {name: _row(name, seeds, cold) for name, seeds in rankers.items()}
    notes = []
    fused = [name for name in rankers if name.endswith(f" + {COUNTS}")]
    counts = [name for name, seeds in rankers.items() if not next(iter(seeds.values())).is_model]
    models = [name for name in rankers if name not in (*fused, *counts)]
    informed = [name for name in models if name.endswith(NO_HISTORY)]
    plain = [name for name in models if name not in informed and not name.endswith(MEAN)]  # what the losses train
    for control, compared in ((SFT_MORE, plain), (f"{SFT_MORE}{NO_HISTORY}", informed), (COUNTS, fused)):
        compared = [name for name in compared if name != control]
        notes += compare(rows, rankers, control, compared, "ndcg@5 minus", _per_user)
    # SFT that goes on may have had too much of it: then SFT as it was is the better opponent
    for suffix, compared in (("", plain), (NO_HISTORY, informed)):
        compared = [name for name in compared if name not in (f"{SFT}{suffix}", f"{SFT_MORE}{suffix}")]
        notes += compare(None, rankers, f"{SFT}{suffix}", compared, "ndcg@5 minus", _per_user)
    opponents = [name for name in (POPULARITY, COUNTS, *TRADITIONAL) if name in rankers]
    alone = [name for name in (SFT, f"{SFT}{NO_HISTORY}") if name in rankers]
    pairs = {(name, other): (rankers[name], rankers[other]) for name in alone for other in opponents}
    notes += [_verdict(name, other, p, own) for (name, other), p, own in _differences(pairs, _per_user)]
    if cold:
        number = np.mean([len(places) for places in cold.values()])
        notes.append(f"Of the test users {number:.0f} (mean over seeds) have a target that no training user had.")
    return sorted(rows.values(), key=lambda row: row["ndcg@5"], reverse=True), notes


def compare(
    rows: dict[str, Row] | None,
    rankers: dict[str, dict[int, Record]],
    control: str,
    compared: Sequence[str],
    column: str,
    values: Values,
) -> list[str]:
    """Write differences from a control into the rows, and return a verdict on each.

    Args:
        rows: By ranker; None for the verdicts alone.
        rankers: Their records, by seed.
        control: A ranker.
        compared: Others.
        column: For the difference; the p-value's is `p`.
        values: Gives a ranker's value of each user, the mean over some seeds, (users,).
    """
    theirs = rankers.get(control, {})
    notes = []
    for name, p, difference in _differences({name: (rankers[name], theirs) for name in compared}, values):
        if rows is not None:
            rows[name][column] = f"{control}: {difference}"
            rows[name]["p"] = f"{p:.2g}"
        notes.append(_verdict(name, control, p, difference))
    return notes


def _verdict(name: str, control: str, p: float, difference: Difference) -> str:
    better_or_worse = "is better than" if difference.mean > 0 else "is worse than"
    beyond = "cannot be told apart from" if p >= _LEVEL else better_or_worse
    return f"{name} {beyond} {control}: {difference}, p = {p:.2g}."


def _row(name: str, seeds: dict[int, Record], cold: Mapping[int, Sequence[int]]) -> Row:
    row = {"ranker": name, "seeds": str(len(seeds))}
    for metric in ("hr@1", "ndcg@5", "auc"):
        row[metric] = spread([record.figures[metric] for record in seeds.values()])
    own = {seed: np.array(record.figures["ndcg@5 per user"]) for seed, record in seeds.items()}
    there = {seed: [place for place in cold.get(seed, ()) if place < len(values)] for seed, values in own.items()}
    of_cold = [float(own[seed][places].mean()) for seed, places in there.items() if places]
    row["cold start"] = spread(of_cold) if of_cold else ""
    gaps = [record.figures["mean gap to the hardest"] for record in seeds.values()]
    row["gap to the hardest"] = f"{np.mean(gaps):.2f}"
    row["tokens"] = next((f"{one.training['tokens']:,}" for one in seeds.values() if one.training), "")
    return row | {"ndcg@5 minus": "", "p": ""}


def _differences(
    pairs: Mapping[Name, tuple[dict[int, Record], dict[int, Record]]], values: Values
) -> list[tuple[Name, float, Difference]]:
    """Return the values of the first minus those of the second, with p-values corrected for how many there are (Holm).

    Args:
        pairs: Records of a ranker and of its control, each by seed, by the pair's name.
        values: As in `compare`.
    """
    found = []
    for name, (own, theirs) in pairs.items():
        if shared := sorted(own.keys() & theirs.keys()):
            found.append((name, paired_difference(values(own, shared), values(theirs, shared))))
    found.sort(key=lambda pair: pair[1].p_value)
    corrected, result = 0.0, []
    for place, (name, difference) in enumerate(found):
        corrected = max(corrected, min(1.0, difference.p_value * (len(found) - place)))
        result.append((name, corrected, difference))
    return result


def _per_user(seeds: dict[int, Record], shared: list[int]) -> np.ndarray:
    """Return NDCG@5 of each user, the mean over some seeds, (users,)."""
    return np.mean([seeds[seed].figures["ndcg@5 per user"] for seed in shared], axis=0)


def spread(values: Sequence[float]) -> str:
    """Return the mean and, of several values, their standard deviation."""
    return f"{np.mean(values):.3f}" + (f" ({np.std(values, ddof=1):.3f})" if len(values) > 1 else "")


def _wordings(records: Sequence[Record]) -> Iterator[Table]:
    """Yield for each data set with other prompts what they change, on the same users."""
    own = [one for one in records if one.dataset == one.trained_on and one.protocol == "test" and one.is_model]
    reworded = {name: source.reworded for name, source in SOURCES.items() if isinstance(source, Source)}
    for name, original in reworded.items():
        if original is None:
            continue
        found: dict[tuple[int, str], dict[str, dict[int, Record]]] = {}
        for one in own:
            if one.dataset in (name, original):
                found.setdefault((one.users, one.ranker), {}).setdefault(one.dataset, {})[one.seed] = one
        both = {
            key: (kinds[name], kinds[original]) for key, kinds in found.items() if {name, original} <= kinds.keys()
        }
        rows = [
            {
                "ranker": ranker,
                "training users": str(users),
                name: f"{ndcg(ours):.3f}",
                original: f"{ndcg(theirs):.3f}",
            }
            for (users, ranker), (ours, theirs) in both.items()
        ]
        notes = [
            _verdict(f"{ranker} ({users} users) of {name}", f"that of {original}", p, difference)
            for (users, ranker), p, difference in _differences(both, _per_user)
        ]
        yield Table(f"Other words: {name}, NDCG@5", rows, notes)


def _chosen(records: Sequence[Record]) -> Iterator[Table]:
    """Yield a table of the validation users where methods that differ in beta alone were tried on them."""
    found: dict[tuple[str, int, int], Row] = {}
    for one in records:
        if one.protocol == VALIDATION and one.ranker == one.method and one.dataset == one.trained_on:
            key = one.dataset, one.users, one.seed
            found.setdefault(key, {})[one.method] = f"{one.figures['ndcg@5']:.3f}"
    tried = sorted({method for row in found.values() for method in row if BETA in method})
    columns = sorted({method.partition(BETA)[0] for method in tried}) + tried
    rows = [
        {"cells": f"{dataset}, {users} users, seed {seed}"} | {name: row.get(name, "") for name in columns}
        for (dataset, users, seed), row in sorted(found.items())
        if set(tried) & row.keys()
    ]
    yield Table("Beta: NDCG@5 of validation users, each row the same users", rows)


def rankers_across(records: Sequence[Record]) -> list[str]:
    """Return the rankers of models that rank another data set than they were trained on."""
    crossed = {one.ranker for one in records if one.dataset != one.trained_on and one.protocol == "test"}
    return sorted(name for name in crossed if not name.endswith(MEAN))


def across(records: Sequence[Record], ranker: str) -> dict[tuple[str, str], dict[int, Record]]:
    """Return records by what was trained on and what was ranked, then by seed, of a ranker.

    They are those of the fewest training users with which another data set was ranked, of the seeds with which it was.
    What was trained on is `nothing` for the zero-shot model, whose seed makes no difference.
    """
    own = [one for one in records if one.protocol == "test"]
    crossed = [one for one in own if one.ranker == ranker and one.dataset != one.trained_on]
    users, untrained = min(one.users for one in crossed), ranker.replace(crossed[0].method, ZERO_SHOT, 1)
    seeds = {one.seed for one in crossed if one.users == users}
    found: dict[tuple[str, str], dict[int, Record]] = {}
    for one in own:
        if one.ranker == ranker and one.users == users and one.seed in seeds:
            found.setdefault((one.trained_on, one.dataset), {})[one.seed] = one
        elif one.ranker == untrained:
            found[NOTHING, one.dataset] = dict.fromkeys(seeds, one)
    return dict(sorted(found.items()))


def ndcg(seeds: Mapping[int, Record]) -> float:
    """Return NDCG@5, the mean over seeds."""
    return float(np.mean([one.figures["ndcg@5"] for one in seeds.values()]))


def _across(records: Sequence[Record]) -> Iterator[Table]:
    for ranker in rankers_across(records):
        found = across(records, ranker)
        ranked = sorted({dataset for _, dataset in found})
        rows = [
            {"trained on": source}
            | {name: f"{ndcg(found[source, name]):.3f}" if (source, name) in found else "" for name in ranked}
            for source in sorted({source for source, _ in found})
        ]
        notes = []
        for control in ("in-domain", NOTHING):
            pairs = {
                f"{source} to {dataset}": (seeds, found.get((dataset if control != NOTHING else NOTHING, dataset), {}))
                for (source, dataset), seeds in found.items()
                if source not in (dataset, NOTHING)
            }
            notes += [_verdict(name, control, p, own) for name, p, own in _differences(pairs, _per_user)]
        yield Table(f"Across domains: {ranker}, NDCG@5 on ...", rows, notes)


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
