"""An extension of griffe: docstrings in the form of TRL's, as the site's API reference reads them.

Griffe knows Google's form and mkdocstrings' references; what TRL's form has in their place is rewritten:

- [`next_items`] and [`Ranks.from_scores`] become links to the public object of that name. [`~trl.DPOTrainer`], of
  another package, and names that the site has no page for become code.
- `Example:` becomes `Examples:`, so that griffe finds the code.
- The lines `> Parameters that control ...` between parameters are left out.
- A parameter's type in brackets is left out: the signature has it.
- Arguments that share a line (`k, num_beams: See `recommend`.`) get one each.

Methods such as `__post_init__` are left out: they are not called by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import griffe

PUBLIC = ("dmpo_trl", "dmpo_trl.data", "dmpo_trl.evaluation", "dmpo_trl.recommend", "dmpo_trl.losses")
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


class Docstrings(griffe.Extension):
    """Rewrites the docstrings of a package once it is read."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Rewrite all docstrings of the package."""
        public: dict[str, str] = {}
        for module in PUBLIC:
            for name in pkg.modules_collection[module].exports or ():
                public.setdefault(str(name), f"{module}.{name}")
        _rewrite(pkg, public)


def _rewrite(of: griffe.Object, public: Mapping[str, str]) -> None:
    if of.docstring is not None:
        of.docstring.value = rewritten(of.docstring.value, public)
    for name, member in list(of.members.items()):
        if name != "__init__" and re.fullmatch("__.*__", name) and of.is_class:
            del of.members[name]
        elif not member.is_alias:
            _rewrite(member, public)
