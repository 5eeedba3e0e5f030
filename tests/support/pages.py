"""Pages of the documentation, followed as a reader would: files written, Python and commands run."""

import re
import runpy
import shlex
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from .scripts import cpu_environment


class Block(NamedTuple):
    """A block of code on a page; a title is the name of the file that it is."""

    language: str
    title: str | None
    text: str


def blocks(page: Path) -> list[Block]:
    """The blocks of code of a page, in their order."""
    found = re.findall(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', page.read_text(encoding="utf-8"), re.M | re.S)
    return [Block(language, title or None, text) for language, title, text in found]


def commands(block: Block) -> list[list[str]]:
    """The commands of a block of the shell, as lists of arguments."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@contextmanager
def service(arguments: list[str]):
    """A service that answers, in a process of its own, until the page ends."""
    command = [sys.executable, "-m", "dmpo_trl.cli", "serve", *arguments]
    process = subprocess.Popen(command, env=cpu_environment(), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline().startswith("Serving ")
        yield
    finally:
        process.terminate()
        process.communicate()


def run_command(words: list[str], until_the_end: ExitStack) -> None:
    """Run a command of a page, most of them in this process; one that is not known here is an error.

    What goes on while the reader does other things ends with `until_the_end`.
    """
    from trl.scripts import sft  # here, because few tests of those that import these helpers run commands

    from dmpo_trl.cli import main

    match words:
        case ["dmpo-trl", "serve", *arguments]:
            until_the_end.enter_context(service(arguments))
        case ["curl", *_]:
            print(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
        case ["dmpo-trl", *arguments]:
            main(arguments)
        case ["trl", "sft", *arguments]:
            sft.main(*sft.make_parser().parse_args_and_config(arguments)[:4])
        case ["python", script]:
            runpy.run_path(script, run_name="__main__")
        case _:
            raise ValueError(f"How to run {shlex.join(words)} in a test?")


def follow(page: Path, replaced: dict[str, str], given: dict[str, Any] | None = None) -> dict[str, Any]:
    """Do what a page says, in the current folder; return the names that its Python has defined.

    `given` are names that its Python takes for granted. Of a diff the lines after the change are run. Text that a
    reader only reads is in blocks of `text`.
    """
    names: dict[str, Any] = dict(given or {})
    with ExitStack() as until_the_end:
        for block in blocks(page):
            text = block.text
            for old, new in replaced.items():
                text = text.replace(old, new)
            match block:
                case Block(title=str(title)):
                    Path(title).write_text(text, encoding="utf-8")
                case Block(language="python"):
                    exec(compile(text, f"<{page.name}>", "exec"), names)
                case Block(language="diff"):
                    exec(re.sub(r"^(-.*\n|[+ ])", "", text, flags=re.M), names)
                case Block(language="bash"):
                    for words in commands(block._replace(text=text)):
                        run_command(words, until_the_end)
                case Block(language="text"):
                    pass
                case _:
                    raise ValueError(f"What to do with a block of {block.language} in a test?")
    return names
