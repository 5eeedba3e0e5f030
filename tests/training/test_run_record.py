"""What makes a run stands beside its checkpoints, and resuming another run as this one is refused."""

import json
import logging
import shutil

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from support import make_model, make_tokenizer

from dmpo_trl import DMPOConfig, DMPOTrainer
from dmpo_trl.training.checkpoints import FILE_LIST, problems
from dmpo_trl.training.run_record import RECORD, describe_models, describe_rows

ROWS = [
    {"prompt": f"Watched: {i}. Next:", "chosen": " Alien", "rejected": [" Babe", " Heidi"][: 1 + i % 2]}
    for i in range(6)
]


def with_reference(chosen):
    return [row | {"ref_chosen_logps": chosen, "ref_rejected_logps": [-9.0] * len(row["rejected"])} for row in ROWS]


def with_levels(level):
    return [row | {"chosen": [row["chosen"], " Ox"], "chosen_levels": [1.0, level]} for row in ROWS]


LORA = {"r": 4, "target_modules": "all-linear", "lora_dropout": 0.0}


def make_trainer(out, *, rows=ROWS, model=0, ref=0, lora=None, optimizers=(None, None), layers=2, **options):
    defaults = {
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "max_steps": 4,
        "save_steps": 2,
        "learning_rate": 1e-2,
    }
    return DMPOTrainer(
        make_model(seed=model, num_hidden_layers=layers),
        None if ref is None else make_model(seed=ref, num_hidden_layers=layers),
        args=DMPOConfig(str(out), **defaults | options),
        train_dataset=Dataset.from_list(rows),
        processing_class=make_tokenizer(),
        peft_config=lora and LoraConfig(**lora),
        optimizers=optimizers,
    )


