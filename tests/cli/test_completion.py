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


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_can_read_their_scripts(scripts, shell):
    assert "max_tokens_per_batch" in (scripts / shell).read_text()
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([shell, "--no-execute", str(scripts / shell)], check=True)


def test_completion_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit, match=r"pip install 'dmpo-trl\[completion\]'"):
        main(["completion", "bash"])
