"""`dmpo-trl train` on a tiny model: the options are TRL's, the trainer ours, the start a model or an adapter."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from support import make_model, make_tokenizer
from support.prepared import model_and_data
from transformers import Trainer

import dmpo_trl
from dmpo_trl import DMPOTrainer
from dmpo_trl.cli import _training, main
from dmpo_trl.cli._splits import first_negatives
from dmpo_trl.data import Prepared
from dmpo_trl.evaluation import reference_without_history
from dmpo_trl.modeling.loading import is_adapter, load_model, load_tokenizer
from dmpo_trl.training.run_record import describe_rows

ON_A_CPU = ["--bf16", "False", "--report_to", "none", "--max_steps", "2", "--per_device_train_batch_size", "2"]


@pytest.fixture
def model_folder(tmp_path):
    folder = tmp_path / "model"
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def data_folder(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [
        {"prompt": f"Watched: {title}. Next:", "chosen": " Aliens", "rejected": [" Babe", " Heidi"][: 1 + number % 2]}
        for number, title in enumerate(["Alien", "The Mask", "The Rock", "Toy Story"])
    ]
    Dataset.from_list(rows).to_parquet(folder / "train.parquet")
    return folder


def test_train_trains_lists_of_rejected_with_trls_options(model_folder, data_folder, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(f"model_name_or_path: {model_folder}\ndataset_name: {data_folder}\nuse_peft: true\nbeta: 0.5\n")
    out = tmp_path / "out"
    main(["train", "--config", str(config), "--output_dir", str(out), *ON_A_CPU, "--logging_steps", "1"])
    assert is_adapter(str(out))
    log = json.loads((out / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
    assert "rewards/margins" in log[0]
    before, after = load_model(str(model_folder)), load_model(str(out)).merge_and_unload()
    changed = [
        name for name, tensor in after.state_dict().items() if not torch.equal(tensor, before.state_dict()[name])
    ]
    assert changed


@pytest.mark.parametrize("choice", ["flag", "file"])
def test_train_resumes_where_true_says_so(model_folder, data_folder, tmp_path, choice):
    paths = ["--model_name_or_path", str(model_folder), "--dataset_name", str(data_folder), "--output_dir"]
    out = str(tmp_path / "out")

    def resuming(value):
        (tmp_path / "resume.yaml").write_text(f"resume_from_checkpoint: {value}\n")
        flags = ["--resume_from_checkpoint", value.title()]
        return flags if choice == "flag" else ["--config", str(tmp_path / "resume.yaml")]

    with pytest.raises(
        SystemExit, match=r"is true, and .*out has no whole checkpoint: leave it out, or pass --resume"
    ):
        main(["train", *paths, out, *ON_A_CPU, *resuming("true")])
    main(["train", *paths, out, *ON_A_CPU, "--logging_steps", "1", *resuming("false")])
    before = Path(out, "checkpoint-2", "trainer_state.json").read_text()
    main(["train", *paths, out, *ON_A_CPU, "--logging_steps", "1", "--max_steps", "3", *resuming("true")])
    after = json.loads(Path(out, "checkpoint-3", "trainer_state.json").read_text())
    assert after["log_history"][:2] == json.loads(before)["log_history"][:2]
    assert Path(out, "checkpoint-2", "trainer_state.json").read_text() == before


def test_train_goes_on_with_an_adapter_which_stays_the_reference(model_folder, data_folder, tmp_path):
    start = tmp_path / "sft"
    torch.manual_seed(0)
    adapted = get_peft_model(load_model(str(model_folder)), LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM"))
    adapted.save_pretrained(start)  # without a tokenizer: the base model's is found
    out = tmp_path / "out"
    arguments = ["--model_name_or_path", str(start), "--dataset_name", str(data_folder), "--output_dir", str(out)]
    main(["train", *arguments, *ON_A_CPU, "--logging_steps", "1", "--learning_rate", "1e-3"])
    log = json.loads((out / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
    # The policy starts as its reference: the first loss is that of a margin of zero
    assert log[0]["loss"] == pytest.approx(float(torch.tensor(2.0).log()), abs=1e-4)
    assert load_tokenizer(str(out)).get_vocab() == make_tokenizer().get_vocab()
    trained = load_model(str(out))
    assert isinstance(trained, PeftModel)
    first = next(name for name in trained.state_dict() if "lora_A.default" in name)
    assert not torch.equal(trained.state_dict()[first], adapted.state_dict()[first])


def test_train_refuses_a_second_adapter(model_folder, data_folder, tmp_path):
    start = tmp_path / "sft"
    get_peft_model(load_model(str(model_folder)), LoraConfig(task_type="CAUSAL_LM")).save_pretrained(start)
    arguments = ["--model_name_or_path", str(start), "--dataset_name", str(data_folder), "--output_dir", str(tmp_path)]
    with pytest.raises(SystemExit, match="is an adapter, which goes on training: leave --use_peft out"):
        main(["train", *arguments, "--use_peft", *ON_A_CPU])


def paths(model, data, out):
    return ["--model_name_or_path", str(model), "--dataset_name", str(data), "--output_dir", str(out)]


def log_of(out):
    return json.loads((out / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]


def test_train_takes_a_mixture_of_datasets_from_the_yaml_file(model_folder, data_folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    rows = [{"prompt": "Watched: Babe. Next:", "chosen": " Heidi", "rejected": [" Alien"] * 5, "user": "7"}] * 12
    Dataset.from_list(rows).to_parquet(other / "train.parquet")
    config = tmp_path / "config.yaml"
    config.write_text(
        f"model_name_or_path: {model_folder}\n"
        "datasets:\n"
        f"  - path: {data_folder}\n"
        f"  - path: {other}\n"
        "    columns: [prompt, chosen, rejected]\n"
        "test_split_size: 4\n"
        "eval_strategy: steps\n"
        "eval_steps: 2\n"
        "report_to: none\n"
    )
    out = tmp_path / "out"
    arguments = ["--config", str(config), "--output_dir", str(out), *ON_A_CPU, "--logging_steps", "1"]
    main(["train", *arguments, "--per_device_train_batch_size", "6"])
    log = log_of(out)
    # Two batches of six are the twelve rows that are left to train on, so their mean N is known from the evaluation's
    counts = [entry["num_rejected"] for entry in log if "num_rejected" in entry]
    evaluated = next(entry["eval_num_rejected"] for entry in log if "eval_num_rejected" in entry)
    assert 12 * sum(counts) / 2 + 4 * evaluated == pytest.approx(12 * 5 + 1 + 2 + 1 + 2)
    assert "16 examples" not in (out / "README.md").read_text()
    assert "12 examples" in (out / "README.md").read_text()


def test_train_streams_a_dataset(model_folder, data_folder, tmp_path):
    out = tmp_path / "out"
    arguments = paths(model_folder, data_folder, out)
    main(["train", *arguments, *ON_A_CPU, "--logging_steps", "1", "--dataset_streaming"])
    # In the order of the file
    assert [entry["num_rejected"] for entry in log_of(out) if "num_rejected" in entry] == [1.5, 1.5]
    assert "a stream" in (out / "README.md").read_text()


@pytest.mark.parametrize("options", [[], ["--dataset_streaming"], ["--precompute_ref_log_probs"]])
def test_train_takes_lists_of_chosen_from_json_lines(model_folder, tmp_path, options):
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    rows = [
        {"prompt": f"Watched: {title}. Next:", "chosen": chosen, "chosen_levels": levels, "rejected": rejected}
        for title, chosen, levels, rejected in [
            ("Alien", [" Aliens", " Predator"], [2, 1], [" Babe"]),
            ("Babe", [" Heidi"], [1], [" Aliens", " The Rock"]),
            ("The Mask", [" Aliens", " Heidi", " Ox"], [1, 1, 2], [" Babe", " The Rock"]),
            ("Toy Story", [" Babe", " Heidi"], [1, 1], [" The Rock"]),
        ]
    ]
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(
        [
            "train",
            *paths(model_folder, data, out),
            *ON_A_CPU,
            "--loss_type",
            "mult_dpo",
            "--logging_steps",
            "1",
            *options,
        ]
    )
    log = [entry for entry in log_of(out) if "loss" in entry]
    assert len(log) == 2
    assert sum(entry["num_rejected"] for entry in log) == 3
    # Before the first step all margins are 0: the logarithm of the number of candidates of each chosen one remains
    if options == ["--dataset_streaming"]:
        expected = [math.log(3) + math.log(2), math.log(3)]
        assert log[0]["loss"] == pytest.approx(sum(expected) / 2, abs=1e-4)
    card = (out / "README.md").read_text()
    assert ("- Positives per example: 1 to 3, 2.00 on average.\n" in card) == (options != ["--dataset_streaming"])


def test_train_trains_an_adapter_on_a_4_bit_model(model_folder, data_folder, tmp_path):
    out = tmp_path / "out"
    arguments = paths(model_folder, data_folder, out)
    main(["train", *arguments, *ON_A_CPU, "--logging_steps", "1", "--load_in_4bit", "--use_peft", "--lora_r", "4"])
    assert is_adapter(str(out))
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 4
    # The adapter starts as nothing
    assert log_of(out)[0]["loss"] == pytest.approx(float(torch.tensor(2.0).log()), abs=1e-3)


@pytest.mark.parametrize("from_adapter", [False, True])
def test_train_says_what_4_bits_need(model_folder, data_folder, tmp_path, monkeypatch, from_adapter):
    start, options = model_folder, ["--use_peft"]
    if from_adapter:
        start, options = tmp_path / "sft", []
        get_peft_model(load_model(str(model_folder)), LoraConfig(task_type="CAUSAL_LM")).save_pretrained(start)
    monkeypatch.setattr("transformers.quantizers.quantizer_bnb_4bit.is_bitsandbytes_available", lambda: False)
    with pytest.raises(SystemExit, match=r"dmpo-trl train: .*bitsandbytes"):
        main(["train", *paths(start, data_folder, tmp_path / "out"), *ON_A_CPU, "--load_in_4bit", *options])


def test_train_names_the_model_whose_weights_are_cut_off(model_folder, data_folder, tmp_path):
    file = model_folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(SystemExit, match=f"A file of weights of {model_folder}, .* is damaged"):
        main(["train", *paths(model_folder, data_folder, tmp_path / "out"), *ON_A_CPU])


@pytest.mark.parametrize("options", [[], ["--use_peft"]], ids=["whole", "lora"])
def test_train_leaves_a_card_where_no_checkpoint_is_saved(model_folder, data_folder, tmp_path, options):
    out = tmp_path / "out"
    main(["train", *paths(model_folder, data_folder, out), *ON_A_CPU, "--save_strategy", "no", *options])
    card = (out / "README.md").read_text()
    assert "# Model Card for out\n" in card
    assert f'Recommender.from_pretrained("{out}"' in card.replace("'", '"')
    assert "- Negatives per example (N): 1 to 2, 1.50 on average.\n" in card
    assert "More Information Needed" not in card


def test_trls_own_trainer_can_never_be_what_runs(model_folder, data_folder, tmp_path, monkeypatch):
    """One loss that TRL has too: with TRL's trainer it would run without a word."""

    class NeverMade:
        def __init__(self, *_, **__):
            raise AssertionError

    ran = []
    train = Trainer.train
    monkeypatch.setattr(Trainer, "train", lambda self, *args: ran.append(type(self)) or train(self, *args))
    monkeypatch.setattr("trl.DPOTrainer", NeverMade)
    monkeypatch.setattr("trl.scripts.dpo.main", NeverMade)
    main(["train", *paths(model_folder, data_folder, tmp_path / "out"), *ON_A_CPU, "--loss_type", "sigmoid"])
    assert ran == [DMPOTrainer]


