"""Issue 5, "Interruptions": which checkpoints count as whole, and what is said and done about the others."""

import json
import shutil

import pytest
from datasets import Dataset, load_from_disk
from support import make_model, make_tokenizer
from transformers import TrainerCallback
from trl import DPOTrainer

from dmpo_trl import DMPOConfig, DMPOTrainer
from dmpo_trl.cli import main
from dmpo_trl.training.checkpoints import (
    FILE_LIST,
    checkpoint_to_resume,
    last_whole_checkpoint,
    problems,
    set_damaged_cache_aside,
    set_incomplete_aside,
)

ROWS = [{"prompt": f"Watched: {i}. Next:", "chosen": " Alien", "rejected": [" Babe", " Heidi"]} for i in range(4)]
CPU = {"bf16": False, "use_cpu": True, "report_to": "none", "disable_tqdm": True, "per_device_train_batch_size": 2}


def make_trainer(out, trainer_class=DMPOTrainer, rows=ROWS, **options):
    options = {"max_steps": 2, "save_steps": 1, "learning_rate": 1e-2} | CPU | options
    return trainer_class(
        make_model(),
        make_model(),
        args=DMPOConfig(str(out), **options),
        train_dataset=Dataset.from_list(rows),
        processing_class=make_tokenizer(),
    )


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    out = tmp_path_factory.mktemp("ours") / "out"
    make_trainer(out).train()
    return out


@pytest.fixture(scope="module")
def trls(tmp_path_factory):
    out = tmp_path_factory.mktemp("trls") / "out"
    rows = [row | {"rejected": row["rejected"][0]} for row in ROWS]
    make_trainer(out, DPOTrainer, rows, loss_type=["sigmoid"]).train()
    return out


@pytest.fixture(params=["ours", "trls"])
def out(request, tmp_path):
    """Two checkpoints, in a folder that may be spoilt."""
    return shutil.copytree(request.getfixturevalue(request.param), tmp_path / "out")


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def test_a_checkpoint_lists_every_file_but_the_one_that_comes_last(ours):
    # transformers writes `trainer_state.json` after everything else, which is what all of this stands on
    folder = ours / "checkpoint-2"
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert files.pop("trainer_state.json")
    assert files.pop(FILE_LIST)
    assert json.loads((folder / FILE_LIST).read_text()) == files
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"} <= set(files)


def test_whole_checkpoints_have_no_problems(out):
    assert problems(out / "checkpoint-1") == problems(out / "checkpoint-2") == []
    assert last_whole_checkpoint(str(out)) == str(out / "checkpoint-2")


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "config.json"])
def test_a_file_that_is_cut_short_is_named(out, name):
    cut(out / "checkpoint-2" / name)
    (problem,) = problems(out / "checkpoint-2")
    assert problem.startswith(name)
    assert last_whole_checkpoint(str(out)) == str(out / "checkpoint-1")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("model.safetensors", "weights are missing|model.safetensors is missing"),
        ("optimizer.pt", "optimizer's state is missing|optimizer.pt is missing"),
        ("trainer_state.json", "trainer_state.json, which is written last, is missing"),
    ],
)
def test_a_file_that_is_missing_is_named(out, name, says):
    (out / "checkpoint-2" / name).unlink()
    with pytest.raises(ValueError, match=says):
        checkpoint_to_resume(str(out), str(out / "checkpoint-2"))
    assert checkpoint_to_resume(str(out), True) == str(out / "checkpoint-1")


def test_a_state_or_a_list_that_is_cut_short_is_named(ours, tmp_path):
    out = shutil.copytree(ours, tmp_path / "out")
    cut(out / "checkpoint-1" / "trainer_state.json")
    cut(out / "checkpoint-2" / FILE_LIST)
    assert problems(out / "checkpoint-1") == ["trainer_state.json is cut short"]
    assert problems(out / "checkpoint-2") == [f"{FILE_LIST} is cut short"]


def test_a_shard_that_is_missing_is_named(trls, tmp_path):
    folder = shutil.copytree(trls / "checkpoint-2", tmp_path / "checkpoint-2")
    (folder / "model.safetensors").unlink()
    make_model().save_pretrained(folder, max_shard_size="100KB")
    assert problems(folder) == []
    (folder / "model-00001-of-00002.safetensors").unlink()
    assert problems(folder) == ["model-00001-of-00002.safetensors is missing"]


def test_nothing_to_resume_says_what_each_folder_lacks(out):
    for number in (1, 2):
        (out / f"checkpoint-{number}" / "trainer_state.json").unlink()
    with pytest.raises(ValueError, match=r"no whole checkpoint.*checkpoint-1: trainer_state.*checkpoint-2: trainer_"):
        make_trainer(out).train(resume_from_checkpoint=True)
    assert sorted(path.name for path in out.glob("*checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]


def test_a_path_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="checkpoint-7 is not a folder"):
        make_trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))


def test_what_is_incomplete_is_renamed_with_its_files_and_named_in_the_log(out, caplog):
    (out / "incomplete-checkpoint-2").mkdir()  # of an earlier kill
    cut(out / "checkpoint-2" / "optimizer.pt")
    files = sorted(path.name for path in (out / "checkpoint-2").iterdir())
    set_incomplete_aside(str(out))
    assert sorted(path.name for path in (out / "incomplete-checkpoint-2-2").iterdir()) == files
    assert not (out / "checkpoint-2").exists()
    assert (out / "checkpoint-1").exists()
    assert "checkpoint-2 is not whole (optimizer.pt" in caplog.text
    assert "now called incomplete-checkpoint-2-2" in caplog.text


