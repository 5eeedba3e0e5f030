"""What is logged at each step, against the definitions written out an example at a time."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmpo_trl.batching.completions import Completions
from dmpo_trl.losses import ScoredBatch
from dmpo_trl.training.metrics import SATURATED, example_metrics, token_metrics, totals_over_processes

# Margins from far below zero to far above where a pair saturates
LOGP = st.floats(-60, 0, width=32)
ROW = st.tuples(LOGP, LOGP, st.lists(st.tuples(LOGP, LOGP), min_size=1, max_size=6))
RAGGED = st.lists(ROW, min_size=1, max_size=5)


def make_batch(rows, beta=1.0):
    def column(values):
        return torch.tensor(list(values), dtype=torch.float64)

    pairs = [pair for _, _, rejected in rows for pair in rejected]
    return ScoredBatch(
        chosen_logps=column(row[0] for row in rows),
        ref_chosen_logps=column(row[1] for row in rows),
        rejected_logps=column(policy for policy, _ in pairs),
        ref_rejected_logps=column(reference for _, reference in pairs),
        num_rejected=torch.tensor([len(rejected) for _, _, rejected in rows]),
        chosen_lengths=torch.ones(len(rows)),
        rejected_lengths=torch.ones(len(pairs)),
        chosen_nll=torch.tensor(0.0),
        beta=beta,
    )


def metrics_of(row, beta):
    """The definitions, for one example."""
    chosen, ref_chosen, rejected = row
    n = len(rejected)
    reward = beta * (chosen - ref_chosen)
    rewards = [beta * (policy - reference) for policy, reference in rejected]
    margins = [reward - other for other in rewards]
    return {
        "rewards/chosen": reward,
        "rewards/rejected": sum(rewards) / n,
        "rewards/accuracies": sum(margin > 0 for margin in margins) / n,
        "rewards/margins": sum(margins) / n,
        "rewards/margins_min": min(margins),
        "rewards/top1": float(all(reward > other for other in rewards)),
        "rewards/saturated": sum(1 / (1 + math.exp(margin)) < 0.01 for margin in margins) / n,
        "logps/chosen": chosen,
        "logps/rejected": sum(policy for policy, _ in rejected) / n,
        "logps/margins_min": min(chosen - policy for policy, _ in rejected),
        "num_rejected": n,
    }


@given(rows=RAGGED, beta=st.sampled_from([0.1, 0.5, 2.0]))
def test_each_example_has_the_values_of_the_definitions(rows, beta):
    found = example_metrics(make_batch(rows, beta))
    expected = [metrics_of(row, beta) for row in rows]
    assert found.keys() == expected[0].keys()
    for name, values in found.items():
        # Shares are float32 in a float64 batch
        assert values.tolist() == pytest.approx([own[name] for own in expected], abs=1e-6, rel=1e-6), name


@given(
    rows=st.lists(
        st.tuples(
            st.lists(st.tuples(LOGP, LOGP), min_size=1, max_size=4),
            st.lists(st.tuples(LOGP, LOGP), min_size=1, max_size=4),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_of_several_chosen_completions_the_mean_is_logged_and_the_worst(rows):
    singles = [(policy, reference, rejected) for chosen, rejected in rows for policy, reference in chosen]
    batch = replace(make_batch(singles), num_chosen=torch.tensor([len(chosen) for chosen, _ in rows]))
    found = example_metrics(batch)
    worst = ("rewards/margins_min", "rewards/top1", "logps/margins_min")
    for place, (chosen, rejected) in enumerate(rows):
        own = [metrics_of((policy, reference, rejected), 1.0) for policy, reference in chosen]
        for name, values in found.items():
            assert len(values) == len(rows)
            expected = [one[name] for one in own]
            expected = min(expected) if name in worst else sum(expected) / len(expected)
            assert values[place].item() == pytest.approx(expected, abs=1e-5, rel=1e-5), name


def test_a_tie_beats_nothing():
    found = example_metrics(make_batch([(-1.0, -1.0, [(-2.0, -2.0), (-9.0, -1.0)])]))
    assert found["rewards/margins_min"].item() == 0
    assert found["rewards/top1"].item() == 0
    assert found["rewards/accuracies"].item() == 0.5


def test_a_saturated_pair_has_lost_its_gradient():
    """The weight is what autograd finds for -log sigmoid, not what the metric computes."""
    margins = torch.tensor([-2.0, 0.0, 4.5, 4.7, 30.0], requires_grad=True)
    (-torch.nn.functional.logsigmoid(margins)).sum().backward()
    batch = make_batch([(margin, 0.0, [(0.0, 0.0)]) for margin in margins.tolist()])
    saturated = example_metrics(batch)["rewards/saturated"]
    assert saturated.tolist() == (margins.grad.abs() < SATURATED).float().tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("aux_loss", [None, torch.tensor(0.25)])
def test_tokens_are_counted_as_often_as_completions_have_them(aux_loss):
    """A position that two completions share counts for both."""
    outputs = SimpleNamespace(
        entropy=torch.tensor([1.0, 2.0, 3.0]),
        mean_logits=torch.tensor([0.1, 0.2, 0.3]),
        is_top1=torch.tensor([True, False, True]),
        aux_loss=aux_loss,
    )
    completions = Completions.make(
        num_chosen=torch.tensor([1]),
        num_rejected=torch.tensor([1]),
        token_pairs=torch.tensor([0, 1, 0, 2]),
        token_completions=torch.tensor([0, 0, 1, 1]),
    )
    found = {name: values.tolist() for name, values in token_metrics(outputs, completions).items()}
    expected = {
        "entropy": [1.0, 2.0, 1.0, 3.0],
        "logits/chosen": pytest.approx([0.1, 0.2]),
        "logits/rejected": pytest.approx([0.1, 0.3]),
        "mean_token_accuracy": [True, False],
    }
    assert found == expected | ({} if aux_loss is None else {"aux_loss": [0.25]})


class TwoProcesses:
    """An accelerator whose other process has a table of its own."""

    def __init__(self, *other):
        self.other = torch.tensor(other)[None]

    def gather(self, table):
        return torch.cat([table, self.other])


def test_means_are_over_the_values_of_all_processes():
    metrics = {"num_rejected": torch.tensor([1.0, 3.0]), "logits/chosen": torch.tensor([2.0, 4.0, 9.0])}
    other = TwoProcesses([5.0, 1.0, 7.0], [1.0, 1.0, 0.0])  # sums, with the tokens last, and counts
    means, examples, tokens = totals_over_processes(metrics, torch.tensor(10), other).means()
    assert (means, examples, tokens) == ({"num_rejected": 3.0, "logits/chosen": 4.0}, 3, 17)


def test_a_process_that_counts_nowhere_cannot_spoil_the_means():
    metrics = {"num_rejected": torch.tensor([1.0]), "rewards/margins": torch.tensor([float("nan")])}
    other = TwoProcesses([2.0, 0.5, 7.0], [1.0, 1.0, 0.0])
    means, examples, tokens = totals_over_processes(metrics, torch.tensor(10), other, counted=False).means()
    assert (means, examples, tokens) == ({"num_rejected": 2.0, "rewards/margins": 0.5}, 1, 7)
