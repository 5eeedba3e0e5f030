"""Rows with several chosen completions in the trainer, against the definition one sequence at a time."""

import math

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, IterableDataset
from hypothesis import given, settings
from hypothesis import strategies as st
from support import (
    WORDS,
    assert_gradients_agree,
    gradients,
    loss_gradients_and_metrics,
    make_config,
    make_model,
    make_tokenizer,
    make_trainer,
    naive_logp,
    perturb,
    ragged_examples,
    save_model,
)

from dmpo_trl import DMPOTrainer

BETA = 0.5
SHAPES = ((2, 3), (1, 1), (3, 2), (2, 1))  # chosen and rejected completions of each row
LEVELS = ([2.0, 1.0], [3.0], [1.0, 2.0, 1.0], [0.0, 0.0])


def make_rows(shapes=SHAPES, *, conversational=False, levels=None):
    rows = []
    for index, (num_chosen, num_rejected) in enumerate(shapes):
        titles = [" " + WORDS[(index + place) % len(WORDS)] for place in range(num_chosen + num_rejected)]
        prompt = "Watched: " + ", ".join(WORDS[: 2 + index % 2 * index]) + ". Next:"
        if conversational:
            prompt = [{"role": "user", "content": prompt}]
            titles = [[{"role": "assistant", "content": title}] for title in titles]
        rows.append({"prompt": prompt, "chosen": titles[:num_chosen], "rejected": titles[num_chosen:]})
    for row, own in zip(rows, levels or (), strict=False):
        row["chosen_levels"] = own
    return Dataset.from_list(rows)


def naive_rewards(policy, reference, example):
    """`beta * r` of the chosen and of the rejected completions, one sequence and one forward each."""
    sides = []
    for name in ("chosen_ids", "rejected_ids"):
        values = []
        for ids in example[name]:
            with torch.no_grad():
                base = naive_logp(reference, example["prompt_ids"], ids)
            values.append(BETA * (naive_logp(policy, example["prompt_ids"], ids) - base))
        sides.append(values)
    return sides


def naive_mult_dpo(chosen, rejected, example):
    levels = example.get("chosen_levels") or [0] * len(chosen)
    loss = 0
    for s, level in zip(chosen, levels, strict=True):
        candidates = rejected + [other for other, own in zip(chosen, levels, strict=True) if own <= level]
        loss = loss + torch.stack(candidates).logsumexp(0) - s
    return loss


def naive_dmpo(chosen, rejected, example):
    return sum(-F.logsigmoid(one - sum(rejected) / len(rejected)) for one in chosen) / len(chosen)


def naive_softmax(chosen, rejected, example):
    return sum(torch.stack([one, *rejected]).logsumexp(0) - one for one in chosen) / len(chosen)


def naive_sigmoid(chosen, rejected, example):
    return sum(-F.logsigmoid(one - other) for one in chosen for other in rejected) / len(chosen) / len(rejected)


NAIVE = {"mult_dpo": naive_mult_dpo, "dmpo": naive_dmpo, "softmax": naive_softmax, "sigmoid": naive_sigmoid}


def assert_loss_and_gradients_are_the_formulas(trainer, naive, reference):
    loss, found, metrics = loss_gradients_and_metrics(trainer)
    trainer.model.zero_grad()
    examples = list(trainer.train_dataset)
    rewards = [naive_rewards(trainer.model, reference, example) for example in examples]
    expected = torch.stack([naive(*sides, example) for sides, example in zip(rewards, examples, strict=True)]).mean()
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=1e-5, rel=1e-5)
    assert_gradients_agree(found, gradients(trainer.model))
    return metrics, [[[one.item() for one in side] for side in sides] for sides in rewards]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("loss", ["mult_dpo", "graded", "dmpo", "softmax", "sigmoid"])
def test_loss_and_gradients_are_the_formulas(tmp_path, loss, architecture, share):
    rows = make_rows(levels=LEVELS if loss == "graded" else None)
    loss = "mult_dpo" if loss == "graded" else loss
    folder = save_model(tmp_path / "model", architecture)
    options = {"loss_type": [loss], "beta": BETA, "prefix_sharing": share, "gradient_checkpointing": False}
    trainer = make_trainer(tmp_path, rows, model=folder, **options)
    metrics, rewards = assert_loss_and_gradients_are_the_formulas(trainer, NAIVE[loss], make_model(architecture))
    margins = [[one - other for one in chosen for other in rejected] for chosen, rejected in rewards]
    assert metrics["rewards/chosen"] == pytest.approx(
        sum(sum(chosen) / len(chosen) for chosen, _ in rewards) / len(rewards), abs=1e-4
    )
    assert metrics["rewards/margins_min"] == pytest.approx(sum(map(min, margins)) / len(margins), abs=1e-4)
    assert metrics["rewards/top1"] == sum(min(own) > 0 for own in margins) / len(margins)
    assert metrics["num_rejected"] == sum(n for _, n in SHAPES) / len(SHAPES)


