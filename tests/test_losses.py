import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmpo_trl.losses import MULTI_NEGATIVE_LOSSES, PAIRWISE_LOSSES, ScoredBatch, multi_negative, preference_loss

ARGS = SimpleNamespace(beta=0.3, label_smoothing=0.1, discopop_tau=0.05)


def make_batch(counts, seed=0, scale=3.0, **options):
    generator = torch.Generator().manual_seed(seed)
    B, P = len(counts), sum(counts)

    def logps(size):
        return (-scale * torch.rand(size, generator=generator, dtype=torch.float64) - 0.1).requires_grad_()

    return ScoredBatch(
        chosen_logps=logps(B),
        rejected_logps=logps(P),
        ref_chosen_logps=logps(B).detach(),
        ref_rejected_logps=logps(P).detach(),
        num_rejected=torch.tensor(counts),
        chosen_lengths=torch.arange(1, B + 1),
        rejected_lengths=torch.arange(2, P + 2),
        chosen_nll=torch.tensor(1.5, dtype=torch.float64),
        **options,
    )


def log_ratios(batch):
    """Each example's s+ and list of s_i, as plain numbers."""
    start = 0
    for b, count in enumerate(batch.num_rejected.tolist()):
        chosen = (batch.chosen_logps[b] - batch.ref_chosen_logps[b]).item()
        rejected = (batch.rejected_logps - batch.ref_rejected_logps)[start : start + count].tolist()
        start += count
        yield chosen, rejected


counts = st.lists(st.integers(1, 6), min_size=1, max_size=5)


@given(counts, st.integers(0, 1000))
def test_dmpo_is_the_papers_formula(counts, seed):
    batch = make_batch(counts, seed)
    expected = [
        -math.log(1 / (1 + math.exp(-(ARGS.beta * chosen - sum(ARGS.beta * s for s in rejected) / len(rejected)))))
        for chosen, rejected in log_ratios(batch)
    ]
    assert preference_loss("dmpo", batch, ARGS).tolist() == pytest.approx(expected, abs=1e-12)


@given(counts, st.integers(0, 1000))
def test_softmax_is_the_s_dpo_formula(counts, seed):
    batch = make_batch(counts, seed)
    expected = [
        -math.log(1 / (1 + sum(math.exp(ARGS.beta * (s - chosen)) for s in rejected)))
        for chosen, rejected in log_ratios(batch)
    ]
    assert preference_loss("softmax", batch, ARGS).tolist() == pytest.approx(expected, abs=1e-12)


def test_softmax_does_not_overflow():
    batch = make_batch([3], scale=1e5)
    loss = preference_loss("softmax", batch, ARGS)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(batch.rejected_logps.grad).all()


@given(counts, st.integers(0, 1000))
@settings(max_examples=20)
@pytest.mark.parametrize("name", sorted(PAIRWISE_LOSSES))
def test_pairwise_losses_average_over_the_pairs_of_an_example(name, counts, seed):
    batch = make_batch(counts, seed)
    found = preference_loss(name, batch, ARGS)
    start = 0
    for b, count in enumerate(counts):
        values = []
        for i in range(start, start + count):
            pair = ScoredBatch(
                chosen_logps=batch.chosen_logps[b : b + 1],
                rejected_logps=batch.rejected_logps[i : i + 1],
                ref_chosen_logps=batch.ref_chosen_logps[b : b + 1],
                ref_rejected_logps=batch.ref_rejected_logps[i : i + 1],
                num_rejected=torch.tensor([1]),
                chosen_lengths=batch.chosen_lengths[b : b + 1],
                rejected_lengths=batch.rejected_lengths[i : i + 1],
                chosen_nll=batch.chosen_nll,
            )
            values.append(preference_loss(name, pair, ARGS).item())
        start += count
        assert found[b].item() == pytest.approx(sum(values) / count, rel=1e-10)


def test_one_negative_makes_dmpo_softmax_and_sigmoid_equal():
    batch = make_batch([1, 1, 1])
    losses = [preference_loss(name, batch, ARGS) for name in ("dmpo", "softmax", "sigmoid")]
    torch.testing.assert_close(losses[0], losses[2], rtol=0, atol=1e-12)
    torch.testing.assert_close(losses[1], losses[2], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", sorted(MULTI_NEGATIVE_LOSSES | PAIRWISE_LOSSES))
def test_every_loss_is_one_finite_value_an_example_and_differentiable(name):
    batch = make_batch([2, 1, 3])
    loss = preference_loss(name, batch, ARGS)
    assert loss.shape == (3,)
    assert torch.isfinite(loss).all()
    if name != "sft":  # sft is given its value
        loss.mean().backward()
        assert batch.chosen_logps.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["dmpo", "softmax", "sigmoid", "hinge"])
def test_gradients_against_finite_differences(name):
    batch = make_batch([2, 3])

    def loss(chosen, rejected):
        changed = ScoredBatch(**{**vars_of(batch), "chosen_logps": chosen, "rejected_logps": rejected})
        return preference_loss(name, changed, ARGS)

    assert torch.autograd.gradcheck(loss, (batch.chosen_logps, batch.rejected_logps))


def vars_of(batch):
    return {field: getattr(batch, field) for field in ScoredBatch.__dataclass_fields__}


def test_pair_weights_weigh_pairs():
    batch = make_batch([2, 1])
    weights = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)
    pairs = PAIRWISE_LOSSES["sigmoid"](batch, ARGS)
    expected = torch.stack([pairs[0] / 2, 2 * pairs[2]])
    torch.testing.assert_close(preference_loss("sigmoid", batch, ARGS, weights), expected)
    dmpo = preference_loss("dmpo", batch, ARGS)
    torch.testing.assert_close(
        preference_loss("dmpo", batch, ARGS, weights), dmpo * torch.tensor([0.5, 2.0], dtype=torch.float64)
    )


@pytest.mark.parametrize(
    ("kind", "formula"),
    [
        ("reverse_kl", lambda r: r),
        ("forward_kl", lambda r: 1 - math.exp(-r)),
        ("js_divergence", lambda r: math.log(2 * math.exp(r) / (1 + math.exp(r)))),
        ("alpha_divergence", lambda r: (math.exp(r) ** (0.5 - 1) - 1) / (0.5 - 1)),
    ],
)
def test_f_divergences(kind, formula):
    batch = make_batch([2], f_divergence_type=kind)
    ((chosen, rejected),) = log_ratios(batch)
    assert batch.chosen_scores[0].item() == pytest.approx(formula(chosen), rel=1e-5)
    assert batch.rejected_scores.tolist() == pytest.approx([formula(r) for r in rejected], rel=1e-5)


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"choose among .*'dmpo'"):
        preference_loss("dpmo", make_batch([1]), ARGS)
    with pytest.raises(ValueError, match="choose 'reverse_kl'"):
        make_batch([1], f_divergence_type="kl").chosen_scores  # noqa: B018


def test_a_loss_of_ones_own_is_one_function():
    @multi_negative("hardest")
    def hardest(batch, args):
        gaps = [gaps.min() for gaps in batch.score_gaps.split(batch.num_rejected.tolist())]
        return -torch.nn.functional.logsigmoid(args.beta * torch.stack(gaps))

    try:
        batch = make_batch([2, 1])
        expected = [
            math.log1p(math.exp(-ARGS.beta * min(chosen - s for s in rejected)))
            for chosen, rejected in log_ratios(batch)
        ]
        assert preference_loss("hardest", batch, ARGS).tolist() == pytest.approx(expected)
    finally:
        del MULTI_NEGATIVE_LOSSES["hardest"]
