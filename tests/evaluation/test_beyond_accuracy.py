from functools import partial
from itertools import pairwise, permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmpo_trl.evaluation.beyond_accuracy import beyond_accuracy, coverage, long_tail_share, recommendation_popularity
from dmpo_trl.evaluation.result import RankingResult

POPULARITY = {"a": 60.0, "b": 25.0, "c": 10.0, "d": 5.0}  # "e" was never had
# Before b stand 60%, before c 85%: the short head is a and b
TAIL = {"c", "d", "e"}


def result_of(*users: dict[str, float]) -> RankingResult:
    return RankingResult(
        "x",
        [str(i) for i in range(len(users))],
        [np.array(list(user.values())) for user in users],
        [0] * len(users),
        [list(user) for user in users],
    )


def orders(user: dict[str, float]) -> list[tuple[str, ...]]:
    """All orders of the items that the scores allow."""
    return [
        order for order in permutations(user) if all(user[first] >= user[second] for first, second in pairwise(order))
    ]


USER = st.lists(st.sampled_from("abcde"), min_size=2, max_size=4, unique=True).flatmap(
    lambda items: st.fixed_dictionaries({item: st.sampled_from([0.0, 1.0, 2.0]) for item in items})
)


@settings(deadline=None)
@given(st.lists(USER, min_size=1, max_size=3), st.integers(1, 4))
def test_figures_are_means_over_all_orders_of_the_tied(users, k):
    result = result_of(*users)
    reachable = set().union(*users)
    draws = list(product(*map(orders, users)))
    shares = [len({item for order in draw for item in order[:k]}) / len(reachable) for draw in draws]
    assert coverage(result, k) == pytest.approx(np.mean(shares))
    popularity, tail = recommendation_popularity(result, POPULARITY, k), long_tail_share(result, POPULARITY, k)
    for index, user in enumerate(users):
        tops = [order[:k] for order in orders(user)]
        assert popularity[index] == pytest.approx(np.mean([[POPULARITY.get(i, 0) for i in top] for top in tops]))
        assert tail[index] == pytest.approx(np.mean([[i in TAIL for i in top] for top in tops]))


def test_the_bias_is_relative_to_what_users_chose():
    # Targets stand first: d and c. Recommended are a and b
    result = result_of({"d": 0.0, "a": 1.0, "c": 0.5}, {"c": 0.0, "b": 1.0, "e": 0.5})
    assert beyond_accuracy(result, POPULARITY, 1) == pytest.approx(
        {
            "coverage@1": 2 / 5,
            "popularity@1": (60 + 25) / 2,
            "target_popularity": (5 + 10) / 2,
            "popularity_lift@1": 85 / 15 - 1,
            "long_tail@1": 0,
            "target_long_tail": 1,
        }
    )


def test_equally_popular_items_are_on_one_side():
    result = result_of(dict.fromkeys("abcde", 0.0))
    # Before the last of five equal items stand 80%, so by place it would be in the tail
    assert long_tail_share(result, dict.fromkeys("abcde", 1.0), 5) == [0]
    # Nobody had any: all is tail, and no lift can be told
    figures = beyond_accuracy(result, {}, 5)
    assert figures["long_tail@5"] == 1
    assert np.isnan(figures["popularity_lift@5"])


def test_a_recommendation_has_at_least_one_item():
    for measure in (coverage, partial(beyond_accuracy, popularity=POPULARITY)):
        with pytest.raises(ValueError, match="k must be at least 1, it is 0"):
            measure(result_of({"a": 1.0, "b": 0.0}), k=0)
