"""The `dmpo-trl` command: one module per subcommand, imported when it is called."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .. import __version__
from ._commands import COMMANDS, suggestion

__all__ = ["COMMANDS", "main"]


def main(argv: list[str] | None = None) -> None:
    """Run a subcommand. Its options are flags or keys of the YAML file given with `--config`.

    What a user can cause (a wrong value, a missing, damaged or odd file, a missing package, a failed download, a full
    disk or memory, a loss that is not finite) ends the command with one message; `--verbose` before the subcommand
    adds the traceback. A mistake in the program keeps its traceback.

    Args:
        argv: The command line without the program's name. Default: that of the process.

    Example:
        >>> main([])  # doctest: +ELLIPSIS
        usage: dmpo-trl [--verbose] COMMAND [options]
        ...
    """
    parser = argparse.ArgumentParser(
        prog="dmpo-trl",
        usage="%(prog)s [--verbose] COMMAND [options]",
        description="Turn language models into recommenders.",
        epilog="commands, in the order of a project:\n"
        + "\n".join(f"  {name:<11} {text}" for name, text in COMMANDS.items())
        + "\n\n`dmpo-trl COMMAND --help` lists the command's options. They can also be given in a YAML\n"
        "file: `dmpo-trl COMMAND --config FILE`.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dmpo-trl {__version__}")
    parser.add_argument("--verbose", action="store_true", help="show the traceback of an error")
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="one of the commands below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="options", help="options of the command")
    options = parser.parse_args(argv)
    if options.command is None:
        parser.print_help()
        return
    if options.command not in COMMANDS:
        closest = suggestion(options.command, COMMANDS) or "; `dmpo-trl --help` lists them"
        parser.error(f"there is no command {options.command}{closest}")
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("dmpo_trl").setLevel(logging.INFO)
    # Before torch is loaded: threads that wait sleep. Where they spin, other work on the machine makes a command take
    # several times as long; on an idle machine there is no difference
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    command: Any = None
    try:
        with _quiet_libraries():
            command = importlib.import_module(f"{__name__}.{options.command}")
            command.run(options.arguments)
        _end_process_group()
    except Exception as error:
        if options.verbose:
            raise
        from ._errors import message_of

        names = [option.dest for option in command.make_parser().options] if hasattr(command, "make_parser") else []
        message = message_of(error, names)
        if message is None:
            raise
        sys.exit(f"dmpo-trl {options.command}: {message}")


def _end_process_group() -> None:
    """End the process group that a command began under `accelerate launch` or `torchrun`, when its models are gone."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        from ..training.distributed import end_process_group

        end_process_group()


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Leave out what libraries say inside the block that a user of the command line can do nothing about."""
    kernels = logging.getLogger("bitsandbytes.backends.cpu.ops")  # an optional speed-up, looked for on import

    def is_ours(record: logging.LogRecord) -> bool:
        return "from kernels-community" not in str(record.msg)

    kernels.addFilter(is_ours)
    try:
        with warnings.catch_warnings():
            # transformers 5 renamed it, and DPOTrainer and peft use the old name
            warnings.filterwarnings("ignore", r"`(is_)?gradient_checkpointing\w*` is deprecated", FutureWarning)
            # Trainer asks for pinned memory, which a machine without a GPU does not have
            warnings.filterwarnings("ignore", "'pin_memory' argument is set as true but no accelerator", UserWarning)
            yield
    finally:
        kernels.removeFilter(is_ours)
