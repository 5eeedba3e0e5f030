"""The benchmark of grouping on a tiny model."""

import csv
import json

import pytest
from support import load_script, make_model, make_tokenizer


@pytest.fixture
def arguments(tmp_path):
    folder, file = tmp_path / "model", tmp_path / "pairs.json"
    make_model("llama").save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    rows = [
        {
            "instruction": f"User {history}: ",
            "input": chr(65 + history) * 30 + f" {row}",
            "output": [" Alien", " Babe"],
        }
        for history in range(5)
        for row in range(2)
    ]
    file.write_text(json.dumps(rows))
    return [
        "--file",
        str(file),
        "--model",
        str(folder),
        "--batch_size",
        "2",
        "--seeds",
        "2",
        "--output",
        str(tmp_path),
    ]


def test_samplers_are_compared_on_histories_that_neither_saw(arguments, tmp_path, assert_can_be_appended):
    with load_script("benchmarks/grouping.py") as grouping:
        settings = grouping.Settings(file=tmp_path / "pairs.json", histories=3, held_out=2)
        train, held_out = grouping.split_rows(settings, make_tokenizer())
        assert (len(train), len(held_out)) == (6, 4)
        assert not {row["prompt"][:10] for row in train} & {row["prompt"][:10] for row in held_out}
        grouping.main([*arguments, "--histories", "3", "--held_out", "2"])
    assert_can_be_appended(tmp_path / "grouping.csv", "grouping.csv")
    with (tmp_path / "grouping.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["seed"], row["batches"]) for row in rows] == [
        ("0", "random"),
        ("0", "grouped"),
        ("1", "random"),
        ("1", "grouped"),
        ("mean", "grouped - random"),
    ]
    losses = [float(row["loss"]) for row in rows[:-1]]
    mean = ((losses[1] - losses[0]) + (losses[3] - losses[2])) / 2
    assert float(rows[-1]["loss"].split(" ± ")[0]) == pytest.approx(mean, abs=2e-4)


def test_too_few_histories_are_said_so(arguments):
    with load_script("benchmarks/grouping.py") as grouping, pytest.raises(SystemExit, match="has 5 histories"):
        grouping.main([*arguments, "--histories", "4", "--held_out", "2"])