def test_nothing_in_the_package_patches():
    package = Path(dmpo_trl.__file__).parent
    assert not [file for file in package.rglob("*.py") if "unittest" in file.read_text()]


def test_train_evaluates_only_where_asked_to_and_names_the_splits(model_folder, data_folder, tmp_path):
    arguments = ["train", *paths(model_folder, data_folder, tmp_path / "out"), *ON_A_CPU]
    with pytest.raises(SystemExit, match="have no split 'test'; set --dataset_test_split to one of train"):
        main([*arguments, "--eval_strategy", "steps", "--eval_steps", "1"])
    main([*arguments, "--eval_strategy", "steps", "--eval_steps", "1", "--dataset_test_split", "train"])
    assert any("eval_loss" in entry for entry in log_of(tmp_path / "out"))


def test_train_says_what_is_missing(model_folder, data_folder, tmp_path):
    out = ["--output_dir", str(tmp_path / "out"), *ON_A_CPU]
    with pytest.raises(SystemExit, match="Name the data to train on: --dataset_name"):
        main(["train", "--model_name_or_path", str(model_folder), *out])
    with pytest.raises(SystemExit, match="--model_name_or_path names the model to train"):
        main(["train", "--dataset_name", str(data_folder), *out])


def test_train_pushes_to_the_hub_only_what_it_is_asked_to(model_folder, data_folder, tmp_path, monkeypatch):
    pushed = []
    monkeypatch.setattr(DMPOTrainer, "init_hf_repo", lambda self, **_: setattr(self, "hub_model_id", "me/mine"))
    monkeypatch.setattr(DMPOTrainer, "push_to_hub", lambda self, **options: pushed.append(options))
    arguments = ["train", *paths(model_folder, data_folder, tmp_path / "out"), *ON_A_CPU, "--save_strategy", "no"]
    main(arguments)
    assert pushed == []
    main([*arguments, "--push_to_hub"])
    assert pushed[-1] == {"dataset_name": str(data_folder)}


