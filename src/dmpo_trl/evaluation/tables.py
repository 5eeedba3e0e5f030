"""Tables of figures, for a page and for a terminal, and differences in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

import polars as pl

from .intervals import Difference, Interval

Figures = Mapping[str, Mapping[str, Interval | float]]
"""Figures by metric, by the name of what they are of."""


def markdown_table(rows: Figures) -> str:
    """Return figures as a Markdown table: plain ones, with intervals, or differences with their p-value.

    Args:
        rows: Figures by metric, by the name to show: numbers, or what [`RankingResult.intervals`],
            [`RankingResult.minus`] or [`GenerationResult.intervals`] returned. Where a row has no figure of a metric,
            the cell is empty.

    Returns:
        The table, with the metrics in the order in which they first appear.

    Example:
        >>> rows = {"model": {"hr@1": Interval(0.5, 0.4, 0.6)}, "random": {"hr@1": 0.25, "auc": 0.5}}
        >>> print(markdown_table(rows))
        |  | hr@1 | auc |
        | --- | --- | --- |
        | model | 0.500 [0.400, 0.600] |  |
        | random | 0.250 | 0.500 |
    """
    metrics = metrics_of(rows)
    lines = [["", *metrics], ["---"] * (len(metrics) + 1)]
    lines += [[name, *(cell(row.get(metric)) for metric in metrics)] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def text_table(rows: Figures, *, width: int = 100) -> str:
    """Return figures as aligned columns for a terminal, below each other where they are wider than it.

    Args:
        rows: As in [`markdown_table`].
        width: Most characters in a line, unless the names and a single column have more.

    Returns:
        The table, or tables with an empty line between them.

    Example:
        >>> rows = {"model": {"hr@1": Interval(0.5, 0.4, 0.6)}, "random": {"hr@1": 0.25, "auc": 0.5}}
        >>> print(text_table(rows))
                hr@1                  auc
        model   0.500 [0.400, 0.600]
        random  0.250                 0.500
        >>> print(text_table(rows, width=30))
                hr@1
        model   0.500 [0.400, 0.600]
        random  0.250
        <BLANKLINE>
                auc
        model
        random  0.500
    """
    names = _column(["", *rows])
    columns = [_column([metric, *(cell(row.get(metric)) for row in rows.values())]) for metric in metrics_of(rows)]
    blocks: list[list[list[str]]] = []
    room = 0
    for column in columns:
        room -= 2 + len(column[0])
        if room < 0:
            blocks.append([names])
            room = width - len(names[0]) - 2 - len(column[0])
        blocks[-1].append(column)
    return "\n\n".join("\n".join("  ".join(cells).rstrip() for cells in zip(*block, strict=True)) for block in blocks)


def figures_frame(rows: Figures) -> pl.DataFrame:
    """Return figures as a table for programs: one row per name and metric.

    Args:
        rows: As in [`markdown_table`].

    Returns:
        Columns `name`, `metric`, `mean`, `low`, `high` and `p_value`; the last three are null where there are none.

    Example:
        >>> rows = {"model": {"hr@1": Interval(0.5, 0.4, 0.6)}, "random": {"hr@1": 0.25}}
        >>> figures_frame(rows).rows()
        [('model', 'hr@1', 0.5, 0.4, 0.6, None), ('random', 'hr@1', 0.25, None, None, None)]
    """
    schema = {"name": pl.String, "metric": pl.String} | dict.fromkeys(("mean", "low", "high", "p_value"), pl.Float64)
    return pl.DataFrame(list(_flat(rows)), schema=schema)


def verdict(name: str, other: str, metric: str, difference: Difference, *, level: float = 0.05) -> str:
    """Return in words what a paired difference of two rankers shows.

    Args:
        name: Name of the ranker.
        other: Name of the one that was taken from it.
        metric: The metric.
        difference: An entry of what [`RankingResult.minus`] returned.
        level: The difference is called significant where its p-value is below.

    Returns:
        One sentence, with the figures.

    Example:
        >>> print(verdict("dmpo", "sft", "ndcg@5", Difference(0.15, 0.09, 0.21, p_value=0.0002)))
        dmpo is better than sft: ndcg@5 +0.150 [+0.090, +0.210], p = 0.0002.
        >>> print(verdict("dmpo", "sft", "ndcg@5", Difference(-0.01, -0.05, 0.03, p_value=0.39)))
        dmpo and sft cannot be told apart: ndcg@5 -0.010 [-0.050, +0.030], p = 0.39.
    """
    figure = f"{metric} {cell(difference)}"
    if difference.p_value < level:
        return f"{name} is {'better' if difference.mean > 0 else 'worse'} than {other}: {figure}."
    return f"{name} and {other} cannot be told apart: {figure}."


def metrics_of(rows: Figures) -> list[str]:
    """Return the metrics of all rows, in the order in which they first appear."""
    return list(dict.fromkeys(metric for row in rows.values() for metric in row))


def _column(cells: Sequence[str]) -> list[str]:
    """Return the cells, all as wide as the widest."""
    width = max(map(len, cells))
    return [text.ljust(width) for text in cells]


def _flat(rows: Figures) -> Iterator[dict[str, str | float]]:
    for name, row in rows.items():
        for metric, figure in row.items():
            yield {"name": name, "metric": metric} | (
                asdict(figure) if isinstance(figure, Interval) else {"mean": figure}
            )


def cell(figure: Interval | float | None) -> str:
    """Return a figure as it stands in tables; what is not there is empty."""
    if figure is None:
        return ""
    if isinstance(figure, Difference):
        return f"{figure.mean:+.3f} [{figure.low:+.3f}, {figure.high:+.3f}], p = {figure.p_value:.2g}"
    return str(figure) if isinstance(figure, Interval) else f"{figure:.3f}"
