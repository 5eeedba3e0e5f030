"""Losses in the trainer: the trie's loss and gradients against one sequence at a time, and what a loss asks for."""

import functools

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from support import (
    RAGGED,
    assert_gradients_agree,
    loss_gradients_and_metrics,
    make_model,
    make_rows,
    make_trainer,
    naive_logp,
    perturb,
    save_model,
)

from dmpo_trl import DMPOTrainer

BETA = 0.5


def naive_token_logps(model, prompt, completion):
    """Log-prob of each token of a completion from the definition: one sequence, one forward."""
    ids = torch.tensor([prompt + completion])
    logps = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
    return torch.stack([logps[t - 1, ids[0, t]] for t in range(len(prompt), ids.size(1))])


def sampled_softmax(chosen, rejected, row):
    terms = [BETA * one.sum() - logq for one, logq in zip(rejected, row.get("rejected_logq", [0] * 99), strict=False)]
    return -torch.stack([BETA * chosen.sum(), *terms]).log_softmax(0)[0]


def mppo(chosen, rejected, row):
    return -F.logsigmoid(len(rejected) * chosen.exp().mean() - sum(one.exp().mean() for one in rejected))


NAIVE = {"sampled_softmax": sampled_softmax, "mppo": mppo}


def with_values(rows, **columns):
    """Add numbers for each rejected completion."""
    rows = list(rows)
    for row in rows:
        for name, value in columns.items():
            row[name] = [value + 0.1 * place for place in range(len(row["rejected"]))]
    return Dataset.from_list(rows)


