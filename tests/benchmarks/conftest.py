import csv
import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True, scope="session")
def _benchmarks_import_each_other():
    """As scripts they find the modules beside them."""
    sys.path.append(str(BENCHMARKS))


@pytest.fixture(scope="session")
def paper():
    """The command of the paper's experiments."""
    return importlib.import_module("paper.__main__")


@pytest.fixture
def assert_can_be_appended():
    """A run's file has the columns of the committed one, or `--output benchmarks/results` would refuse it."""

    def check(file: Path, committed: str) -> None:
        headers = []
        for one in (file, BENCHMARKS / "results" / committed):
            with one.open(newline="", encoding="utf-8") as stream:
                headers.append(next(csv.reader(stream)))
        assert headers[0] == headers[1]

    return check
