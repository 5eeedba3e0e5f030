"""What the quickstart shows: the seconds of each stage, a table, recommendations, all figures in a file, a picture."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from datasets import Dataset

from dmpo_trl.evaluation import METRICS, RankingResult

COMPARISONS = (("sft", "zero_shot"), ("dmpo", "sft"), ("dmpo", "popularity"))


@contextmanager
def stage(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Announce a stage and note how long it took."""
    print(f"\n== {name}", flush=True)
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 1)


def print_table(results: dict[str, RankingResult], about: str) -> None:
    """Print all rankers with 95% bootstrap intervals over users, then the paired differences of the stages."""
    print(f"\n{about}")
    print("Means [95% bootstrap intervals over users]; differences are paired by user.")
    rows = {name: result.intervals() for name, result in results.items()}
    rows |= {f"{name} - {other}": results[name].minus(results[other]) for name, other in COMPARISONS}
    print(f"{'':<18}" + "".join(f"{metric:>23}" for metric in METRICS))
    for name, intervals in rows.items():
        print(f"{name:<18}" + "".join(f"{intervals[metric]!s:>23}" for metric in METRICS))


def print_recommendations(result: RankingResult, users: Dataset, titles: dict[str, str], count: int = 5) -> None:
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
            axis.plot([entry["epoch"] for entry in logs], [entry[key] for entry in logs], label=key)
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(file, dpi=120)
    pyplot.close(figure)
