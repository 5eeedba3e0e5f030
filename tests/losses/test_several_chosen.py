"""Losses of rows with several chosen completions, against the formulas over plain lists of numbers."""

import math
from dataclasses import replace
from itertools import accumulate, permutations
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmpo_trl.batching.completions import Completions
from dmpo_trl.losses import LOSSES, ScoredBatch, boundary, multi_negative, preference_loss, weighted_loss, wpo_weights

BETA = 0.3
ARGS = SimpleNamespace(label_smoothing=0.1, discopop_tau=0.05)
SHAPES = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4)
SEEDS = st.integers(0, 1000)


def log_probs(shapes, seed):
    """Of each row the log-probs of its chosen and of its rejected completions, each policy and reference."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for shape in shapes:
        rows.append(
            [(-9 * torch.rand(2, size, generator=generator, dtype=torch.float64)).T.tolist() for size in shape]
        )
    return rows


def make_batch(rows, **further):
    """A batch of completions of one token, as the trainer makes it."""
    sizes = torch.tensor([[len(side) for side in sides] for sides in rows])
    numbers = torch.arange(int(sizes.sum()))
    completions = Completions.make(*sizes.T, numbers, numbers)
    pairs = [pair for sides in rows for side in sides for pair in side]
    policy, reference = torch.tensor(pairs, dtype=torch.float64).T.clone()
    policy.requires_grad_()
    return policy, ScoredBatch.of(completions, policy, reference, beta=BETA, **further)


def scores(row):
    """`beta * r` of a row's chosen and of its rejected completions."""
    return [[BETA * (policy - reference) for policy, reference in side] for side in row]


def mult_dpo(row, levels=None):
    """The formula: for each chosen completion the cross-entropy over its candidates."""
    chosen, rejected = scores(row)
    levels = levels or [0] * len(chosen)
    loss = 0.0
    for s, level in zip(chosen, levels, strict=True):
        candidates = rejected + [other for other, own in zip(chosen, levels, strict=True) if own <= level]
        loss += math.log(sum(math.exp(one - s) for one in candidates))
    return loss


