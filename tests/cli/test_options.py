"""What a newcomer gets wrong, and what the parser says to it."""

import os
from dataclasses import dataclass, field
from typing import Literal

import pytest
from transformers import TrainingArguments

from dmpo_trl.cli.options import Parser


@dataclass
class Options:
    model: str = field(metadata={"help": "A model."})
    split: str = field(default="test", metadata={"help": "Users.", "choices": ["validation", "test"]})
    score: Literal["sum", "mean"] = field(default="mean", metadata={"help": "A score."})
    history: list[str] | None = field(default=None, metadata={"help": "Items."})
    num_beams: int | None = field(default=None, metadata={"help": "Beams."})
    weight: float = field(default=1.0, metadata={"help": "A weight."})
    data: str | None = field(default=None, metadata={"help": "A folder."})


def make_parser():
    return Parser("recommend", Options, example="none")


def parse(*arguments):
    (options,) = make_parser().parse(arguments)
    return options


@pytest.fixture
def config(tmp_path):
    def write(text):
        (tmp_path / "config.yaml").write_text(text)
        return f"--config={tmp_path / 'config.yaml'}"

    return write


def test_flags_have_precedence_over_the_file(config):
    file = config("model: from-file\nsplit: validation\nnum_beams: 3\n")
    assert parse(file, "--model", "from-flag") == Options("from-flag", "validation", num_beams=3)
    assert parse(*file.split("=")) == Options("from-file", "validation", num_beams=3)


def test_items_in_the_file_are_texts_as_on_the_command_line(config):
    """YAML reads 50 as a number, and one item as no list."""
    assert parse(config("model: m\nhistory: [1, 50, Toy Story]\n")).history == ["1", "50", "Toy Story"]
    assert parse(config("model: m\nhistory: Toy Story\n")).history == ["Toy Story"]


@pytest.mark.parametrize("text", ["1", "1e-3", "'0.5'", "-2", "1_000"])
def test_numbers_in_the_file_are_those_of_the_command_line(config, text):
    """YAML 1.1 reads 1e-3 as text."""
    assert parse(config(f"model: m\nweight: {text}\n")).weight == float(text.strip("'"))


def test_texts_in_the_file_are_what_is_written_there(config):
    """YAML 1.1 reads Yes and On as true, 1:20 as 80, and 007 as 7."""
    read = parse(config("model: 1.10\nhistory: [311, Yes, On, 007, 1e3, 1:20, 2001-01-01, null, '5', ~]\n"))
    assert read.model == "1.10"
    assert parse(config("model: m\ndata: 2024\n")).data == "2024"
    assert read.history == ["311", "Yes", "On", "007", "1e3", "1:20", "2001-01-01", "null", "5", "~"]
    assert parse(config("model: m\nhistory: null\n")).history is None


def test_a_training_config_takes_other_values_than_text(config):
    @dataclass
    class Config(TrainingArguments):
        pass

    parser = Parser("train", Config, example="none")
    parsed = parser.parse_values(
        [config("resume_from_checkpoint: true\nmodel_init_kwargs: {a: 1}\n")], {"--model_init_kwargs"}
    )
    assert parsed.values.resume_from_checkpoint is True


