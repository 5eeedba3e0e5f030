"""Output folders of training: what a run would replace and did not write is refused before the training."""

import json

import pytest
from datasets import Dataset
from support import make_model, make_tokenizer
from support.prepared import model_and_data

from dmpo_trl import DMPOConfig, DMPOTrainer
from dmpo_trl.cli import main
from dmpo_trl.cli._run_folder import RECORD, begin_run, check_run_folder, end_run

ON_A_CPU = ["--bf16", "False", "--report_to", "none", "--max_steps", "1", "--save_strategy", "no"]
FOREIGN = ("holds what training would replace and did not write", r"Move it away, or choose another folder\.")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A model, and prepared data."""
    return model_and_data(tmp_path_factory.mktemp("given"))


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr("dmpo_trl.cli._training._make_trainer", lambda *_: pytest.fail("training began"))


def train(given, out, *options):
    arguments = ["train", "--model_name_or_path", f"{given}/model", "--dataset_name", f"{given}/data"]
    main([*arguments, "--output_dir", str(out), *ON_A_CPU, *options])


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "config.json",
        "dmpo_training.json",
        "items.parquet",
        "model-00001-of-00002.safetensors",
        "model.safetensors",
        "recommender.json",
        "tokenizer.json",
        "training_args.bin",
    ],
)
def test_a_file_of_others_is_refused_before_the_training(given, tmp_path, name):
    (tmp_path / name).write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    for options in ([], ["--resume"]):
        with pytest.raises(SystemExit, match=f"{FOREIGN[0]}.*: {name}. {FOREIGN[1]}"):
            train(given, tmp_path, *options)
    assert contents(tmp_path) == {name: b"mine", "notes.txt": b"mine"}


@pytest.mark.usefixtures("no_training")
def test_the_folder_of_the_initial_model_and_a_file_are_refused(given, tmp_path):
    before = contents(given / "model")
    with pytest.raises(SystemExit, match=FOREIGN[0]):
        train(given, given / "model")
    assert contents(given / "model") == before
    (tmp_path / "out").write_text("mine")
    with pytest.raises(SystemExit, match="is a file; name a folder"):
        train(given, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("peft", [[], ["--use_peft", "true"]])
def test_all_that_a_run_writes_is_known_to_the_next(given, tmp_path, peft):
    (tmp_path / "notes.txt").write_text("mine")
    for _ in range(2):  # the second time over what the first wrote
        train(given, tmp_path, *peft)
        written = {path.name for path in tmp_path.iterdir()} - {"notes.txt", RECORD}
        assert {"README.md", "recommender.json", "items.parquet", "tokenizer.json"} < written
        assert json.loads((tmp_path / RECORD).read_text())["files"].keys() == written
        assert "## Training data" in (tmp_path / "README.md").read_text()
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["README.md", "recommender.json"])
def test_what_was_changed_after_a_run_is_not_replaced(given, tmp_path, name):
    train(given, tmp_path)
    (tmp_path / name).write_text((tmp_path / name).read_text() + "\n")
    with pytest.raises(SystemExit, match=f"or what was changed since: {name}"):
        train(given, tmp_path)


def test_what_a_killed_run_left_is_replaced(given, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("dmpo_trl.cli._training.end_run", lambda _: pytest.exit("killed"))
        with pytest.raises(pytest.exit.Exception):
            train(given, tmp_path)
    (tmp_path / "README.md").write_text("")  # killed before it was written
    train(given, tmp_path)
    assert "## Training data" in (tmp_path / "README.md").read_text()


def test_checkpoints_of_others_are_refused_unless_resumed(tmp_path):
    checkpoint = tmp_path / "checkpoint-2"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text("{}")
    with pytest.raises(FileExistsError, match="checkpoint-2/"):
        check_run_folder(tmp_path, resumes=False)
    check_run_folder(tmp_path, resumes=True)
    (checkpoint / "dmpo_run.json").write_text("{}")  # DMPOTrainer's, in Python
    check_run_folder(tmp_path, resumes=False)
    (checkpoint / "dmpo_run.json").unlink()
    begin_run(tmp_path)
    check_run_folder(tmp_path, resumes=False)
    end_run(tmp_path)  # that of a run which ended can only be somebody else's
    with pytest.raises(FileExistsError, match="checkpoint-2/"):
        check_run_folder(tmp_path, resumes=False)


@pytest.mark.usefixtures("no_training")
def test_a_checkpoint_of_another_folder_makes_none_of_this_one_ours(given, tmp_path):
    theirs = tmp_path / "out" / "checkpoint-1"
    theirs.mkdir(parents=True)
    (theirs / "trainer_state.json").write_text("{}")
    with pytest.raises(SystemExit, match="checkpoint-1/"):
        train(given, tmp_path / "out", "--resume_from_checkpoint", str(tmp_path / "another" / "checkpoint-9"))


def test_what_appears_after_a_run_that_failed_is_not_replaced(given, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DMPOTrainer, "train", fail)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            train(given, tmp_path)
    (tmp_path / "model.safetensors").write_text("mine")
    with pytest.raises(SystemExit, match=r"model\.safetensors"):
        train(given, tmp_path)


def test_checkpoints_of_a_trainer_in_python_are_its_own(tmp_path):
    rows = [{"prompt": "Alien, then", "chosen": " Aliens", "rejected": [" Babe"]}]
    args = DMPOConfig(str(tmp_path), bf16=False, use_cpu=True, report_to="none", max_steps=1, save_steps=1)
    DMPOTrainer(
        make_model(), args=args, train_dataset=Dataset.from_list(rows), processing_class=make_tokenizer()
    ).train()
    assert (tmp_path / "checkpoint-1").is_dir()
    check_run_folder(tmp_path, resumes=False)


@pytest.mark.parametrize("record", ["[]", '{"format": "another"}', "{"])
def test_a_record_of_others_is_refused(tmp_path, record):
    (tmp_path / RECORD).write_text(record)
    with pytest.raises(FileExistsError, match=RECORD):
        check_run_folder(tmp_path, resumes=False)


@pytest.mark.parametrize("files", [[], "text", {"config.json": 7}])
def test_an_odd_record_knows_no_file(tmp_path, files):
    begin_run(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    check_run_folder(tmp_path, resumes=False)
    (tmp_path / RECORD).write_text(json.dumps(json.loads((tmp_path / RECORD).read_text()) | {"files": files}))
    with pytest.raises(FileExistsError, match=r"config\.json"):
        check_run_folder(tmp_path, resumes=False)


def test_a_folder_and_a_dangling_link_of_a_files_name_are_refused(tmp_path):
    end_run(tmp_path)
    (tmp_path / "config.json").mkdir()
    (tmp_path / "README.md").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match=r"README\.md, config\.json"):
        check_run_folder(tmp_path, resumes=False)
