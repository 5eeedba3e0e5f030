"""An evaluation as one page for a browser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from datasets import Dataset
from jinja2 import Environment

from ..evaluation import Interval, RankingResult
from ..evaluation.tables import Figures, cell, metrics_of
from ._evaluation import EvaluationReport, legend
from ._groups import shown_metric

_USERS = 200  # a page of more is slow to open, and nobody reads on
_PLACES = 20  # of a list


@dataclass(frozen=True)
class UserList:
    """What one user had, and how rankers order what might come next.

    Attributes:
        user: Identifier.
        history: Titles, from old to new.
        target: Title of what came next.
        lists: The first titles of each ranker, the best first.
        places: Place of the target in each of them, from 1; the mean of its places where it is tied.
    """

    user: str
    history: Sequence[str]
    target: str
    lists: Mapping[str, Sequence[str]]
    places: Mapping[str, float]


def user_lists(users: Dataset, titles: Mapping[str, str], results: Mapping[str, RankingResult]) -> list[UserList]:
    """Return the first users with the lists of some rankers.

    Args:
        users: Rows of ranking data.
        titles: Of all items.
        results: Rankings of these users, by the name to show.

    Example:
        >>> user_lists(users, titles, {"model": results["sum"]})[0].places  # doctest: +SKIP
        {'model': 3.0}
    """
    found = []
    for number, row in enumerate(users.select(range(min(_USERS, len(users))))):
        lists = {}
        for name, result in results.items():
            order = (-result.scores[number]).argsort(kind="stable")[:_PLACES]
            lists[name] = [titles[row["items"][place]] for place in order]
        places = {name: float(result.ranks.places[number]) for name, result in results.items()}
        history = [titles[item] for item in row["history"]]
        found.append(UserList(str(row["user"]), history, titles[row["items"][row["positive"]]], lists, places))
    return found


def page(report: EvaluationReport, users: Sequence[UserList]) -> str:
    """Return a report as HTML that needs nothing beside it: no scripts, fonts or pictures of elsewhere.

    Titles and names are text in it, whatever they look like.

    Args:
        report: The evaluation.
        users: For the browser of users.

    Example:
        >>> figures = {"<b>": {"auc": Interval(0.5, 0.4, 0.6)}}
        >>> text = page(EvaluationReport({"top_k": 5}, "About.", figures, {}, {}, {}), [])
        >>> "&lt;b&gt;" in text, "<b>" in text
        (True, False)
    """
    template = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True)
    environment.filters |= {"figure": cell}
    names = list(users[0].lists) if users else []
    return environment.from_string(template).render(
        about=report.about,
        tables=[_table(title, rows) for title, rows in report.titled_tables()],
        pictures=[*_pictures(report.ranking), *_of_groups(report)],
        verdicts=report.sentences(),
        legend=legend(metric for row in [*report.ranking.values(), *report.first.values()] for metric in row),
        names=names,
        users=[vars(user) for user in users],
    )


def _table(title: str, rows: Figures) -> dict[str, Any]:
    return {"title": title, "metrics": metrics_of(rows), "rows": rows}


def _pictures(ranking: Figures) -> list[dict[str, Any]]:
    """One picture for each metric: every ranker's mean and interval."""
    return [
        _picture(metric, {"": {name: row[metric] for name, row in ranking.items() if metric in row}})
        for metric in metrics_of(ranking)
    ]


def _of_groups(report: EvaluationReport) -> list[dict[str, Any]]:
    """Two pictures for each division of the users: every ranker in every group, and what one gains over another."""
    pictures = []
    for table in report.groups.values():
        groups: dict[str, dict[str, Interval | float]] = {}
        for group, of_rankers in table.figures.items():
            for name, own in of_rankers.items():
                metric = shown_metric(own)
                size = table.division.sizes[group]
                heading = f"{group} ({size} {'user' if size == 1 else 'users'})"
                groups.setdefault(heading, {})[name] = own[metric]
        if groups:
            pictures.append(_picture(f"{metric} {table.division.about}", groups))
        for pair, gains in table.gains.items():
            by_group = {table.division.heading(group): gain for group, gain in gains.items()}
            pictures.append(_picture(f"{metric}, {pair}, {table.division.about}", {"": by_group}, signed=True))
    return pictures


def _picture(
    title: str, groups: Mapping[str, Mapping[str, Interval | float]], *, signed: bool = False
) -> dict[str, Any]:
    """Bars of every group on one scale, in percent of it: from 0 to the largest value, or as far to either side."""
    ends = [abs(end) for figures in groups.values() for own in figures.values() for end in _span(own)]
    largest = max(ends) or 1.0
    lowest, end = -largest if signed else 0.0, cell(largest)

    def bar(name: str, own: Interval | float) -> dict[str, Any]:
        low, mean, high = (round(100 * (value - lowest) / (largest - lowest), 2) for value in _span(own))
        return {"name": name, "text": cell(own), "low": low, "mean": mean, "high": high}

    return {
        "title": title,
        "groups": {group: [bar(name, own) for name, own in figures.items()] for group, figures in groups.items()},
        "signed": signed,
        "scale": f"-{end} to +{end}" if signed else f"0 to {end}",
    }


def _span(own: Interval | float) -> tuple[float, float, float]:
    return (own.low, own.mean, own.high) if isinstance(own, Interval) else (own, own, own)