@pytest.mark.parametrize(
    ("arguments", "history"),
    [
        (["--history", "-OZ-"], ["-OZ-"]),
        (["--history", "Alien", "-OZ-", "-123 min."], ["Alien", "-OZ-", "-123 min."]),
        (["--history=-OZ-"], ["-OZ-"]),
        (["--history", "-t de sangre", "--num_beams", "3"], ["-t de sangre"]),
        (["--history", "-5", "-"], ["-5", "-"]),
        (
            ["--history", "--OZ--", "--2--", "---", "-- Alien --", "--num_beams--"],
            ["--OZ--", "--2--", "---", "-- Alien --", "--num_beams--"],
        ),
        (["--history=--beams"], ["--beams"]),
    ],
)
def test_a_title_may_begin_with_a_dash(arguments, history):
    assert parse("--model", "m", *arguments).history == history


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "m", "--modle", "x"], "there is no option --modle; did you mean --model?"),
        (["--model", "m", "--num-baems=3"], "there is no option --num-baems=3; did you mean --num_beams?"),
        (["--model", "m", "--beams", "3"], "there is no option --beams; did you mean --num_beams?"),
        (
            ["--model", "m", "--xyzzy"],
            "there is no option --xyzzy; a title that begins like one is given as --history=",
        ),
        (["--model", "m", "--MODLE", "x"], "there is no option --MODLE; did you mean --model?"),
        (["--model", "m", "--history", "1", "--MODEL", "x"], "there is no option --MODEL; did you mean --model?"),
        (["--model", "m", "stray"], "'stray' belongs to no option"),
        (["--model", "m", "--split", "tset"], "invalid choice: 'tset' (choose from"),
        (["--model", "m", "--split", "tset"], "did you mean test?"),
        (["--model", "m", "--split", "val"], "did you mean validation?"),
        (["--model", "m", "--split", "VALIDATION"], "did you mean validation?"),
        (["--model", "m", "-split", "test"], "there is no option -split; did you mean --split?"),
        (["--model", "m", "-split", "test", "--history", "1"], "there is no option -split; did you mean --split?"),
        (["--model", "m", "--split", "-x"], "invalid choice: '-x'"),
        (["--model", "m", "--config"], "argument --config: expected one argument"),
        (["--model", "m", "--conf", "x"], "write --config in full"),
        ([], "the following arguments are required: --model"),
    ],
)
def test_what_is_wrong_on_the_command_line_is_named_with_the_closest(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(*arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: m\nmodle: x\n", "there is no option --modle; did you mean --model?"),
        (
            "model: m\nsplit: tset\n",
            "split in the file of --config must be one of validation, test, it is 'tset'; did you mean test?",
        ),
        ("model: m\nscore: median\n", "score in the file of --config must be one of sum, mean, it is 'median'"),
        *(
            (
                f"model: m\nnum_beams: {value}\n",
                f"num_beams in the file of --config must be a whole number, it is {read}",
            )
            for value, read in (
                ("2.5", "2.5"),
                ("2.0", "2.0"),
                ("true", "True"),
                ("[3]", "[3]"),
                ("{a: 1}", "{'a': 1}"),
                ("many", "'many'"),
            )
        ),
        ("model: m\nweight: false\n", "weight in the file of --config must be a number, it is False"),
        ("model: m\nweight: [0.5]\n", "weight in the file of --config must be a number, it is [0.5]"),
    ],
)
def test_what_is_wrong_in_the_file_is_named_with_the_closest(text, message, config, capsys):
    with pytest.raises(SystemExit):
        parse(config(text))
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [m\n", "is not YAML"),
        ("- model\n", "must hold options as `name: value`"),
        ("env: [A]\nmodel: m\n", "sets environment variables with `env`"),
        ("env:\nmodel: m\n", "sets environment variables with `env`"),
        ("[" * 50_000, "is nested too deeply"),
        ("7: m\n", "each with a name"),
        ("model: m\nfirst: 2024-99-99\n", "is not YAML"),
        ("model: m\nsplit: test\n'model': n\n", r"yaml, has the key 'model' twice, again in line 3\. Keep one"),
        ("model: m\nword: {a: 1, a: 2}\n", r"has the key 'a' twice, again in line 2"),
    ],
)
def test_a_file_that_holds_no_options_is_an_error_without_a_traceback(text, message, config):
    with pytest.raises(ValueError, match=message):
        parse(config(text))


def test_what_is_merged_may_be_given_again(config):
    text = "inner: {one: &a {k: 1}, two: &b {<<: *a, k: 2}}\nouter: {<<: *a, <<: *b, k: 3, 'k2': 4}\nmodel: m\n"
    found = make_parser()._read_config(config(text).removeprefix("--config="))
    assert found == {"inner": {"one": {"k": 1}, "two": {"k": 2}}, "outer": {"k": 3, "k2": 4}, "model": "m"}


def test_a_file_that_is_not_utf_8_is_named(tmp_path):
    file = tmp_path / "latin.yaml"
    file.write_bytes("word: Amélie".encode("latin-1"))
    with pytest.raises(ValueError, match=rf"The file of --config, {file}, is not YAML in UTF-8"):
        parse("--config", str(file))


def test_a_file_sets_no_environment_variables(config, monkeypatch):
    """TRL's parser lets it: `HTTPS_PROXY` or `HF_ENDPOINT` in somebody's config would say where models come from."""
    monkeypatch.setenv("DMPO_TRL_TEST", "before")
    with pytest.raises(ValueError, match="Take `env` out, and set in the shell what you want: export NAME=value"):
        parse(config("env: {DMPO_TRL_TEST: 1}\nmodel: m\n"))
    assert os.environ["DMPO_TRL_TEST"] == "before"


def test_options_of_somebody_else_are_handed_back_in_order(config):
    file = config("model: m\nport: 1\n")
    others = {"--port", "--cpu", "--num_processes"}
    arguments = [file, "--num_processes", "2", "--split", "validation", "--cpu"]
    parsed = make_parser().parse_values(arguments, others)
    assert parsed.foreign_from_file == ["--port", "1"]
    assert parsed.foreign_from_flags == ["--num_processes", "2", "--cpu"]
    assert make_parser().parse(arguments, others) == (Options("m", "validation"),)


def test_an_option_of_nobody_is_compared_with_both(config, capsys):
    with pytest.raises(SystemExit):
        make_parser().parse_values(["--model", "m", "--num_proceses", "2"], {"--num_processes"})
    assert "did you mean --num_processes?" in capsys.readouterr().err


def test_whose_options_they_are_is_found_before_any_is_acted_on():
    """A training config sets devices and processes up, which belongs into the launched processes."""

    @dataclass
    class Acting:
        model: str = "m"

        def __post_init__(self):
            raise AssertionError

    parser = Parser("train", Acting, example="none")
    parsed = parser.parse_values(["--model", "x", "--cpu"], {"--cpu"})
    assert (parsed.values.model, parsed.foreign_from_flags) == ("x", ["--cpu"])
    with pytest.raises(AssertionError):
        parser.instances(parsed)
