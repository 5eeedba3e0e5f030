"""What fits a bound on memory, measured and by formula."""

import csv
import math
import sys

import pytest
from support import load_script

from dmpo_trl.training.cost import BatchSize, ModelSize, TrainingOptions, step_cost


@pytest.fixture(scope="module")
def fit():
    with load_script("benchmarks/fit.py") as module:
        yield module


@pytest.mark.parametrize(("side", "layout"), [("trie", BatchSize.trie), ("copies", BatchSize.copies)])
def test_the_formula_finds_what_its_memory_is_of(fit, side, layout):
    settings = fit.Settings(tiny=True, prompt_length=20, negatives=2)
    size = ModelSize.from_config(fit.SHAPES["tiny"])

    def memory_gb(examples, negatives):
        lengths = [(20, [fit.TITLE_LENGTH] * (negatives + 1))] * examples
        return step_cost(size, layout(lengths), TrainingOptions()).memory / 1e9

    assert fit.predict(settings, side, memory_gb(1, 5))[0] == 5
    assert fit.predict(settings, side, memory_gb(4, 2))[1] == 4


def test_there_is_no_formula_for_full_logits(fit):
    assert all(map(math.isnan, fit.predict(fit.Settings(tiny=True), fit.BASELINE, 1.0)))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_step_fits_a_large_bound_and_not_a_small_one(fit):
    settings = fit.Settings(tiny=True, most=3, prompt_length=20)
    assert fit.search(settings, "trie", 1000.0) == (3, 3)
    assert fit.search(settings, "trie", 0.001) == (0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_table_has_both(fit, tmp_path):
    sides = ["--sides", "trie", "full logits"]
    fit.main(["--tiny", "--most", "2", "--prompt_length", "20", "--bounds", "1000", *sides, "--output", str(tmp_path)])
    with (tmp_path / "fit.csv").open(newline="") as file:
        found = {row["side"]: [row[column] for column in fit.COLUMNS[2:6]] for row in csv.DictReader(file)}
    assert found["trie"] == ["2", "2", "2", "2"]
    assert found["full logits"] == ["2", "nan", "2", "nan"]
