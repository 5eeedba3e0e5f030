import functools
import itertools
import logging
import math
import shutil

import pytest
import torch
from datasets import Dataset, DatasetDict
from peft import LoraConfig, PeftModel, get_peft_model
from support import (
    COPYING,
    RAGGED,
    SHARING,
    assert_gradients_agree,
    compare_with_oracle,
    dpo_and_dmpo,
    loss_gradients_and_metrics,
    make_config,
    make_model,
    make_rows,
    make_tokenizer,
    make_trainer,
    naive_logp,
    naive_reference,
    perturb,
    ragged_examples,
    save_model,
)
from transformers import AutoModelForCausalLM
from trl import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference

from dmpo_trl import DMPOConfig, DMPOTrainer

# The oracle


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("counts", [(1, 1), (3, 3), (7,), (15,), RAGGED], ids=str)
@pytest.mark.parametrize("conversational", [False, True])
def test_loss_and_gradients_are_the_formulas(tmp_path, counts, conversational, share):
    trainer = make_trainer(tmp_path, make_rows(counts, conversational), prefix_sharing=share)
    assert trainer.data_collator.prefix_sharing is share
    compare_with_oracle(trainer, make_model())


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("precompute", [False, True])
@pytest.mark.parametrize("checkpointing", [None, {"use_reentrant": False}, {"use_reentrant": True}], ids=str)
@pytest.mark.parametrize("lora", [False, True])
def test_every_way_to_train_gives_the_same_loss_and_gradients(tmp_path, lora, checkpointing, precompute, share):
    trainer = make_trainer(
        tmp_path,
        make_rows(RAGGED),
        peft_config=LoraConfig(r=4, target_modules="all-linear") if lora else None,
        gradient_checkpointing=checkpointing is not None,
        gradient_checkpointing_kwargs=checkpointing,
        precompute_ref_log_probs=precompute,
        prefix_sharing=share,
    )
    assert (trainer.ref_model is None) == (lora or precompute)
    compare_with_oracle(trainer, make_model())


@pytest.mark.parametrize("name", [*SHARING, *COPYING])
def test_architectures(tmp_path, name):
    trainer = make_trainer(
        tmp_path, make_rows(RAGGED), model=make_model(name), ref_model=make_model(name), gradient_checkpointing=False
    )
    assert trainer.data_collator.prefix_sharing is (name in SHARING)
    # Routing and gates of a mixture add rounding of their own; mixtures still agree to 1e-4
    trainer.aux_loss_enabled = False
    compare_with_oracle(trainer, make_model(name))


def test_a_pretrained_adapter_is_its_own_reference(tmp_path):
    """TRL copies it under the name "ref"; the reference is base model plus that copy."""

    def adapted():
        model = make_model()
        torch.manual_seed(3)
        return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))

    trainer = make_trainer(tmp_path, make_rows(RAGGED), model=adapted(), gradient_checkpointing=False)
    assert "ref" in trainer.model.peft_config
    compare_with_oracle(trainer, adapted().eval())


def test_a_given_reference_model_is_used(tmp_path):
    trainer = make_trainer(
        tmp_path, make_rows(RAGGED), model=make_model(), ref_model=make_model(seed=5), gradient_checkpointing=False
    )
    compare_with_oracle(trainer, make_model(seed=5))


# DPOTrainer

TRL_LOSSES = [
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
]