def gradients_of(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def compare(trainer, naive_loss):
    """Loss and gradients of the trainer's batch against `naive_loss` of each example's tokens, at the same weights."""
    perturb(trainer.model)
    loss, gradients, metrics = loss_gradients_and_metrics(trainer)
    model = make_model()
    model.load_state_dict(trainer.model.state_dict())
    losses = []
    for row in trainer.train_dataset:
        tokens = functools.partial(naive_token_logps, model, row["prompt_ids"])
        losses.append(naive_loss(tokens(row["chosen_ids"]), list(map(tokens, row["rejected_ids"])), row))
    expected = torch.stack(losses).mean()
    assert loss == pytest.approx(expected.item(), abs=1e-5, rel=1e-5)
    assert_gradients_agree(gradients, gradients_of(model, expected))
    return metrics


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize(
    ("name", "corrected"), [("sampled_softmax", False), ("sampled_softmax", True), ("mppo", False)]
)
def test_losses_without_reference_are_their_formulas(tmp_path, name, corrected, share):
    rows = with_values(make_rows(RAGGED), **({"rejected_logq": -1.0} if corrected else {}))
    trainer = make_trainer(tmp_path, rows, loss_type=[name], beta=BETA, prefix_sharing=share)
    assert trainer.ref_model is None
    compare(trainer, NAIVE[name])


@pytest.mark.parametrize("precompute", [False, True])
def test_no_reference_is_loaded_or_computed_where_no_loss_has_one(tmp_path, monkeypatch, precompute):
    def refuse(*args, **kwargs):
        raise AssertionError("a reference was asked for")

    monkeypatch.setattr(DMPOTrainer, "_reference_logps", refuse)
    monkeypatch.setattr("trl.trainer.dpo_trainer.create_model_from_path", refuse)
    folder = save_model(tmp_path / "model")
    from transformers import AutoModelForCausalLM

    trainer = make_trainer(
        tmp_path,
        make_rows(RAGGED),
        model=AutoModelForCausalLM.from_pretrained(folder),
        eval_dataset=make_rows((2,)),
        loss_type=["sampled_softmax", "sft"],
        precompute_ref_log_probs=precompute,
        max_steps=1,
    )
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0
    assert trainer.args.loss_type == ["sampled_softmax", "sft"]
    assert trainer.args.precompute_ref_log_probs is precompute


def test_a_loss_with_a_reference_beside_one_without_has_it(tmp_path):
    trainer = make_trainer(tmp_path, make_rows(RAGGED), loss_type=["sampled_softmax", "dmpo"])
    assert trainer.ref_model is not None


def test_options_of_the_reference_have_no_effect_where_there_is_none(tmp_path, caplog):
    trainer = make_trainer(tmp_path, make_rows(RAGGED), loss_type=["mppo"], ref_model=make_model())
    assert trainer.ref_model is None
    assert "`ref_model` has no effect: loss_type=['mppo'] has no reference" in caplog.text
    with pytest.raises(ValueError, match="`f_divergence_type='forward_kl'` is only supported for"):
        make_trainer(tmp_path, make_rows(RAGGED), loss_type=["mppo"], f_divergence_type="forward_kl")
    with pytest.raises(ValueError, match=r"`sync_ref_model=True`, but loss_type=\['mppo'\] has no reference"):
        make_trainer(tmp_path, make_rows(RAGGED), loss_type=["mppo"], sync_ref_model=True)


def test_an_unknown_loss_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(ValueError, match="Unknown loss_type 'dpmo': choose among"):
        make_trainer(tmp_path, make_rows(RAGGED), loss_type=["dpmo"])


def test_margins_of_the_dataset_reach_the_loss(tmp_path):
    trainer = make_trainer(tmp_path, with_values(make_rows(RAGGED), margins=0.3), loss_type=["softmax"], beta=BETA)
    reference = make_model()

    def naive(chosen, rejected, row):
        with torch.no_grad():
            ref_chosen, *ref_rejected = (
                naive_logp(reference, row["prompt_ids"], ids) for ids in (row["chosen_ids"], *row["rejected_ids"])
            )
        deltas = [
            BETA * (chosen.sum() - ref_chosen - one.sum() + ref) - margin
            for one, ref, margin in zip(rejected, ref_rejected, row["margins"], strict=True)
        ]
        return (1 + sum(torch.exp(-delta) for delta in deltas)).log()

    compare(trainer, naive)


def test_reference_log_probs_of_the_dataset_are_used_as_they_are(tmp_path):
    rows = [row | {"ref_chosen_logps": -7.5} for row in with_values(make_rows(RAGGED), ref_rejected_logps=-9.0)]
    trainer = make_trainer(
        tmp_path, Dataset.from_list(rows), precompute_ref_log_probs=True, loss_type=["dmpo"], beta=BETA
    )
    assert trainer.ref_model is None

    def naive(chosen, rejected, row):
        gaps = [one.sum() + 9.0 - 0.1 * place for place, one in enumerate(rejected)]
        return -F.logsigmoid(BETA * (chosen.sum() + 7.5 - sum(gaps) / len(gaps)))

    compare(trainer, naive)


def test_boundary_selection_reaches_the_loss(tmp_path):
    rows = list(make_rows((4, 6)))
    for row in rows:  # the longest title, which the model thinks less of than of the others, becomes the chosen one
        *others, longest = sorted([row["chosen"], *row["rejected"]], key=len)
        row |= {"chosen": longest, "rejected": others}
    trainer = make_trainer(
        tmp_path, Dataset.from_list(rows), loss_type=["sampled_softmax"], negative_selection="boundary", beta=BETA
    )

    def naive(chosen, rejected, row):
        plain = [one.sum() for one in rejected]
        hard = [one for one in plain if one >= chosen.sum()]
        assert hard, "the example of this test has negatives above the chosen one"
        others = [one for one in plain if one < chosen.sum()] or plain
        mean = sum(one.item() for one in others) / len(others)
        terms = []
        for one in hard:
            m1, m2 = (chosen.sum() - one).item(), one.item() - mean
            factor = 1 + 0.5 * torch.tanh(torch.tensor((m1 - m2 - 2) / (abs(m1) + abs(m2)))).item()
            terms.append(BETA * factor * (one - chosen.sum()))
        return (1 + sum(term.exp() for term in terms)).log()

    metrics = compare(trainer, naive)
    assert metrics["num_rejected"] == 5  # of all, not of the selected ones


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"margins": [1.0]}, r"column `margins`: expected 2 finite numbers, one for each rejected completion"),
        ({"margins": [1.0, float("nan")]}, r"column `margins`: expected 2 finite numbers"),
        ({"rejected_logq": None}, r"column `rejected_logq`: expected 2 finite numbers"),
        ({"ref_rejected_logps": [1.0, 2.0, 3.0]}, r"column `ref_rejected_logps`: expected 2 finite numbers"),
        ({"ref_chosen_logps": float("inf")}, r"column `ref_chosen_logps`: expected a finite number, got inf"),
    ],
    ids=str,
)
def test_numbers_that_fit_no_completion_are_refused_by_row(tmp_path, columns, problem):
    reference = {"ref_rejected_logps": [0.0, 0.0], "ref_chosen_logps": 0.0}
    good = reference if reference.keys() & columns else {name: [0.0, 0.0] for name in columns}
    rows = [row | good for row in make_rows((2, 2, 2))]
    rows[1] |= columns
    with pytest.raises(ValueError, match="Row 1 of the train dataset, " + problem):
        make_trainer(tmp_path, Dataset.from_list(rows))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("column", "value", "missing"),
    [("ref_chosen_logps", 0.0, "ref_rejected_logps"), ("ref_rejected_logps", [0.0, 0.0], "ref_chosen_logps")],
)
def test_one_column_of_reference_log_probs_without_the_other_is_refused(tmp_path, column, value, missing, stream):
    rows = Dataset.from_list([row | {column: value} for row in make_rows((2, 2))])
    with pytest.raises(ValueError, match=f"column `{missing}`: there is no such column, and there is `{column}`"):
        make_trainer(tmp_path, rows.to_iterable_dataset() if stream else rows, max_steps=1)
