"""`dmpo-trl train` on a tiny model: the options are TRL's, the trainer ours, the start a model or an adapter."""

import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from support import make_model, make_tokenizer

from dmpo_trl.cli import main
from dmpo_trl.loading import is_adapter, load_model, load_tokenizer

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
