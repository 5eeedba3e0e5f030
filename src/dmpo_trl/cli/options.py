"""How subcommands read their options, and those that several share."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import yaml
from trl import TrlParser

if TYPE_CHECKING:
    from datasets import Dataset

    from ..data import Prepared


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows which options are required, and the default where there is one to know."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.required:
            return f"{action.help} (required)"
        shown = action.default not in (None, False, argparse.SUPPRESS)
        return f"{action.help or ''}{' (default: %(default)s)' if shown else ''}"


class Parser(TrlParser):
    """Reads a subcommand's options from flags and from the YAML file of `--config`; what is wrong ends the program.

    Args:
        command: Name of the subcommand.
        *types: Dataclasses of the options.
        example: A command line or several, shown by `--help`.
    """

    def __init__(self, command: str, *types: Any, example: str) -> None:
        from . import COMMANDS

        super().__init__(
            types,
            prog=f"dmpo-trl {command}",
            usage="%(prog)s [--config FILE] [options]",
            description=f"{COMMANDS[command][0].upper()}{COMMANDS[command][1:]}.",
            epilog="example:\n" + "\n".join(f"  {line}" for line in example.splitlines()),
            formatter_class=_HelpFormatter,
        )
        self.add_argument(
            "--config",
            metavar="FILE",
            default=argparse.SUPPRESS,
            help="YAML file with any of these options, `name: value`. Flags have precedence over it.",
        )

    def parse(self, arguments: Sequence[str], others: Collection[str] = ()) -> Any:
        """An instance of each type; what `foreign` finds is left out."""
        self.foreign(arguments, others)
        *options, _, _ = self._parse(arguments)
        return options

    def foreign(self, arguments: Sequence[str], others: Collection[str]) -> tuple[list[str], list[str]]:
        """Which arguments belong to options of somebody else; any that are nobody's end the program.

        Args:
            arguments: The command line after the subcommand.
            others: Names of those options, with their dashes.

        Returns:
            The others' arguments from the YAML file, and those from the command line.
        """
        types, self.dataclass_types = self.dataclass_types, []  # no instance: a training config sets up devices
        try:
            *found, from_file, from_flags = self._parse(arguments)
        finally:
            self.dataclass_types = types
        if found and hasattr(found[0], "config"):
            self.error("write --config in full")
        for unknown in (*from_file, *from_flags):
            if unknown.startswith("--") and unknown.split("=")[0] not in others:
                self.error(f"there is no option {unknown}{self._closest(unknown, others)}")
        if not others and from_flags:
            self.error(f"{from_flags[0]!r} belongs to no option; values follow their option's name")
        return from_file, from_flags

    def _parse(self, arguments: Sequence[str]) -> Any:
        arguments = [part for argument in arguments for part in _config_apart(argument)]
        if arguments[-1:] == ["--config"]:
            self.error("--config needs a file")
        try:
            return self.parse_args_and_config(
                arguments, return_remaining_strings=True, separate_remaining_strings=True
            )
        except yaml.YAMLError as error:
            raise ValueError(f"the file of --config is no YAML: {error}") from error

    def set_defaults_with_config(self, **values: Any) -> list[str]:
        """As in the parent, but the file's values are held to what the command line's are."""
        for action in self._actions:
            value = values.get(action.dest)
            if value is None:
                continue
            listed = value if isinstance(value, list) else [value]
            if action.nargs == "+":
                values[action.dest] = [str(one) for one in listed] if action.type is str else listed
            if action.choices is not None and not set(listed) <= set(action.choices):
                known = ", ".join(map(str, action.choices))
                self.error(f"{action.dest} in the file of --config must be one of {known}, it is {value!r}")
        return super().set_defaults_with_config(**values)

    def _closest(self, unknown: str, others: Collection[str]) -> str:
        name = unknown.split("=")[0].replace("-", "_").strip("_")
        known = {action.dest for action in self._actions} | {own.strip("-").replace("-", "_") for own in others}
        return suggestion(name, known, "--")


def suggestion(unknown: str, known: Collection[str], dashes: str = "") -> str:
    """The end of an error message about an unknown name: the closest that are known, or nothing."""
    begin_alike = sorted(name for name in known if unknown and name.startswith(unknown))
    found = (begin_alike + get_close_matches(unknown, sorted(known)))[:3]
    return f"; did you mean {' or '.join(dashes + name for name in dict.fromkeys(found))}?" if found else ""


def _config_apart(argument: str) -> list[str]:
    return argument.split("=", 1) if argument.startswith("--config=") else [argument]


@dataclass
class ModelArguments:
    """Which model, and how it is loaded."""

    model: str = field(metadata={"help": "Folder or hub id of a model or of an adapter."})
    dtype: str | None = field(
        default=None,
        metadata={"help": "Precision of the weights, for instance bfloat16. Default: as saved; on a CPU float32."},
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the model."})

    def from_pretrained(self) -> dict[str, Any]:
        """What `from_pretrained` gets."""
        options: dict[str, Any] = {} if self.dtype is None else {"dtype": self.dtype}
        return options | ({"trust_remote_code": True} if self.trust_remote_code else {})


def ranking_users(prepared: Prepared, split: str, limit: int | None) -> Dataset:
    """The users of a split of a prepared folder, all or the first ones. Refuses a single one."""
    users = prepared.ranking[split]
    users = users if limit is None else users.select(range(min(limit, len(users))))
    if len(users) < 2:
        raise ValueError(
            f"{len(users)} {split} users (of {len(prepared.ranking[split])}): an interval over users needs two or "
            "more. Raise `--users`, or prepare the data with more users held out."
        )
    return users
