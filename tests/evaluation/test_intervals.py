from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dmpo_trl.evaluation import bootstrap_mean, paired_difference, pooled_auc
from dmpo_trl.evaluation.intervals import bootstrap_pooled_auc


def test_bootstrap_interval_agrees_with_the_normal_one():
    values = np.random.default_rng(0).normal(size=2_000)
    interval = bootstrap_mean(values)
    assert interval.mean == pytest.approx(values.mean())
    low, high = stats.norm.interval(0.95, values.mean(), stats.sem(values))
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.004)
    assert bootstrap_mean(values) == interval  # seeded
    wider = bootstrap_mean(values, confidence=0.99)
    assert wider.low < interval.low < interval.high < wider.high
    assert str(bootstrap_mean(np.full(5, 0.25))) == "0.250 [0.250, 0.250]"
    with pytest.raises(ValueError, match="at least two users, not 1"):
        bootstrap_mean(np.array([1.0]))
    with pytest.raises(ValueError, match="at least two users, not 1"):
        bootstrap_pooled_auc([np.array([1.0, 2.0])], [0])


@pytest.mark.parametrize("confidence", [95, 1, 0, -0.5, np.nan])
def test_a_confidence_level_is_between_0_and_1(confidence):
    values = np.array([0.0, 1.0, 1.0])
    for interval in (
        lambda: bootstrap_mean(values, confidence=confidence),
        lambda: paired_difference(values, 1 - values, confidence=confidence),
        lambda: bootstrap_pooled_auc([values[:2]] * 2, [0, 1], confidence=confidence),
    ):
        with pytest.raises(ValueError, match=f"must be between 0 and 1, as 0.95 is; it is {confidence}"):
            interval()


def test_the_interval_of_pooled_auc_resamples_users():
    rng = np.random.default_rng(0)
    users = [(rng.normal(size=4).round(1) + rng.normal() + np.eye(4)[1] * 0.8, 1) for _ in range(60)]
    scores, positives = [own for own, _ in users], [positive for _, positive in users]
    interval = bootstrap_pooled_auc(scores, positives)
    resamples = rng.integers(0, 60, (500, 60))
    drawn = [pooled_auc([scores[i] for i in draw], [positives[i] for i in draw]) for draw in resamples]
    assert interval.mean == pooled_auc(scores, positives)
    assert (interval.low, interval.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.02)
    assert bootstrap_pooled_auc(scores, positives) == interval  # seeded


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from([-0.5, 0.0, 0.25, 1.0]), min_size=2, max_size=9))
def test_the_paired_test_of_few_users_tries_all_signs(differences):
    ours, theirs = np.array(differences) + 0.125, np.full(len(differences), 0.125)
    means = [np.mean(np.array(signs) * differences) for signs in product([-1, 1], repeat=len(differences))]
    expected = np.mean(np.abs(means) >= abs(np.mean(differences)) - 1e-12)
    assert paired_difference(ours, theirs).p_value == pytest.approx(expected)


def test_the_paired_test_of_many_users_agrees_with_the_t_test():
    rng = np.random.default_rng(0)
    ours = rng.normal(size=300)
    theirs = ours + rng.normal(-0.1, 1, size=300)
    difference = paired_difference(ours, theirs)
    assert difference.p_value == pytest.approx(stats.ttest_rel(ours, theirs).pvalue, abs=0.01)
    assert difference == paired_difference(ours, theirs)  # seeded
    interval = bootstrap_mean(ours - theirs)
    assert (difference.mean, difference.low, difference.high) == (interval.mean, interval.low, interval.high)
    assert paired_difference(ours, ours).p_value == 1


def test_values_of_other_users_are_not_paired():
    for theirs in (np.zeros(1), np.zeros(4)):  # one value would be subtracted from all
        with pytest.raises(ValueError, match="needs the same users; there are 3 and"):
            paired_difference(np.ones(3), theirs)


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e6])
@pytest.mark.parametrize("users", [5, 30])
def test_rounding_is_no_difference(users, scale):
    ours, theirs = np.full(users, 0.3) * scale, (np.full(users, 0.1) + 0.2) * scale
    assert (ours != theirs).all()
    difference = paired_difference(ours, theirs)
    assert (difference.mean, difference.low, difference.high, difference.p_value) == (0, 0, 0, 1)


@pytest.mark.parametrize(("units", "significant"), [(8, False), (9, True)])
def test_what_is_more_than_rounding_is_a_difference(units, significant):
    theirs = np.full(30, 1.5)
    difference = paired_difference(theirs + units * np.spacing(1.5), theirs)
    assert (difference.p_value < 0.01) == significant
    assert (difference.mean > 0) == significant