@pytest.fixture(scope="module")
def any_shape(tmp_path_factory):
    """A trainer whose policy has left its reference, for batches of any shape."""
    trainer = make_trainer(
        tmp_path_factory.mktemp("run"),
        make_rows(),
        model=make_model(),
        loss_type=["mult_dpo"],
        beta=BETA,
        gradient_checkpointing=False,
        prefix_sharing=True,
    )
    perturb(trainer.model)
    trainer.model.train()
    return trainer


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4), st.integers(0, 999))
def test_any_numbers_of_completions(any_shape, shapes, seed):
    examples = ragged_examples(seed, [m + n - 1 for m, n in shapes])
    for example, (m, _) in zip(examples, shapes, strict=True):
        completions = [example["chosen_ids"], *example["rejected_ids"]]
        example |= {"chosen_ids": completions[:m], "rejected_ids": completions[m:]}
    loss = any_shape.compute_loss(any_shape.model, any_shape.data_collator(examples))
    with torch.no_grad():
        reference = make_model()
        naive = [naive_mult_dpo(*naive_rewards(any_shape.model, reference, one), one) for one in examples]
    assert loss.item() == pytest.approx(torch.stack(naive).mean().item(), abs=2e-5, rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss_type": ["sigmoid", "sft"]},
        {"loss_type": ["sampled_softmax"]},
        {"loss_type": ["aot"]},
        {"use_weighting": True},
        {"negative_selection": "boundary"},
        {"ld_alpha": 0.5},
    ],
    ids=str,
)
def test_a_list_of_one_is_the_completion_to_the_last_bit(tmp_path, options):
    rows = make_rows([(1, 3), (1, 1), (1, 2)])
    folder = save_model(tmp_path / "model")
    outcomes = [
        loss_gradients_and_metrics(make_trainer(tmp_path, dataset, model=folder, beta=BETA, **options))
        for dataset in (rows, rows.map(lambda row: {"chosen": row["chosen"][0]}))
    ]
    assert outcomes[0][0] == outcomes[1][0]
    assert outcomes[0][2] == outcomes[1][2]
    for name, gradient in outcomes[0][1].items():
        assert torch.equal(gradient, outcomes[1][1][name]), name


def test_sft_is_over_the_tokens_of_all_chosen_completions(tmp_path):
    trainer = make_trainer(tmp_path, make_rows(), loss_type=["sft"], gradient_checkpointing=False)
    loss, _, _ = loss_gradients_and_metrics(trainer)
    total, tokens = 0.0, 0
    with torch.no_grad():
        for example in trainer.train_dataset:
            for ids in example["chosen_ids"]:
                total -= naive_logp(trainer.model, example["prompt_ids"], ids).item()
                tokens += len(ids)
    assert loss == pytest.approx(total / tokens, rel=1e-5)


# The reference


def test_precomputed_reference_is_a_list_on_both_sides_and_is_cached(tmp_path, monkeypatch):
    make_rows().save_to_disk(tmp_path / "data")
    folder = save_model(tmp_path / "model")

    def build():
        return make_trainer(
            tmp_path,
            Dataset.load_from_disk(tmp_path / "data"),
            model=folder,
            precompute_ref_log_probs=True,
            precompute_ref_batch_size=2,
            loss_type=["mult_dpo"],
            beta=BETA,
            gradient_checkpointing=False,
        )

    trainer = build()
    reference = make_model()
    for example in trainer.train_dataset:
        for side in ("chosen", "rejected"):
            expected = [naive_logp(reference, example["prompt_ids"], ids).item() for ids in example[f"{side}_ids"]]
            assert example[f"ref_{side}_logps"] == pytest.approx(expected, abs=1e-4)
    assert_loss_and_gradients_are_the_formulas(trainer, naive_mult_dpo, reference)

    def refuse(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(DMPOTrainer, "compute_ref_log_probs", refuse)
    assert list(build().train_dataset) == list(trainer.train_dataset)


def test_reference_log_probs_of_the_dataset_are_used_as_they_are(tmp_path):
    rows = [
        row
        | {f"ref_{side}_logps": [-9.0 - place for place in range(len(row[side]))] for side in ("chosen", "rejected")}
        for row in make_rows()
    ]
    trainer = make_trainer(
        tmp_path,
        Dataset.from_list(rows),
        precompute_ref_log_probs=True,
        loss_type=["mult_dpo"],
        beta=BETA,
        gradient_checkpointing=False,
    )
    assert trainer.ref_model is None
    loss, _, _ = loss_gradients_and_metrics(trainer)
    expected = []
    with torch.no_grad():
        for example in trainer.train_dataset:
            sides = [
                [
                    BETA * (naive_logp(trainer.model, example["prompt_ids"], ids) - ref)
                    for ids, ref in zip(example[f"{side}_ids"], example[f"ref_{side}_logps"], strict=True)
                ]
                for side in ("chosen", "rejected")
            ]
            expected.append(naive_mult_dpo(*sides, {}).item())
    assert loss == pytest.approx(sum(expected) / len(expected), rel=1e-5)


# Runs


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_tokens_per_batch": 80},
        {"train_sampling_strategy": "group_by_prompt"},
        {"max_length": 24, "truncation_mode": "keep_completion"},
        {"max_length": 22},
        {"precompute_ref_log_probs": True},
        {"use_weighting": True, "negative_selection": "boundary"},
        {"f_divergence_type": "js_divergence"},
    ],
    ids=str,
)
@pytest.mark.parametrize("conversational", [False, True])
def test_training_lowers_the_loss(tmp_path, options, conversational):
    rows = make_rows(conversational=conversational, levels=LEVELS)
    trainer = make_trainer(
        tmp_path,
        rows,
        eval_dataset=rows,
        loss_type=["mult_dpo", "dmpo", "sft"],
        loss_weights=[1.0, 0.5, 0.1],
        num_train_epochs=4,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=3,
        **options,
    )
    before = trainer.evaluate()
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before["eval_loss"] - 0.05


