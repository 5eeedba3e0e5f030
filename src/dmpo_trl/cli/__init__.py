"""The `dmpo-trl` command: one module per subcommand, imported when it is called."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys

from .. import __version__
from ._commands import COMMANDS, suggestion

__all__ = ["COMMANDS", "main"]

# Errors that speak to the user: ValueError of a check, OSError of files and downloads, ImportError of a package that
# an option needs, FloatingPointError of training
_REPORTED = (ValueError, OSError, ImportError, FloatingPointError)


def main(argv: list[str] | None = None) -> None:
    """Run a subcommand. Its options are flags or keys of the YAML file given with `--config`.

    A mistake in what the user gave, a missing file or package, a failed download and a loss that is not finite end the
    command with their message alone; `--verbose` before the subcommand adds the traceback.

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
    run = importlib.import_module(f"{__name__}.{options.command}").run
    try:
        run(options.arguments)
    except _REPORTED as error:
        if options.verbose:
            raise
        sys.exit(f"dmpo-trl {options.command}: {error}")