BEGUN = {
    "reference given": {},
    "reference is the initial model": {"ref": None},
    "adapter": {"ref": None, "lora": LORA},
    "precomputed": {"ref": None, "precompute_ref_log_probs": True},
    "reference in the rows": {"ref": None, "rows": with_reference(-8.0)},
    "grouped": {"train_sampling_strategy": "group_by_prompt"},
    "several chosen": {"rows": with_levels(2.0), "loss_type": ["mult_dpo"]},
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Runs of four steps, by name, and the folder of each."""
    folders = {}

    def begin(name):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp("run") / "out"
            make_trainer(folders[name], **BEGUN[name]).train()
        return folders[name]

    return begin


@pytest.fixture
def resume(begun, tmp_path, caplog):
    """Resumes the run of a name at step 2 with changes; returns the trainer and the warnings."""

    def resume(name="reference given", spoil=lambda checkpoint: None, **changes):
        out = shutil.copytree(begun(name), tmp_path / "out")
        spoil(out / "checkpoint-2")
        trainer = make_trainer(out, **BEGUN[name] | changes)
        caplog.clear()
        trainer.train(resume_from_checkpoint=str(out / "checkpoint-2"))
        ours = [
            record.getMessage()
            for record in caplog.records
            if record.name.startswith("dmpo_trl") and record.levelno >= logging.WARNING
        ]
        return trainer, "\n".join(ours)

    return resume


@pytest.mark.parametrize("name", BEGUN)
def test_the_same_run_goes_on_without_a_word(resume, name):
    trainer, logged = resume(name)
    assert trainer.state.global_step == 4
    assert logged == ""


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("reference given", {"seed": 1}, "seed of the data: 42 then, 1 now"),
        ("reference given", {"data_seed": 1}, "seed of the data: 42 then, 1 now"),
        ("reference given", {"rows": ROWS[:4]}, "rows: 6 then, 4 now; contents of the rows: not the same"),
        ("reference given", {"rows": ROWS[::-1]}, "contents of the rows: not the same"),
        ("reference given", {"beta": 0.2}, "beta: 0.1 then, 0.2 now"),
        ("reference given", {"loss_type": ["softmax"]}, r'loss_type: \["dmpo"\] then, \["softmax"\] now'),
        ("reference given", {"ref": 1}, "weights of the reference: not the same"),
        ("reference given", {"max_length": 9}, "max_length: 1024 then, 9 now"),
        ("reference given", {"gradient_accumulation_steps": 2}, "examples per step: 2 then, 4 now"),
        ("reference given", {"train_sampling_strategy": "sequential"}, 'train_sampling_strategy: "random" then'),
        ("reference is the initial model", {"model": 1}, "weights of the reference: not the same"),
        ("precomputed", {"model": 1}, "weights of the reference: not the same"),
        ("reference in the rows", {"rows": with_reference(-1.0)}, "reference's log-probs in the rows: not the same"),
        (
            "reference in the rows",
            {"rows": with_reference(-1.0), "precompute_ref_log_probs": True},
            "reference's log-probs in the rows: not the same",
        ),
        ("reference in the rows", {"rows": ROWS}, "reference's log-probs in the rows: not the same"),
        ("several chosen", {"rows": with_levels(3.0)}, "contents of the rows: not the same"),
        ("grouped", {"min_groups_per_step": 1}, "min_groups_per_step: 4 then, 1 now"),
        ("adapter", {"model": 1}, "weights of the base model: not the same"),
        ("adapter", {"lora": LORA | {"lora_alpha": 32}}, "adapter's lora_alpha: 8 then, 32 now"),
    ],
)
def test_another_objective_or_other_data_are_refused_unless_meant(resume, tmp_path, name, changes, says):
    with pytest.raises(ValueError, match=rf"checkpoint-2 belongs to another run: .*{says}.*allow_changed_run"):
        resume(name, **changes)
    shutil.rmtree(tmp_path / "out")
    trainer, logged = resume(name, allow_changed_run=True, **changes)
    assert trainer.state.global_step == 4
    assert "goes on with another objective or other data" in logged


def test_all_that_differs_stands_in_one_message(resume):
    with pytest.raises(ValueError, match=r"beta: .*of the reference: .*seed of the data: .*contents of the rows: "):
        resume(rows=ROWS[::-1], ref=1, beta=0.2, seed=1)


@pytest.mark.parametrize(
    "changes",
    [
        {"max_steps": 5, "logging_steps": 1, "save_steps": 1},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
        {"seed": 1, "data_seed": 42},
        {"model": 1},  # of which the checkpoint holds all weights, and the reference is another
        {"prefix_sharing": False},
        {"min_groups_per_step": 1},  # of "group_by_prompt"
    ],
)
def test_what_does_not_change_the_run_is_accepted(resume, changes):
    trainer, logged = resume(**changes)
    assert trainer.state.global_step == changes.get("max_steps", 4)
    assert logged == ""


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"learning_rate": 1e-3}, "The optimizer keeps what the checkpoint has: learning_rate: 0.01 then, 0.001 now."),
        ({"max_grad_norm": 2.0}, "may differ from those of an uninterrupted run: max_grad_norm: 1.0 then, 2.0 now."),
    ],
)
def test_what_changes_the_steps_is_named(resume, changes, says):
    _, logged = resume(**changes)
    assert says in logged


def test_the_checkpoint_keeps_its_learning_rate(resume):
    """What the warning says."""
    trainer, _ = resume(learning_rate=1e-3, lr_scheduler_type="constant")
    assert trainer.optimizer.param_groups[0]["initial_lr"] == 1e-2


def test_other_versions_are_named(resume):
    def age(checkpoint):
        record = json.loads((checkpoint / RECORD).read_text())
        record["versions"]["trl"] = "1.0.0"
        text = json.dumps(record)
        (checkpoint / RECORD).write_text(text)
        sizes = json.loads((checkpoint / FILE_LIST).read_text()) | {RECORD: len(text)}
        (checkpoint / FILE_LIST).write_text(json.dumps(sizes))

    _, logged = resume(spoil=age)
    assert 'trl: "1.0.0" then, ' in logged


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("reference given", {"optim": "sgd"}, 'optim: "adamw_torch.*" then, "sgd" now'),
        ("reference given", {"layers": 3}, r"trainable weights: .4\S+ of LlamaForCausalLM. then, .5\S+ of Llama"),
        ("adapter", {"lora": LORA | {"r": 8}}, "trainable weights: .* names and shapes"),
        ("adapter", {"lora": None}, "trainable weights: "),
        ("reference given", {"lora": LORA}, "trainable weights: "),
    ],
)
def test_what_cannot_be_loaded_is_named_before_torch_does(resume, name, changes, says):
    with pytest.raises(ValueError, match=rf"cannot be loaded into this run: .*{says}.*start a new run from"):
        resume(name, **changes, allow_changed_run=True)


def test_an_optimizer_of_the_user_is_named(resume):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], momentum=0.9)
    with pytest.raises(ValueError, match='cannot be loaded into this run: optimizer: null then, "SGD" now'):
        resume(optimizers=(optimizer, None))


def test_another_optimizer_goes_with_a_checkpoint_without_one(resume):
    def drop(checkpoint):
        (checkpoint / "optimizer.pt").unlink()
        for name in (FILE_LIST, "rng_state.pth"):
            (checkpoint / name).unlink()

    trainer, logged = resume(spoil=drop, optim="sgd")
    assert trainer.state.global_step == 4
    assert "no optimizer state" in logged


def test_a_checkpoint_without_a_record_is_accepted_with_one_warning(resume):
    def drop(checkpoint):
        (checkpoint / RECORD).unlink()
        sizes = json.loads((checkpoint / FILE_LIST).read_text())
        del sizes[RECORD]
        (checkpoint / FILE_LIST).write_text(json.dumps(sizes))

    trainer, logged = resume(spoil=drop, beta=0.2)
    assert trainer.state.global_step == 4
    assert len(logged.splitlines()) == 1
    assert f"has no {RECORD}: an older dmpo-trl wrote it. Nothing tells" in logged


def test_a_checkpoint_of_plain_trl_is_accepted_with_one_warning(resume):
    def drop(checkpoint):
        (checkpoint / RECORD).unlink()
        (checkpoint / FILE_LIST).unlink()

    _, logged = resume(spoil=drop)
    assert len(logged.splitlines()) == 1
    assert "plain TRL wrote it" in logged
    assert "Nothing tells whether it belongs to this dataset" in logged


@pytest.mark.parametrize("text", ["{", "[]", '{"objective": 3}', "{}", "[" * 50_000])
def test_a_damaged_record_is_named(resume, text):
    def damage(checkpoint):
        (checkpoint / RECORD).write_text(text)
        sizes = json.loads((checkpoint / FILE_LIST).read_text()) | {RECORD: len(text)}
        (checkpoint / FILE_LIST).write_text(json.dumps(sizes))

    with pytest.raises(ValueError, match=rf"{RECORD} is damaged. Delete it"):
        resume(spoil=damage)


def test_a_record_is_one_of_the_files_that_make_a_checkpoint_whole(begun, tmp_path):
    folder = shutil.copytree(begun("reference given") / "checkpoint-2", tmp_path / "checkpoint-2")
    (folder / RECORD).unlink()
    assert problems(folder) == [f"{RECORD} is missing"]


def test_a_second_training_of_one_trainer_resumes(tmp_path):
    """The reference is the model that the trainer was made with, not what has become of it."""
    trainer = make_trainer(tmp_path / "out", ref=None, max_steps=2)
    trainer.train()
    trainer.args.max_steps = 4
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4


def test_a_padding_token_in_the_config_makes_no_other_run(tmp_path):
    for pad, max_steps, checkpoint in ((None, 2, None), (0, 4, True)):
        model = make_model(pad_token_id=None)
        model.config.pad_token_id = pad
        trainer = DMPOTrainer(
            model,
            args=DMPOConfig(
                str(tmp_path / "out"), bf16=False, use_cpu=True, report_to="none", max_steps=max_steps, save_steps=2
            ),
            train_dataset=Dataset.from_list(ROWS),
            processing_class=make_tokenizer(),
        )
        trainer.train(resume_from_checkpoint=checkpoint)
    assert trainer.state.global_step == 4


def test_an_adapter_that_trains_on_has_its_copy_as_reference(tmp_path):
    def described(scale):
        model = get_peft_model(make_model(), LoraConfig(**LORA, init_lora_weights=False))
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight.fill_(scale)
        trainer = DMPOTrainer(
            model,
            args=DMPOConfig(str(tmp_path / "out"), bf16=False, use_cpu=True, report_to="none"),
            train_dataset=Dataset.from_list(ROWS),
            processing_class=make_tokenizer(),
        )
        return trainer._models["objective"]["weights of the base model"]

    assert described(1e-3) == described(1e-3) != described(2e-3)


# The hashes


def test_rows_have_one_hash_wherever_they_are(tmp_path):
    columns = {"prompt_ids": [[1, 2], [3]], "chosen_ids": [[4], [5, 6]], "rejected_ids": [[[7]], [[8], [9, 10]]]}
    rows = Dataset.from_dict(columns)
    rows.save_to_disk(tmp_path / "rows")
    rows.to_parquet(str(tmp_path / "rows.parquet"))
    twice = Dataset.from_dict({name: values * 2 for name, values in columns.items()})
    expected = describe_rows(rows)
    for same in (
        Dataset.load_from_disk(str(tmp_path / "rows")),
        Dataset.from_parquet(str(tmp_path / "rows.parquet")),
        twice.select([2, 3]),
        twice.select([0, 3]),
        rows.add_column("user", [1, 2]),
        rows.add_column("ref_chosen_logps", [0.1, 0.2]),
    ):
        assert describe_rows(same) == expected
    for other in (rows.select([1, 0]), twice, Dataset.from_dict(columns | {"chosen_ids": [[4, 5], [6]]})):
        assert describe_rows(other)["contents of the rows"] != expected["contents of the rows"]


def test_a_weight_a_dtype_or_the_config_change_the_reference():
    def hash_of(model):
        return describe_models(make_model(), model)["objective"]["weights of the reference"]

    nudged = make_model()
    with torch.no_grad():
        nudged.model.norm.weight[3] += 1e-6
    others = [nudged, make_model().to(torch.bfloat16), make_model(rms_norm_eps=0.5)]
    assert len({hash_of(model) for model in [make_model(), *others]}) == 4
    assert hash_of(make_model()) == hash_of(make_model())
