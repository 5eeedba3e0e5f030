"""The search for what fits a bound on memory."""

import sys

import pytest
from support import load_script


@pytest.fixture(scope="module")
def fit():
    with load_script("benchmarks/fit.py") as module:
        yield module


@pytest.mark.parametrize("answer", [0, 1, 2, 5, 8, 9, 15, 16, 20])
def test_the_largest_that_fits_is_found(fit, answer):
    tried = []
    assert fit.largest(lambda n: tried.append(n) or n <= answer, 16) == min(answer, 16)
    assert max(tried) <= 16
    assert len(tried) <= 10


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_step_fits_a_large_bound_and_not_a_small_one(fit):
    settings = fit.Settings(tiny=True, most=3, prompt_length=20)
    assert fit.search(settings, "trie", 1000.0) == (3, 3)
    assert fit.search(settings, "trie", 0.001) == (0, 0)