@pytest.mark.parametrize("stream", [False, True])
def test_levels_reach_the_loss_of_a_run(tmp_path, stream):
    """Before the first step all rewards are 0: of each chosen completion the logarithm of its number of candidates."""
    rows = make_rows(levels=LEVELS)
    expected = [
        sum(math.log(num_rejected + sum(other <= level for other in own)) for level in own)
        for (_, num_rejected), own in zip(SHAPES, LEVELS, strict=True)
    ]
    trainer = make_trainer(
        tmp_path,
        rows.to_iterable_dataset() if stream else rows,
        loss_type=["mult_dpo"],
        max_steps=1,
        model=make_model(),
    )
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(sum(expected) / len(expected), abs=1e-4)


def test_evaluation_is_the_mean_over_rows_and_a_stream_gives_the_same(tmp_path):
    rows = make_rows()
    trainer = make_trainer(
        tmp_path, rows, eval_dataset=rows, loss_type=["mult_dpo"], beta=BETA, per_device_eval_batch_size=2
    )
    perturb(trainer.model)
    stored, streamed = trainer.evaluate(), trainer.evaluate(rows.to_iterable_dataset())
    reference = make_model()
    with torch.no_grad():
        expected = [
            naive_mult_dpo(*naive_rewards(trainer.model, reference, one), one).item() for one in trainer.eval_dataset
        ]
    assert stored["eval_loss"] == pytest.approx(sum(expected) / len(expected), abs=1e-5)
    assert streamed["eval_loss"] == pytest.approx(stored["eval_loss"], abs=1e-6)


def test_a_stream_may_have_rows_of_one_and_of_several(tmp_path):
    rows = make_rows()
    mixed = [row | {"chosen": row["chosen"][0]} if len(row["chosen"]) == 1 else row for row in rows]

    def build(make, **options):
        return make_trainer(tmp_path, make, loss_type=["mult_dpo"], max_steps=1, model=make_model(), **options)

    # No features: rows stay as they are
    stream = IterableDataset.from_generator(lambda: iter(mixed))
    trainer = build(stream)
    found = trainer.data_collator(list(trainer.train_dataset))
    expected = trainer.data_collator(list(build(rows).train_dataset))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_copies_of_rows_with_one_prompt_become_one_tree(tmp_path):
    """Behind one prompt stand all completions of a row, chosen and rejected."""
    trainer = make_trainer(tmp_path, make_rows([(3, 4)]), loss_type=["mult_dpo"], prefix_sharing=True)
    (example,) = trainer.train_dataset
    batch = trainer.data_collator([example])
    sequences = [example["prompt_ids"] + ids for ids in (*example["chosen_ids"], *example["rejected_ids"])]
    nodes = {tuple(ids[:length]) for ids in sequences for length in range(1, len(ids))}
    assert batch["attention_mask"].sum() == len(nodes)
    assert (batch["chosen"].tolist(), batch["rejected"].tolist()) == ([0, 1, 2], [3, 4, 5, 6])
    assert batch["num_rejected"].tolist() == [4]


