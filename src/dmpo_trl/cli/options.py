"""Options of the subcommands, from flags and from a YAML file."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NoReturn

import yaml
from transformers import TrainingArguments
from trl import TrlParser

from ._commands import COMMANDS, suggestion

# How options are spelled
_OPTION = re.compile(r"--[a-z][a-z0-9]*([_-][a-z0-9]+)*(=.*)?", re.DOTALL)


class _KeyTwiceError(ValueError):
    """A mapping has two values for a key."""


class _UniqueKeys(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
    """Refuses a key that is given twice, of which YAML's own loader takes the last."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        found: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":  # `<<` merges, each time
                continue
            if (key.tag, key.value) in found:
                raise _KeyTwiceError(f"the key {key.value!r} twice, again in line {key.start_mark.line + 1}")
            found.add((key.tag, key.value))
        return node


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows which options are required, and the default where there is one to know."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.required:
            return f"{action.help} (required)"
        shown = action.default not in (None, False, argparse.SUPPRESS)
        return f"{action.help or ''}{' (default: %(default)s)' if shown else ''}"


@dataclass
class ParsedArguments:
    """A command line after parsing, before anything is made of it.

    Args:
        values: Value of each option of the subcommand.
        foreign_from_file: Arguments for somebody else's options, from the YAML file.
        foreign_from_flags: Arguments for somebody else's options, from the command line, in their order.
    """

    values: argparse.Namespace
    foreign_from_file: list[str]
    foreign_from_flags: list[str]


class Parser(TrlParser):
    """Parser of a subcommand's options. A mistake ends the program with a message.

    Args:
        command: Name of the subcommand.
        *types: Dataclasses of the options.
        example: One or more command lines, shown by `--help`.

    Attributes:
        options: Each option, as argparse describes it.
    """

    def __init__(self, command: str, *types: Any, example: str) -> None:
        self.options: list[argparse.Action] = []
        training = [one for one in types if issubclass(one, TrainingArguments)]
        self._of_training = {field.name for one in training for field in fields(one)}
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

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        """Add an option, as argparse does, and remember it."""
        self.options.append(super().add_argument(*names, **settings))
        return self.options[-1]

    def parse(self, arguments: Sequence[str], others: Collection[str] = ()) -> tuple[Any, ...]:
        """Return an instance of each dataclass; arguments for the options `others` are left out."""
        return self.instances(self.parse_values(arguments, others))

    def parse_values(self, arguments: Sequence[str], others: Collection[str] = ()) -> ParsedArguments:
        """Parse a command line without acting on it: a training config sets devices and processes up.

        Args:
            arguments: The command line after the subcommand.
            others: Names of options that belong to somebody else, with their dashes.

        Raises:
            ValueError: The file of `--config` is not a YAML mapping.
            SystemExit: An option is unknown or its value is not allowed.
        """
        first = argparse.ArgumentParser(self.prog, usage=self.usage, add_help=False, allow_abbrev=False)
        first.add_argument("--config", metavar="FILE")
        known, rest = first.parse_known_args(arguments)
        from_file = [] if known.config is None else self.set_defaults_with_config(**self._read_config(known.config))
        values, from_flags = self.parse_known_args(rest)
        if hasattr(values, "config"):
            self.error("write --config in full")
        for unknown in (*from_file, *from_flags):
            if unknown.startswith("--" if others else "-") and unknown.split("=")[0] not in others:
                self.error(f"there is no option {unknown}{self._closest(unknown, others) or self._of_title()}")
        if not others and from_flags:
            self.error(f"{from_flags[0]!r} belongs to no option; values follow their option's name")
        return ParsedArguments(values, from_file, from_flags)

    def instances(self, parsed: ParsedArguments) -> tuple[Any, ...]:
        """Return an instance of each dataclass, in the order in which the parser got them."""
        return self.parse_dict(vars(parsed.values), allow_extra_keys=True)

    def set_defaults_with_config(self, **values: Any) -> list[str]:
        """Take defaults from a file, as the parent does; its values are checked like the command line's."""
        for option in self.options:
            value = values.get(option.dest)
            if value is None:
                continue
            listed = value if isinstance(value, list) else [value]
            if option.nargs == "+":
                values[option.dest] = listed
            if option.choices is not None and not all(one in option.choices for one in listed):
                known = ", ".join(map(str, option.choices))
                closest = suggestion(str(value), list(map(str, option.choices)))
                self.error(f"{option.dest} in the file of --config must be one of {known}, it is {value!r}{closest}")
            kind = _NUMBERS.get(_type_name(option))
            alone = option.nargs == "+" or not isinstance(value, list)
            if kind is not None and not (alone and all(_is_number(one, option.type) for one in listed)):
                self.error(f"{option.dest} in the file of --config must be {kind}, it is {value!r}")
        return super().set_defaults_with_config(**values)

    def error(self, message: str) -> NoReturn:
        """End the program with a message, and with the closest choices where one was wrong."""
        wrong = re.match(r"argument (\S+): invalid choice: '(.*?)' \(", message)
        for option in self.options if wrong is not None else ():
            if wrong is not None and wrong[1] in option.option_strings and option.choices is not None:
                message += suggestion(wrong[2], list(map(str, option.choices)))
        super().error(message)

    def _parse_optional(self, arg_string: str) -> Any:
        """Take what begins with a dash and cannot be an option for a value, which argparse does not: a title may."""
        names = {name for option in self.options for name in option.option_strings} | {"-h"}
        if arg_string[:2] == "--":  # `--OZ--` and `--2--`, not a name that is spelled wrong
            looks_like_one = _OPTION.fullmatch(arg_string) or arg_string.split("=")[0].lower() in names
            is_value = len(arg_string) > 2 and not looks_like_one
        else:
            is_value = arg_string[:1] == "-" and not {arg_string, f"-{arg_string}"} & names
        return None if is_value else super()._parse_optional(arg_string)

    def _of_title(self) -> str:
        """Return what to do where a title was taken for an option."""
        if not any(option.dest == "history" for option in self.options):
            return ""
        return "; a title that begins like one is given as --history=TITLE, or by its item's identifier"

    def _read_config(self, path: str) -> dict[str, Any]:
        """Read the file of `--config`. TRL's parser lets its key `env` set environment variables; here it is refused.

        A config that somebody hands on would decide through which proxy or from which hub everything is loaded.
        """
        with open(path, encoding="utf-8") as file:
            try:
                text = file.read()
                config = yaml.load(text, Loader=_UniqueKeys)
                written = yaml.load(text, Loader=yaml.BaseLoader)
            except _KeyTwiceError as error:
                raise ValueError(f"The file of --config, {path}, has {error}. Keep one of them.") from error
            except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
                raise ValueError(f"The file of --config, {path}, is not YAML in UTF-8: {error}.") from error
            except RecursionError as error:
                raise ValueError(f"The file of --config, {path}, is nested too deeply to be read.") from error
        if not isinstance(config, dict):
            raise ValueError(f"The file of --config, {path}, must hold options as `name: value`.")
        if not all(isinstance(name, str) for name in config):
            raise ValueError(f"The file of --config, {path}, must hold options as `name: value`, each with a name.")
        if "env" in config:
            raise ValueError(
                f"The file of --config, {path}, sets environment variables with `env`, which is not done here: a "
                "config holds options only. Take `env` out, and set in the shell what you want: export NAME=value."
            )
        for option in self.options:
            if option.dest in config and _type_name(option) == "str":
                config[option.dest] = self._as_written(option, config[option.dest], written.get(option.dest))
        return config

    def _as_written(self, option: argparse.Action, value: Any, text: Any) -> Any:
        """Return a text option's value as it stands in the file, where YAML reads 50, Yes or 1e3 as something else."""
        if isinstance(value, list) and text is not None:
            return [one if isinstance(one, dict | list) else as_text for one, as_text in zip(value, text, strict=True)]
        # Options of a training config that are typed as text take other values too: `resume_from_checkpoint: true`
        kept = (
            value is None
            or text is None
            or isinstance(value, dict)
            or (option.nargs is None and option.dest in self._of_training)
        )
        return value if kept else text

    def _closest(self, unknown: str, others: Collection[str]) -> str:
        name = unknown.split("=")[0].replace("-", "_").strip("_")
        known = {option.dest for option in self.options} | {other.strip("-").replace("-", "_") for other in others}
        return suggestion(name, known, "--")


