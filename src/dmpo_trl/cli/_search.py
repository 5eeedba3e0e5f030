"""What a search draws: the values that options may take."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ._commands import suggestion

if TYPE_CHECKING:
    from optuna import Trial

# Where they differed between trials, so would what is measured, or where it goes
_FIXED = {"output_dir", "ranking_data", "ranking_split", "ranking_users", "config", "seed", "resume", "report", "help"}


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; where `low` is above 0, evenly on a logarithmic scale."""

    low: float
    high: float

    def draw(self, trial: Trial, name: str) -> int | float:
        """Return what a trial takes for an option; whole numbers where both ends are."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.low > 0)
        return trial.suggest_float(name, self.low, self.high, log=self.low > 0)


@dataclass(frozen=True)
class Choice:
    """Some values, as written; those of an option that takes several are joined by `+`."""

    values: tuple[str, ...]

    def draw(self, trial: Trial, name: str) -> str:
        """Return what a trial takes for an option."""
        return trial.suggest_categorical(name, self.values)


Space = Mapping[str, Range | Choice]
"""What may be drawn for each option."""


def read_space(entries: Sequence[str], options: Sequence[argparse.Action]) -> dict[str, Range | Choice]:
    """Return a search space.

    Args:
        entries: Each `NAME=LOW..HIGH` or `NAME=A,B,C`.
        options: Those of `dmpo-trl train`.

    Raises:
        ValueError: An entry is neither, names no option or one that is the same in all trials, or its values are not
            the option's.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> options = [parser.add_argument("--beta", type=float), parser.add_argument("--loss_type", nargs="+")]
        >>> read_space(["beta=0.1..10", "loss_type=dmpo,dmpo+sft"], options)
        {'beta': Range(low=0.1, high=10.0), 'loss_type': Choice(values=('dmpo', 'dmpo+sft'))}
    """
    known = {name: option for name, option in by_name(options).items() if name not in _FIXED}
    space: dict[str, Range | Choice] = {}
    for entry in entries:
        name, _, text = entry.partition("=")
        name = name.strip().removeprefix("--")
        if not text:
            raise ValueError(f"--search takes NAME=LOW..HIGH or NAME=A,B,C, not {entry!r}.")
        if name in _FIXED:
            raise ValueError(f"--search {entry}: {name} is the same in all trials.")
        if name not in known:
            raise ValueError(f"--search {entry}: train has no option {name}{suggestion(name, known)}.")
        if name in space:
            raise ValueError(f"--search names {name} twice.")
        space[name] = _range(entry, known[name], text) if ".." in text else _choice(known[name], text)
    return space


def as_options(drawn: Mapping[str, Any], options: Sequence[argparse.Action]) -> dict[str, Any]:
    """Return drawn values as the options' own: texts of choices are what the command line would make of them.

    Args:
        drawn: By the options' names.
        options: Those of `dmpo-trl train`.

    Example:
        >>> option = argparse.ArgumentParser().add_argument("--loss_type", nargs="+")
        >>> as_options({"loss_type": "dmpo+sft"}, [option])
        {'loss_type': ['dmpo', 'sft']}
    """
    known = by_name(options)
    return {name: _value(known[name], value) if isinstance(value, str) else value for name, value in drawn.items()}


def by_name(options: Sequence[argparse.Action]) -> dict[str, argparse.Action]:
    """Return options by their names: of two that set the same (`--x` and `--no_x`), the first."""
    return {option.dest: option for option in reversed(options)}


def _range(entry: str, option: argparse.Action, text: str) -> Range:
    try:
        low, high = (_value(option, end) for end in text.split("..", 1))
    except ValueError:
        raise ValueError(f"--search {entry}: LOW and HIGH must be values of {option.dest}, like 1..10.") from None
    if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high)):
        raise ValueError(f"--search {entry}: {option.dest} is no number; list its values, {option.dest}=A,B.")
    ends = Range(low, high)
    if not float("-inf") < ends.low < ends.high < float("inf"):
        raise ValueError(f"--search {entry}: LOW must be below HIGH, both finite.")
    return ends


def _choice(option: argparse.Action, text: str) -> Choice:
    values = tuple(value.strip() for value in text.split(","))
    for value in values:
        _value(option, value)
    if len(set(values)) < len(values):
        raise ValueError(f"--search {option.dest}={text} lists a value twice.")
    return Choice(values)


def _value(option: argparse.Action, text: str) -> Any:
    texts = text.split("+") if option.nargs == "+" else [text]
    try:
        values = [option.type(one) if callable(option.type) else one for one in texts]
    except (ValueError, TypeError, argparse.ArgumentTypeError):
        raise ValueError(f"--search {option.dest}: {text!r} is no value of it.") from None
    if option.choices is not None and not all(value in option.choices for value in values):
        raise ValueError(
            f"--search {option.dest}: {text!r} is not one of {', '.join(map(str, option.choices))}"
            f"{suggestion(text, list(map(str, option.choices)))}."
        )
    return values if option.nargs == "+" else values[0]
