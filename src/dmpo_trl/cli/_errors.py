"""Error messages of the command line: which errors a user can cause, and what is said about them."""

from __future__ import annotations

import lzma
import re
import zipfile
import zlib
from collections.abc import Collection
from pickle import UnpicklingError

# Errors whose message is meant for the user: ValueError of a check, OSError of files and downloads, ImportError of a
# package that an option needs, FloatingPointError of training
_SPEAK = (ValueError, OSError, ImportError, FloatingPointError)
# What a damaged archive or compressed file raises
_DAMAGED = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
# How RuntimeErrors of torch begin that are about a file, not about the program
_OF_FILES = ("PytorchStreamReader", "Error(s) in loading state_dict")


def message_of(error: Exception, options: Collection[str] = ()) -> str | None:
    """Return what the command line says about an error; None for a mistake in the program, which keeps its traceback.

    Args:
        error: The error that ended a command.
        options: Names of the command's options, without dashes.

    Example:
        >>> message_of(ValueError("Raise `test_users`."), ["test_users"])
        'Raise --test_users.'
        >>> message_of(AssertionError("a bug"))
    """
    text = _text(error)
    return None if text is None else as_flags(text, options)


def as_flags(message: str, options: Collection[str]) -> str:
    r"""Return a message with options named as flags.

    Messages are written for Python and for the command line: an option in them stands in backticks, has an underscore
    in its name, is set to True or False, or is followed by "must be". What stands in quotes or is part of a path
    remains.

    Args:
        message: The message.
        options: Names of the command's options, without dashes.

    Example:
        >>> as_flags("Lower `k` or test_users, or give download=True and `text`.", ["k", "test_users", "download"])
        'Lower --k or --test_users, or give --download and `text`.'
        >>> as_flags("Set `loss_type='dmpo'` in runs/loss_type/k.yaml.", ["loss_type", "k"])
        'Set --loss_type dmpo in runs/loss_type/k.yaml.'
    """

    def flag(match: re.Match[str]) -> str:
        name, value = match["name"], match["value"]
        must = match.string[match.end() :].startswith(" must be ")
        marked = match["quoted"] or "_" in name or value in ("True", "False") or must
        if name not in options or not marked:
            return match[0]
        if value is None or value == "True":
            return f"--{name}"
        return f"--{name} {value.strip(chr(39))}"

    quoted = re.compile(r"(?P<quoted>`)(?P<name>\w+)(?:=(?P<value>[^`]+))?`")
    plain = re.compile(
        r"(?P<quoted>)(?<![\w\-./\\'\"`=])(?<!\w\()(?P<name>\w+)(?:=(?P<value>True|False|\d+))?(?![\w\-/\\'\"`=(]|\.\w)"
    )
    return plain.sub(flag, quoted.sub(flag, message))


def _text(error: Exception) -> str | None:
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import StrictDataclassError
    from jinja2 import TemplateError
    from polars.exceptions import PolarsError
    from pyarrow import ArrowException
    from safetensors import SafetensorError
    from torch import OutOfMemoryError
    from yaml import YAMLError

    said = str(error) or type(error).__name__
    if isinstance(error, DatasetsError) and error.__cause__ is not None:
        return f"{said} ({error.__cause__})"
    if isinstance(error, MemoryError | OutOfMemoryError):
        return f"Memory ran out: {said}. Make what is computed or read at a time smaller."
    if isinstance(error, UnpicklingError):  # torch's own message advises to run what is in it
        return "A file is a pickle that holds more than data, or is damaged; loading it could run any code."
    if isinstance(error, _DAMAGED):
        return f"A compressed file is damaged or cut short ({said})."
    if isinstance(error, RecursionError):
        return "A file is nested too deeply to be read." if _raised_by_a_reader(error) else None
    if isinstance(error, TemplateError):
        return f"The tokenizer's chat template refuses a conversation: {said}"
    of_a_library = (PolarsError, SafetensorError, ArrowException, DatasetsError, StrictDataclassError, YAMLError)
    if isinstance(error, (*_SPEAK, *of_a_library)) or (
        isinstance(error, RuntimeError) and any(beginning in said for beginning in _OF_FILES)
    ):
        return said
    return None


def _raised_by_a_reader(error: Exception) -> bool:
    """Return whether the innermost function of a traceback is one of json or yaml, which recur into what they read."""
    trace, module = error.__traceback__, ""
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        trace = trace.tb_next
    return module.split(".")[0] in ("json", "yaml")
