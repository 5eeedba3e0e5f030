import sys
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="session")
def _benchmarks_import_each_other():
    """As scripts they find the modules beside them."""
    sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