_NUMBERS = {"int": "a whole number", "float": "a number"}


def _type_name(option: argparse.Action) -> str:
    """Return the name of an option's type: TRL wraps that of one that may be None, and keeps its name."""
    return getattr(option.type, "__name__", "")


def _is_number(value: Any, kind: Any) -> bool:
    """Return whether a value of a file is what the command line takes for a number, where all is text."""
    if value is None:
        return True
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return False
    try:
        kind(str(value))
    except ValueError:
        return False
    return True


def check_at_least(options: Any, **minimums: int) -> None:
    """Refuse numbers that are too low, before anything is loaded. What is not given is not checked.

    Args:
        options: A dataclass of options.
        **minimums: The least value of each.

    Raises:
        ValueError: One of them is too low.

    Example:
        >>> check_at_least(argparse.Namespace(k=0), k=1)
        Traceback (most recent call last):
        ...
        ValueError: --k must be at least 1, it is 0.
    """
    for name, minimum in minimums.items():
        value = getattr(options, name)
        if value is not None and value < minimum:
            raise ValueError(f"--{name} must be at least {minimum}, it is {value}.")


def check_port(port: int) -> None:
    """Check that a port is not beyond the last one.

    Args:
        port: The value of `--port`.

    Raises:
        ValueError: It is.

    Example:
        >>> check_port(65535)
    """
    if port > 65535:
        raise ValueError(f"--port must be at most 65535, it is {port}.")


@dataclass
class ModelArguments:
    """Which model, and how it is loaded."""

    model: str = field(metadata={"help": "Folder or hub id of a model or of an adapter."})
    dtype: str | None = field(
        default=None,
        metadata={
            "help": "Precision of the weights. Default: as saved; float32 on a CPU.",
            "choices": ["auto", "bfloat16", "float16", "float32", "float64"],
        },
    )
    revision: str | None = field(
        default=None,
        metadata={"help": "Branch, tag or commit of --model and its tokenizer on the hub. Default: main."},
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the model."})

    def from_pretrained(self) -> dict[str, Any]:
        """Return the options that were set, for `from_pretrained` of model and tokenizer."""
        options = {"dtype": self.dtype, "revision": self.revision, "trust_remote_code": self.trust_remote_code or None}
        return {name: value for name, value in options.items() if value is not None}
