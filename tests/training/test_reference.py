"""The reference is the policy as it was passed, whatever lies on disk; its cache knows what its numbers depend on."""

import json
import logging
import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from support import RAGGED, make_config, make_model, make_rows, make_tokenizer, make_trainer, save_model
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from dmpo_trl import DMPOTrainer
from dmpo_trl.preprocessing.format import RowError
from dmpo_trl.training.reference import initial_policy


def changed(folder):
    """A model that was trained in memory since it was loaded."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    return model


def first_loss(trainer):
    trainer.model.train()
    examples = [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))]
    inputs = trainer._prepare_inputs(trainer.data_collator(examples))
    return float(trainer.compute_loss(trainer.model, inputs).detach())


@pytest.mark.parametrize("precompute", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_a_policy_changed_in_memory_is_its_own_reference_at_first(tmp_path, precompute, lora):
    model = changed(save_model(tmp_path / "model"))
    trainer = make_trainer(
        tmp_path,
        make_rows(RAGGED),
        model=model,
        peft_config=LoraConfig(target_modules="all-linear") if lora else None,
        precompute_ref_log_probs=precompute,
        loss_type=["dmpo"],
    )
    assert first_loss(trainer) == pytest.approx(math.log(2), abs=1e-6)


def test_a_cell_that_is_run_twice_begins_where_the_first_run_ended(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(save_model(tmp_path / "model"))
    for _ in range(2):
        trainer = make_trainer(tmp_path, make_rows(RAGGED), model=model, max_steps=3)
        assert first_loss(trainer) == pytest.approx(math.log(2), abs=1e-6)
        trainer.train()
        assert first_loss(trainer) < math.log(2) - 0.01  # the policy moved, its reference did not


def test_sft_then_dmpo_in_one_process(tmp_path):
    """TRL's trainer leaves a head in the model that closes over it, and a forward in autocast."""
    folder, rows = save_model(tmp_path / "model"), make_rows(RAGGED)
    sft = SFTTrainer(
        folder,
        args=SFTConfig(
            str(tmp_path / "sft"),
            bf16=False,
            use_cpu=True,
            report_to="none",
            max_steps=2,
            learning_rate=1e-2,
            save_strategy="no",
        ),
        train_dataset=rows.select_columns(["prompt", "chosen"]).rename_column("chosen", "completion"),
        processing_class=make_tokenizer(),
    )
    sft.train()
    trainer = make_trainer(tmp_path, rows, model=sft.model, max_steps=3)
    assert first_loss(trainer) == pytest.approx(math.log(2), abs=1e-6)
    trainer.train()
    assert first_loss(trainer) < math.log(2) - 0.01


def test_tokens_added_in_memory_are_known_to_the_reference(tmp_path):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(save_model(tmp_path / "model")), make_tokenizer()
    tokenizer.add_tokens([f"<item {i}>" for i in range(400)])
    model.resize_token_embeddings(len(tokenizer))
    rows = Dataset.from_list([{"prompt": "Next:", "chosen": "<item 399>", "rejected": ["<item 1>", "<item 2>"]}])
    trainer = DMPOTrainer(model, args=make_config(tmp_path), train_dataset=rows, processing_class=tokenizer)
    assert first_loss(trainer) == pytest.approx(math.log(2), abs=1e-6)


def test_a_given_reference_without_the_tokens_is_refused_by_name(tmp_path):
    tokenizer, model = make_tokenizer(), make_model()
    tokenizer.add_tokens([f"<item {i}>" for i in range(400)])
    model.resize_token_embeddings(len(tokenizer))
    rows = Dataset.from_list([{"prompt": "Next:", "chosen": "<item 399>", "rejected": ["<item 1>"]}])
    with pytest.raises(RowError, match=r"^Row 0 .* is unknown to the reference model, which has embeddings for 384"):
        DMPOTrainer(model, make_model(), make_config(tmp_path), train_dataset=rows, processing_class=tokenizer)


def test_a_model_without_a_path_is_trained(tmp_path):
    trainer = make_trainer(tmp_path, make_rows(RAGGED), model=make_model("qwen3"))
    assert first_loss(trainer) == pytest.approx(math.log(2), abs=1e-6)


def test_a_model_that_zero_3_has_cut_is_not_copied(tmp_path, caplog):
    model = make_model()
    model.config.name_or_path = "the path"
    next(model.parameters()).ds_id = 0
    with caplog.at_level(logging.WARNING, logger="dmpo_trl"):
        assert initial_policy(model, make_config(tmp_path)) is None
    assert "the reference is loaded from 'the path'" in caplog.text


@pytest.mark.parametrize(
    "change", [{"rms_norm_eps": 0.5}, {"rope_parameters": {"rope_type": "default", "rope_theta": 20.0}}]
)
def test_the_cache_knows_the_config(tmp_path, change):
    """The same weights compute other numbers with other constants."""
    folder = save_model(tmp_path / "model")
    make_rows(RAGGED).save_to_disk(tmp_path / "data")

    def reference():
        rows = Dataset.load_from_disk(tmp_path / "data")
        trainer = make_trainer(tmp_path, rows, model=folder, precompute_ref_log_probs=True)
        return trainer.train_dataset["ref_chosen_logps"][:]

    before = reference()
    assert reference() == before
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    after = reference()
    assert max(abs(a - b) for a, b in zip(after, before, strict=True)) > 0.01


def test_log_probs_in_the_rows_take_the_place_of_every_model(tmp_path, caplog):
    rows = make_rows((2, 1)).map(
        lambda row: {"ref_chosen_logps": -5.0, "ref_rejected_logps": [-6.0] * len(row["rejected"])}
    )
    with pytest.raises(
        ValueError, match=r"`sync_ref_model=True`, but the training rows bring .*leave one of them out"
    ):
        make_trainer(tmp_path, rows, sync_ref_model=True)
    with caplog.at_level(logging.WARNING):
        make_trainer(tmp_path, rows, ref_model=make_model())
    assert "`ref_model` has no effect in training: the training rows bring" in caplog.text
    with caplog.at_level(logging.WARNING):
        make_trainer(tmp_path, rows, eval_dataset=make_rows((2, 1)))
    assert "`ref_chosen_logps` is in the train dataset and not in the eval dataset" in caplog.text
