"""Every command with every option at zero, negative, huge, empty and of the wrong type: a message or success."""

import importlib
from pathlib import Path

import pytest
from support.models import save_model

from dmpo_trl.cli import COMMANDS, main

HUGE = "1000000000000"
VALUES = ["0", "-1", HUGE, "", "no such", "nan", "inf"]
# Where the huge value is a legitimate order to compute for years
ENDLESS = {"max_steps", "num_train_epochs", "max_new_tokens", "trials"}
# Of the training's options, which `estimate` has too and reads without a step, those that are tried in one
IN_TRAINING = {
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "max_length",
    "max_tokens_per_batch", "max_negatives", "prefix_sharing", "learning_rate", "beta", "max_grad_norm",
    "logging_steps",
    "warmup_steps", "seed", "loss_type", "loss_weights", "ranking_data", "ranking_users", "dataset_train_split",
    "pad_token", "resume_from_checkpoint", "dtype",
}  # fmt: skip

# `tune` has the options of `train`, which are swept there, and these
OF_TUNING = {"search", "trials", "startup_trials", "evaluations", "objective"}
OF = {"train": IN_TRAINING, "tune": OF_TUNING}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, ratings in MovieLens' format, and what `prepare` makes of them."""
    folder = tmp_path_factory.mktemp("sweep")
    save_model(folder / "model")
    (folder / "raw").mkdir()
    movies = "".join(f"{movie},Film {movie} (19{movie:02}),Drama\n" for movie in range(10, 30))
    (folder / "raw" / "movies.csv").write_text(f"movieId,title,genres\n{movies}")
    ratings = "".join(
        f"{user},{10 + (7 * user + 3 * step) % 20},4.0,{1000 + step}\n" for user in range(1, 21) for step in range(5)
    )
    (folder / "raw" / "ratings.csv").write_text(f"userId,movieId,rating,timestamp\n{ratings}")
    main([*cases(folder)["prepare"], "--output_dir", str(folder / "data")])
    return folder


def cases(folder):
    """Command lines that work, to which one option is added."""
    model, data = str(folder / "model"), str(folder / "data")
    common = ["--model", model, "--data", data]
    training = ["--model_name_or_path", model, "--use_cpu", "True", "--bf16", "False"]
    raw = ["--dataset", "movielens", "--path", str(folder / "raw")]
    train = ["--dataset_name", data, "--output_dir", "run", "--max_steps", "1", "--report_to", "none"]
    return {
        "prepare": ["prepare", *raw, "--output_dir", "new", "--overwrite", "--candidates", "5", "--negatives", "2"],
        "popularity": ["prepare", *raw, "--output_dir", "new", "--overwrite", "--negative_strategy", "popularity"],
        "in_batch": ["prepare", *raw, "--output_dir", "new", "--overwrite", "--negative_strategy", "in_batch"],
        "leaks": ["leaks", "--train", data],
        "evaluate": ["evaluate", *common, "--users", "2"],
        "recommend": ["recommend", *common, "--history", "10", "11", "--k", "2"],
        "recommend to many": ["recommend", *common, "--split", "test", "--output", "all.parquet", "--overwrite"],
        "explain": ["explain", *common, "--history", "10", "11", "--max_new_tokens", "2"],
        "export": ["export", *common, "--output_dir", "new", "--overwrite"],
        "serve": ["serve", *common, "--port", "0"],
        "demo": ["demo", *common],
        "env": ["env"],
        "estimate": ["estimate", *training, "--prompt_tokens", "10", "--completion_tokens", "5"],
        "train": ["train", *training, *train, "--save_strategy", "no"],
        "tune": ["tune", *training, *train, "--trials", "1", "--search", "beta=0.1,1"],
    }


def test_all_commands_are_swept(tmp_path):
    """But `completion`, which takes a word and no option."""
    assert {case[0] for case in cases(tmp_path).values()} == COMMANDS.keys() - {"completion"}


def sweep(case, values, capsys):
    """Run a command with each of its options at each value; return how many runs that were."""
    command = case[0]
    options = [option.dest for option in importlib.import_module(f"dmpo_trl.cli.{command}").make_parser().options]
    runs = [
        [*case, f"--{option}", value]
        for option in options
        if option != "help" and option in OF.get(command, {option})
        for value in values
        if value != HUGE or option not in ENDLESS
    ]
    tracebacks = []
    for arguments in runs:
        try:
            main(arguments)
            problem = None
        except SystemExit as stop:
            problem = None if speaks(stop.code, command, capsys.readouterr().err) else stop
        except Exception as error:
            problem = error
        if problem is not None:
            problem.add_note(" ".join(map(repr, arguments[len(case) :])))
            tracebacks.append(problem)
        capsys.readouterr()
    if tracebacks:
        raise BaseExceptionGroup("errors that are not messages", tracebacks)
    return len(runs)


def speaks(code, command, printed):
    """Whether a command ended with a message, or with the status 1 of `leaks` that found one."""
    if isinstance(code, str):
        return code.startswith(f"dmpo-trl {command}: ") and len(code) > len(f"dmpo-trl {command}: .")
    return f"dmpo-trl {command}: error: " in printed if code == 2 else (command, code) == ("leaks", 1)


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """Nothing is looked for on the hub, and relative paths are in a new folder."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def no_service(monkeypatch):
    """A service that could be started ends at once."""
    monkeypatch.setattr("uvicorn.Server.run", lambda server, sockets: None)
    monkeypatch.setattr("gradio.Blocks.launch", lambda page, **options: None)
    monkeypatch.setattr("gradio.Blocks.block_thread", lambda page: None)


@pytest.mark.parametrize(
    "name", ["popularity", "leaks", "evaluate", "recommend", "recommend to many", "explain", "export", "serve"]
)
def test_no_option_below_zero_ends_in_a_traceback(name, folder, capsys):
    case = cases(folder)[name]
    assert sweep(case, ["-1"], capsys) > 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of libraries, about options of theirs
@pytest.mark.parametrize("name", cases(Path("folder")))
def test_no_option_at_any_value_ends_in_a_traceback(name, folder, capsys):
    assert sweep(cases(folder)[name], VALUES, capsys) > 6
