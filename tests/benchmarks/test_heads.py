"""The benchmark of heads on a small vocabulary."""

import csv

import pytest
from support import load_script

ARGUMENTS = ["--tokens", "5", "--hidden", "8", "--vocabulary", "50", "70", "--rounds", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def heads():
    with load_script("benchmarks/heads.py") as module:
        yield module


def test_every_head_has_a_row_even_one_that_cannot_run(heads, tmp_path, assert_can_be_appended):
    heads.main([*ARGUMENTS, "--output", str(tmp_path), "--plot", str(tmp_path / "plots")])
    with (tmp_path / "heads.csv").open() as file:
        rows = list(csv.DictReader(file))
    for vocabulary in ("50", "70"):
        trained = {
            row["head"]: row for row in rows if (row["vocabulary"], row["gradient"]) == (vocabulary, "head trainable")
        }
        assert list(trained)[:5] == ["full logits", "TRL", "ours", "ours, recompute", "ours, softmax kept"]
        assert all(float(row["ms"]) > 0 for row in trained.values() if not row["note"])
        assert trained["Liger"]["note"] == trained["cut-cross-entropy"]["note"] == "not run: needs CUDA"
    assert_can_be_appended(tmp_path / "heads.csv", "heads.csv")
    assert (tmp_path / "plots" / "heads-5-tokens.svg").exists()


def test_a_head_that_computes_something_else_stops_the_run(heads, monkeypatch):
    right = heads.ours
    monkeypatch.setattr(heads, "ours", lambda *arguments: 1.01 * right(*arguments))
    with pytest.raises(SystemExit, match="'ours' disagrees with 'full logits'"):
        heads.main(ARGUMENTS)
