"""The benchmark of whole training on a tiny model."""

import csv

import pytest
from support import load_script

ARGUMENTS = ["--tiny", "--examples", "4", "--negatives", "2", "--batch_size", "2", "--rounds", "1"]


@pytest.fixture(scope="module")
def whole_trainer():
    with load_script("benchmarks/whole_trainer.py") as module:
        yield module


@pytest.mark.parametrize("options", [["--pairs"], ["--lora"], ["--precompute"]])
def test_trainers_have_the_loss_of_the_bare_step(whole_trainer, tmp_path, options, assert_can_be_appended):
    whole_trainer.main([*ARGUMENTS, *options, "--output", str(tmp_path)])
    assert_can_be_appended(tmp_path / "whole-trainer.csv", "whole-trainer.csv")
    with (tmp_path / "whole-trainer.csv").open() as file:
        rows = {row["side"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["bare step", "DMPOTrainer", *(["DPOTrainer"] if "--pairs" in options else [])]
    for row in rows.values():
        assert float(row["examples per second"]) <= float(row["without optimizer"])
    assert float(rows["DMPOTrainer"]["optimizer seconds"]) > 0
    assert rows["bare step"]["over bare step"] == "0.0%"


def test_a_trainer_that_computes_something_else_stops_the_run(whole_trainer, monkeypatch):
    right = whole_trainer.run_bare

    def wrong(*arguments):
        outcome = right(*arguments)
        outcome.loss += 0.001
        return outcome

    monkeypatch.setattr(whole_trainer, "run_bare", wrong)
    with pytest.raises(SystemExit, match="'DMPOTrainer' disagrees with the bare step"):
        whole_trainer.main(ARGUMENTS)