@settings(max_examples=10)
@given(SHAPES, SEEDS)
@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"mult_dpo"}))
@pytest.mark.parametrize("select", [lambda batch: batch, boundary], ids=["all", "boundary"])
def test_a_row_has_the_mean_over_its_chosen_completions_each_against_all_rejected_ones(name, select, shapes, seed):
    rows = log_probs(shapes, seed)
    num_rejected = sum(n for _, n in shapes)
    values = torch.rand(3, num_rejected, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    # Of each chosen completion a row of its own
    single = [[[one], row[1]] for row in rows for one in row[0]]
    of_rows = torch.arange(num_rejected).split([n for _, n in shapes])
    places = torch.cat([own for (m, _), own in zip(shapes, of_rows, strict=True) for _ in range(m)])
    further = {"margins": values[0], "rejected_logq": values[1]}
    policy, batch = make_batch(rows, **further, pair_weights=values[2][places])
    singles, expected = make_batch(
        single, **{key: value[places] for key, value in further.items()}, pair_weights=values[2][places]
    )
    found = preference_loss(name, select(batch), ARGS)
    losses = preference_loss(name, select(expected), ARGS)
    means = torch.stack([own.mean() for own in losses.split([m for m, _ in shapes])])
    torch.testing.assert_close(found, means)
    # Gradients: a rejected completion has those of all its row's examples
    found.mean().backward()
    means.mean().backward()
    at_chosen = torch.tensor([len(side) for row in rows for side in row])
    total = policy.grad.split(at_chosen.tolist())
    start = 0
    for (m, n), chosen_grad, rejected_grad in zip(shapes, total[::2], total[1::2], strict=True):
        own = singles.grad[start : start + m * (1 + n)].view(m, 1 + n)
        start += m * (1 + n)
        torch.testing.assert_close(chosen_grad, own[:, 0])
        torch.testing.assert_close(rejected_grad, own[:, 1:].sum(dim=0))


@given(SHAPES, SEEDS)
def test_dmpo_and_sampled_softmax_by_their_formulas(shapes, seed):
    rows = log_probs(shapes, seed)
    _, batch = make_batch(rows)
    for found, row in zip(preference_loss("dmpo", batch, ARGS).tolist(), rows, strict=True):
        chosen, rejected = scores(row)
        gaps = [one - sum(rejected) / len(rejected) for one in chosen]
        assert found == pytest.approx(sum(math.log1p(math.exp(-gap)) for gap in gaps) / len(gaps))
    for found, row in zip(preference_loss("sampled_softmax", batch, ARGS).tolist(), rows, strict=True):
        chosen, rejected = ([BETA * policy for policy, _ in side] for side in row)
        terms = [math.log1p(sum(math.exp(other - one) for other in rejected)) for one in chosen]
        assert found == pytest.approx(sum(terms) / len(terms))


@given(SHAPES, SEEDS, st.data())
def test_mult_dpo_is_its_formula(shapes, seed, data):
    rows = log_probs(shapes, seed)
    expected = [mult_dpo(row) for row in rows]
    assert preference_loss("mult_dpo", make_batch(rows)[1], ARGS).tolist() == pytest.approx(expected)
    levels = [data.draw(st.lists(st.integers(-1, 2), min_size=m, max_size=m)) for m, _ in shapes]
    _, batch = make_batch(rows, chosen_levels=torch.tensor([level for own in levels for level in own]).float())
    expected = list(map(mult_dpo, rows, levels))
    assert preference_loss("mult_dpo", batch, ARGS).tolist() == pytest.approx(expected)


def plackett_luce(order, rejected):
    """Likelihood that weights are drawn in an order, one after the other, before any of the rejected ones."""
    remaining = list(accumulate(reversed(order), initial=sum(rejected)))[:0:-1]
    return math.prod(weight / left for weight, left in zip(order, remaining, strict=True))


@given(st.tuples(st.integers(1, 4), st.integers(1, 4)), SEEDS)
def test_mult_dpo_bounds_plackett_and_luce_from_above(shape, seed):
    """The paper's claim, with the likelihood summed over every order of the chosen completions."""
    (row,) = log_probs([shape], seed)
    chosen, rejected = ([math.exp(one) for one in side] for side in scores(row))
    marginal = sum(plackett_luce(order, rejected) for order in permutations(chosen))
    loss = preference_loss("mult_dpo", make_batch([row])[1], ARGS).item()
    assert loss >= -math.log(marginal) - 1e-9
    if len(chosen) == 1:
        assert loss == pytest.approx(-math.log(marginal))


@given(st.tuples(st.integers(1, 4), st.integers(1, 4)), SEEDS)
def test_with_a_level_for_each_mult_dpo_is_plackett_and_luce(shape, seed):
    (row,) = log_probs([shape], seed)
    levels = torch.arange(shape[0], 0, -1).double()
    chosen, rejected = ([math.exp(one) for one in side] for side in scores(row))
    for own in (levels, 100 * levels - 7):  # only their order counts
        loss = preference_loss("mult_dpo", make_batch([row], chosen_levels=own)[1], ARGS).item()
        assert loss == pytest.approx(-math.log(plackett_luce(chosen, rejected)))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), SEEDS)
