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

from dmpo_trl.evaluation import RankingResult, text_table, verdict

COMPARISONS = (("sft", "zero_shot"), ("dmpo", "sft"), ("dmpo", "popularity"))


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
    print("sft learned which films come next, dmpo also which do not; popularity knows no user, only counts.")


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


def draw_training(trained: str, file: Path) -> None:
    """Draw loss, rewards and margins that the DMPO stage logged in its folder."""
    history = json.loads((Path(trained) / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    logs = [entry for entry in history if "loss" in entry]  # the summary at the end has none
    pyplot = import_pyplot()
    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4), layout="constrained")
    panels = {"loss": ["loss"], "rewards": ["rewards/chosen", "rewards/rejected"], "margins": ["rewards/margins"]}
    for axis, (title, keys) in zip(axes, panels.items(), strict=True):
        for key in keys:
            axis.plot(
                [entry["epoch"] for entry in logs], [entry[key] for entry in logs], marker="o", markersize=3, label=key
            )
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
