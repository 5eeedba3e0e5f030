import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmpo_trl.batching.completions import Completions
from dmpo_trl.losses import (
    LOSSES,
    ScoredBatch,
    multi_negative,
    pairwise,
    preference_loss,
    registry,
    weighted_loss,
    wpo_weights,
)

PAIRWISE_LOSSES = [name for name, loss in LOSSES.items() if loss.pairwise]

BETA = 0.3
ARGS = SimpleNamespace(label_smoothing=0.1, discopop_tau=0.05)


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
        chosen_probs=torch.rand(B, generator=generator, dtype=torch.float64, requires_grad=True),
        rejected_probs=torch.rand(P, generator=generator, dtype=torch.float64, requires_grad=True),
        beta=BETA,
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
        -math.log(1 / (1 + math.exp(-(BETA * chosen - sum(BETA * s for s in rejected) / len(rejected)))))
        for chosen, rejected in log_ratios(batch)
    ]
    assert preference_loss("dmpo", batch, ARGS).tolist() == pytest.approx(expected, abs=1e-12)


@given(counts, st.integers(0, 1000))
def test_softmax_is_the_s_dpo_formula(counts, seed):
    batch = make_batch(counts, seed)
    expected = [
        -math.log(1 / (1 + sum(math.exp(BETA * (s - chosen)) for s in rejected)))
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
@pytest.mark.parametrize("name", PAIRWISE_LOSSES)
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
                beta=BETA,
            )
            values.append(preference_loss(name, pair, ARGS).item())
        start += count
        assert found[b].item() == pytest.approx(sum(values) / count, rel=1e-10)


def test_one_negative_makes_dmpo_softmax_and_sigmoid_equal():
    batch = make_batch([1, 1, 1])
    losses = [preference_loss(name, batch, ARGS) for name in ("dmpo", "softmax", "sigmoid")]
    torch.testing.assert_close(losses[0], losses[2], rtol=0, atol=1e-12)
    torch.testing.assert_close(losses[1], losses[2], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_is_one_finite_value_an_example_and_differentiable(name):
    batch = make_batch([2, 1, 3])
    loss = preference_loss(name, batch, ARGS)
    assert loss.shape == (3,)
    assert torch.isfinite(loss).all()
    if name != "sft":  # sft is given its value
        loss.mean().backward()
        assert (
            sum(one.grad.abs().sum() for one in (batch.chosen_logps, batch.chosen_probs) if one.grad is not None) > 0
        )


@given(counts, st.integers(0, 1000), st.booleans())
def test_sampled_softmax_is_the_cross_entropy_over_the_candidates(counts, seed, corrected):
    logq = -torch.rand(sum(counts), dtype=torch.float64) if corrected else None
    batch = make_batch(counts, seed, rejected_logq=logq)
    corrections = torch.zeros(sum(counts)) if logq is None else logq
    expected, start = [], 0
    for b, count in enumerate(counts):
        own = slice(start, start + count)
        start += count
        logits = torch.cat([BETA * batch.chosen_logps[b : b + 1], BETA * batch.rejected_logps[own] - corrections[own]])
        expected.append(-logits.log_softmax(0)[0].item())
    assert preference_loss("sampled_softmax", batch, ARGS).tolist() == pytest.approx(expected, abs=1e-12)


def test_corrected_by_the_drawing_probabilities_sampled_softmax_estimates_that_over_the_catalogue():
    """The mean over many draws of the sum over the sampled items is the sum over all."""
    generator = torch.Generator().manual_seed(0)
    logps = -5 * torch.rand(50, generator=generator, dtype=torch.float64)  # of a catalogue of 50 items
    q = torch.rand(50, generator=generator, dtype=torch.float64) + 0.1
    q /= q.sum()
    draws, n = 2000, 20
    items = torch.multinomial(q, draws * n, replacement=True, generator=generator)
    batch = make_batch([n] * draws)
    batch = replace(
        batch,
        chosen_logps=torch.full((draws,), -3.0, dtype=torch.float64),
        rejected_logps=logps[items],
        rejected_logq=(n * q[items]).log(),
        beta=1.0,
    )
    sums = preference_loss("sampled_softmax", batch, ARGS).exp() - 1  # sum_i e^{l_i} / q_i, over e^{l+}
    assert sums.mean().item() == pytest.approx((logps + 3).exp().sum().item(), rel=0.02)


@given(counts, st.integers(0, 1000))
def test_mppo_is_the_papers_formula(counts, seed):
    batch = make_batch(counts, seed)
    expected, start = [], 0
    for b, count in enumerate(counts):
        gap = count * batch.chosen_probs[b].item() - sum(batch.rejected_probs[start : start + count].tolist())
        start += count
        expected.append(-math.log(1 / (1 + math.exp(-gap))))
    assert preference_loss("mppo", batch, ARGS).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["dmpo", "softmax", "sigmoid", "sampled_softmax"])