@pytest.mark.parametrize(
    ("loss_type", "our_loss_type", "options"),
    [(loss_type, None, {}) for loss_type in TRL_LOSSES]
    + [("sigmoid", "dmpo", {}), ("sigmoid", "softmax", {})]
    + [
        ("sigmoid", "dmpo", {"f_divergence_type": kind})
        for kind in ("forward_kl", "js_divergence", "alpha_divergence")
    ]
    + [("sigmoid", "dmpo", {"ld_alpha": 0.5}), ("sigmoid", "dmpo", {"use_weighting": True})]
    + [("ipo", None, {"use_weighting": True}), ("hinge", None, {"ld_alpha": 0.3, "precompute_ref_log_probs": True})],
    ids=str,
)
def test_one_negative_is_dpo(tmp_path, loss_type, our_loss_type, options):
    theirs, ours = map(
        loss_gradients_and_metrics,
        dpo_and_dmpo(tmp_path, loss_type=loss_type, our_loss_type=our_loss_type, **options),
    )
    assert ours[0] == pytest.approx(theirs[0], abs=1e-5, rel=1e-5)
    # The gradient of discopop rounds by 1.01e-5 on a CPU with AVX512-BF16
    assert_gradients_agree(ours[1], theirs[1], tolerance=3e-5 if loss_type == "discopop" else 1e-5)
    assert ours[2].keys() >= theirs[2].keys()
    for name in theirs[2].keys() - {"num_tokens"}:  # tokens computed, which is what prefix sharing saves
        if loss_type == "sft" and name.startswith("rewards/"):
            continue  # TRL computes a reference for them
        assert ours[2][name] == pytest.approx(theirs[2][name], abs=1e-4, rel=1e-4), name


def test_losses_combine_with_weights(tmp_path):
    def loss_of(types, weights):
        trainer = make_trainer(tmp_path, make_rows(RAGGED), loss_type=types, loss_weights=weights)
        return loss_gradients_and_metrics(trainer)[0]

    parts = [loss_of([name], None) for name in ("dmpo", "softmax", "sft")]
    total = loss_of(["dmpo", "softmax", "sft"], [1.0, 0.5, 0.25])
    assert total == pytest.approx(parts[0] + 0.5 * parts[1] + 0.25 * parts[2], rel=1e-6)


