"""The import graph of a package, from its syntax trees."""

import ast
import graphlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class Arrow(NamedTuple):
    """One import of a file of the package by another, by their paths in the package."""

    source: str
    line: int
    target: str
    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {', '.join(self.names)} from {self.target}"


def files_of(package: Path) -> list[Path]:
    return sorted(package.rglob("*.py"))


def room(file: str) -> str:
    """The top-level folder or module of a file; `__init__` for the package's own."""
    return file.split("/")[0].removesuffix(".py")


def rooms_of(package: Path) -> set[str]:
    return {room(str(file.relative_to(package))) for file in files_of(package)} - {"__init__"}


def _imports(tree: ast.AST) -> list[tuple[int, int, str, list[str]]]:
    """Line, level, module and names of each import, in functions and under `TYPE_CHECKING` too."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found.append((node.lineno, node.level, node.module or "", [alias.name for alias in node.names]))
        elif isinstance(node, ast.Import):
            found.extend((node.lineno, 0, alias.name, []) for alias in node.names)
    return found


def import_graph(package: Path) -> list[Arrow]:
    """All arrows between files of the package.

    `from .folder import name` points at `folder/name.py` where there is one, else at `folder/__init__.py`. An arrow
    does not lead to the folders above the file that it names, though Python runs their `__init__` as well.
    """

    def file_of(parts: Sequence[str]) -> str | None:
        path = package.joinpath(*parts)
        for candidate in (path / "__init__.py", path.with_name(f"{path.name}.py")):
            if candidate.is_file() and candidate.is_relative_to(package):
                return str(candidate.relative_to(package))
        return None

    arrows = []
    for file in files_of(package):
        source = str(file.relative_to(package))
        folder = file.relative_to(package).parent.parts
        for line, level, module, names in _imports(ast.parse(file.read_text())):
            parts = module.split(".") if module else []
            if level:
                parts = [*folder[: len(folder) - level + 1], *parts]
            elif parts[0] == package.name:
                parts = parts[1:]
            else:
                continue
            submodules = {name: file_of([*parts, name]) for name in names}
            others = tuple(name for name, found in submodules.items() if found is None)
            arrows += [Arrow(source, line, found, (name,)) for name, found in submodules.items() if found]
            if others or not names:
                target = file_of(parts)
                assert target is not None, f"{source}:{line} imports {module}, which is not a file of {package.name}"
                arrows.append(Arrow(source, line, target, others or (parts[-1],)))
    return arrows


def cycle(arrows: Collection[Arrow]) -> list[Arrow]:
    """Arrows that lead from a file back to it; empty if there are none."""
    graph: dict[str, set[str]] = {}
    for arrow in arrows:
        graph.setdefault(arrow.source, set()).add(arrow.target)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        files = error.args[1]  # each is imported by the next one
        steps = zip(files[1:], files, strict=False)
        return [next(a for a in arrows if (a.source, a.target) == step) for step in steps][::-1]
    return []


def arrows_up(
    arrows: Collection[Arrow], order: Sequence[str], only: Mapping[str, Collection[str]] | None = None
) -> list[Arrow]:
    """Arrows from a room to one that does not stand below it.

    Args:
        order: The rooms, lowest first.
        only: For rooms that may not import all that stands below them, the files and rooms that they may.
    """
    only = only or {}
    found = []
    for arrow in arrows:
        source, target = room(arrow.source), room(arrow.target)
        if source == target:
            continue
        if source in only:
            allowed = arrow.target in only[source] or target in only[source]
        else:
            allowed = order.index(target) < order.index(source)
        if not allowed:
            found.append(arrow)
    return found
