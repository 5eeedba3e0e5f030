"""Selection of negatives, against the definition written out with every partition of the negatives."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmpo_trl.losses import SELECTIONS, ScoredBatch, boundary, preference_loss

LOGP = st.integers(-400, 0).map(lambda value: value / 10)
ROWS = st.lists(st.tuples(LOGP, st.lists(LOGP, min_size=1, max_size=9)), min_size=1, max_size=4)


def make_batch(rows):
    chosen = torch.tensor([row[0] for row in rows], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([value for _, values in rows for value in values], dtype=torch.float64, requires_grad=True)
    return ScoredBatch(
        chosen_logps=chosen,
        rejected_logps=rejected,
        ref_chosen_logps=torch.zeros_like(chosen),
        ref_rejected_logps=torch.arange(len(rejected), dtype=torch.float64),
        num_rejected=torch.tensor([len(values) for _, values in rows]),
        chosen_lengths=torch.ones(len(rows)),
        rejected_lengths=torch.arange(len(rejected)),
        chosen_nll=torch.tensor(0.0),
    )


def deviation(values):
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values)


def kept_of(chosen, rejected):
    """Which sets of places may be kept: several where partitions are equally good."""
    hard = {place for place, value in enumerate(rejected) if value >= chosen}
    if hard:
        return [hard]
    order = sorted(range(len(rejected)), key=lambda place: -rejected[place])
    ordered = [rejected[place] for place in order]
    if len(ordered) <= 3:
        return [{place} for place in order if rejected[place] == ordered[0]]
    costs = {
        (i, j): deviation(ordered[:i]) + deviation(ordered[i:j]) + deviation(ordered[j:])
        for i in range(1, len(ordered))
        for j in range(i + 1, len(ordered))
    }
    best = min(costs.values())
    sizes = {i for (i, _), cost in costs.items() if cost <= best + 1e-9}
    # Equal values may stand on either side of the edge of a cluster
    return [sorted(ordered[:size]) for size in sizes]


@given(ROWS)
def test_those_at_the_boundary_are_kept(rows):
    batch = make_batch(rows)
    selected = boundary(batch)
    start = 0
    for (chosen, rejected), count in zip(rows, selected.num_rejected.tolist(), strict=True):
        found = selected.rejected_logps[start : start + count].tolist()
        start += count
        options = kept_of(chosen, rejected)
        assert sorted(found) in [
            sorted(rejected[place] for place in option) if isinstance(option, set) else option for option in options
        ]
    assert start == len(selected.rejected_logps)


@given(ROWS)
def test_each_has_the_beta_of_its_distances(rows):
    batch = make_batch(rows)
    selected = boundary(batch)
    places = selected.rejected_lengths.tolist()  # numbers of the kept ones
    numbers = torch.arange(len(batch.rejected_logps)).split(batch.num_rejected.tolist())
    for place, factor in zip(places, selected.beta_factors.tolist(), strict=True):
        example = batch.example[place].item()
        chosen, rejected = rows[example]
        own = numbers[example].tolist()
        others = [value for number, value in zip(own, rejected, strict=True) if number not in places] or rejected
        value = rejected[own.index(place)]
        m1, m2 = chosen - value, value - sum(others) / len(others)
        if abs(m1) + abs(m2) > 1e-9:
            assert factor == pytest.approx(1 + 0.5 * math.tanh((m1 - m2 - 2) / (abs(m1) + abs(m2))), abs=1e-6)
        assert 0.5 <= factor <= 1.5


@given(ROWS)
def test_it_goes_with_any_loss_and_gives_the_kept_ones_their_gradient(rows):
    batch = make_batch(rows)
    selected = SELECTIONS["boundary"](batch)
    args = None
    for name in ("dmpo", "softmax", "hinge", "nca_pair", "sampled_softmax"):
        loss = preference_loss(name, selected, args)
        assert loss.shape == (len(rows),)
    batch.rejected_logps.grad = None
    preference_loss("softmax", selected, args).sum().backward()
    moved = set(batch.rejected_logps.grad.nonzero()[:, 0].tolist())
    assert moved == set(selected.rejected_lengths.tolist())


def test_all_completions_equally_likely():
    selected = boundary(make_batch([(-1.0, [-1.0, -1.0])]))
    assert selected.num_rejected.tolist() == [2]
    assert selected.beta_factors.isfinite().all()


def test_all_keeps_all():
    batch = make_batch([(-1.0, [-2.0, -0.5])])
    assert SELECTIONS["all"](batch) is batch
