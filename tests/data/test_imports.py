"""What importing the data half brings with it."""

import subprocess
import sys

import pytest

import dmpo_trl.data
from dmpo_trl.data import leakage, preparation, published, readers


def test_torch_is_not_loaded_for_data():
    code = "import sys, dmpo_trl.data; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("folder", [leakage, preparation, published, readers], ids=lambda folder: folder.__name__)
def test_the_folders_names_are_those_of_the_package(folder):
    for name in folder.__all__:
        assert getattr(folder, name) is getattr(dmpo_trl.data, name)
        assert name in dmpo_trl.data.__all__
