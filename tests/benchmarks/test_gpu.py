"""The script for a GPU, tried on a CPU: every line runs, none can stop the others, and their sum is ten minutes."""

import csv
import importlib

import pytest
from support import load_script


@pytest.fixture(scope="module")
def gpu():
    with load_script("benchmarks/gpu.py") as module:
        yield module


def read(file):
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_it_takes_ten_minutes_at_most(gpu, tmp_path):
    lines = list(gpu.lines(gpu.Settings(output=tmp_path)))
    assert sum(line.seconds for line in lines) <= 600
    assert lines[-1].name == "heads"
    assert any("llama-8b" in line.command and "--lora" in line.command for line in lines)


def test_every_step_has_its_anchors(gpu, tmp_path):
    lines = {line.name: line.command for line in gpu.lines(gpu.Settings(output=tmp_path))}
    anchors = ["copies, one varlen row", "trl tree", "trl pairs"]
    for name in ("step-1b", "step-8b-lora", "positions"):
        sides = lines[name][lines[name].index("--sides") : lines[name].index("--once")]
        assert [side for side in anchors if side in sides] == anchors
    assert "copies, one varlen row, checkpointing" in lines["step-8b-long"]
    assert [name for name in lines if "--no_baseline" in lines[name]] == ["step-1b", "step-8b-lora", "step-8b-long"]
    assert "full logits" in lines["positions"]


def test_a_line_that_fails_or_hangs_costs_its_own_figures_only(gpu, tmp_path, monkeypatch, capfd):
    write = "import time; print('as it comes', flush=True); "
    planned = [
        gpu.Line("hangs", 2, ["-c", write + "time.sleep(600)"]),
        gpu.Line("fails", 60, ["-c", "raise SystemExit(3)"]),
        gpu.Line("works", 60, ["-c", "import dmpo_trl, support, cases; print(dmpo_trl.__version__)"]),
    ]
    monkeypatch.setattr(gpu, "lines", lambda settings: iter(planned))
    monkeypatch.setattr(gpu, "_PATIENCE_ON_CPU", 1)
    with pytest.raises(SystemExit, match="Failed: hangs, fails"):
        gpu.main(["--device", "cpu", "--output", str(tmp_path)])
    rows = read(tmp_path / "lines.csv")
    assert [(row["name"], row["status"]) for row in rows] == [("hangs", "124"), ("fails", "3"), ("works", "0")]
    assert "as it comes" in (tmp_path / "01-hangs.log").read_text()
    assert "hangs: status 124" in capfd.readouterr().out


def test_wheels_come_first(gpu, tmp_path):
    (tmp_path / "trl-1.16.0-py3-none-any.whl").touch()
    first, *_ = gpu.lines(gpu.Settings(output=tmp_path / "out", wheels=tmp_path))
    assert first.command[-1] == str(tmp_path / "trl-1.16.0-py3-none-any.whl")
    assert "--no-index" in first.command


def test_a_line_that_is_not_there_is_named(gpu, tmp_path):
    with pytest.raises(SystemExit, match=r"No line is called \['head'\]: there are \['versions', 'attention'"):
        gpu.main(["--output", str(tmp_path), "--only", "head"])


@pytest.mark.slow
def test_every_line_runs_here(gpu, tmp_path):
    gpu.main(["--device", "cpu", "--tiny", "--output", str(tmp_path)])
    assert {row["status"] for row in read(tmp_path / "lines.csv")} == {"0"}
    assert {row["way"] for row in read(tmp_path / "attention.csv")} == {"cudnn", "efficient", "math", "blocks"}
    errors = [float(row["error"]) for row in read(tmp_path / "attention.csv") if row["error"]]
    assert errors
    assert max(errors) < 1e-4
    for name, sides in (
        ("step-1b", {"copies, one varlen row", "trl tree", "trie", "trl pairs"}),
        ("step-8b-long", {"copies, one varlen row, checkpointing", "trie"}),
    ):
        assert {row["side"] for row in read(tmp_path / f"{name}.csv")} == sides
    positions = read(tmp_path / "positions.csv")
    assert [row["case"] for row in positions[::6]] == ["N=3, batch 3", "N=7, batch 3", "N=15, batch 3"]
    assert all(float(row["seconds ratio"]) > 0 for row in positions)
    assert not any(row["note"] for row in positions)


def test_no_polars_is_needed_where_nothing_is_read(tmp_path):
    """A machine without a network gets two megabytes of wheels; polars alone has fifty-four."""
    code = "import sys; sys.modules['polars'] = None; import sides, cases, measure, step, heads, attention_probe, gpu"
    line = importlib.import_module("gpu").Line("imports", 300, ["-c", code])
    main = importlib.import_module("gpu")
    paths = ":".join(str(main.ROOT / name) for name in ("src", "benchmarks", "tests"))
    log = tmp_path / "log"
    status, _ = main.run(line, line.seconds, log, {"PYTHONPATH": paths, "PATH": ""})
    assert status == 0, log.read_text()
