"""What the quickstart shows: the time of each stage, a table, a verdict, recommendations, a picture, the next step."""

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from datasets import Dataset
from stages import logged

from dmpo_trl.evaluation import RankingResult, text_table, verdict

COMPARISONS = (
    ("sft", "zero_shot"),
    ("dmpo", "sft"),
    ("dmpo", "sft_more"),
    ("dmpo", "item_knn"),
    ("dmpo + item_knn", "item_knn"),
)


@contextmanager
def stage(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Announce a stage and note how long it took."""
    print(f"\n== {name}", flush=True)
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 1)


def print_results(results: dict[str, RankingResult], about: str) -> None:
    """Print all rankers with 95% bootstrap intervals, and in words which differences are more than chance."""
    print(f"\n{about}\nMeans [95% bootstrap intervals over users]; 1 is best, and random is what guessing gets.\n")
    print(text_table({name: result.intervals() for name, result in results.items()}))
    print(
        "\nWhat this means, for the same users (difference [95% interval], p-value; below 0.05 it is hardly chance):"
    )
    for name, other in COMPARISONS:
        difference = results[name].minus(results[other], ["ndcg@5"])["ndcg@5"]
        print(f"- {verdict(name, other, 'ndcg@5', difference)}")
    print(
        "NDCG@5 is 1 where the film that the user liked next comes first, and 0 where it is not among the first five."
    )
    print(
        "sft learned which films come next, sft_more the same for longer, dmpo for as long also which do not.\n"
        "popularity and item_knn count what the models saw of their users; those with `all` count everything."
    )


def print_next(model: str, history: list[str]) -> None:
    """Print the command that recommends to somebody with this history, as a shell of this folder takes it."""
    beside = Path(sys.executable).with_name("dmpo-trl")
    on_path = shutil.which("dmpo-trl")
    known = on_path is not None and Path(on_path) == beside  # what a shell finds is this installation
    program = ["dmpo-trl"] if known else [os.path.relpath(sys.executable), "-m", "dmpo_trl.cli"]
    print("\nTo recommend from the whole catalogue to somebody who liked these films:")
    print(shlex.join([*program, "recommend", "--model", model, "--history", *history]))


def print_lists(result: RankingResult, users: Dataset, titles: dict[str, str], count: int = 5) -> None:
    """Print the first users' histories and their five best candidates; what the user really liked next is marked."""
    for row, scores in zip(users.select(range(min(count, len(users)))), result.scores, strict=False):
        print(f"\nUser {row['user']} liked: " + "; ".join(titles[item] for item in row["history"]))
        for place, index in enumerate((-scores).argsort()[:5], start=1):
            mark = "  <- liked next" if index == row["positive"] else ""
            print(f"  {place}. {titles[row['items'][index]]}{mark}")


def write_metrics(
    file: Path, results: dict[str, RankingResult], seconds: dict[str, float], settings: dict[str, Any]
) -> None:
    """Write all figures as JSON."""
    figures: dict[str, Any] = {name: result.metrics() for name, result in results.items()}
    figures["intervals"] = {
        name: {metric: [interval.low, interval.high] for metric, interval in result.intervals().items()}
        for name, result in results.items()
    }
    figures["differences"] = {
        f"{name} - {other}": {m: asdict(interval) for m, interval in results[name].minus(results[other]).items()}
        for name, other in COMPARISONS
    }
    figures |= {"seconds": seconds, "settings": settings}
    file.write_text(json.dumps(figures, indent=2, default=str) + "\n", encoding="utf-8")


def import_pyplot() -> ModuleType:
    """Import matplotlib so that it needs no display."""
    try:
        import matplotlib
    except ImportError as error:
        raise SystemExit("The picture needs matplotlib: pip install '.[plot]' in a clone of dmpo-trl.") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


COLOURS = {"counts": "tab:gray", "model": "tab:blue", "both": "tab:green"}


def draw(results: dict[str, RankingResult], trained: str, file: Path) -> None:
    """Draw what each ranker reaches, and the margins that the preference stage logged in its folder."""
    pyplot = import_pyplot()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.5), layout="constrained", width_ratios=[3, 2])
    _draw_rankers(left, results)
    logs = logged(trained)
    tokens = [entry["num_tokens"] for entry in logs]
    for key, label in (("rewards/margins", "mean of the negatives"), ("rewards/margins_min", "hardest negative")):
        right.plot(tokens, [entry[key] for entry in logs], marker="o", markersize=3, label=label)
    right.axhline(0, color="black", linewidth=0.8)
    right.set(
        title="Reward of the chosen film minus that of ...", xlabel="tokens of the preference stage", ylabel="nats"
    )
    right.grid(alpha=0.3)
    right.legend()
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


def _draw_rankers(axis: Any, results: dict[str, RankingResult]) -> None:
    """Draw NDCG@5 with its interval, the best on top; those that know more than the models are hollow."""
    figures = {name: result.intervals(["ndcg@5"])["ndcg@5"] for name, result in results.items()}
    chance = figures.pop("random")
    for place, (name, found) in enumerate(sorted(figures.items(), key=lambda pair: pair[1].mean)):
        kind = "both" if " + " in name else "counts" if name.startswith(("popularity", "item_knn")) else "model"
        axis.errorbar(
            found.mean,
            place,
            xerr=[[found.mean - found.low], [found.high - found.mean]],
            fmt="o",
            color=COLOURS[kind],
            markerfacecolor="white" if name.endswith(", all") else COLOURS[kind],
            capsize=3,
        )
    axis.set_yticks(range(len(figures)), sorted(figures, key=lambda name: figures[name].mean))
    axis.axvline(chance.mean, color="black", linewidth=0.8, linestyle=":", label="guessing")
    for kind, colour in COLOURS.items():
        axis.plot([], [], "o", color=colour, label=kind)
    axis.set(title="NDCG@5 with 95% intervals", xlim=(0, None))
    axis.grid(alpha=0.3, axis="x")
    axis.legend(loc="lower right")
