"""Pictures of a report, as SVG, equal to the byte for equal cells and versions of matplotlib."""

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np

from .explaining import ORDERS, STEPS
from .methods import STAGES
from .records import Record
from .tables import across, deletions, margins, ndcg, rankers_across

mpl.use("Agg")
mpl.rcParams["svg.hashsalt"] = "paper"
from matplotlib import pyplot as plt  # noqa: E402, the backend is chosen first


def pictures(records: Sequence[Record]) -> Iterator[tuple[str, str, str]]:
    """Yield name, title and SVG of each picture that the records have something for."""
    plain = [one for one in records if one.protocol == "test" and one.dataset == one.trained_on]
    for name, title, draw in (
        ("shots", "NDCG@5 against training users", _shots),
        ("negatives", "NDCG@5 against negatives per example", _negatives),
        ("seconds", "NDCG@5 against seconds of training", _seconds),
        ("margins", "Margins over the preference stage", _margins),
        ("deletion", "Nats lost when items of the history are removed", _deletion),
    ):
        if svg := _drawn(draw, plain):
            yield name, title, svg
    for ranker in rankers_across(records):
        figures = {pair: ndcg(seeds) for pair, seeds in across(records, ranker).items()}
        if svg := _drawn(lambda axes, _, figures=figures: _heat(axes, figures), records):
            name = ranker.replace(" + ", "-").replace(" ", "-")
            yield f"across-{name}", f"{ranker}: trained on one data set, ranked on another", svg


def _drawn(draw: Callable[[Any, Sequence[Record]], bool], records: Sequence[Record]) -> str | None:
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    there = draw(axes, records)
    buffer = io.StringIO()
    if there:
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    return buffer.getvalue() if there else None


def _lines(axes: Any, points: dict[str, dict[float, list[float]]], x_label: str) -> bool:
    """Draw one line per name that has several places; at each place the mean, and the range of the seeds."""
    drawn = {name: own for name, own in sorted(points.items()) if len(own) > 1}
    for name, own in drawn.items():
        places = sorted(own)
        means = np.array([np.mean(own[place]) for place in places])
        axes.plot(places, means, marker="o", markersize=4, label=name)
        axes.fill_between(places, [min(own[p]) for p in places], [max(own[p]) for p in places], alpha=0.15)
    axes.set(xlabel=x_label, ylabel="NDCG@5")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    if drawn:
        axes.legend(fontsize=7)
    return bool(drawn)


def _shots(axes: Any, records: Sequence[Record]) -> bool:
    points: dict[str, dict[float, list[float]]] = {}
    for one in records:
        if "mean per token" not in one.ranker:
            own = points.setdefault(f"{one.dataset}: {one.ranker}", {})
            own.setdefault(one.users, []).append(one.figures["ndcg@5"])
    return _lines(axes, points, "training users")


def _negatives(axes: Any, records: Sequence[Record]) -> bool:
    points: dict[str, dict[float, list[float]]] = {}
    for one in records:
        if one.method in STAGES and one.ranker == one.method:
            method = STAGES[one.method]
            loss = one.method.rstrip(" 0123456789") if method.positions == "growing" else one.method
            own = points.setdefault(f"{one.dataset}, {one.users} users: {loss}", {})
            own.setdefault(method.negatives, []).append(one.figures["ndcg@5"])
    return _lines(axes, points, "negatives per example")


def _seconds(axes: Any, records: Sequence[Record]) -> bool:
    trained = [one for one in records if one.training and one.ranker == one.method]
    for one in trained:
        axes.plot(one.training["seconds"], one.figures["ndcg@5"], "o", markersize=4, color="tab:blue")
        label = f"{one.method}, {one.users} users of {one.dataset}"
        axes.annotate(label, (one.training["seconds"], one.figures["ndcg@5"]), fontsize=5)
    axes.set(xlabel="seconds of this stage", ylabel="NDCG@5")
    axes.grid(alpha=0.3)
    return bool(trained)


def _margins(axes: Any, records: Sequence[Record]) -> bool:
    colours = iter(plt.rcParams["axes.prop_cycle"].by_key()["color"] * 20)
    found = False
    for one in records:
        tokens, mean, hardest = margins(one)
        if len(tokens) > 1 and one.ranker == one.method and one.seed == 0:
            found, colour = True, next(colours)
            axes.plot(tokens, mean, color=colour, linestyle=":", linewidth=1)
            axes.plot(tokens, hardest, color=colour, label=f"{one.method}, {one.dataset}, {one.users} users")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="tokens", ylabel="reward margin (hardest; dotted: mean)")
    axes.grid(alpha=0.3)
    if found:
        axes.legend(fontsize=7)
    return found


def _deletion(axes: Any, records: Sequence[Record]) -> bool:
    found = deletions(records)
    styles = dict(zip(ORDERS, ("-", "--", ":"), strict=True))
    for (model, curves), colour in zip(
        found.items(), plt.rcParams["axes.prop_cycle"].by_key()["color"] * 20, strict=False
    ):
        for order, values in curves.items():
            mean, error = values.mean(0), 1.96 * values.std(0, ddof=1) / np.sqrt(len(values))
            places = range(1, STEPS + 1)
            axes.plot(places, mean, styles[order], color=colour, label=f"{model}: {order}")
            axes.fill_between(places, mean - error, mean + error, color=colour, alpha=0.1)
    axes.set(xlabel="items removed", ylabel="nats lost")
    axes.grid(alpha=0.3)
    if found:
        axes.legend(fontsize=7)
    return bool(found)


def _heat(axes: Any, values: dict[tuple[str, str], float]) -> bool:
    if not values:
        return False
    rows, columns = sorted({row for row, _ in values}), sorted({column for _, column in values})
    grid = np.array([[values.get((row, column), np.nan) for column in columns] for row in rows])
    axes.imshow(grid, cmap="viridis")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set(xlabel="ranked", ylabel="trained on")
    for (row, column), value in np.ndenumerate(grid):
        axes.text(column, row, "" if np.isnan(value) else f"{value:.3f}", ha="center", va="center", color="white")
    return True
