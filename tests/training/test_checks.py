"""Options that hardly train are named when a run begins, and devices that would lose pairs refused."""

import pytest
from peft import LoraConfig, get_peft_model
from support import make_config, make_model, make_rows, make_tokenizer, make_trainer, save_model

from dmpo_trl import DMPOTrainer
from dmpo_trl.training.checks import check_devices

LORA = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")


@pytest.mark.parametrize("given", ["as config", "as model"])
@pytest.mark.parametrize(("options", "named"), [({}, "1e-06"), ({"learning_rate": 0.9e-5}, "9e-06")])
def test_a_learning_rate_at_which_an_adapter_does_not_learn_is_named(tmp_path, caplog, given, options, named):
    how = {"peft_config": LORA} if given == "as config" else {"model": get_peft_model(make_model(), LORA)}
    make_trainer(tmp_path, make_rows((1, 2)), **how, **{"learning_rate": 1e-6} | options)
    (message,) = [record.getMessage() for record in caplog.records if "hardly moves" in record.getMessage()]
    assert f"`learning_rate={named}`" in message
    assert "2e-4 and `beta=1.0`" in message


@pytest.mark.parametrize(("lora", "learning_rate"), [(True, 1e-5), (False, 1e-6)])
def test_a_learning_rate_that_others_use_is_not_named(tmp_path, caplog, lora, learning_rate):
    make_trainer(tmp_path, make_rows((1, 2)), peft_config=LORA if lora else None, learning_rate=learning_rate)
    assert "hardly moves" not in caplog.text


@pytest.mark.parametrize("given", ["model", "path"])
def test_several_gpus_in_one_process_are_refused(tmp_path, given, monkeypatch):
    """What `TrainingArguments` finds on such a machine. Of a model, before its rows are tokenised."""
    args = make_config(tmp_path)
    assert args.n_gpu <= 1
    args._n_gpu = 2
    tokenised = []
    prepare = DMPOTrainer._prepare_dataset
    monkeypatch.setattr(
        DMPOTrainer, "_prepare_dataset", lambda self, *args: tokenised.append(1) or prepare(self, *args)
    )
    model = make_model() if given == "model" else save_model(tmp_path / "model")
    with pytest.raises(ValueError, match=r"accelerate launch"):
        DMPOTrainer(model, args=args, train_dataset=make_rows((1, 2)), processing_class=make_tokenizer())
    assert bool(tokenised) is (given == "path")


def test_a_model_whose_layers_are_spread_over_gpus_is_not_refused():
    model = make_model()
    model.hf_device_map = {"model.layers.0": 0, "model.layers.1": 1}
    check_devices(2, model)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"truncation_mode": "keep_completions"},
            "'keep_start', 'keep_completion' or 'keep_end', got 'keep_completions'",
        ),
        ({"max_length": 0}, "`max_length` must be at least 1, or None for no limit, got 0"),
        ({"max_length": -1, "truncation_mode": "keep_completion"}, "`max_length` must be at least 1"),
        ({"loss_type": []}, "`loss_type` names no loss"),
        ({"loss_type": ["robust"], "label_smoothing": 0.5}, "below 0.5 for the loss 'robust'.*is 0.5"),
        ({"loss_type": ["exo_pair"]}, "above 0 for 'exo_pair'; it is 0.0"),
        ({"train_sampling_strategy": "group_by_prompts"}, "'batch_rebalance', got 'group_by_prompts'"),
        ({"train_sampling_strategy": "group_by_length"}, "the column `length`, which the training dataset does not"),
        ({"train_sampling_strategy": "batch_rebalance"}, "choose 'group_by_prompt' or `max_tokens_per_batch`"),
    ],
    ids=str,
)
def test_what_is_no_option_is_refused_before_the_model_is_loaded(tmp_path, options, says):
    with pytest.raises(ValueError, match=says):
        make_trainer(tmp_path, make_rows((1, 2)), model=str(tmp_path / "none"), **options)


def test_rows_are_grouped_by_a_column_of_lengths(tmp_path):
    rows = make_rows((1, 2, 3, 1)).map(lambda row, index: {"length": index}, with_indices=True)
    trainer = make_trainer(tmp_path, rows, train_sampling_strategy="group_by_length")
    order = list(trainer._get_train_sampler())
    assert sorted(order) == [0, 1, 2, 3]
    assert order[0] == 3  # the longest comes first
