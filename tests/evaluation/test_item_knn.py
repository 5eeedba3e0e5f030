"""ItemKNN against its formula, written out with sets."""

import math

import polars as pl
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from dmpo_trl.evaluation import ItemKNN, rank_by_item_knn

PAIRS = st.lists(st.tuples(st.sampled_from("uvwxyz"), st.sampled_from("abcdefg")), min_size=1, max_size=30)
ITEMS = st.lists(st.sampled_from("abcdefgh"), max_size=6)  # h is in no interaction


def frame(pairs):
    return pl.DataFrame(pairs, schema=["user", "item"], orient="row")


@given(PAIRS, ITEMS, ITEMS, st.sampled_from([0.0, 1.0, 10.0]))
def test_scores_are_sums_of_shrunk_cosines(pairs, history, candidates, shrinkage):
    users = {item: {user for user, other in pairs if other == item} for item in "abcdefgh"}

    def similarity(i, j):
        together = len(users[i] & users[j])
        return together / (math.sqrt(len(users[i]) * len(users[j])) + shrinkage) if together else 0.0

    expected = [sum(similarity(item, candidate) for item in set(history)) for candidate in candidates]
    assert ItemKNN(frame(pairs), shrinkage=shrinkage).score(history, candidates).tolist() == pytest.approx(expected)


@given(PAIRS)
def test_the_order_of_the_rows_and_repeated_ones_do_not_matter(pairs):
    one, other = ItemKNN(frame(pairs)), ItemKNN(frame(pairs[::-1] + pairs))
    assert one.score("abc", "abcdefgh").tolist() == other.score("abc", "abcdefgh").tolist()


def test_ranks_by_the_history_of_the_prompt():
    knn = ItemKNN(frame([("u", "a"), ("u", "b"), ("v", "c"), ("v", "d")]))
    rows = [
        {"user": "x", "history": ["a"], "items": ["d", "b"], "positive": 1},
        {"user": "y", "history": ["c"], "items": ["d", "b"], "positive": 1},
    ]
    assert rank_by_item_knn(Dataset.from_list(rows), knn).per_user("hr@1").tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("table", "shrinkage", "message"),
    [
        (pl.DataFrame({"user": ["u"]}), 1, r"no column \['item'\]"),
        (pl.DataFrame({"user": [], "item": []}), 1, "no interactions to count"),
        (frame([("u", "a")]), -1, "shrinkage must be a number of at least 0, it is -1"),
        (frame([("u", "a")]), math.nan, "shrinkage must be a number of at least 0, it is nan"),
        (frame([("u", "a")]), math.inf, "shrinkage must be a number of at least 0, it is inf"),
        (frame([("u", "a"), (None, "a"), (None, "b")]), 1, "2 interactions have no user"),
        (frame([("u", "a"), ("u", None)]), 1, "1 interactions have no item"),
    ],
)
def test_what_cannot_be_counted_is_refused(table, shrinkage, message):
    with pytest.raises(ValueError, match=message):
        ItemKNN(table, shrinkage=shrinkage)