def test_with_one_chosen_completion_mult_dpo_is_s_dpo(counts, seed):
    rows = log_probs([(1, n) for n in counts], seed)
    margins, weights = torch.rand(2, sum(counts), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    _, batch = make_batch(rows, margins=margins, pair_weights=weights)
    for one in (batch, boundary(batch), replace(batch, num_chosen=None)):
        found, expected = (preference_loss(name, one, ARGS) for name in ("mult_dpo", "softmax"))
        torch.testing.assert_close(found, expected)


def test_gradients_of_mult_dpo_against_finite_differences():
    rows, levels = log_probs([(3, 2), (1, 1), (2, 3)], 0), torch.tensor([1.0, 2.0, 1.0, 0.0, 3.0, 3.0])

    def loss(policy):
        pairs = policy.tolist()
        reference = [pair[1] for sides in rows for side in sides for pair in side]
        flat = iter(zip(pairs, reference, strict=True))
        own = [[[next(flat) for _ in side] for side in sides] for sides in rows]
        _, batch = make_batch(own, chosen_levels=levels)
        of_chosen = torch.tensor([place == 0 for sides in rows for place, side in enumerate(sides) for _ in side])
        starts = torch.arange(len(policy))[~of_chosen]
        counts = [len(side) for _, side in rows]
        places = [own for (chosen, _), own in zip(rows, starts.split(counts), strict=True) for _ in chosen]
        batch = replace(batch, chosen_logps=policy[of_chosen], rejected_logps=policy[torch.cat(places)])
        return preference_loss("mult_dpo", batch, ARGS)

    policy, _ = make_batch(rows)
    assert torch.autograd.gradcheck(loss, (policy,))


def test_mult_dpo_does_not_overflow():
    rows = [[[(-1e5, 0.0), (-1.0, 0.0)], [(-2e5, 0.0), (-1.0, 0.0)]]]
    policy, batch = make_batch(rows)
    loss = preference_loss("mult_dpo", batch, ARGS)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert policy.grad.isfinite().all()


def test_margins_of_mult_dpo_are_taken_off_the_pairs_with_rejected_completions():
    (row,) = log_probs([(2, 2)], 0)
    margins = [0.5, -0.25]
    chosen, rejected = scores(row)
    shifted = [score + margin for score, margin in zip(rejected, margins, strict=True)]
    expected = sum(math.log(sum(math.exp(one - s) for one in chosen + shifted)) for s in chosen)
    _, batch = make_batch([row], margins=torch.tensor(margins, dtype=torch.float64))
    assert weighted_loss(["mult_dpo"], [1.0], batch, ARGS).item() == pytest.approx(expected)


def test_levels_that_no_loss_uses_are_refused(monkeypatch):
    _, batch = make_batch(log_probs([(2, 1)], 0), chosen_levels=torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match=r"column `chosen_levels`, and no loss of loss_type=\['dmpo'\] uses it"):
        weighted_loss(["dmpo"], [1.0], batch, ARGS)
    assert weighted_loss(["dmpo", "mult_dpo"], [1.0, 1.0], batch, ARGS).isfinite()
    monkeypatch.setattr("dmpo_trl.losses.registry.LOSSES", dict(LOSSES))
    multi_negative("mine")(lambda batch, args: batch.chosen_logps * batch.chosen_levels)
    assert weighted_loss(["mine"], [1.0], batch, ARGS).isfinite()


def test_a_loss_of_ones_own_sees_one_chosen_completion_at_a_time(monkeypatch):
    """Written before there were several, it holds for several."""
    monkeypatch.setattr("dmpo_trl.losses.registry.LOSSES", dict(LOSSES))

    @multi_negative("hardest")
    def hardest(batch, args):
        return torch.nn.functional.softplus(-batch.min_over_rejected(batch.deltas))

    rows = log_probs([(3, 2), (1, 4)], 0)
    expected = []
    for row in rows:
        chosen, rejected = scores(row)
        expected.append(sum(math.log1p(math.exp(max(rejected) - one)) for one in chosen) / len(chosen))
    assert preference_loss("hardest", make_batch(rows)[1], ARGS).tolist() == pytest.approx(expected)


@given(SHAPES, SEEDS)
def test_wpo_weighs_each_pair_by_the_likelihood_of_both(shapes, seed):
    rows = log_probs(shapes, seed)
    numbers = torch.arange(sum(map(sum, shapes)))
    completions = Completions.make(*torch.tensor(shapes).T, numbers, numbers)
    policy, squares = torch.tensor([pair for sides in rows for side in sides for pair in side]).T
    outputs = SimpleNamespace(log_probs=policy, log_sum_sq_probs=squares)
    expected = [math.exp(a - b) * math.exp(c - d) for chosen, rejected in rows for a, b in chosen for c, d in rejected]
    assert wpo_weights(outputs, completions).tolist() == pytest.approx(expected, rel=1e-4)