def test_ld_alpha_with_many_negatives_weighs_what_exceeds_the_shortest(tmp_path):
    trainer = make_trainer(tmp_path, make_rows((2,)), ld_alpha=0.25, gradient_checkpointing=False)
    example = trainer.train_dataset[0]
    completions = [example["chosen_ids"], *example["rejected_ids"]]
    shared = min(map(len, completions))
    inputs = trainer.data_collator([example])
    with torch.no_grad():
        chosen, rejected = trainer.compute_ref_log_probs(trainer.ref_model, inputs)
        expected = []
        for ids in completions:
            public = naive_logp(trainer.model, example["prompt_ids"], ids[:shared])
            expected.append(public + 0.25 * (naive_logp(trainer.model, example["prompt_ids"], ids) - public))
    torch.testing.assert_close(torch.cat([chosen, rejected]), torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_metrics_weigh_examples_not_pairs(tmp_path):
    trainer = make_trainer(tmp_path, make_rows((1, 3)), gradient_checkpointing=False)
    _, _, metrics = loss_gradients_and_metrics(trainer)
    examples = list(trainer.train_dataset)
    reference = naive_reference(make_model(), examples)
    per_example = []
    for (chosen, rejected), (ref_chosen, ref_rejected) in zip(
        naive_reference(trainer.model, examples), reference, strict=True
    ):
        s_chosen = 0.5 * float(chosen - ref_chosen)
        s_rejected = [0.5 * float(a - b) for a, b in zip(rejected, ref_rejected, strict=True)]
        wins = [s_chosen > s for s in s_rejected]
        per_example.append((s_chosen, sum(s_rejected) / len(s_rejected), sum(wins) / len(wins)))
    expected = [sum(column) / len(column) for column in zip(*per_example, strict=True)]
    found = [metrics[f"rewards/{name}"] for name in ("chosen", "rejected", "accuracies")]
    assert found == pytest.approx(expected, abs=1e-4)


# The whole of a training run


def weights(trainer):
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


@pytest.mark.parametrize("lora", [False, True])
def test_resuming_ends_with_the_weights_of_an_uninterrupted_run(tmp_path, lora):
    peft_config = LoraConfig(r=4, target_modules="all-linear") if lora else None
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 2}
    dataset = make_rows((1, 3, 2, 1, 4, 2, 1, 3))
    folder = save_model(tmp_path / "model")
    whole = make_trainer(tmp_path, dataset, model=folder, peft_config=peft_config, **options)
    whole.train()
    checkpoint = tmp_path / "out" / "checkpoint-4"
    # What is left after a kill at the fifth step: checkpoint 4, and nothing in memory
    shutil.rmtree(tmp_path / "out" / "checkpoint-6")
    resumed = make_trainer(tmp_path, dataset, model=folder, peft_config=peft_config, **options)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    for (name, found), expected in zip(weights(resumed).items(), weights(whole).values(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5, msg=name)


def test_training_raises_the_chosen_above_the_rejected(tmp_path):
    dataset = make_rows((1, 3, 2, 5))
    trainer = make_trainer(tmp_path, dataset, eval_dataset=dataset, eval_strategy="epoch", num_train_epochs=4)
    trainer.train()
    logs = trainer.state.log_history
    margins = [entry["rewards/margins"] for entry in logs if "rewards/margins" in entry]
    assert margins[-1] > margins[0] + 0.1
    evaluations = [entry["eval_loss"] for entry in logs if "eval_loss" in entry]
    assert evaluations[-1] < evaluations[0]


def test_saved_models_load_with_plain_transformers_and_peft(tmp_path):
    trainer = make_trainer(tmp_path, make_rows((2, 2)), max_steps=1)
    trainer.train()
    trainer.save_model(tmp_path / "full")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "full")
    assert plain.config._attn_implementation == "sdpa"
    ids = torch.arange(6, 20)[None]
    torch.testing.assert_close(plain(ids).logits, trainer.model.eval()(ids).logits)

    folder = save_model(tmp_path / "base")
    trainer = make_trainer(
        tmp_path, make_rows((2, 2)), model=folder, peft_config=LoraConfig(target_modules="all-linear"), max_steps=1
    )
    trainer.train()
    trainer.save_model(tmp_path / "adapter")
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter").eval()
    torch.testing.assert_close(plain(ids).logits, trainer.model.eval()(ids).logits)


def test_the_model_card_names_the_method_and_the_paper(tmp_path):
    trainer = make_trainer(tmp_path, make_rows((2, 2)))
    trainer.create_model_card("model")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "2405.16127" in card
    assert "dmpo" in card


@pytest.mark.parametrize(("options", "expected"), [({}, 4096), ({"torch_compile": True}, None)], ids=str)
def test_rows_are_packed_where_attention_goes_tree_by_tree(tmp_path, options, expected):
    trainer = make_trainer(tmp_path, make_rows((2, 2)), **options)
    assert trainer.data_collator.packed_length == expected


def test_qlora(tmp_path):
    bnb = pytest.importorskip("bitsandbytes", reason="needs the extra `qlora`")
    from transformers import BitsAndBytesConfig

    assert bnb.__version__
    folder = save_model(tmp_path / "model", hidden_size=64, intermediate_size=128)
    trainer = DMPOTrainer(
        folder,
        args=make_config(tmp_path, max_steps=3, per_device_train_batch_size=2),
        train_dataset=make_rows((2, 3, 1, 2)),
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32),
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"]),
    )
    assert trainer.data_collator.prefix_sharing is True
    trainer.evaluate(trainer.train_dataset)  # on some CPUs it made bitsandbytes cut the gradient (`four_bit`)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if "lora_B" in n}
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert float(logs[0]["loss"]) == pytest.approx(math.log(2), abs=1e-3)  # policy and reference agree at first
    assert all(math.isfinite(float(entry["loss"])) for entry in logs)
    assert all((p != before[n]).any() for n, p in trainer.model.named_parameters() if n in before)


# Reference log-probs computed beforehand


