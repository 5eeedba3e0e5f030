"""Scripts of this repository: loaded as modules, or run as processes of their own."""

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
# What tests run as processes of their own
SCRIPTS = ROOT / "tests" / "scripts"


@contextmanager
def load_script(path: str) -> Iterator[ModuleType]:
    """A script of this repository as a module, by its path from the root."""
    file = ROOT / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[file.stem]


def cpu_environment() -> dict[str, str]:
    """The environment of a script in `SCRIPTS`, which finds these helpers, one thread and no GPU."""
    paths = [str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