def test_revision_and_remote_code_reach_model_and_tokenizer(model_folder, data_folder, tmp_path, monkeypatch):
    start = tmp_path / "sft"
    get_peft_model(load_model(str(model_folder)), LoraConfig(task_type="CAUSAL_LM")).save_pretrained(start)
    make_tokenizer().save_pretrained(start)
    calls = recorded(monkeypatch, ["load_model", "load_tokenizer"], _training)
    monkeypatch.setattr(_training, "DMPOTrainer", stop_at_the_trainer)
    options = ["--model_revision", "v2", "--trust_remote_code"]
    with pytest.raises(SystemExit, match="stopped"):
        main(["train", *paths(start, data_folder, tmp_path), *ON_A_CPU, *options])
    for name in ("load_model", "load_tokenizer"):
        assert calls[name]["revision"] == "v2"
        assert calls[name]["trust_remote_code"] is True


@pytest.mark.parametrize("from_adapter", [False, True])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_attention_that_is_asked_for_is_the_models(
    model_folder, data_folder, tmp_path, monkeypatch, attention, from_adapter
):
    start = model_folder
    if from_adapter:
        start = tmp_path / "sft"
        get_peft_model(load_model(str(model_folder)), LoraConfig(task_type="CAUSAL_LM")).save_pretrained(start)
    trained = []
    monkeypatch.setattr(DMPOTrainer, "train", lambda self, **_: trained.append(self.model.config._attn_implementation))
    main(["train", *paths(start, data_folder, tmp_path / "out"), *ON_A_CPU, "--attn_implementation", attention])
    assert [name.removeprefix("trie_") for name in trained] == [attention]


