"""`dmpo-trl tune`: what it draws, that it goes on where it was killed, and that its file trains."""

import csv
import inspect
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from support import ROOT, cpu_environment, follow, save_model
from support.prepared import model_and_table
from trl import DPOTrainer

from dmpo_trl.cli import main
from dmpo_trl.cli._search import Choice, Range, as_options, read_space
from dmpo_trl.cli.train import make_parser
from dmpo_trl.data import PrepareConfig, prepare
from dmpo_trl.modeling.loading import is_adapter

optuna = pytest.importorskip("optuna")

# Ends the process by SIGKILL in the evaluation of this number, in the middle of a trial
KILLED = """
import os, signal, sys
from dmpo_trl.cli import _tuning, main
seen, report = [], _tuning.Reports.on_evaluate
def on_evaluate(*args, **kwargs):
    seen.append(1)
    if len(seen) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return report(*args, **kwargs)
_tuning.Reports.on_evaluate = on_evaluate
main(sys.argv[2:])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = model_and_table(tmp_path_factory.mktemp("tune"), steps=6)
    table = {"dataset": "table", "path": str(folder / "rows.csv"), "template": "movies"}
    prepare(PrepareConfig(**table, candidates=8, test_users=6, negatives=3, output_dir=str(folder / "data")))
    return folder


def command(folder, out, *more, trials=4):
    return [
        *("tune", "--model_name_or_path", f"{folder}/model", "--dataset_name", f"{folder}/data"),
        *("--dataset_config", "preference", "--output_dir", str(out), "--use_cpu", "True", "--report_to", "none"),
        *("--max_steps", "4", "--per_device_train_batch_size", "4", "--disable_tqdm", "True", "--use_peft"),
        *("--trials", str(trials), "--startup_trials", "2", "--evaluations", "2", *more),
    ]


def rows(out):
    with (out / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """A search that was left alone."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        main(command(folder, out))
    return out


@pytest.mark.slow
def test_the_best_is_the_highest_and_the_file_trains(whole, tmp_path):
    trials = rows(whole)
    assert [trial["trial"] for trial in trials] == [*"0123"]
    ended = [trial for trial in trials if trial["ended"] == "whole"]
    assert len(ended) >= 2  # those at the beginning are not stopped
    assert len({trial["learning_rate"] for trial in trials}) == 4
    assert all(1 <= int(trial["max_negatives"]) <= 3 for trial in trials)
    best = max(ended, key=lambda trial: float(trial["value"]))
    config = yaml.safe_load((whole / "best.yaml").read_text())
    assert config["learning_rate"] == float(best["learning_rate"])
    assert config["loss_type"] == [best["loss_type"]]
    assert config["max_negatives"] == int(best["max_negatives"])
    assert (config["max_steps"], config["use_peft"]) == (4, True)
    assert "eval_strategy" not in config
    assert not any(path.is_dir() for path in whole.iterdir())
    main(["train", "--config", f"{whole}/best.yaml", "--output_dir", str(tmp_path / "best")])
    assert is_adapter(str(tmp_path / "best"))


