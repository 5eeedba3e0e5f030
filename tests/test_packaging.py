"""What is built is what should be published: contents, metadata, and a smoke test where nothing else is."""

import ast
import importlib.metadata
import itertools
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import dmpo_trl

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
REQUIREMENTS = [*PROJECT["dependencies"], *itertools.chain(*PROJECT["optional-dependencies"].values())]
# What works on the repository needs, and nobody who installs the package
GROUPED = [name for group in PYPROJECT["dependency-groups"].values() for name in group if isinstance(name, str)]
# Used where it is there: Triton comes with CUDA builds of torch, and who has no DeepSpeed does not launch with it
FOUND_NOT_REQUIRED = {"triton", "deepspeed"}


def run(*command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The folder of an sdist and the wheel built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    return folder


def name_of(requirement):
    return re.match(r"[\w-]+", requirement)[0]


def modules():
    """What the wheel should hold of the package."""
    further = {"dmpo_trl/py.typed", "dmpo_trl/cli/page.html", "dmpo_trl/cli/training.html"}
    return {str(file.relative_to(SOURCE)) for file in SOURCE.rglob("*.py")} | further


@pytest.mark.slow
def test_wheel_holds_the_package_and_the_licence_only(dist):
    (wheel,) = dist.glob("*.whl")
    info = f"dmpo_trl-{dmpo_trl.__version__}.dist-info"
    metadata = {f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")}
    with zipfile.ZipFile(wheel) as archive:
        assert set(archive.namelist()) == modules() | metadata
        assert archive.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()


@pytest.mark.slow
def test_sdist_holds_neither_tests_nor_data(dist):
    (sdist,) = dist.glob("*.tar.gz")
    beside = {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "PKG-INFO", ".gitignore"}
    with tarfile.open(sdist) as archive:
        files = {member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile()}
    assert files == {f"src/{name}" for name in modules()} | beside


@pytest.mark.slow
def test_twine_check_is_clean(dist):
    assert run(sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir()).count("PASSED") == 2


@pytest.mark.slow
def test_wheel_works_where_the_repository_is_not(dist, tmp_path):
    """`make package` does the same in an environment that pip fills from the registry; here it borrows this one's."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # A plain path: the borrowed folder's own .pth files, this repository's among them, stay unread
    Path(site, "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    (wheel,) = dist.glob("*.whl")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--ignore-installed", wheel)
    (tmp_path / "empty").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    printed = run(python, ROOT / "scripts/smoke.py", cwd=tmp_path / "empty", env=environment)
    assert f"dmpo-trl {dmpo_trl.__version__} in {site}" in printed


def test_every_import_is_a_declared_dependency():
    declared = {name_of(requirement).lower() for requirement in REQUIREMENTS}
    distributions = importlib.metadata.packages_distributions()
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for name in {name.split(".")[0] for name in names} - sys.stdlib_module_names - FOUND_NOT_REQUIRED:
                owners = {owner.lower() for owner in distributions.get(name, [name])}
                assert owners & declared, (
                    f"{file.relative_to(ROOT)} imports {name}, which pyproject.toml does not name"
                )


def test_every_requirement_has_bounds():
    for requirement in [*REQUIREMENTS, *GROUPED]:
        name = name_of(requirement)
        assert name == PROJECT["name"] or re.match(rf"{name}(\[\w+\])?>=[\d.]+,<[\d.]+", requirement), requirement


def test_no_extra_is_for_developers_only():
    extras = {"completion", "demo", "deepspeed", "gguf", "plot", "qlora", "ray", "serve", "tune"}
    assert set(PROJECT["optional-dependencies"]) == extras


def test_constraints_have_a_version_for_every_requirement():
    pinned = {name_of(line).lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    needed = {name_of(requirement).lower() for requirement in [*REQUIREMENTS, *GROUPED]} - {PROJECT["name"]}
    # Built from source for one machine
    assert needed - pinned <= {"deepspeed"}


def test_the_citation_names_this_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == PROJECT["version"]
