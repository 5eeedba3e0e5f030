"""Every command line and every config of the pages, taken by the parser of its own command; nothing is run."""

import importlib
import re
import shlex
from itertools import takewhile
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from support import ROOT, blocks
from trl.scripts import sft

from dmpo_trl.cli.completion import SHELLS
from dmpo_trl.cli.launch import accelerate_options

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
OURS = re.compile(r"^(?:dmpo-trl|accelerate launch|trl sft) .*", re.MULTILINE)
WITH_TRAINING = ("train", "tune", "estimate")  # their options are parsed, but make no config: it sets devices up
NOT_THERE = {"train.yaml", "outputs/tune/best.yaml"}  # configs of the reader's own, and one that is made


def command_lines(page: Path) -> list[list[str]]:
    """The words of the command lines in a page's blocks: up to a pipe, a comment or the next command."""
    text = page.read_text(encoding="utf-8")
    indented = re.findall(r"^    (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    code = [block.text for block in blocks(page) if block.language in ("bash", "text")] + ["\n".join(indented)]
    lines = [line for one in code for line in OURS.findall(one.replace("\\\n", " "))]
    return [
        list(takewhile(lambda word: word not in ("|", ">", "&&"), shlex.split(line, comments=True))) for line in lines
    ]


def options_of(arguments: list[str]) -> list[str]:
    """The arguments, with those of a config file as options before them: argparse then checks the types of all."""
    if "--config" not in arguments:
        return arguments
    place = arguments.index("--config")
    name, others = arguments[place + 1], arguments[:place] + arguments[place + 2 :]
    file = next((one for one in (Path(name), ROOT / name) if one.exists()), None)
    if file is None:
        assert name in NOT_THERE, f"there is no {name}"
        return others
    flags = []
    for key, value in yaml.safe_load(file.read_text(encoding="utf-8")).items():
        values = value if isinstance(value, list) else [value]
        if not any(isinstance(one, dict) for one in values):  # the parts of a mixture are no options
            flags += [f"--{key}", *map(str, values)]
    return flags + others


def check(words: list[str]) -> None:
    """Parse a command line. A mistake ends it with a message."""
    match [word for word in words if word != "..."]:
        case ["accelerate", "launch", *arguments]:
            launched = launch_command_parser().parse_args(arguments)
            assert launched.training_script == "dmpo_trl.cli"
            assert launched.module
            check(["dmpo-trl", *launched.training_script_args])
        case ["dmpo-trl", "completion", *arguments]:
            assert arguments[0] in (*SHELLS, "--help")
        case ["dmpo-trl", "--help"]:
            pass
        case ["dmpo-trl", command, *arguments]:
            parser = importlib.import_module(f"dmpo_trl.cli.{command}").make_parser()
            if command in WITH_TRAINING and "--help" not in arguments:
                parsed = parser.parse_values(options_of(arguments), () if command == "tune" else accelerate_options())
                launch_command_parser().parse_args([*parsed.foreign_from_flags, "script"])
            elif "--help" not in arguments:
                parser.parse(options_of(arguments))
        case ["trl", "sft", *arguments]:
            parsed, unknown = sft.make_parser().parse_known_args(options_of(arguments))
            assert unknown == []
        case _:
            raise ValueError(f"How to parse {shlex.join(words)}?")


@pytest.mark.parametrize("page", [page for page in PAGES if command_lines(page)], ids=lambda page: page.stem)
def test_the_command_lines_of_a_page_are_taken(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in blocks(page):
        if block.title is not None:
            Path(block.title).write_text(block.text, encoding="utf-8")
    for words in command_lines(page):
        check(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_config_of_a_page_is_that_of_a_command_line(page):
    """So that it is parsed with that line."""
    words = {word for line in command_lines(page) for word in line}
    assert [block for block in blocks(page) if block.language == "yaml" and block.title not in words] == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("dmpo-trl serve --model exported --prot 8000", "there is no option --prot"),
        ("dmpo-trl serve --model exported --port eight", "invalid int value: 'eight'"),
        ("dmpo-trl evaluate --model outputs/dmpo", "required: --data"),
        ("dmpo-trl train --config wrong.yaml", "argument --lora_r.*invalid int value: '1.5'"),
        ("dmpo-trl train --config odd.yaml", "there is no option --lora_rank"),
        ("accelerate launch --num_process 2 -m dmpo_trl.cli recommend --model m --k 1", "num_process"),
        ("accelerate launch --num_processes 2 -m dmpo_trl.cli recommend --model m --k one", "invalid int value"),
        ("trl sft --max_lenght 3", "max_lenght"),
    ],
)
def test_a_mistake_in_a_command_line_is_found(line, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("wrong.yaml").write_text("lora_r: 1.5\nuse_peft: true\n")
    Path("odd.yaml").write_text("lora_rank: 8\n")
    with pytest.raises((SystemExit, AssertionError)) as error:
        check(shlex.split(line))
    assert re.search(message, capsys.readouterr().err + str(error.value))