def test_precomputed_reference_is_a_list_a_row_and_is_cached(tmp_path, monkeypatch):
    dataset = make_rows(RAGGED)
    dataset.save_to_disk(tmp_path / "data")
    folder = save_model(tmp_path / "model")

    def build(**options):
        return make_trainer(
            tmp_path, Dataset.load_from_disk(tmp_path / "data"), model=folder, precompute_ref_log_probs=True, **options
        )

    trainer = build()
    examples = list(trainer.train_dataset)
    assert [len(example["ref_rejected_logps"]) for example in examples] == list(RAGGED)
    for example, (chosen, rejected) in zip(examples, naive_reference(make_model(), examples), strict=True):
        assert example["ref_chosen_logps"] == pytest.approx(float(chosen), abs=1e-4)
        assert example["ref_rejected_logps"] == pytest.approx(list(map(float, rejected)), abs=1e-4)

    calls = []
    computed = DMPOTrainer.compute_ref_log_probs
    monkeypatch.setattr(DMPOTrainer, "compute_ref_log_probs", lambda *args: calls.append(1) or computed(*args))
    build()
    assert not calls, "the second run should read the cache"
    build(ld_alpha=0.5)
    assert calls, "another option changes the numbers, so it must not read that cache"


# Data


def test_datasets_of_every_form_are_accepted(tmp_path):
    rows = make_rows((1, 2, 3, 2))
    folder = save_model(tmp_path / "model")
    for dataset, options in ((rows, {}), (rows.to_iterable_dataset(), {"max_steps": 2})):
        evaluation = DatasetDict({"a": rows, "b": rows})
        trainer = make_trainer(tmp_path, dataset, model=folder, eval_dataset=evaluation, **options)
        trainer.train()
        metrics = trainer.evaluate()
        assert metrics["eval_a_loss"] == pytest.approx(metrics["eval_b_loss"])
        logged = set().union(*trainer.state.log_history)
        assert {"eval_a_loss", "eval_b_loss", "eval_rewards/accuracies"} <= logged


def test_a_streamed_eval_dataset_gives_what_a_stored_one_gives(tmp_path):
    """accelerate would dispatch a stream's batches and cut their tensors to the number of examples."""
    rows = make_rows((1, 2, 3, 2))
    trainer = make_trainer(tmp_path, rows, per_device_eval_batch_size=2, eval_dataset=rows)
    perturb(trainer.model)
    stored, streamed = trainer.evaluate(), trainer.evaluate(rows.to_iterable_dataset())
    assert stored["eval_loss"] == pytest.approx(streamed["eval_loss"], abs=1e-6)
    assert abs(stored["eval_loss"] - math.log(2)) > 1e-3


def test_bad_rows_stop_the_trainer_before_the_first_step(tmp_path):
    rows = make_rows((1, 2)).to_list()
    rows[1]["rejected"] = []
    with pytest.raises(ValueError, match="Row 1 of the train dataset, column `rejected`: the list is empty"):
        make_trainer(tmp_path, Dataset.from_list(rows))


def test_folding_is_logged(tmp_path, caplog):
    rows = [{"prompt": "a", "chosen": " b", "rejected1": " c", "rejected2": " d"}] * 2
    with caplog.at_level(logging.INFO, logger="dmpo_trl"):
        trainer = make_trainer(tmp_path, Dataset.from_list(rows))
    assert "['rejected1', 'rejected2'] of the train dataset are folded" in caplog.text
    assert len(trainer.train_dataset[0]["rejected_ids"]) == 2


def test_trls_collator_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(TypeError, match="DataCollatorForMultiPreference"):
        DMPOTrainer(
            save_model(tmp_path / "model"),
            args=make_config(tmp_path),
            data_collator=DataCollatorForPreference(pad_token_id=0),
            train_dataset=make_rows((1, 1)),
        )


