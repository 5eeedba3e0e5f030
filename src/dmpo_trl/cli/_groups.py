"""Results by groups of users: new items, and short and long histories."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from datasets import Dataset

from ..data import Prepared
from ..evaluation import (
    Difference,
    Interval,
    RankingResult,
    cold_start_groups,
    group_intervals,
    history_groups,
    popularity_groups,
)
from ..evaluation.metrics import POOLED_AUC
from ..evaluation.tables import Figures

_ABOUT = {
    "by_target": "by target, in a training example (known) or in none (cold)",
    "by_history": "by the number of items that a user had before the target",
    "by_popularity": "by the number of training users that had the target",
}


@dataclass(frozen=True)
class Division:
    """Users divided in one way.

    Args:
        about: By what, in words.
        groups: The rows of each group's users.
        missing: In words why there are no groups, or what one might miss among them.

    Example:
        >>> Division("by age", {"young": np.array([0, 2])}).sizes
        {'young': 2}
    """

    about: str
    groups: Mapping[str, np.ndarray]
    missing: str = ""

    @property
    def sizes(self) -> dict[str, int]:
        """Number of users of each group."""
        return {name: len(rows) for name, rows in self.groups.items()}

    def heading(self, group: str) -> str:
        """Return a group's name, and how many users it has."""
        return f"{group} ({len(self.groups[group])})"

    @property
    def notes(self) -> list[str]:
        """What is not in the tables, in sentences."""
        single = [name for name, size in self.sizes.items() if size == 1]
        notes = [self.missing] if self.missing else []
        return notes + [f"Not shown: {name}, with a single user, who gives no interval." for name in single]


def divide(prepared: Prepared, users: Dataset) -> dict[str, Division]:
    """Divide users by whether their target is new, by the length of their history and by the target's popularity.

    Args:
        prepared: The folder that they are from.
        users: Rows of its ranking data.

    Returns:
        The divisions `by_target`, `by_history` and `by_popularity`.

    Example:
        >>> divide(prepared, prepared.ranking["test"])["by_target"].sizes  # doctest: +SKIP
        {'known': 180, 'cold': 20}
    """
    by_history = history_groups(users)
    one = f"all {len(users)} users had {next(iter(by_history))} items." if len(by_history) == 1 else ""
    by_popularity = popularity_groups(users, prepared.popularity())
    same = f"all {len(users)} targets were {next(iter(by_popularity))}." if len(by_popularity) == 1 else ""
    return {
        "by_target": _by_target(prepared, users),
        "by_history": Division(_ABOUT["by_history"], {} if one else by_history, one),
        "by_popularity": Division(_ABOUT["by_popularity"], {} if same else by_popularity, same),
    }


@dataclass(frozen=True)
class GroupTable:
    """Figures of each ranker for each group.

    Args:
        division: The groups.
        figures: By group and ranker: `users`, how many there are, and the metrics.
        gains: Of one ranker over another, in the metric that is shown, paired by user: by `X - Y` and group.

    Example:
        >>> division = Division("by age", {"young": np.array([0, 2]), "old": np.array([1])})
        >>> from dmpo_trl.evaluation import text_table
        >>> figures = {"young": {"model": {"users": 2, "auc": Interval(0.5, 0.4, 0.6)}}}
        >>> for part in GroupTable(division, figures).parts(text_table):
        ...     print(part)
        auc by age, and the number of users:
               young (2)
        model  0.500 [0.400, 0.600]
        Not shown: old, with a single user, who gives no interval.
    """

    division: Division
    figures: Mapping[str, Mapping[str, Mapping[str, Interval | float]]]
    gains: Mapping[str, Mapping[str, Difference]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        division: Division,
        results: Mapping[str, RankingResult],
        metrics: Sequence[str],
        compared: tuple[str, str] | None = None,
    ) -> GroupTable:
        """Compute the figures.

        Args:
            division: The groups.
            results: Each ranker's results of the users that were divided, by the name to show.
            metrics: Names of the metrics.
            compared: Two rankers: the gain of the first over the second.
        """
        of_rankers = {name: group_intervals(result, division.groups, metrics) for name, result in results.items()}
        figures: dict[str, dict[str, dict[str, Interval | float]]] = {
            group: {name: {"users": size, **own[group]} for name, own in of_rankers.items()}
            for group, size in division.sizes.items()
            if size > 1
        }
        metric = shown_metric(metrics)
        if compared is None or metric == POOLED_AUC:  # which no single user has
            return cls(division, figures)
        ours, theirs = (results[name] for name in compared)
        gains = {
            group: ours.of_rows(rows).minus(theirs.of_rows(rows), [metric])[metric]
            for group, rows in division.groups.items()
            if group in figures
        }
        return cls(division, figures, {" - ".join(compared): gains} if gains else {})

    def parts(self, table: Callable[[Figures], str]) -> list[str]:
        """Return one metric of each group beside the others', and what is not there, in words.

        Args:
            table: Writes a table.
        """
        rows: dict[str, dict[str, Interval | float]] = {}
        about = self.division.about
        for group, of_rankers in self.figures.items():
            for name, own in of_rankers.items():
                metric = shown_metric(own)
                rows.setdefault(name, {})[self.division.heading(group)] = own[metric]
        for name, of_groups in self.gains.items():
            rows[name] = {self.division.heading(group): gain for group, gain in of_groups.items()}
        if not rows:
            return [" ".join([f"Results {about}:", *self.division.notes])]
        return [f"{metric} {about}, and the number of users:", table(rows), *self.division.notes]


def shown_metric(metrics: Iterable[str]) -> str:
    """Return the metric to show where there is room for one: NDCG@5, or else the first.

    Args:
        metrics: Their names.

    Example:
        >>> shown_metric(["users", "hr@1", "ndcg@5"]), shown_metric(["users", "mrr", "auc"])
        ('ndcg@5', 'mrr')
    """
    names = [name for name in metrics if name != "users"]
    return "ndcg@5" if "ndcg@5" in names else names[0]


def _by_target(prepared: Prepared, users: Dataset) -> Division:
    about = _ABOUT["by_target"]
    if not prepared.has_interactions:
        return Division(about, {}, "not known, because an earlier version prepared the data. Prepare them again.")
    groups = cold_start_groups(users, prepared.interactions.filter("shown")["item"].unique().to_list())
    if len(groups) == 2:
        return Division(about, groups)
    return Division(about, {}, f"all {len(users)} targets are {next(iter(groups))}.")