def test_buffers_that_cannot_be_broadcast_are_left_alone_where_asked_to(
    model_folder, data_folder, tmp_path, monkeypatch
):
    seen = []

    def look(*_, args, **__):
        seen.append(args.ddp_broadcast_buffers)
        raise ValueError("stopped")

    monkeypatch.setattr(_training, "DMPOTrainer", look)
    for option in ([], ["--ignore_bias_buffers"]):
        with pytest.raises(SystemExit, match="stopped"):
            main(["train", *paths(model_folder, data_folder, tmp_path), *ON_A_CPU, *option])
    assert seen == [None, False]


def stop_at_the_trainer(*_, **__):
    raise ValueError("stopped")


def recorded(monkeypatch, names, module):
    """The options that each of a module's functions is called with; they return nothing."""
    calls = {}
    for name in names:
        monkeypatch.setattr(module, name, lambda path, name=name, **options: calls.update({name: options}))
    return calls


def launched_with(monkeypatch):
    calls = []
    monkeypatch.setattr("accelerate.commands.launch.launch_command", calls.append)
    return calls


def test_train_hands_accelerates_options_to_accelerate_and_keeps_its_own(model_folder, tmp_path, monkeypatch):
    calls = launched_with(monkeypatch)
    config = tmp_path / "config.yaml"
    config.write_text(f"model_name_or_path: {model_folder}\nmain_process_port: 29511\n")
    own = ["--config", str(config), "--output_dir", str(tmp_path / "out"), "--bf16", "False", "--beta", "2"]
    # A value of theirs that one of ours has as well, before and after it
    main(["train", *own, "--num_processes", "2", "--cpu", "--max_steps", "2"])
    (call,) = calls
    assert (call.module, call.training_script) == (True, "dmpo_trl.cli")
    assert (call.num_processes, call.main_process_port, call.cpu) == (2, 29511, True)
    assert sorted(call.training_script_args) == sorted(["train", *own, "--max_steps", "2"])


