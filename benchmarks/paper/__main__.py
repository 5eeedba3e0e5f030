"""Run the cells of a config, or make the report of the cells that are there.

PYTHONPATH=benchmarks python -m paper run benchmarks/paper/learning.yaml --data office=FOLDER
PYTHONPATH=benchmarks python -m paper report benchmarks/results/learning
"""

import argparse
from pathlib import Path

from machine import ROOT
from models import default_model

from .cells import Places, run, waiting
from .page import write_report
from .settings import read_config


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m paper", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="compute the cells of a config that are not there yet")
    running.add_argument("config", type=Path)
    running.add_argument("--data", nargs="*", default=[], metavar="NAME=FOLDER", help="raw files of a data set")
    running.add_argument("--model", help="hub id or folder (default: the quickstart's SmolLM2-135M)")
    running.add_argument("--only", nargs="*", default=[], metavar="METHOD", help="of the config's methods, these")
    running.add_argument("--work", type=Path, default=ROOT / "outputs" / "paper", help="folder for adapters")
    running.add_argument("--output", type=Path, help="folder for cells (default: benchmarks/results/CONFIG)")
    running.add_argument("--list", action="store_true", help="say which cells are not there yet, and compute none")
    reporting = commands.add_parser("report", help="write report.md, pictures and report.html beside the cells")
    reporting.add_argument("cells", type=Path)
    reporting.add_argument("--output", type=Path, help="folder of the report (default: that of the cells)")
    options = parser.parse_args(arguments)
    if options.command == "report":
        write_report(options.cells, options.output or options.cells)
        return
    if wrong := [given for given in options.data if "=" not in given]:
        raise SystemExit(f"--data {wrong[0]}: give NAME=FOLDER.")
    output = options.output or ROOT / "benchmarks" / "results" / options.config.stem
    cells = [cell for cell in read_config(options.config) if not options.only or cell.method in options.only]
    if options.list:
        print("\n".join(cell.file_name for cell in waiting(cells, output)))
        return
    folders = {name: Path(folder) for name, _, folder in (given.partition("=") for given in options.data)}
    run(cells, Places(options.model or default_model(), folders, options.work, output))


if __name__ == "__main__":
    main()
