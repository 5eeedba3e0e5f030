"""The benchmark of a step on a tiny model: that it runs, counts tokens rightly and stops where a side is wrong."""

import csv
import json
import sys
from pathlib import Path

import pytest
from support import load_script


@pytest.fixture(scope="module")
def step():
    with load_script("benchmarks/step.py") as module:
        yield module


def read(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    with (folder / "step.csv").open() as file:
        return {(row["case"], row["side"]): row for row in csv.DictReader(file)}


@pytest.mark.parametrize("lora", [[], ["--lora"]])
def test_sides_agree_and_tokens_are_counted(step, tmp_path, capsys, lora):
    step.main(["--tiny", "--negatives", "1", "3", "--rounds", "2", "--output", str(tmp_path), *lora])
    rows = read(tmp_path)
    assert list(rows) == [(n, s) for n in ("N=1", "N=3") for s in ("full logits", "trl fused", "copies", "trie")]
    # A prompt of 40 bytes, the chosen "abcde", the rejected "ab000", "ab001", "ab002"
    assert rows["N=3", "full logits"]["tokens"] == rows["N=3", "trl fused"]["tokens"] == str(4 * 45)
    assert rows["N=3", "copies"]["tokens"] == str(4 * 44)
    assert rows["N=3", "trie"]["tokens"] == str(40 + len("ab") + len("cd") + len("00"))
    assert all(float(row["seconds"]) >= 0 and float(row["seconds ratio"]) > 0 for row in rows.values())
    assert capsys.readouterr().out.count("| N=3 |") == 4


def test_rows_that_share_a_history_stand_once(step, tmp_path):
    history = "Watched: " + "x" * 50
    rows = [{"instruction": f"{history} {i}", "input": "", "output": ["ab", "cd"]} for i in range(10)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    step.main(["--tiny", "--rows", str(tmp_path / "rows.json"), "--rounds", "1", "--output", str(tmp_path)])
    outcome = read(tmp_path)
    assert outcome["rows.json", "full logits"]["tokens"] == str(20 * (61 + 2))
    assert outcome["rows.json", "trie"]["tokens"] == str(60 + 10 * (1 + 2))


def test_a_side_that_computes_something_else_stops_the_run(step, monkeypatch):
    monkeypatch.setattr(step, "score_with_trl", lambda model, batch: 1.1 * step.score_with_full_logits(model, batch))
    with pytest.raises(SystemExit, match="'trl fused' disagrees with 'full logits': loss"):
        step.main(["--tiny", "--negatives", "1"])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_that_of_the_step(step):
    example = {"prompt_ids": [1] * 2000, "chosen_ids": [2, 3], "rejected_ids": [[4, i] for i in range(15)]}
    logits_gb = 16 * 2000 * 256 * 4 / 1e9
    with_logits, trie = (
        step.measure_memory(step.Settings(tiny=True), side, [[example]]).peak_gb for side in ("full logits", "trie")
    )
    # Logits and their log-softmax; what a process needs besides differs from machine to machine
    assert with_logits - trie > logits_gb
