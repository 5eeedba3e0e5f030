"""`dmpo-trl completion`: script that completes commands and options in a shell."""

from __future__ import annotations

import argparse
import importlib

from ._commands import COMMANDS

SHELLS = ("bash", "zsh", "fish")
_INSTALL = """\
install it, once and after an update:
  bash   dmpo-trl completion bash > ~/.local/share/bash-completion/completions/dmpo-trl
  zsh    dmpo-trl completion zsh > ~/.zfunc/_dmpo-trl    (fpath+=~/.zfunc before compinit in ~/.zshrc)
  fish   dmpo-trl completion fish > ~/.config/fish/completions/dmpo-trl.fish"""


def run(arguments: list[str]) -> None:
    """Print the script. It is made of all commands' options, so that completing needs no Python."""
    parser = argparse.ArgumentParser(
        "dmpo-trl completion",
        description=f"{COMMANDS['completion']}.",
        epilog=_INSTALL,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS)
    shell = parser.parse_args(arguments).shell
    try:
        import shtab
    except ImportError as error:
        raise ImportError(
            "Completion needs the package shtab: pip install '.[completion]' in a clone of dmpo-trl."
        ) from error
    print(shtab.complete(_whole_parser(), shell))


def _whole_parser() -> argparse.ArgumentParser:
    """Return one parser with all commands and all their options, as shtab wants it."""
    import shtab

    parser = argparse.ArgumentParser("dmpo-trl")
    parser.add_argument("--version", action="store_true", help="show the version")
    parser.add_argument("--verbose", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers()
    for name, text in COMMANDS.items():
        if name == "completion":
            commands.add_parser(name, help=text).add_argument("shell", choices=SHELLS)
            continue
        own = importlib.import_module(f"..{name}", __name__).make_parser()
        for action in own.options:
            if action.choices is None and action.type in (None, str) and action.nargs != 0:
                action.complete = shtab.FILE  # may be a path
        commands.add_parser(name, help=text, parents=[own], add_help=False)
    return parser