def test_margins_are_taken_off_delta_and_factors_multiply_beta(name):
    batch = make_batch([2, 3])
    factors, margins = torch.rand(2, 5, dtype=torch.float64)
    changed = replace(batch, beta_factors=factors, margins=margins)
    reference = name != "sampled_softmax"
    # The same delta of unchanged beta, from other log-probs of the rejected completions
    start = (batch.chosen_logps - reference * batch.ref_chosen_logps)[batch.example]
    gaps = start - batch.rejected_logps + reference * batch.ref_rejected_logps
    rejected = start - (factors * gaps - margins / BETA)
    plain = replace(batch, rejected_logps=rejected + reference * batch.ref_rejected_logps)
    torch.testing.assert_close(preference_loss(name, changed, ARGS), preference_loss(name, plain, ARGS))


def test_margins_that_no_loss_uses_are_refused():
    batch = make_batch([2], margins=torch.ones(2))
    with pytest.raises(ValueError, match=r"column `margins`, and no loss of loss_type=\['mppo', 'nca_pair'\] uses it"):
        weighted_loss(["mppo", "nca_pair"], [1.0, 1.0], batch, ARGS)
    assert weighted_loss(["mppo", "dmpo"], [1.0, 1.0], batch, ARGS).isfinite()


def test_drawing_probabilities_that_no_loss_uses_are_refused(registries):
    batch = make_batch([2], rejected_logq=torch.zeros(2))
    with pytest.raises(ValueError, match=r"column `rejected_logq`, and no loss of loss_type=\['dmpo'\] uses it"):
        weighted_loss(["dmpo"], [1.0], batch, ARGS)
    assert weighted_loss(["dmpo", "sampled_softmax"], [1.0, 1.0], batch, ARGS).isfinite()
    multi_negative("mine")(lambda batch, args: batch.chosen_logps)  # nobody knows what it reads
    assert weighted_loss(["mine"], [1.0], batch, ARGS).isfinite()


@given(counts, st.integers(0, 1000), st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=2, max_size=2))
def test_a_batch_has_the_weighted_mean_of_its_examples(counts, seed, weights):
    batch = make_batch(counts, seed)
    parts = [preference_loss(name, batch, ARGS).mean() for name in ("dmpo", "sampled_softmax")]
    expected = weights[0] * parts[0] + weights[1] * parts[1]
    torch.testing.assert_close(weighted_loss(["dmpo", "sampled_softmax"], weights, batch, ARGS), expected)


