"""Fusion of two rankers against the formula, and the choice of its weight."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmpo_trl.evaluation import RankingResult, choose_weight, fuse
from dmpo_trl.evaluation.fusion import WEIGHTS

USERS = st.lists(
    st.integers(2, 6).flatmap(
        lambda n: st.tuples(
            st.lists(st.integers(-9, 9), min_size=n, max_size=n), st.lists(st.integers(-9, 9), min_size=n, max_size=n)
        )
    ),
    min_size=1,
    max_size=4,
)


def result(name, scores, order=None):
    order = order or [list(range(len(own))) for own in scores]
    return RankingResult(
        name,
        [f"u{row}" for row in range(len(scores))],
        [np.array([float(own[i]) for i in places]) for own, places in zip(scores, order, strict=True)],
        [places.index(0) for places in order],
        [[f"i{i}" for i in places] for places in order],
    )


def z(values):
    spread = np.std(values)
    return (np.array(values) - np.mean(values)) / spread if spread else np.zeros(len(values))


@given(USERS, st.sampled_from(WEIGHTS))
def test_scores_are_the_weighted_sum_of_both_in_standard_deviations(users, weight):
    model, other = (result(name, [pair[place] for pair in users]) for place, name in enumerate(("model", "other")))
    fused = fuse(model, other, weight)
    assert fused.name == "model + other"
    for (ours, theirs), found in zip(users, fused.scores, strict=True):
        assert found.tolist() == pytest.approx((z(ours) + weight * z(theirs)).tolist())


@given(USERS, st.randoms(use_true_random=False))
def test_users_and_candidates_may_come_in_another_order(users, random):
    model, other = (result(name, [pair[place] for pair in users]) for place, name in enumerate(("model", "other")))
    order = [random.sample(range(len(own)), len(own)) for own, _ in users]
    moved = result("other", [theirs for _, theirs in users], order)
    rows = random.sample(range(len(users)), len(users))
    moved = RankingResult(
        "other", *([getattr(moved, name)[row] for row in rows] for name in ("users", "scores", "positives", "items"))
    )
    for expected, found in zip(fuse(model, other, 1.0).scores, fuse(model, moved, 1.0).scores, strict=True):
        assert found.tolist() == pytest.approx(expected.tolist())


def test_other_users_or_candidates_are_refused():
    model, other = result("model", [[1, 2]]), result("other", [[1, 2, 3]])
    with pytest.raises(ValueError, match="other and model ranked different candidates of user 'u0'"):
        fuse(model, other, 1.0)
    with pytest.raises(ValueError, match="ranked different users"):
        fuse(model, result("other", [[1, 2], [3, 4]]), 1.0)
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="must be a number of at least 0"):
            fuse(model, model, weight)


def test_another_relevant_item_is_refused():
    model, other = result("model", [[1, 2, 3]]), result("other", [[1, 2, 3]], order=[[2, 0, 1]])
    assert fuse(model, other, 1.0).positives == [0]
    for theirs in (replace(model, name="theirs", positives=[1]), replace(other, name="theirs", positives=[2])):
        for use in (lambda one: fuse(model, one, 1.0), lambda one: choose_weight(model, one)):
            with pytest.raises(ValueError, match="User 'u0': the relevant item is 'i1' in theirs, but 'i0' in model"):
                use(theirs)


@pytest.mark.parametrize("score", [-np.inf, np.inf])
def test_an_infinite_score_is_named_as_what_it_is(score):
    finite, infinite = result("finite", [[1, 2], [1, 2]]), result("infinite", [[1, 2], [1, score]])
    for one, other in ((finite, infinite), (infinite, finite)):
        with pytest.raises(ValueError, match=rf"^User 'u1': Only finite scores .* of candidate 1 is {score}\.$"):
            fuse(one, other, 1.0)


@pytest.mark.parametrize("scores", [[0.1 + 0.2, 0.3, 0.3], [-11.3, -11.3 * (1 + 1e-15), -11.3]])
def test_scores_that_differ_by_rounding_are_one_score(scores):
    counts = result("counts", [[0, 1, 0]])
    assert fuse(result("model", [scores]), counts, 0.1).per_user("hr@1").tolist() == [0.0]
    assert fuse(result("model", [[0.3 + 1e-9, 0.3, 0.3]]), counts, 0.1).per_user("hr@1").tolist() == [1.0]


def test_no_weights_to_choose_among_are_refused():
    with pytest.raises(ValueError, match="no weights to choose among"):
        choose_weight(result("model", [[1, 2]]), result("counts", [[1, 2]]), weights=[])


def test_the_best_weight_is_chosen_and_nothing_is_taken_that_does_not_help():
    model, counts = result("model", [[1, 3, 2]]), result("counts", [[9, 0, 0]])
    assert choose_weight(model, counts, metric="hr@1") == min(
        weight for weight in WEIGHTS if fuse(model, counts, weight).per_user("hr@1").mean() == 1
    )
    noise = result("noise", [[0, 5, 1]])
    assert choose_weight(model, noise) == 0.0