@pytest.mark.slow
def test_a_search_that_was_killed_ends_as_one_that_was_left_alone(folder, whole, tmp_path, capsys):
    out = tmp_path / "out"
    # Two evaluations of each trial that is not stopped: in the second trial, at its end
    killed = [sys.executable, "-c", KILLED, "4", *command(folder, out)]
    environment = cpu_environment() | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(killed, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    assert len(rows(out)) == 1
    main(command(folder, out))
    assert "1 trials were done by an earlier run." in capsys.readouterr().out

    def drawn(folder):
        return [{name: own for name, own in trial.items() if name != "trial"} for trial in rows(folder)]

    assert drawn(out) == drawn(whole)


@pytest.mark.slow
def test_the_page_does_what_it_says(folder, tmp_path, monkeypatch, capsys):
    """Its commands as they stand, with another model, fewer trials and fewer steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    save_model(tmp_path / "tiny")
    smaller = {"num_train_epochs: 1": "max_steps: 2", "--trials 40": "--trials 1"}
    follow(
        ROOT / "docs" / "tuning.md",
        {"HuggingFaceTB/SmolLM2-135M-Instruct": "tiny", "outputs/shop/data": f"{folder}/data"} | smaller,
    )
    assert "best (sum)" in capsys.readouterr().out
    assert list(rows(tmp_path / "outputs" / "tune-lora")[0])[4:] == ["learning_rate", "lora_r", "loss_type"]


def test_a_trial_below_the_median_is_stopped_early(tmp_path):
    from dmpo_trl.cli._tuning import Reports, Study, sentence

    class State:
        global_step, max_steps = 1, 2

    study = Study(tmp_path, {}, {"beta": Range(0.1, 1.0)}, metric="auc", startup=2, seed=0)
    found = iter([0.5, 0.6, 0.1])

    def objective(trial, drawn):
        value = next(found)
        Reports(trial, "auc").on_evaluate(None, State, None, metrics={"eval_auc": value})
        return value

    ends = [study.run(objective) for _ in range(3)]
    assert [end.state.name for end in ends] == ["COMPLETE", "COMPLETE", "PRUNED"]
    assert "stopped early at auc 0.1000" in sentence(ends[2], "auc")
    assert study.best.value == 0.6

    def diverges(trial, drawn):
        raise FloatingPointError("The loss is no number.")

    assert "The loss is no number." in sentence(study.run(diverges), "auc")

    def is_too_large(trial, drawn):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    end = study.run(is_too_large)
    assert sentence(end, "auc").startswith("trial 4: CUDA out of memory. (")
    assert study.run(lambda trial, drawn: 0.2).params != end.params  # else the study would end there for ever


def test_what_was_changed_since_is_not_replaced_and_other_settings_are_refused(tmp_path):
    from dmpo_trl.cli._tuning import Study, best_yaml

    def study(**settings):
        return Study(tmp_path, settings, {"beta": Range(0.1, 1.0)}, metric="auc", startup=2, seed=0)

    def text(trials):
        return best_yaml(trials, lambda trial: {"max_steps": 4} | trial.params, "auc")

    first = study(max_steps=4)
    for value in (0.5, 0.6):
        first.run(lambda trial, drawn, value=value: value)
        first.write(text)
    assert yaml.safe_load((tmp_path / "best.yaml").read_text()) == {"max_steps": 4, **first.best.params}
    assert [row["value"] for row in rows(tmp_path)] == ["0.5", "0.6"]
    with pytest.raises(ValueError, match=r"begun with other settings \(max_steps\)"):
        study(max_steps=6)
    again = study(max_steps=4)
    again.check_files(text)
    (tmp_path / "best.yaml").write_text(text(again.done[:1]))  # killed before it was written anew
    again.check_files(text)
    (tmp_path / "best.yaml").write_text("mine")
    with pytest.raises(FileExistsError, match=r"best\.yaml is not as `dmpo-trl tune` wrote it"):
        again.check_files(text)


def test_one_process_tunes_in_a_folder(tmp_path):
    from dmpo_trl.cli._tuning import held

    with held(tmp_path), pytest.raises(BlockingIOError, match="Another process is tuning"), held(tmp_path):
        pass
    with held(tmp_path):
        pass


def test_a_file_that_no_study_wrote_is_kept(tmp_path):
    from dmpo_trl.cli._tuning import Study

    (tmp_path / "best.yaml").write_text("mine")
    with pytest.raises(FileExistsError, match=r"best\.yaml exists already"):
        Study(tmp_path, {}, {}, metric="auc", startup=2, seed=0)
    (tmp_path / "study.sqlite").write_text("no database")
    with pytest.raises(OSError, match="cannot be read as a study"):
        Study(tmp_path, {}, {}, metric="auc", startup=2, seed=0)


def test_a_search_space_is_read_as_the_options_take_it():
    options = make_parser().options
    entries = ["learning_rate=1e-5..1e-3", "lora_r=4..16", "loss_type=dmpo,dmpo+sft", "bf16=false,true"]
    space = read_space(entries, options)
    assert space["learning_rate"] == Range(1e-5, 1e-3)
    assert space["lora_r"] == Range(4, 16)
    assert isinstance(space["lora_r"].low, int)
    assert space["loss_type"] == Choice(("dmpo", "dmpo+sft"))
    drawn = {"loss_type": "dmpo+sft", "bf16": "false", "lora_r": 4}
    assert as_options(drawn, options) == {"loss_type": ["dmpo", "sft"], "bf16": False, "lora_r": 4}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("beta", "takes NAME=LOW..HIGH or NAME=A,B,C"),
        ("bta=1..2", "train has no option bta; did you mean"),
        ("beta=2..1", "LOW must be below HIGH"),
        ("beta=1..x", "must be values of beta"),
        ("beta=0..inf", "both finite"),
        ("loss_type=a..b", "loss_type is no number"),
        ("ranking_score=median", "'median' is no"),
        ("beta=1,1", "lists a value twice"),
        ("output_dir=a,b", "is the same in all trials"),
        ("ranking_split=test", "is the same in all trials"),
    ],
)
def test_what_cannot_be_searched_is_refused(entry, said):
    with pytest.raises(ValueError, match=said):
        read_space([entry], make_parser().options)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--ranking_split", "test"], "options are chosen on validation users"),
        (["--objective", "loss"], "--objective must be one of"),
        (["--resume"], "a search goes on when it is started again"),
        (["--search", "loss_type=dmpo", "--evaluations", "1"], "--evaluations must be at least 2"),
        (["--search", "negative_selection=most,all"], "is not one of all, boundary"),
        (["--search", "per_device_train_batch_size=0,4"], "must be at least 1"),
    ],
)
def test_what_would_not_be_a_search_is_refused_before_it(folder, tmp_path, more, said):
    with pytest.raises(SystemExit, match=said):
        main(command(folder, tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SystemExit, match=r"needs optuna: pip install '\.\[tune\]'"):
        main(["tune"])


def test_trls_trainer_still_takes_no_model_init():
    """Else `Trainer.hyperparameter_search` might do: see `_tuning`."""
    assert "model_init" not in inspect.signature(DPOTrainer.__init__).parameters
