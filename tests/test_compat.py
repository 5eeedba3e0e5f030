"""`scripts/compat.py` on one environment: TRL 1.15 over the packages that run this test."""

import subprocess
import sys

import pytest
from support import ROOT, load_script


def run(folder, *arguments):
    command = [sys.executable, "scripts/compat.py", "--folder", folder, "--over", "trl==1.15.0", "--", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_suite_runs_on_trl_1_15(tmp_path):
    done = run(
        tmp_path, "tests/test_seams.py", "tests/test_trainer.py", "-k", "seam or names_the or one_negative_is_dpo"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    header, _, row = (
        [cell.strip() for cell in line.split("|")] for line in done.stdout.splitlines() if line.startswith("|")
    )
    cells = dict(zip(header, row, strict=True))
    assert cells["trl"] == "1.15.0"
    assert int(cells["passed"]) > 20
    assert cells["failed"] == "0"
    assert not any(tmp_path.iterdir())  # the environment is gone


@pytest.mark.slow
def test_failed_tests_fail_the_script(tmp_path):
    failing = tmp_path / "test_failing.py"
    failing.write_text("def test_it():\n    assert False\n")
    done = run(tmp_path / "environments", "-c", "/dev/null", failing)
    assert done.returncode == 1
    assert "| 0 | 1 | 0 |" in done.stdout


def test_the_core_tests_are_there():
    """What the table of docs/compatibility.md counts; pytest would run nothing where a path is gone."""
    with load_script("scripts/compat.py") as compat:
        assert [path for path in compat.CORE if not (ROOT / path).exists()] == []
