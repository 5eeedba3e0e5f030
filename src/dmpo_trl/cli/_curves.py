"""A training run as one page for a browser: its curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment

from ..writing import check_file

WIDTH, HEIGHT = 600, 220  # of a picture, in its own units
_GENERATOR = '<meta name="generator" content="dmpo-trl train">'
_RANKING = ("hr@", "recall@", "ndcg@", "mrr", "auc", "pooled_auc")
_MARGINS = {
    "rewards/margins": "mean margin",
    "rewards/margins_min": "margin to the hardest",
    "eval_rewards/margins": "mean margin, evaluation",
    "eval_rewards/margins_min": "margin to the hardest, evaluation",
}
_DOTS = 100  # of a curve, at most; with more it is a line alone


@dataclass(frozen=True)
class Curve:
    """Values of one name by the step.

    Attributes:
        name: To show.
        points: Steps and values, in the order of the steps.
    """

    name: str
    points: Sequence[tuple[int, float]]


def pictures(log_history: Sequence[Mapping[str, Any]]) -> dict[str, list[Curve]]:
    """Return what a run logged as curves, by the title of the picture that they belong to.

    Args:
        log_history: The trainer's `state.log_history`. Values that are no finite numbers are left out.

    Example:
        >>> log = [{"step": 1, "loss": 0.7, "rewards/margins": 0.0}, {"step": 2, "eval_ndcg@5": 0.5}]
        >>> [(title, [curve.name for curve in curves]) for title, curves in pictures(log).items()]
        [('Loss', ['training']), ('Margins, in nats times beta', ['mean margin']), ('ndcg@5', ['ranked users'])]
    """
    names = dict.fromkeys(name for entry in log_history for name in entry)
    ranked = [name for name in names if name.removeprefix("eval_").startswith(_RANKING) and name.startswith("eval_")]
    wanted = {
        "Loss": {"loss": "training", "eval_loss": "evaluation"},
        "Margins, in nats times beta": _MARGINS,
        **{name.removeprefix("eval_"): {name: "ranked users"} for name in ranked},
    }
    found = {
        title: [Curve(shown, points) for name, shown in own.items() if (points := _points(log_history, name))]
        for title, own in wanted.items()
    }
    return {title: curves for title, curves in found.items() if curves}


def page(log_history: Sequence[Mapping[str, Any]], about: str) -> str:
    """Return a run's curves as HTML that needs nothing beside it: no scripts, fonts or pictures of elsewhere.

    Args:
        log_history: See [`pictures`].
        about: What was trained, as text.

    Example:
        >>> text = page([{"step": 1, "loss": 0.7}], about="<b>")
        >>> "&lt;b&gt;" in text, "<b>" in text
        (True, False)
    """
    template = files(__package__).joinpath("training.html").read_text(encoding="utf-8")
    drawn = [{"title": title, **_drawn(curves)} for title, curves in pictures(log_history).items()]
    return (
        Environment(autoescape=True)
        .from_string(template)
        .render(about=about, pictures=drawn, width=WIDTH, height=HEIGHT)
    )


def check_page(path: str) -> None:
    """Check before a training that its page can be written: to a new file, or over such a page.

    Args:
        path: The file.

    Raises:
        OSError: There is something else, or nothing can be written there.
    """
    target = check_file(path, overwrite=True)
    if target.exists() and _GENERATOR not in target.read_text(encoding="utf-8", errors="replace")[:1000]:
        raise FileExistsError(f"--report {path} exists already, and `dmpo-trl train` did not write it: name another.")


def about_run(model: str | None, data: str | None, folder: str, steps: int) -> str:
    """Return in words what was trained."""
    source = f" on {data}" if data else ""
    return f"{model}{source}, {steps:,} steps; in {folder}."


def _points(log_history: Sequence[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    values = {int(entry["step"]): float(entry[name]) for entry in log_history if name in entry and "step" in entry}
    return [(step, value) for step, value in sorted(values.items()) if math.isfinite(value)]


def _drawn(curves: Sequence[Curve]) -> dict[str, Any]:
    """Scale curves to the picture: from 0, or the lowest value below it, to the highest."""
    steps = [step for curve in curves for step, _ in curve.points]
    values = [value for curve in curves for _, value in curve.points]
    low, high = min(0.0, *values, 0.0), max(0.0, *values, 0.0)
    first, last = min(steps), max(steps)

    def x(step: int) -> float:
        return round(WIDTH * (step - first) / (last - first), 1) if last > first else WIDTH / 2

    def y(value: float) -> float:
        return round(HEIGHT * (high - value) / (high - low), 1) if high > low else HEIGHT / 2

    return {
        "ends": {"low": low, "high": high, "first": first, "last": last},
        "zero": y(0.0),
        "curves": [
            {
                "name": curve.name,
                "last": curve.points[-1][1],
                "line": " ".join(f"{x(step)},{y(value)}" for step, value in curve.points),
                "dots": [(x(step), y(value), step, value) for step, value in curve.points]
                if len(curve.points) <= _DOTS
                else [],
                "points": curve.points,
            }
            for curve in curves
        ],
    }