def test_a_launched_process_trains_and_launches_no_more(model_folder, data_folder, tmp_path, monkeypatch):
    calls = launched_with(monkeypatch)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    config = tmp_path / "config.yaml"
    config.write_text(f"model_name_or_path: {model_folder}\ndataset_name: {data_folder}\nnum_processes: 2\n")
    main(["train", "--config", str(config), "--output_dir", str(tmp_path / "out"), *ON_A_CPU])
    assert not calls
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_an_accelerate_config_is_a_file_or_the_name_of_one_of_trls(model_folder, tmp_path, monkeypatch):
    calls = launched_with(monkeypatch)
    own = ["--model_name_or_path", str(model_folder), "--output_dir", str(tmp_path), "--bf16", "False"]
    (tmp_path / "mine.yaml").write_text("num_processes: 3\n")
    main(["train", *own, "--accelerate_config", str(tmp_path / "mine.yaml")])
    main(["train", *own, "--accelerate_config", "fsdp2"])
    assert [Path(call.config_file).name for call in calls] == ["mine.yaml", "fsdp2.yaml"]
    with pytest.raises(SystemExit, match="neither a file nor a valid config"):
        main(["train", *own, "--accelerate_config", "fsdp3"])


@pytest.mark.slow
def test_two_processes_train_from_one_command(model_folder, data_folder, tmp_path):
    out = tmp_path / "out"
    arguments = paths(model_folder, data_folder, out)
    command = [sys.executable, "-m", "dmpo_trl.cli", "train", *arguments, *ON_A_CPU, "--logging_steps", "1"]
    config = Path(__file__).parents[2] / "examples" / "accelerate_configs" / "ddp.yaml"
    launch = ["--accelerate_config", str(config), "--num_processes", "2", "--mixed_precision", "no"]
    launch += ["--main_process_port", "0"]
    on_cpu = ["--use_cpu", "True", "--ddp_backend", "gloo"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_TORCH_DEVICE": "cpu"}
    command += [*launch, *on_cpu, "--per_device_train_batch_size", "1"]
    subprocess.run(command, check=True, env=environment, timeout=300)  # it has hung: tests/distributed/test_ending.py
    # Each step has two rows, one per process: with one negative and with two
    log = log_of(out)
    assert len([entry for entry in log if "num_rejected" in entry]) == 2
    assert log[-1]["epoch"] == 1


@pytest.fixture(scope="module")
def prepared_folder(tmp_path_factory):
    return model_and_data(tmp_path_factory.mktemp("prepared"))


def test_train_against_what_the_model_says_without_a_history(prepared_folder, tmp_path, monkeypatch):
    made = []

    class Spy(DMPOTrainer):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(_training, "DMPOTrainer", Spy)
    paths = ["--model_name_or_path", f"{prepared_folder}/model", "--dataset_name", f"{prepared_folder}/data"]
    options = ["--beta", "0.2", "--reference", "no_history", "--eval_strategy", "steps", "--eval_steps", "2"]
    main(["train", *paths, "--output_dir", str(tmp_path / "out"), *options, *ON_A_CPU, "--logging_steps", "1"])
    (trainer,) = made
    assert trainer.ref_model is None
    model, tokenizer = load_model(f"{prepared_folder}/model"), load_tokenizer(f"{prepared_folder}/model")
    prepared = Prepared.load(f"{prepared_folder}/data")
    for split, rows in (("train", trainer.train_dataset), ("validation", trainer.eval_dataset)):
        expected = reference_without_history(
            prepared.preference[split], model, tokenizer, prepared.template, special_tokens_in_text=False
        )
        assert rows["ref_chosen_logps"][:] == pytest.approx(expected["ref_chosen_logps"][:], abs=1e-4)
        for own, others in zip(rows["ref_rejected_logps"], expected["ref_rejected_logps"], strict=True):
            assert own == pytest.approx(others, abs=1e-4)
    assert abs(trainer.state.log_history[0]["rewards/margins"]) > 1e-3  # 0 with a reference that knows the history
    # Another start of the run scores the titles in other batches, and may round in another way
    moved = trainer.train_dataset.map(lambda row: {"ref_chosen_logps": row["ref_chosen_logps"] + 1e-6})
    known = trainer._reference_is_given
    assert describe_rows(moved, has_reference=known) == describe_rows(trainer.train_dataset, has_reference=known)
    assert describe_rows(moved, has_reference=known) != describe_rows(moved)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--loss_type", "sampled_softmax"], "loss_type=.'sampled_softmax'. has no reference"),
        (["--dataset_streaming"], "scores all titles before the training: do not stream"),
        (["--dataset_name", "{data}"], "needs the template of a folder of `dmpo-trl prepare`"),
    ],
)
def test_what_has_no_reference_without_a_history_is_refused(prepared_folder, data_folder, tmp_path, options, said):
    paths = ["--model_name_or_path", "no such model", "--dataset_name", f"{prepared_folder}/data"]
    options = [option.format(data=data_folder) for option in options]
    with pytest.raises(SystemExit, match=said):
        main(
            ["train", *paths, "--output_dir", str(tmp_path / "out"), "--reference", "no_history", *options, *ON_A_CPU]
        )


