"""The import graph: no cycle between files, no arrow back up between rooms, few rooms, short files."""

from pathlib import Path

import pytest
from support.import_graph import arrows_up, cycle, files_of, import_graph, rooms_of

import dmpo_trl

PACKAGE = Path(dmpo_trl.__file__).parent
# The rooms, lowest first: each imports only what stands before it
ORDER = [
    "_common_prefix",
    "_closest",
    "writing",
    "preprocessing",
    "config",
    "batching",
    "losses",
    "modeling",
    "work",
    "scoring",
    "training",
    "trainer",
    "data",
    "evaluation",
    "recommend",
    "serving",
    "cli",
]
# Raw files become rows without a model: `data` stands beside the trainer's rooms and shares with them the row format
# and how outputs are written
ONLY = {"data": {"_common_prefix", "_closest", "writing", "preprocessing/format.py"}}
MAX_ROOMS = 17
MAX_LINES = 400
# Where TRL's methods are overridden is where everything meets, and grows unless watched
MAX_LINES_OF = {"trainer.py": 349}


@pytest.fixture(scope="module")
def arrows():
    """All but those of the package's own `__init__.py` and those to its version.

    The public names there are imported when first used (and for type checkers): it runs before every other file, and
    would else close a cycle with each of them.
    """
    return [
        arrow
        for arrow in import_graph(PACKAGE)
        if arrow.source != "__init__.py" and (arrow.target, arrow.names) != ("__init__.py", ("__version__",))
    ]


def shown(arrows):
    return "\n".join(map(str, arrows))


def test_no_two_files_import_each_other(arrows):
    found = cycle(arrows)
    assert not found, f"These imports lead back to where they begin:\n{shown(found)}"


def test_no_arrow_leads_back_up(arrows):
    assert len(arrows) > 100  # the graph was found
    found = arrows_up(arrows, [*ORDER, "__init__"], ONLY)
    assert not found, f"These imports lead to a room that does not stand below (see ORDER and ONLY):\n{shown(found)}"


def test_every_room_has_its_place():
    assert rooms_of(PACKAGE) == set(ORDER), "Give the new room its place in ORDER."
    assert len(ORDER) <= MAX_ROOMS


@pytest.mark.parametrize("file", [str(path.relative_to(PACKAGE)) for path in files_of(PACKAGE)])
def test_files_are_short(file):
    lines, limit = len((PACKAGE / file).read_text().splitlines()), MAX_LINES_OF.get(file, MAX_LINES)
    assert lines <= limit, f"{file} has {lines} lines, more than {limit}: carve an idea out of it."


# The checker itself, on packages made up


@pytest.fixture
def package(tmp_path):
    """Writes a package of these files and returns its arrows."""

    def write(**files):
        for name, text in files.items():
            file = tmp_path / "made_up" / f"{name.replace('__in__', '/')}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return import_graph(tmp_path / "made_up")

    return write


def ways(arrows):
    return [(arrow.source, arrow.line, arrow.target) for arrow in arrows]


@pytest.mark.parametrize(
    "back",
    [
        "from .a import f",
        "from . import a",
        "from made_up.a import f",
        "import made_up.a",
        "def g():\n    from .a import f",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .a import f",
    ],
)
def test_a_cycle_is_found_however_it_is_written(package, back):
    line = len(back.splitlines())
    found = cycle(package(a="from .b import g", b=back, c="from .a import f"))
    assert sorted(ways(found)) == [("a.py", 1, "b.py"), ("b.py", line, "a.py")]


def test_a_cycle_of_three_is_told_in_order(package):
    found = cycle(package(a="from .b import x", b="\nfrom .c import y", c="from .a import z\nfrom .d import w", d=""))
    assert {str(arrow) for arrow in found} == {
        "a.py:1 imports x from b.py",
        "b.py:2 imports y from c.py",
        "c.py:1 imports z from a.py",
    }
    assert all(arrow.target == after.source for arrow, after in zip(found, found[1:] + found[:1], strict=True))


def test_what_only_goes_down_is_no_cycle(package):
    assert cycle(package(a="from .b import x\nfrom .c import y", b="from .c import y", c="import os")) == []


def test_a_folder_is_its_init_or_the_file_that_is_named(package):
    files = {"low__in____init__": "from .inner import x", "low__in__inner": "from .. import top", "top": ""}
    found = package(**files, high="from .low import x\nfrom .low import inner\nfrom .low.inner import x")
    assert ways(found) == [
        ("high.py", 1, "low/__init__.py"),
        ("high.py", 2, "low/inner.py"),
        ("high.py", 3, "low/inner.py"),
        ("low/__init__.py", 1, "low/inner.py"),
        ("low/inner.py", 1, "top.py"),
    ]


def test_an_arrow_up_is_found(package):
    arrows = package(low__in__file="\ndef f():\n    from ..high import g", high="from .low import file")
    assert [str(arrow) for arrow in arrows_up(arrows, ["low", "high"])] == [
        "low/file.py:3 imports g from high.py",
    ]


def test_a_room_beside_the_others_imports_only_what_it_may(package):
    files = {
        "low__in__a": "",
        "low__in__b": "",
        "mid": "",
        "side": "from .low import a\nfrom .low import b\nimport made_up.mid",
    }
    found = arrows_up(package(**files), ["low", "mid", "side"], {"side": {"low/a.py"}})
    assert ways(found) == [("side.py", 2, "low/b.py"), ("side.py", 3, "mid.py")]


def test_an_import_of_what_is_not_there_is_named(package):
    with pytest.raises(AssertionError, match=r"a\.py:1 imports gone"):
        package(a="from .gone import x")
