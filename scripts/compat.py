"""The tests on other versions of Python and of what dmpo-trl builds on: prints a Markdown table.

    python scripts/compat.py                                   # all environments, the core tests
    python scripts/compat.py --only oldest -- -n 2 tests       # one of them, the quick suite on two cores
    python scripts/compat.py --folder /tmp/compat --keep       # for a look at what failed
    python scripts/compat.py --over trl==1.15.0                # with the other packages of the Python that runs this

Builds one environment after the other in a folder, installs dmpo-trl with its test group, runs pytest and removes the
environment again, unless told to keep it: a CUDA build of torch, which is what PyPI has for Linux, takes 5 GB. What
follows `--` goes to pytest in place of the core tests. Exits with an error if a test failed or nothing could be run.
uv resolves and installs: pip tries version after version before it finds the lower bounds.
"""

import argparse
import datetime
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHOWN = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
# The tests of what rests on these libraries' inner workings
CORE = [
    "tests/batching",
    "tests/modeling",
    "tests/preprocessing/test_format.py",
    "tests/preprocessing/test_truncate.py",
    "tests/test_config.py",
    "tests/losses",
    "tests/test_scoring.py",
    "tests/test_seams.py",
    "tests/test_trainer.py",
]
CORE_ARGUMENTS = ["-n", "2", "-m", "not slow and not gpu", *CORE]

UV = (sys.executable, "-m", "uv")
# Stands for the Python that runs this, with its packages
OVER = "over"


@dataclass(frozen=True)
class Environment:
    """A Python, requirements beside dmpo-trl and its test group, and which versions of the rest to take."""

    name: str
    python: str
    requirements: tuple[str, ...] = ()
    resolution: str = "highest"


ENVIRONMENTS = [
    Environment("oldest", "3.11", resolution="lowest-direct"),
    Environment("trl-1.15", "3.12", ("trl==1.15.0",)),
    Environment("newest-3.11", "3.11"),
    Environment("newest-3.12", "3.12"),
    Environment("newest-3.13", "3.13"),
]


def interpreter(version: str) -> str | None:
    """An interpreter of this version. Pyenv's own: what it puts on the path starts only where it is told to."""
    pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    return str(pyenv[-1]) if pyenv else shutil.which(f"python{version}")


def build(environment: Environment, folder: Path) -> Path | None:
    """Install it; returns its interpreter, or None with the reason printed."""
    over = environment.python == OVER
    base = sys.executable if over else interpreter(environment.python)
    if base is None:
        print(f"{environment.name}: there is no Python {environment.python} here", file=sys.stderr)
        return None
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([*UV, "venv", "--quiet", "--python", base, folder], check=True)
    python = folder / "bin/python"
    install = [*UV, "pip", "install", "--quiet", "--python", python, *environment.requirements]
    if over:
        install += ["--no-deps"]
        for path in folder.glob("lib/python*/site-packages"):
            (path / "over.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    else:
        install += ["--resolution", environment.resolution, "-e", ROOT, "--group", f"{ROOT}/pyproject.toml:test"]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode != 0:
        print(done.stderr, file=sys.stderr)
        return None
    return python


def versions(python: Path) -> dict[str, str]:
    """Version of each library, by name; of Python too."""
    code = (
        "import json, platform, importlib.metadata as m; "
        f"print(json.dumps({{'python': platform.python_version()}} | {{n: m.version(n) for n in {SHOWN}}}))"
    )
    return json.loads(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout)


def run_tests(python: Path, arguments: list[str], report: Path) -> dict[str, int] | None:
    """How many tests passed, failed and were skipped; None if pytest did not come to an end."""
    report.unlink(missing_ok=True)
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *arguments]
    threads = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, cwd=ROOT, env=os.environ | threads)
    if not report.exists():
        return None
    suite = ElementTree.parse(report).getroot().find("testsuite")
    count = {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}
    failed = count["failures"] + count["errors"]
    return {"passed": count["tests"] - failed - count["skipped"], "failed": failed, "skipped": count["skipped"]}


def row(environment: Environment, folder: Path, arguments: list[str]) -> tuple[list[str], bool]:
    """The environment's line of the table, and whether it is a good one."""
    python = build(environment, folder)
    if python is None:
        return [environment.name, environment.python, *[""] * len(SHOWN), "not installed", "", ""], False
    counts = run_tests(python, arguments, folder / "report.xml")
    outcome = ["", "did not run", ""] if counts is None else [str(count) for count in counts.values()]
    good = counts is not None and counts["passed"] > 0 and counts["failed"] == 0
    return [environment.name, *versions(python).values(), *outcome], good


def main() -> None:
    """Builds, tests, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[e.name for e in ENVIRONMENTS], help="by name")
    parser.add_argument("--folder", type=Path, default=ROOT / ".compat", help="where to build (default: .compat)")
    parser.add_argument("--keep", action="store_true", help="leave the environments there")
    parser.add_argument("--over", nargs="+", metavar="REQUIREMENT", help="only these, over this Python's own packages")
    parser.add_argument("pytest", nargs="*", default=CORE_ARGUMENTS, help="arguments for pytest")
    options = parser.parse_args()

    chosen = [e for e in ENVIRONMENTS if not options.only or e.name in options.only]
    if options.over:
        chosen = [Environment(" ".join(options.over), OVER, tuple(options.over))]
    rows, all_good = [], True
    for environment in chosen:
        folder = options.folder.resolve() / environment.name
        cells, good = row(environment, folder, options.pytest)
        rows.append(cells)
        all_good &= good
        print(" | ".join(cells), file=sys.stderr, flush=True)
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)

    print(f"\n{datetime.date.today()}, `pytest {shlex.join(options.pytest)}`:\n")
    header = ["environment", "Python", *SHOWN, "passed", "failed", "skipped"]
    for cells in (header, ["---"] * len(header), *rows):
        print(f"| {' | '.join(cells)} |")
    sys.exit(not all_good)


if __name__ == "__main__":
    main()
