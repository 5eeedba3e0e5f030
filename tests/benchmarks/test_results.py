"""The committed results, and the picture that is drawn from them."""

import csv
import importlib
import json
from pathlib import Path

import pytest
from support import load_script

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.fixture(scope="module")
def plot_step():
    with load_script("benchmarks/plot_step.py") as module:
        yield module


def test_results_are_csv_files_whose_rows_name_machine_and_command():
    files = sorted(file for file in RESULTS.iterdir() if file.is_file())
    assert files
    assert {file.suffix for file in files} == {".csv"}
    for file in files:
        with file.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        assert all(row["machine"] and row["command"].startswith("python benchmarks/") for row in rows), file.name


def test_cells_of_learning_name_their_machine_and_what_they_are_of():
    files = sorted((RESULTS / "learning").glob("*.json"))
    assert files
    for file in files:
        cell = json.loads(file.read_text(encoding="utf-8"))
        own = cell["settings"]
        trained_on = own.get("trained_on", own["dataset"])
        across = "" if trained_on == own["dataset"] else f"-from-{trained_on}"
        name = f"{own['dataset']}{across}-{own['users']}-{cell['method'].replace(' ', '-')}"
        assert file.name == f"{name}-{cell['seed']}.json"
        assert cell["machine"]
        assert "uncommitted" not in cell["commit"], file.name


def test_the_report_is_that_of_the_cells(tmp_path):
    paper = importlib.import_module("paper.__main__")
    paper.main(["report", str(RESULTS / "learning"), "--output", str(tmp_path)])
    beside = {file.name for file in (RESULTS / "learning").iterdir() if file.suffix != ".json"}
    # The page holds the same once more, so that git ignores it
    assert beside | {"report.html"} == {file.name for file in tmp_path.iterdir()}
    # Pictures differ in how a version of matplotlib writes them
    assert (tmp_path / "report.md").read_bytes() == (RESULTS / "learning" / "report.md").read_bytes()


def test_the_picture_has_the_committed_figures(plot_step):
    points = plot_step.read_points(plot_step.Settings())
    assert all([n for n, _ in own] == [1, 3, 7, 15] for own in points.values())
    assert [round(own[-1][1], 1) for own in points.values()] == [65.0, 28.8, 2.2]  # as in the picture of docs/speed.md


def test_the_picture_is_drawn(plot_step, tmp_path):
    plot_step.main(["--output", str(tmp_path / "new" / "step.svg")])
    assert "<svg" in (tmp_path / "new" / "step.svg").read_text(encoding="utf-8")


def test_a_run_that_is_not_there_is_said_so(plot_step):
    with pytest.raises(SystemExit, match="no rows of commit 0000000"):
        plot_step.main(["--commit", "0000000"])
