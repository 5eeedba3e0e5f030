from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import label_ranking_average_precision_score, ndcg_score, roc_auc_score, top_k_accuracy_score

from dmpo_trl.evaluation import Ranks, auc, bootstrap_mean, hit_rate, ndcg, reciprocal_rank
from dmpo_trl.evaluation.metrics import bootstrap_pooled_auc, paired_difference, per_user, pooled_auc

# Few distinct values make ties; without ties every value differs
TIED = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=2, max_size=8)
DISTINCT = st.lists(st.floats(-100, 100, allow_subnormal=False), min_size=3, max_size=8, unique=True)


def one_user(scores: list[float], positive: int) -> tuple[Ranks, np.ndarray, np.ndarray]:
    """Ranks, and the same as scikit-learn takes it: relevance and scores, (1, candidates)."""
    relevance = np.zeros(len(scores))
    relevance[positive] = 1
    return Ranks.from_scores([np.array(scores)], [positive]), relevance[None], np.array(scores)[None]


@given(TIED, st.data(), st.integers(1, 9))
def test_ndcg_is_scikit_learns_with_ties(scores, draw, k):
    ranks, relevance, values = one_user(scores, draw.draw(st.integers(0, len(scores) - 1)))
    assert ndcg(ranks, k) == pytest.approx(ndcg_score(relevance, values, k=k))


@given(TIED, st.data())
def test_auc_is_scikit_learns_with_ties(scores, draw):
    ranks, relevance, values = one_user(scores, draw.draw(st.integers(0, len(scores) - 1)))
    assert auc(ranks) == pytest.approx(roc_auc_score(relevance[0], values[0]))


@given(DISTINCT, st.data(), st.integers(1, 9))
def test_hit_rate_and_mrr_are_scikit_learns_without_ties(scores, draw, k):
    positive = draw.draw(st.integers(0, len(scores) - 1))
    ranks, relevance, values = one_user(scores, positive)
    if k < len(scores):
        assert hit_rate(ranks, k) == top_k_accuracy_score([positive], values, k=k, labels=range(len(scores)))
    else:
        assert hit_rate(ranks, k) == 1
    assert reciprocal_rank(ranks) == pytest.approx(label_ranking_average_precision_score(relevance, values))


@given(TIED, st.data(), st.integers(1, 9))
def test_ties_are_the_mean_over_all_orders(scores, draw, k):
    positive = draw.draw(st.integers(0, len(scores) - 1))
    ranks, _, _ = one_user(scores, positive)
    above, tied = int(ranks.better[0]), int(ranks.tied[0])
    places = range(above + 1, above + tied + 2)
    assert hit_rate(ranks, k) == pytest.approx(np.mean([place <= k for place in places]))
    assert reciprocal_rank(ranks) == pytest.approx(np.mean([1 / place for place in places]))


def test_users_with_different_numbers_of_candidates():
    scores = [np.array([3.0, 1.0]), np.array([0.1, 0.2, 0.3, 0.4]), np.array([1.0, 1.0, 1.0])]
    ranks = Ranks.from_scores(scores, [0, 1, 2])
    # First of two; third of four; one of three tied
    assert hit_rate(ranks, 1) == pytest.approx([1, 0, 1 / 3])
    assert hit_rate(ranks, 3) == pytest.approx([1, 1, 1])
    assert reciprocal_rank(ranks) == pytest.approx([1, 1 / 3, (1 + 1 / 2 + 1 / 3) / 3])
    assert ndcg(ranks, 2) == pytest.approx([1, 0, (1 + 1 / np.log2(3)) / 3])
    assert auc(ranks) == pytest.approx([1, 1 / 3, 1 / 2])


def test_metrics_by_name():
    ranks = Ranks.from_scores([np.array([1.0, 2.0, 3.0])], [1])
    assert per_user(ranks, "hr@1") == [0]
    assert per_user(ranks, "hr@2") == [1]
    assert per_user(ranks, "ndcg@10") == pytest.approx([1 / np.log2(3)])
    assert per_user(ranks, "mrr") == [0.5]
    assert per_user(ranks, "auc") == [0.5]
    for unknown in ("hr", "hr@0", "ndcg@x", "precision@5"):
        with pytest.raises(ValueError, match="Unknown metric"):
            per_user(ranks, unknown)
    with pytest.raises(ValueError, match="no user has a value of it"):
        per_user(ranks, "pooled_auc")


@pytest.mark.parametrize(
    ("scores", "positive", "message"),
    [
        ([1.0, np.nan], 0, "row 1: the score of candidate 1 is not a number"),
        ([1.0], 0, "row 1: positive 0 among 1 candidates"),
        ([1.0, 2.0], 2, "row 1: positive 2 among 2 candidates"),
        ([1.0, 2.0], -1, "row 1: positive -1 among 2 candidates"),
    ],
)
def test_what_cannot_be_ranked_is_named(scores, positive, message):
    with pytest.raises(ValueError, match=message):
        Ranks.from_scores([np.array([1.0, 2.0]), np.array(scores)], [0, positive])


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
    with pytest.raises(ValueError, match="at least two"):
        bootstrap_mean(np.array([1.0]))


USERS = st.lists(
    TIED.flatmap(lambda own: st.tuples(st.just(own), st.integers(0, len(own) - 1))), min_size=1, max_size=6
)


def pooled(users) -> tuple[np.ndarray, np.ndarray]:
    """Relevance and scores of all users' candidates in one list, as scikit-learn takes them."""
    relevance = [np.arange(len(own)) == positive for own, positive in users]
    return np.concatenate(relevance), np.concatenate([own for own, _ in users])


@settings(deadline=None)
@given(USERS)
def test_pooled_auc_is_scikit_learns_with_ties(users):
    scores, positives = [np.array(own) for own, _ in users], [positive for _, positive in users]
    assert pooled_auc(scores, positives) == pytest.approx(roc_auc_score(*pooled(users)))


def test_the_interval_of_pooled_auc_resamples_users():
    rng = np.random.default_rng(0)
    users = [(rng.normal(size=4).round(1) + rng.normal() + np.eye(4)[1] * 0.8, 1) for _ in range(60)]
    scores, positives = [own for own, _ in users], [positive for _, positive in users]
    interval = bootstrap_pooled_auc(scores, positives)
    drawn = [roc_auc_score(*pooled([users[i] for i in rng.integers(0, 60, 60)])) for _ in range(500)]
    assert interval.mean == pytest.approx(roc_auc_score(*pooled(users)))
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
