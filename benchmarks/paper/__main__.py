"""Run the cells of a config, search for settings, make the report of the cells that are there, or a case study.

PYTHONPATH=benchmarks python -m paper run benchmarks/paper/learning.yaml --data office=FOLDER
PYTHONPATH=benchmarks python -m paper tune benchmarks/paper/tuning.yaml
PYTHONPATH=benchmarks python -m paper report benchmarks/results/learning
PYTHONPATH=benchmarks python -m paper cases benchmarks/paper/laptop.yaml --cell movielens-16-dmpo-0
"""

import argparse
from pathlib import Path

from machine import ROOT

from .case_study import write_case_study
from .cells import Places, run, waiting
from .language_models import NAMED, folder_of
from .page import markdown, write_report
from .settings import read_config


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m paper", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="compute the cells of a config that are not there yet")
    tuning = commands.add_parser("tune", help="search for settings on validation users; needs the extra `tune`")
    costing = commands.add_parser("budget", help="say what the cells of a config cost: tokens, FLOPs, hours at a rate")
    studying = commands.add_parser("cases", help="show what a cell's model does for a few users, and why")
    for command in (running, tuning, costing, studying):
        command.add_argument("config", type=Path)
        command.add_argument("--data", nargs="*", default=[], metavar="NAME=FOLDER", help="raw files of a data set")
        command.add_argument(
            "--model",
            help=f"{', '.join(NAMED)}, a hub id, a folder or a GGUF file (default: the quickstart's SmolLM2-135M)",
        )
        command.add_argument("--work", type=Path, help="folder for adapters (default: outputs/paper)")
    running.add_argument("--only", nargs="*", default=[], metavar="METHOD", help="of the config's methods, these")
    running.add_argument(
        "--output", type=Path, help="folder for cells (default: benchmarks/results/CONFIG, or CONFIG-MODEL)"
    )
    running.add_argument("--list", action="store_true", help="say which cells are not there yet, and compute none")
    tuning.add_argument("--output", type=Path, help="file for what was found (default: CONFIG-found.yaml beside it)")
    costing.set_defaults(output=None)
    costing.add_argument("--tflops", type=float, default=100.0, help="rate for the hours, in 10^12 FLOPs per second")
    studying.add_argument("--cell", required=True, help="name of a cell's file, without .json")
    studying.add_argument("--users", type=int, default=10, help="the first test users (default: 10)")
    studying.add_argument("--output", type=Path, help="Markdown file (default: WORK/cases/CELL.md)")
    reporting = commands.add_parser("report", help="write report.md, pictures and report.html beside the cells")
    reporting.add_argument("cells", type=Path)
    reporting.add_argument("--output", type=Path, help="folder of the report (default: that of the cells)")
    options = parser.parse_args(arguments)
    if options.command == "report":
        write_report(options.cells, options.output or options.cells)
        return
    if wrong := [given for given in options.data if "=" not in given]:
        raise SystemExit(f"--data {wrong[0]}: give NAME=FOLDER.")
    folders = {name: Path(folder) for name, _, folder in (given.partition("=") for given in options.data)}
    own = f"-{options.model}" if options.model in NAMED else ""  # so that models do not mix
    work = options.work or ROOT / "outputs" / f"paper{own}"
    output = options.output or ROOT / "benchmarks" / "results" / f"{options.config.stem}{own}"
    if options.command == "tune":
        from .tuning import tune  # Optuna is an extra

        found = options.output or options.config.with_name(f"{options.config.stem}-found{own}.yaml")
        tune(options.config, Places(folder_of(options.model), folders, work, output), found)
        return
    if options.command == "budget":
        from .budget import budget

        places = Places(folder_of(options.model), folders, work, output)
        print(*markdown(budget(read_config(options.config), places, options.tflops)), sep="\n")
        return
    if options.command == "cases":
        named = {cell.file_name.removesuffix(".json"): cell for cell in read_config(options.config)}
        if options.cell not in named:
            raise SystemExit(f"{options.config} has no cell {options.cell}. Choose among {', '.join(named)}.")
        places = Places(folder_of(options.model), folders, work, output)
        file = options.output or work / "cases" / f"{options.cell}.md"
        write_case_study(named[options.cell], places, options.users, file)
        return
    cells = [cell for cell in read_config(options.config) if not options.only or cell.method in options.only]
    if options.list:
        print("\n".join(cell.file_name for cell in waiting(cells, output)))
        return
    run(cells, Places(folder_of(options.model), folders, work, output))


if __name__ == "__main__":
    main()
