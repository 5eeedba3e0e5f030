"""The table that docs/prefix-sharing.md quotes, on a tiny model."""

import csv

import pytest
from support import load_script, save_model


@pytest.fixture(scope="module")
def head_check():
    with load_script("benchmarks/head_check.py") as module:
        yield module


def test_a_right_head_is_tolerated_and_others_are_not(head_check, tmp_path, capsys, assert_can_be_appended):
    head_check.main(["--model", save_model(tmp_path / "model"), "--output", str(tmp_path)])
    with (tmp_path / "head-check.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["dtype"], row["factor"]) for row in rows] == [
        (dtype, factor) for dtype in ("float32", "bfloat16") for factor in ("1.0", "1.01", "1.02", "1.3")
    ]
    for row in rows:
        assert (float(row[head_check.COLUMNS[-1]]) < 1) == (row["factor"] == "1.0")
    assert "| float32 | 1.30 |" in capsys.readouterr().out
    assert_can_be_appended(tmp_path / "head-check.csv", "head-check.csv")
