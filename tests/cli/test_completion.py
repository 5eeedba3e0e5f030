"""The scripts, run by the shells that are here."""

import shutil
import subprocess
import sys

import pytest

from dmpo_trl.cli import COMMANDS, main
from dmpo_trl.cli.completion import SHELLS


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    pytest.importorskip("shtab")
    folder = tmp_path_factory.mktemp("completion")
    for shell in SHELLS:
        with pytest.MonkeyPatch.context() as patch, (folder / shell).open("w") as file:
            patch.setattr(sys, "stdout", file)
            main(["completion", shell])
    assert all("max_tokens_per_batch" in (folder / shell).read_text() for shell in SHELLS)
    return folder


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["eval"], ["evaluate"]),
        ([""], [*COMMANDS]),
        (["evaluate", "--token"], ["--tokens_per_batch", "--tokens-per-batch"]),
        (["evaluate", "--split", ""], ["validation", "test"]),
        (["train", "--lora_al"], ["--lora_alpha"]),
        (["train", "--ranking_sc"], ["--ranking_score"]),
        (["recommend", "--config", "conf"], ["config.yaml"]),
        (["completion", "f"], ["fish"]),
    ],
    ids=" ".join,
)
def test_bash_completes_commands_options_choices_and_files(scripts, tmp_path, words, expected):
    (tmp_path / "config.yaml").touch()
    (tmp_path / "other").touch()
    # What bash does when the tab key is pressed after the last word
    press = (
        'source "$1"; shift; COMP_WORDS=(dmpo-trl "$@"); COMP_CWORD=$#; COMP_LINE="${COMP_WORDS[*]}"; '
        "COMP_POINT=${#COMP_LINE}; function=$(complete -p dmpo-trl | sed 's/.*-F \\([^ ]*\\).*/\\1/'); "
        '"$function" dmpo-trl; printf \'%s\\n\' "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", press, "bash", str(scripts / "bash"), *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    found = [word for word in done.stdout.split() if word != "-h"]
    assert set(expected) <= set(found)
    if words != [""]:
        assert set(found) == set(expected)


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("dmpo-trl eval", ["evaluate"]),
        ("dmpo-trl evaluate --token", ["--tokens-per-batch", "--tokens_per_batch"]),
        ("dmpo-trl evaluate --split ", ["validation", "test"]),
    ],
)
def test_fish_completes_commands_options_and_choices(scripts, line, expected):
    done = subprocess.run(
        ["fish", "-c", "source $argv[1]; complete -C $argv[2]", str(scripts / "fish"), line],
        capture_output=True,
        text=True,
        check=True,
    )
    assert sorted(line.split("\t")[0] for line in done.stdout.splitlines()) == sorted(expected)


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_can_read_its_script(scripts):
    subprocess.run(["zsh", "-n", str(scripts / "zsh")], check=True)


def test_completion_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit, match=r"pip install '\.\[completion\]' in a clone"):
        main(["completion", "bash"])