def test_a_checkpoint_of_plain_trl_is_accepted_and_so_said(trls, caplog):
    assert checkpoint_to_resume(str(trls), True) == str(trls / "checkpoint-2")
    assert f"checkpoint-2 has no {FILE_LIST}: plain TRL wrote it" in caplog.text
    assert "no optimizer state" not in caplog.text


def test_a_checkpoint_without_optimizer_is_accepted_and_so_said(tmp_path, caplog):
    make_trainer(tmp_path / "out", save_only_model=True).train()
    assert checkpoint_to_resume(str(tmp_path / "out"), True) == str(tmp_path / "out" / "checkpoint-2")
    assert "no optimizer state" in caplog.text


def test_resuming_from_plain_trls_checkpoint_trains_on(trls, tmp_path):
    out = shutil.copytree(trls, tmp_path / "out")
    trainer = make_trainer(out, max_steps=3)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3
    assert problems(out / "checkpoint-3") == []


def test_starting_again_over_checkpoints_warns(ours, caplog):
    assert checkpoint_to_resume(str(ours), None) is None
    assert "overwrites checkpoints of the same number" in caplog.text


def test_a_checkpoint_that_is_written_again_is_not_whole_meanwhile(ours, tmp_path):
    out = shutil.copytree(ours, tmp_path / "out")
    seen = []
    trainer = make_trainer(out)
    save_model = trainer.save_model

    def look_first(folder, **kwargs):
        seen.append(problems(folder))
        save_model(folder, **kwargs)

    trainer.save_model = look_first
    trainer.train()
    assert seen == [["trainer_state.json, which is written last, is missing"]] * 2


def test_rotation_counts_no_incomplete_checkpoint(ours, tmp_path):
    out = shutil.copytree(ours, tmp_path / "out")
    cut(out / "checkpoint-2" / "model.safetensors")
    make_trainer(out, save_total_limit=1, max_steps=3).train(resume_from_checkpoint=True)
    assert sorted(path.name for path in out.glob("*checkpoint-*")) == ["checkpoint-3", "incomplete-checkpoint-2"]


def test_resuming_with_a_synced_reference_warns(tmp_path, caplog):
    options = {"sync_ref_model": True, "ref_model_sync_steps": 1}
    make_trainer(tmp_path / "out", **options).train()
    make_trainer(tmp_path / "out", max_steps=3, **options).train(resume_from_checkpoint=True)
    assert "checkpoints do not hold the reference" in caplog.text


@pytest.mark.parametrize("share_kept", [0.5, 0.95])
def test_a_damaged_reference_cache_is_computed_again_and_kept(tmp_path, caplog, share_kept):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "rows")

    def logps():
        trainer = DMPOTrainer(
            make_model(),
            make_model(),
            args=DMPOConfig(str(tmp_path / "out"), precompute_ref_log_probs=True, **CPU),
            train_dataset=load_from_disk(tmp_path / "rows"),
            processing_class=make_tokenizer(),
        )
        return trainer.train_dataset["ref_chosen_logps"][:], trainer.train_dataset["ref_rejected_logps"][:]

    before = set((tmp_path / "rows").glob("cache-*"))
    expected = logps()
    written = set((tmp_path / "rows").glob("cache-*")) - before
    (cache,) = [path for path in written if Dataset.from_file(str(path)).column_names[0] == "ref_chosen_logps"]
    damaged = cache.read_bytes()[: int(share_kept * cache.stat().st_size)]
    cache.unlink()  # others map it into their memory
    cache.write_bytes(damaged)
    assert logps() == expected
    assert cache.with_name(f"damaged-{cache.name}").read_bytes() == damaged
    assert f"{cache} is damaged" in caplog.text


def test_a_reference_cache_of_other_rows_is_damaged(tmp_path):
    rows = Dataset.from_list([{"a": 1}, {"a": 2}]).map(lambda row: row, cache_file_name=str(tmp_path / "cache.arrow"))
    set_damaged_cache_aside(str(tmp_path / "cache.arrow"), len(rows))
    assert (tmp_path / "cache.arrow").exists()
    set_damaged_cache_aside(str(tmp_path / "cache.arrow"), 3)
    assert [path.name for path in tmp_path.iterdir()] == ["damaged-cache.arrow"]


# Command line


@pytest.fixture
def command(tmp_path):
    make_model().save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "data").mkdir()
    Dataset.from_list(ROWS).to_parquet(tmp_path / "data" / "train.parquet")
    arguments = {"model_name_or_path": "model", "dataset_name": "data", "output_dir": "out"}
    flags = [part for name, folder in arguments.items() for part in (f"--{name}", str(tmp_path / folder))]
    return ["train", *flags, "--bf16", "False", "--report_to", "none", "--max_steps", "2", "--save_steps", "1"]


def test_the_same_command_with_resume_begins_and_goes_on(command, tmp_path, monkeypatch):
    starts = []

    class Note(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            starts.append(state.global_step)

    init = DMPOTrainer.__init__
    monkeypatch.setattr(
        DMPOTrainer, "__init__", lambda self, *args, **kwargs: init(self, *args, callbacks=[Note()], **kwargs)
    )
    main([*command, "--resume"])
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    cut(tmp_path / "out" / "checkpoint-2" / "model.safetensors")
    main([*command, "--resume"])
    main([*command, "--resume"])  # done already
    assert starts == [0, 1, 2]
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights
    assert (tmp_path / "out" / "incomplete-checkpoint-2").is_dir()


def test_resume_and_a_checkpoint_by_name_are_refused_together(command):
    with pytest.raises(SystemExit, match="pass one of the two"):
        main([*command, "--resume", "--resume_from_checkpoint", "out/checkpoint-1"])