# What is refused, before a step


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"chosen_levels": [1.0]},
            "column `chosen_levels`: expected 2 finite numbers, one for each chosen completion",
        ),
        ({"chosen_levels": [1.0, math.nan]}, "column `chosen_levels`: expected 2 finite numbers"),
        (
            {"chosen_levels": [1.0, 2.0, 3.0]},
            "column `chosen_levels`: expected 2 finite numbers",
        ),  # as many as rejected
        ({"chosen_levels": None}, "column `chosen_levels`: expected 2 finite numbers"),
        ({"ref_chosen_logps": [-1.0]}, "column `ref_chosen_logps`: expected 2 finite numbers"),
        ({"chosen": []}, "column `chosen`: the list is empty. Give at least one chosen completion, or drop the row"),
        ({"chosen": None}, "column `chosen`: expected text or a list of messages, got None"),
        (
            {"chosen": [" Alien", None]},
            "column `chosen`: entry 1 should be text, but is None. Fix it, or leave it out",
        ),
        ({"chosen": [" Ox", " Ox"]}, "column `chosen`: entry 1 equals entry 0, ' Ox'. Leave one of the two out"),
        (
            {"rejected": [" B", " Ox", " C"], "chosen": [" A", " Ox"]},
            "column `rejected`: entry 1 equals the chosen comp",
        ),
    ],
    ids=str,
)
def test_rows_that_break_the_rules_are_named(tmp_path, changes, problem, stream):
    extra = {"chosen_levels": [1.0, 2.0], "ref_chosen_logps": [-1.0, -2.0], "ref_rejected_logps": [-1.0, -2.0, -3.0]}
    names = changes.keys() & extra.keys()
    extra = {name: value for name, value in extra.items() if name in names or "ref_chosen_logps" in names}
    rows = [row | extra for row in make_rows([(2, 3)] * 3)]
    rows[1] |= changes
    dataset = Dataset.from_list(rows)
    if stream:
        options = {"max_steps": 1, "loss_type": ["mult_dpo"], "model": make_model()}
        with pytest.raises(ValueError, match=f"Row 1 of the train dataset, {problem}"):
            list(make_trainer(tmp_path, dataset.to_iterable_dataset(), **options).train_dataset)
        return
    with pytest.raises(ValueError, match=f"Row 1 of the train dataset, {problem}"):  # before a model is loaded
        DMPOTrainer(
            "no such model", args=make_config(tmp_path), train_dataset=dataset, processing_class=make_tokenizer()
        )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("evaluated", [False, True])
def test_levels_without_mult_dpo_are_refused_before_the_rows_are_tokenised(tmp_path, monkeypatch, stream, evaluated):
    monkeypatch.setattr(DMPOTrainer, "_prepare_dataset", lambda *_: pytest.fail("tokenised"))
    rows, plain = make_rows(levels=LEVELS), make_rows()
    datasets = [rows.to_iterable_dataset() if stream else rows, plain][:: -1 if evaluated else 1]
    with pytest.raises(ValueError, match=r"`chosen_levels`, and no loss of loss_type=\['dmpo'\] uses it.*'mult_dpo'"):
        make_trainer(tmp_path, datasets[0], eval_dataset=datasets[1], loss_type=["dmpo"], max_steps=1)


def test_levels_of_a_dataset_given_to_evaluate_are_refused(tmp_path):
    trainer = make_trainer(tmp_path, make_rows(), loss_type=["dmpo"])
    with pytest.raises(ValueError, match=r"`chosen_levels`, and no loss of loss_type=\['dmpo'\] uses it"):
        trainer.evaluate(make_rows(levels=LEVELS))


def test_levels_of_a_stream_whose_columns_nobody_knows_are_refused_at_the_first_step(tmp_path):
    rows = IterableDataset.from_generator(lambda: iter(make_rows(levels=LEVELS)))
    assert rows.column_names is None
    trainer = make_trainer(tmp_path, rows, loss_type=["dmpo"], max_steps=1)
    with pytest.raises(ValueError, match=r"`chosen_levels`, and no loss of loss_type=\['dmpo'\] uses it.*'mult_dpo'"):
        trainer.train()


def test_an_unknown_token_of_a_chosen_completion_is_named(tmp_path):
    rows = [{"prompt_ids": [9, 8], "chosen_ids": [[7], [6]], "rejected_ids": [[5]]} for _ in range(2)]
    rows[1]["chosen_ids"][1] = [99_999]
    for dataset in (Dataset.from_list(rows), Dataset.from_list(rows).to_iterable_dataset()):
        with pytest.raises(ValueError, match="Row 1 of the tokenised train dataset, column `chosen_ids`: token 99999"):
            list(make_trainer(tmp_path, dataset, max_steps=1, model=make_model()).train_dataset)