@given(counts, st.integers(0, 1000))
def test_a_loss_without_reference_does_not_look_at_it(counts, seed):
    batch = make_batch(counts, seed)
    other = replace(
        batch, ref_chosen_logps=batch.ref_chosen_logps + 1, ref_rejected_logps=batch.ref_rejected_logps * 3
    )
    for name, loss in LOSSES.items():
        same = torch.equal(preference_loss(name, batch, ARGS), preference_loss(name, other, ARGS))
        assert same or loss.reference, name


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
    weighted = replace(batch, pair_weights=torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64))
    pairs = LOSSES["sigmoid"].function(batch, ARGS)
    expected = torch.stack([pairs[0] / 2, 2 * pairs[2]])
    torch.testing.assert_close(preference_loss("sigmoid", weighted, ARGS), expected)
    dmpo = preference_loss("dmpo", batch, ARGS)
    torch.testing.assert_close(
        preference_loss("dmpo", weighted, ARGS), dmpo * torch.tensor([0.5, 2.0], dtype=torch.float64)
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


@pytest.fixture
def registries(monkeypatch):
    monkeypatch.setattr("dmpo_trl.losses.registry.LOSSES", dict(LOSSES))


def test_a_loss_of_ones_own_is_one_function(registries):
    @multi_negative("hardest")
    def hardest(batch, args):
        gaps = [gaps.min() for gaps in batch.score_gaps.split(batch.num_rejected.tolist())]
        return -torch.nn.functional.logsigmoid(batch.beta * torch.stack(gaps))

    batch = make_batch([2, 1])
    expected = [
        math.log1p(math.exp(-BETA * min(chosen - s for s in rejected))) for chosen, rejected in log_ratios(batch)
    ]
    assert preference_loss("hardest", batch, ARGS).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("register", [multi_negative, pairwise])
def test_a_loss_registered_again_is_the_new_one(registries, register):
    """As when the cell of a notebook is edited and run again."""
    for value in (1.0, 2.0):

        @register("mine")
        def mine(batch, args, value=value):
            size = len(batch.num_rejected) if register is multi_negative else len(batch.example)
            return torch.full((size,), value)

        assert mine.__defaults__ == (value,)  # the name is bound to the function below it
    assert preference_loss("mine", make_batch([2, 1]), ARGS).tolist() == [2.0, 2.0]


def test_code_that_was_run_as_a_text_has_no_module_and_registers_all_the_same(registries):
    code = "@multi_negative('mine')\ndef mine(batch, args):\n    return batch.chosen_logps"
    for _ in range(2):
        scope = {"multi_negative": multi_negative, "__name__": None}
        exec(code, scope)
        assert scope["mine"].__module__ is None
    with pytest.raises(ValueError, match="There is a loss 'dmpo' already"):
        exec(code.replace("mine", "dmpo"), {"multi_negative": multi_negative, "__name__": None})


@pytest.mark.parametrize(
    ("register", "name"), [(multi_negative, "dmpo"), (pairwise, "sigmoid"), (multi_negative, "ipo")]
)
def test_a_name_of_the_package_is_taken(registries, register, name):
    expected = preference_loss(name, make_batch([2, 1]), ARGS).tolist()
    with pytest.raises(ValueError, match=f"There is a loss '{name}' already.* register yours under another name"):

        @register(name)
        def mine(batch, args):
            return batch.chosen_logps

    assert preference_loss(name, make_batch([2, 1]), ARGS).tolist() == expected


def test_a_name_is_of_one_kind(registries):
    pairwise("mine")(lambda batch, args: batch.score_gaps)
    with pytest.raises(ValueError, match="of the other kind"):
        multi_negative("mine")(lambda batch, args: batch.chosen_logps)


@given(counts=st.lists(st.integers(1, 4), min_size=1, max_size=3), seed=st.integers(0, 99))
def test_wpo_weighs_a_pair_by_the_likelihood_of_both(counts, seed):
    generator = torch.Generator().manual_seed(seed)
    completions = Completions.make(
        num_chosen=torch.ones(len(counts), dtype=torch.long),
        num_rejected=torch.tensor(counts),
        token_pairs=torch.arange(2 * (sum(counts) + len(counts))),
        token_completions=torch.arange(sum(counts) + len(counts)).repeat_interleave(2),
    )
    logps, squares = -torch.rand(2, len(completions.token_pairs), generator=generator)
    outputs = SimpleNamespace(log_probs=logps, log_sum_sq_probs=squares)
    weights = [math.exp(value) for value in (logps - squares).view(-1, 2).mean(dim=1).tolist()]
    expected = []
    for count in counts:
        chosen, *rejected = weights[: count + 1]
        weights = weights[count + 1 :]
        expected += [chosen * one for one in rejected]
    assert wpo_weights(outputs, completions).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_discopop_is_finite_for_large_gaps(scale):
    batch = make_batch([3, 2], scale=scale)
    loss = preference_loss("discopop", batch, ARGS)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(batch.chosen_logps.grad).all()


@pytest.mark.parametrize(
    ("register", "returned", "says"),
    [
        (multi_negative, lambda batch: batch.deltas, r"one value per example, \(2,\), it returned .* shape \(5,\)"),
        (
            multi_negative,
            lambda batch: batch.deltas.mean(),
            r"one value per example, \(2,\), it returned .* shape \(\)",
        ),
        (multi_negative, lambda batch: None, r"one value per example, \(2,\), it returned None"),
        (pairwise, lambda batch: batch.chosen_logps, r"one value per pair, \(5,\), it returned .* shape \(2,\)"),
    ],
    ids=["pairs", "scalar", "none", "examples"],
)
def test_a_loss_of_another_shape_is_named(monkeypatch, register, returned, says):
    monkeypatch.setattr(registry, "LOSSES", dict(LOSSES))
    register("of my own")(lambda batch, args: returned(batch))
    with pytest.raises(ValueError, match=f"The loss 'of my own' must return {says}"):
        preference_loss("of my own", make_batch([3, 2]), ARGS)
