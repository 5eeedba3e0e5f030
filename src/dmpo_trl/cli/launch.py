"""Launch of several processes, by options of `accelerate launch` among those of a subcommand."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence


def accelerate_options() -> set[str]:
    """Return the names of the options of `accelerate launch`, and `--accelerate_config`, which is TRL's."""
    from accelerate.commands.launch import launch_command_parser

    return {name for action in launch_command_parser()._actions for name in action.option_strings} | {
        "--accelerate_config"
    }


def is_launched() -> bool:
    """Return whether `accelerate launch` or `torchrun` started this process."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ or "LOCAL_RANK" in os.environ


def launch(command: str, arguments: Sequence[str], from_file: Sequence[str], from_flags: Sequence[str]) -> None:
    """Run a subcommand in the processes that `accelerate launch` makes of its options.

    Args:
        command: The subcommand.
        arguments: All of its arguments.
        from_file: Arguments for accelerate from the YAML file.
        from_flags: Arguments for accelerate among `arguments`, in their order. The rest goes to the processes.

    Raises:
        SystemExit: A process failed; what went wrong is on its standard error.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from trl.cli.accelerate_config import resolve_accelerate_config_argument

    own, left = [], list(from_flags)
    for argument in arguments:
        if left and argument == left[0]:
            del left[0]
        else:
            own.append(argument)
    options = resolve_accelerate_config_argument([*from_file, *from_flags])
    parsed = launch_command_parser().parse_args([*options, "--module", "dmpo_trl.cli", command, *own])
    try:
        launch_command(parsed)
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
