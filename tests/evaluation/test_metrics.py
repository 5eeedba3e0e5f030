from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import label_ranking_average_precision_score, ndcg_score, roc_auc_score, top_k_accuracy_score

from dmpo_trl.evaluation import METRICS, Ranks, auc, hit_rate, ndcg, pooled_auc, reciprocal_rank
from dmpo_trl.evaluation.intervals import bootstrap_pooled_auc
from dmpo_trl.evaluation.metrics import check_metrics, per_user

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
    assert reciprocal_rank(ranks, k) == pytest.approx(np.mean([1 / place if place <= k else 0 for place in places]))


def test_nothing_is_among_the_first_none():
    ranks = Ranks.from_scores([np.array([3.0, 1.0]), np.array([1.0, 1.0])], [0, 1])
    for metric in (hit_rate, ndcg, reciprocal_rank):
        assert metric(ranks, k=0).tolist() == [0, 0]


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
    assert per_user(ranks, "mrr@1") == [0]
    assert per_user(ranks, "mrr@2") == [0.5]
    assert per_user(ranks, "auc") == [0.5]
    for unknown in ("hr", "hr@0", "ndcg@x", "mrr@", "auc@5", "precision@5"):
        for use in (partial(per_user, ranks), lambda name: check_metrics(["mrr", name])):
            with pytest.raises(ValueError, match="Unknown metric"):
                use(unknown)
    with pytest.raises(ValueError, match=r"precision@k is hr@k / k and map@k is mrr@k"):
        per_user(ranks, "precision@5")
    assert per_user(ranks, "recall@1") == per_user(ranks, "hr@1") == [0]
    assert per_user(ranks, "recall@2") == per_user(ranks, "hr@2") == [1]
    with pytest.raises(ValueError, match="no user has a value of it"):
        per_user(ranks, "pooled_auc")
    check_metrics([*METRICS, "pooled_auc"])


@pytest.mark.parametrize(
    ("scores", "positive", "message"),
    [
        ([1.0, np.nan], 0, "Row 1: the score of candidate 1 is NaN"),
        ([1.0], 0, "Row 1: a ranking needs at least two candidates, there are 1"),
        ([], 0, "Row 1: a ranking needs at least two candidates, there are 0"),
        ([1.0, 2.0], 2, "Row 1: `positive` is 2, it must be an index of the 2 candidates"),
        ([1.0, 2.0], -1, "Row 1: `positive` is -1"),
    ],
)
def test_what_cannot_be_ranked_is_named(scores, positive, message):
    scores, positives = [np.array([1.0, 2.0]), np.array(scores)], [0, positive]
    for measure in (Ranks.from_scores, pooled_auc, bootstrap_pooled_auc):
        with pytest.raises(ValueError, match=message):
            measure(scores, positives)


def test_no_users_have_no_metrics():
    for measure in (Ranks.from_scores, pooled_auc):
        with pytest.raises(ValueError, match="no users to rank"):
            measure([], [])


def test_infinite_scores_are_ranked():
    ranks = Ranks.from_scores([np.array([-np.inf, -np.inf, 0.0]), np.array([np.inf, 1.0])], [0, 0])
    assert (ranks.better.tolist(), ranks.tied.tolist()) == ([1, 0], [1, 0])


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
