"""An extension of griffe: docstrings in the form of TRL's, as the site's API reference reads them.

Griffe knows Google's form and mkdocstrings' references; what TRL's form has in their place is rewritten:

- [`next_items`] and [`Ranks.from_scores`] become links to the public object of that name. [`~trl.DPOTrainer`], of
  another package, and names that the site has no page for become code; a name that is nowhere is a warning.
- `Example:` becomes `Examples:`, so that griffe finds the code.
- The lines `> Parameters that control ...` between parameters are left out.
- A parameter's type in brackets is left out: the signature has it.
- Arguments that share a line (`k, num_beams: See `recommend`.`) get one each.

Methods such as `__post_init__` are left out: they are not called by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Set
from typing import Any

import griffe

PUBLIC = (
    "dmpo_trl",
    "dmpo_trl.data",
    "dmpo_trl.evaluation",
    "dmpo_trl.recommend",
    "dmpo_trl.losses",
    "dmpo_trl.serving",
)
"""The modules with a page; a name of several is linked to the first."""

_REFERENCE = re.compile(r"\[`(~?)([A-Za-z_][\w.]*)`\](?![\[(])")
_ARGUMENTS = re.compile(r"^[ \t]*Args:\n(?:[ \t]*\S.*\n?)+", re.MULTILINE)
_SHARED_LINE = re.compile(r"^([ \t]+)(\w+(?:, \w+)+):(.*(?:\n\1[ \t]+\S.*)*)", re.MULTILINE)


def rewritten(docstring: str, public: Mapping[str, str]) -> str:
    """Return a docstring as griffe reads it.

    Args:
        docstring: The text.
        public: Public names, and what the reference calls them: `{"Ranks": "dmpo_trl.evaluation.Ranks"}`.
    """

    def link(match: re.Match[str]) -> str:
        short, name = match.groups()
        first, dot, rest = name.partition(".")
        if first in public:
            return f"[`{name}`][{public[first]}{dot}{rest}]"
        return f"`{name.rpartition('.')[2] if short else name}`"

    def split(match: re.Match[str]) -> str:
        indent, names, text = match.groups()
        return "\n".join(f"{indent}{name}:{text}" for name in names.split(", "))

    text = _ARGUMENTS.sub(lambda section: _SHARED_LINE.sub(split, section.group()), docstring)
    text = _REFERENCE.sub(link, text)
    text = re.sub(r"^([ \t]+\w+) \(`.*\):$", r"\1:", text, flags=re.MULTILINE)
    text = re.sub(r"^([ \t]*)Example:$", r"\1Examples:", text, flags=re.MULTILINE)
    return re.sub(r"^[ \t]*> .*\n\n?", "", text, flags=re.MULTILINE)


def unknown(docstring: str, known: Set[str]) -> list[str]:
    """Return the references of a docstring whose object is neither known nor of another package (`trl.DPOTrainer`)."""
    names = [name for _, name in _REFERENCE.findall(docstring)]
    return [name for name in names if name.partition(".")[0] not in known and not re.match(r"[a-z_]+\.", name)]


class Docstrings(griffe.Extension):
    """Rewrites the docstrings of a package once it is read."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Rewrite all docstrings of the package."""
        public: dict[str, str] = {}
        for module in PUBLIC:
            for name in pkg.modules_collection[module].exports or ():
                public.setdefault(str(name), f"{module}.{name}")
        objects = list(_objects(pkg))
        known = {of.name for of in objects}
        for of in objects:
            if of.docstring is not None:
                for name in unknown(of.docstring.value, known | public.keys()):
                    griffe.docstring_warning(of.docstring, 0, f"There is no `{name}` to link to")
                of.docstring.value = rewritten(of.docstring.value, public)


def _objects(of: griffe.Object) -> Iterator[griffe.Object]:
    """Yield an object and what is in it, without the methods that are not called by name."""
    yield of
    for name, member in list(of.members.items()):
        if name != "__init__" and re.fullmatch("__.*__", name) and of.is_class:
            del of.members[name]
        elif not member.is_alias:
            yield from _objects(member)