def test_batches_in_trls_layout_are_trls_business(tmp_path):
    """What a custom collator (or the vision collator) lays out in two halves gives DPO's loss."""
    trainer = make_trainer(tmp_path, make_rows((1, 1)), gradient_checkpointing=False)
    ours = loss_gradients_and_metrics(trainer)[0]
    examples = [{**e, "rejected_ids": e["rejected_ids"][0]} for e in trainer.train_dataset]
    batch = DataCollatorForPreference(pad_token_id=0)(examples)
    theirs = trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch))
    assert theirs.item() == pytest.approx(ours, abs=1e-5)


def test_default_arguments(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = save_model(tmp_path / "some-model")
    monkeypatch.setattr("dmpo_trl.trainer.DMPOConfig", functools.partial(DMPOConfig, use_cpu=True))
    trainer = DMPOTrainer(folder, train_dataset=make_rows((1, 2)))
    assert isinstance(trainer.args, DMPOConfig)
    assert trainer.args.output_dir == "some-model-DMPO"
    assert trainer.loss_types == ["dmpo"]
    plain = DPOConfig("out", bf16=False, use_cpu=True, report_to="none")
    assert DMPOTrainer(folder, args=plain, train_dataset=make_rows((1, 2))).loss_types == ["sigmoid"]


def test_ragged_examples_are_what_the_oracle_needs():
    """The generator of the layout tests does give shared histories, ragged prompts and common beginnings."""
    examples = ragged_examples(0, [3, 3, 3, 3])
    prompts = [tuple(e["prompt_ids"][:17]) for e in examples]
    assert prompts[1] == prompts[3] != prompts[0]
    starts = [ids[0] for e in examples for ids in e["rejected_ids"]]
    assert len(set(starts)) < len(starts)
    assert len(set(map(len, itertools.chain.from_iterable(e["rejected_ids"] for e in examples)))) > 1


def test_reference_log_probs_have_one_shape_before_and_after_precomputation(tmp_path):
    """(B,) and (P,), also for a batch in TRL's layout; the table of the precomputation stays inside it."""
    for precompute in (False, True):
        trainer = make_trainer(
            tmp_path,
            make_rows((1, 3)),
            model=make_model(),
            ref_model=make_model(),
            precompute_ref_log_probs=precompute,
        )
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(2)])
        chosen, rejected = trainer.compute_ref_log_probs(trainer.ref_model, batch)
        assert (chosen.shape, rejected.shape) == ((2,), (4,))
    pairs = [row | {"rejected_ids": row["rejected_ids"][0]} for row in trainer.train_dataset]
    theirs = DataCollatorForPreference(pad_token_id=0)(
        [{name: row[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")} for row in pairs]
    )
    of_pairs = trainer.compute_ref_log_probs(trainer.ref_model, theirs)
    torch.testing.assert_close(of_pairs[0], chosen)
    torch.testing.assert_close(of_pairs[1], rejected[[0, 1]])


def test_a_collator_in_trls_layout_trains_with_a_precomputed_reference(tmp_path):
    class Pairs(DataCollatorForPreference):
        def torch_call(self, examples):
            return super().torch_call([row | {"rejected_ids": row["rejected_ids"][0]} for row in examples])

    losses = []
    for precompute in (False, True):
        trainer = DMPOTrainer(
            make_model(),
            make_model(seed=5),
            args=make_config(tmp_path, precompute_ref_log_probs=precompute, gradient_checkpointing=False),
            data_collator=lambda rows: Pairs(pad_token_id=0)(rows),
            train_dataset=make_rows((1, 1)),
            processing_class=make_tokenizer(),
        )
        examples = [trainer.train_dataset[i] for i in range(2)]
        inputs = trainer._prepare_inputs(trainer.data_collator(examples))
        losses.append(float(trainer.compute_loss(trainer.model.train(), inputs).detach()))
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert losses[0] != pytest.approx(math.log(2), abs=1e-3)
