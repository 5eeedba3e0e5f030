"""Reports of the benchmarks: rows of a CSV file and plots, each with the machine, the versions and the commit."""

import csv
import math
import shlex
import sys
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

Row = dict[str, Any]

# One plot for each of these that takes several values in a run: column, axis label
SWEPT = {"negatives": "rejected completions N", "prompt": "prompt, tokens", "batch": "examples per batch"}
# What is drawn against it: column, axis label, logarithmic
DRAWN = {
    "seconds ratio": ("times faster than {baseline}", True),
    "seconds": ("seconds per step", True),
    "peak_gb": ("peak memory over the models' own, GB", True),
}


def as_text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 0.1 else f"{value:.2f}"
    return str(value)


def command(script: str, arguments: list[str] | None) -> str:
    """Return the command line that repeats a run; `arguments` are what its `main` got."""
    return shlex.join(["python", f"benchmarks/{script}.py", *(sys.argv[1:] if arguments is None else arguments)])


def head(header: dict[str, str]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in header.items())


def table_head(columns: list[str]) -> str:
    return f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"


def table_row(row: Row, columns: list[str]) -> str:
    return f"| {' | '.join(as_text(row[column]) for column in columns)} |"


def add_rows(folder: Path, name: str, command: str, header: dict[str, str], rows: list[Row]) -> None:
    """Append rows to `name`.csv, each with the entries of the header and the command.

    Runs on other machines and of other commits stay in the file: the columns `machine` and `commit` tell them apart.

    Raises:
        ValueError: The file has other columns.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file, columns = folder / f"{name}.csv", [*rows[0], *header, "command"]
    is_new = not file.exists()
    if not is_new:
        with file.open(newline="") as stream:
            found = next(csv.reader(stream))
        if found != columns:
            raise ValueError(f"{file} has the columns {found}, not {columns}. Give another --name, or move the file.")
    with file.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerows(row | header | {"command": command} for row in rows)


def draw_sweeps(folder: Path, name: str, header: dict[str, str], rows: list[Row], baseline: str) -> None:
    """Draw one picture for each swept and each measured quantity: `name`-WHAT-against-SWEPT.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    swept = [column for column in SWEPT if len({row[column] for row in rows}) > 1]
    for x in swept:
        others = [column for column in swept if column != x]

        def line(row: Row, others: list[str] = others) -> str:
            return ", ".join([row["side"], *(f"{column} {row[column]}" for column in others)])

        for y, (label, logarithmic) in DRAWN.items():
            drawn = [row for row in rows if row[y] is not None and not math.isnan(row[y])]
            if drawn:
                file = folder / f"{name}-{y.replace(' ', '-').replace('_', '-')}-against-{x}.svg"
                draw(file, header, drawn, x, y, line, SWEPT[x], label.format(baseline=baseline), logarithmic)


def draw(
    file: Path,
    header: dict[str, str],
    rows: list[Row],
    x: str,
    y: str,
    line: Callable[[Row], str],
    x_label: str,
    y_label: str,
    logarithmic: bool = True,
) -> None:
    """Draw `y` against `x`, one line for each value of `line`; both axes are logarithmic where asked for."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5.5), layout="constrained")
    for label, group in groupby(sorted(rows, key=line), key=line):
        points = sorted((row[x], row[y]) for row in group)
        axes.plot(*zip(*points, strict=True), marker="o", label=label)
    if logarithmic:
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
    axes.set_xticks(sorted({row[x] for row in rows}), labels=[f"{v:,}" for v in sorted({row[x] for row in rows})])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.supxlabel("\n".join(f"{key}: {value}" for key, value in header.items()), fontsize=6, x=0.01, ha="left")
    figure.savefig(file)
    plt.close(figure)