def test_fewer_negatives_than_were_drawn_are_expected_less_often():
    drawn = {"prompt": "Next:", "chosen": " Alien", "rejected": [" a", " b", " c", " d"], "rejected_logq": [-2.5] * 4}
    few = drawn | {"rejected": [" a"], "rejected_logq": [-2.5]}
    kept = first_negatives(Dataset.from_list([drawn, few]), 2)
    assert kept["rejected"][:] == [[" a", " b"], [" a"]]
    assert kept[0]["rejected_logq"] == pytest.approx([-2.5 + math.log(2 / 4)] * 2)
    assert kept[1]["rejected_logq"] == [-2.5]


def test_max_negatives_leaves_a_row_without_any_to_the_check_of_rows(model_folder, tmp_path):
    rows = [{"prompt": "Next:", "chosen": " Alien", "rejected": own} for own in ([" Babe"], [])]
    (tmp_path / "empty").mkdir()
    Dataset.from_list(rows).to_parquet(tmp_path / "empty" / "train.parquet")
    options = ["--model_name_or_path", str(model_folder), "--output_dir", str(tmp_path / "out"), *ON_A_CPU]
    with pytest.raises(SystemExit, match=r"Row 1 of the train dataset, column `rejected`: the list is empty"):
        main(["train", "--dataset_name", str(tmp_path / "empty"), "--max_negatives", "1", *options])
    with pytest.raises(SystemExit, match=r"train.parquet is a file: name its folder"):
        main(["train", "--dataset_name", str(tmp_path / "empty" / "train.parquet"), *options])
