"""Report of an evaluation: for a terminal, for a page and for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import polars as pl

from ..evaluation import Difference, Interval, figures_frame, markdown_table, text_table, verdict
from ._groups import GroupTable, shown_metric
from ._protocols import ProtocolTable, in_order

METRICS = ("hr@1", "hr@5", "hr@10", "ndcg@5", "ndcg@10", "mrr", "auc")
"""The metrics where none are chosen."""

_LEGEND = {
    "hr": "hr@k: share of the users whose item is among the first k; the same as recall@k.",
    "recall": "recall@k: share of the users whose item is among the first k; the same as hr@k.",
    "ndcg": "ndcg@k: as hr@k, but the first place counts 1, the second 0.63, the third 0.5, ...",
    "mrr": "mrr: mean of 1 / place; for mrr@k, 0 from place k + 1 on.",
    "auc": "auc: share of the other candidates that stand below the user's item; 0.5 is chance.",
    "pooled_auc": "pooled_auc: the same over the candidates of all users together.",
    "coverage": "coverage@k: share of all candidate items that are among the first k of some user.",
    "popularity": "popularity@k: mean number of training users that had an item of the first k.",
    "target_popularity": "target_popularity: the same of the items that the users had next.",
    "popularity_lift": "popularity_lift@k: popularity@k / target_popularity - 1; 0: no bias, 1: twice as popular.",
    "long_tail": "long_tail@k: share of the first k outside of the items that have 80% of the interactions.",
    "target_long_tail": "target_long_tail: the same of the items that the users had next.",
    "valid": "valid: share of the generated texts that are the title of an item.",
    "valid_candidate": "valid_candidate: share that are the title of one of the user's candidates.",
}


def default_metrics(most_candidates: int) -> list[str]:
    """Return the metrics where none are chosen, without those that any ranking gets right.

    Args:
        most_candidates: The largest number of candidates of a user.

    Example:
        >>> default_metrics(5)
        ['hr@1', 'mrr', 'auc']
    """
    return [name for name in METRICS if int(name.partition("@")[2] or 0) < most_candidates]


def legend(metrics: Iterable[str]) -> str:
    """Return one line for each kind of metric.

    Example:
        >>> print(legend(["auc"]))
        auc: share of the other candidates that stand below the user's item; 0.5 is chance.
    """
    kinds = dict.fromkeys(name.partition("@")[0] for name in metrics)
    return "\n".join(_LEGEND[kind] for kind in kinds)


@dataclass(frozen=True)
class EvaluationReport:
    """Everything that an evaluation found.

    Attributes:
        settings: What was evaluated and on what, by name.
        about: The same in a sentence.
        ranking: Metrics of each ranker.
        differences: Paired differences, by the two rankers.
        first: Coverage and popularity bias of each ranker's first items.
        generation: Of free generation; empty where it was not asked for.
        groups: Metrics of each ranker for groups of users, by the name of the division.
        protocol: Name of what is ranked here.
        further: Metrics of each ranker for other candidates, by the name of the protocol.
    """

    settings: Mapping[str, Any]
    about: str
    ranking: Mapping[str, Mapping[str, Interval]]
    differences: Mapping[tuple[str, str], Mapping[str, Difference]]
    first: Mapping[str, Mapping[str, float]]
    generation: Mapping[str, Mapping[str, Interval]]
    groups: Mapping[str, GroupTable] = field(default_factory=dict)
    protocol: str = "uniform"
    further: Mapping[str, ProtocolTable] = field(default_factory=dict)

    def text(self) -> str:
        """Return the report for a terminal: aligned tables, what the columns mean, and the differences in words."""
        return "\n\n".join(self._parts(text_table))

    def files(self) -> dict[str, str]:
        """Return the report by the names of its files: `table.md`, `metrics.json` and `metrics.csv`."""
        figures: dict[str, Any] = {name: _plain_rows(rows) for name, rows in self._tables().items()}
        figures |= {
            name: {group: _plain_rows(rows) for group, rows in table.figures.items()}
            for name, table in self.groups.items()
        }
        figures["gains"] = {
            name: {pair: {group: _plain(own) for group, own in gains.items()} for pair, gains in table.gains.items()}
            for name, table in self.groups.items()
            if table.gains
        }
        figures["protocols"] = {name: {"users": own.users, "about": own.about} for name, own in self.further.items()}
        figures["notes"] = {name: table.division.notes for name, table in self.groups.items() if table.division.notes}
        of_all = [(name, None, rows) for name, rows in self._tables().items()]
        of_groups = [(name, *entry) for name, table in self.groups.items() for entry in table.figures.items()]
        frame = pl.concat(
            figures_frame(rows).select(pl.lit(name).alias("table"), pl.lit(group, pl.String).alias("group"), pl.all())
            for name, group, rows in [*of_all, *of_groups]
        )
        return {
            "table.md": "\n\n".join(self._parts(markdown_table)) + "\n",
            "metrics.json": json.dumps({**self.settings, **figures}, indent=2, ensure_ascii=False, allow_nan=False)
            + "\n",
            "metrics.csv": frame.write_csv(),
        }

    def _tables(self) -> dict[str, Mapping[str, Mapping[str, Any]]]:
        tables: dict[str, Mapping[str, Mapping[str, Any]]] = {}
        for name in in_order([self.protocol, *self.further]):
            own = name == self.protocol
            tables["ranking" if own else f"ranking_{name}"] = self.ranking if own else self.further[name].ranking
        tables |= {
            "differences": {f"{name} - {other}": own for (name, other), own in self.differences.items()},
            "first": self.first,
            "generation": self.generation,
        }
        return {name: rows for name, rows in tables.items() if rows}

    def titled_tables(self) -> list[tuple[str, Mapping[str, Mapping[str, Any]]]]:
        """Return the tables in their order, each with its title."""
        titles = self._titles()
        return [(titles[name], rows) for name, rows in self._tables().items()]

    def sentences(self) -> list[str]:
        """Return in words what the differences show, one metric of each."""
        found = []
        for (name, other), row in self.differences.items():
            metric = shown_metric(row)
            found.append(verdict(name, other, metric, row[metric]))
        return found

    def _titles(self) -> dict[str, str]:
        return {
            "ranking": self.about,
            "differences": "Differences, paired by user, with the p-value of a permutation test:",
            "first": f"The first {self.settings['top_k']} of each user:",
            "generation": "Generated freely:",
            **{f"ranking_{name}": table.about for name, table in self.further.items()},
        }

    def _parts(self, table: Any) -> list[str]:
        titles, parts = self._titles(), []
        for name, rows in self._tables().items():
            parts += [titles[name], table(rows)]
            if name in ("ranking", "first", "generation"):
                parts.append(legend(metric for row in rows.values() for metric in row))
        sentences = self.sentences()
        by_group = [part for groups in self.groups.values() for part in groups.parts(table)]
        return [*parts, *(["\n".join(sentences)] if sentences else []), *by_group]


def _plain_rows(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row: {metric: _plain(figure) for metric, figure in own.items()} for row, own in rows.items()}


def _plain(figure: Interval | float) -> dict[str, float] | float | None:
    if isinstance(figure, Interval):
        return asdict(figure)
    return None if math.isnan(figure) else figure  # JSON has no NaN
