"""Picture of the README: seconds per step against N, from the figures in `benchmarks/results/step.csv`.

    python benchmarks/plot_step.py --output docs/images/step.svg

The script measures nothing. It draws the run of one commit on one machine, which `--commit` names.
"""

import csv
from dataclasses import dataclass, field
from pathlib import Path

from machine import ROOT
from transformers import HfArgumentParser

# Side of `sides.py`: label, colour. Middle tones, which can be read on white and on black
LINES = {
    "trl pairs": ("TRL, one row per pair", "#e5534b"),
    "full logits": ("a copy of the prompt per completion", "#c98a1b"),
    "trie": ("dmpo-trl, every prefix once", "#2f9e6e"),
}
GREY = "#808890"


@dataclass
class Settings:
    results: Path = field(default=ROOT / "benchmarks/results/step.csv", metadata={"help": "CSV file of `step.py`."})
    commit: str = field(default="e4b92c5", metadata={"help": "The run to draw."})
    output: Path = field(default=ROOT / "docs/images/step.svg", metadata={"help": "The picture: SVG, PNG or PDF."})


def read_points(settings: Settings) -> dict[str, list[tuple[int, float]]]:
    """Return the pairs of N and seconds per step of each side, sorted by N."""
    points: dict[str, list[tuple[int, float]]] = {side: [] for side in LINES}
    with settings.results.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["commit"] == settings.commit and row["side"] in points:
                points[row["side"]].append((int(row["negatives"]), float(row["seconds"])))
    if missing := [side for side, own in points.items() if not own]:
        raise SystemExit(f"{settings.results} has no rows of commit {settings.commit} for {missing}.")
    return {side: sorted(own) for side, own in points.items()}


def main(arguments: list[str] | None = None) -> None:
    (settings,) = HfArgumentParser(Settings).parse_args_into_dataclasses(arguments)
    points = read_points(settings)

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.hashsalt": "dmpo-trl", "font.size": 11})  # the same bytes each time
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for side, (label, colour) in LINES.items():
        values = points[side]
        axes.plot(*zip(*values, strict=True), marker="o", linewidth=2.5, color=colour)
        for n, seconds in values[-2:]:
            place = {"xytext": (6, -14), "ha": "left"} if side == "full logits" else {"xytext": (-5, 6), "ha": "right"}
            axes.annotate(
                f"{seconds:.1f}", (n, seconds), textcoords="offset points", color=colour, fontsize=9, **place
            )
        n, seconds = values[-1]
        axes.annotate(label, (n, seconds), (12, -4), textcoords="offset points", color=colour, weight="bold")
    ticks = [n for n, _ in points["trie"]]
    axes.set_xticks(ticks, labels=map(str, ticks))
    axes.set_xlim(0, max(ticks) * 1.95)
    axes.set_ylim(0)
    axes.set_xlabel("rejected completions N", color=GREY, loc="left")
    axes.set_ylabel("seconds per training step", color=GREY)
    axes.tick_params(colors=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.grid(axis="y", color=GREY, alpha=0.25)
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None} if settings.output.suffix == ".svg" else None
    figure.savefig(settings.output, transparent=True, metadata=metadata)
    plt.close(figure)


if __name__ == "__main__":
    main()
