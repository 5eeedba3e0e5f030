from collections import Counter

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmpo_trl.data import Interactions, leave_one_out, sample_negatives

CATALOGUE = [f"i{i:02}" for i in range(12)]
ITEMS = pl.DataFrame({"item": CATALOGUE, "title": [item.upper() for item in CATALOGUE]})


def interactions(items_by_user: dict[str, list[str]]) -> Interactions:
    rows = [(user, item, time) for user, items in items_by_user.items() for time, item in enumerate(items)]
    return Interactions(pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row"), ITEMS)


@given(st.sets(st.sampled_from(CATALOGUE), min_size=2, max_size=10), st.data())
def test_never_an_item_that_the_user_had(had, draw):
    data = interactions({"u1": sorted(had), "u2": CATALOGUE[:2]})
    left = len(CATALOGUE) - len(had)
    n = draw.draw(st.integers(1, left))
    examples = leave_one_out(data, history_length=1).filter(user="u1")
    (negatives,) = sample_negatives(examples, data, n, seed=draw.draw(st.integers(0, 99)))["negatives"].to_list()
    assert len(set(negatives)) == n
    assert set(negatives) <= set(CATALOGUE) - had
    if n == left:
        assert set(negatives) == set(CATALOGUE) - had


def test_negatives_do_not_depend_on_the_target_or_on_other_users():
    data = interactions({"u1": CATALOGUE[:4], "u2": CATALOGUE[3:6]})
    examples = leave_one_out(data)
    negatives = sample_negatives(examples, data, 5, seed=0)["negatives"].to_list()
    turned = interactions({"u1": CATALOGUE[:4][::-1], "u2": CATALOGUE[3:6][::-1]})
    other_targets = leave_one_out(turned)
    assert other_targets["target"].to_list() != examples["target"].to_list()
    assert sample_negatives(other_targets, turned, 5, seed=0)["negatives"].to_list() == negatives
    assert sample_negatives(examples[1:], data, 5, seed=0)["negatives"].to_list() == negatives[1:]
    assert sample_negatives(examples, data, 5, seed=1)["negatives"].to_list() != negatives


def test_negatives_are_uniform():
    users = {f"u{i}": CATALOGUE[:2] for i in range(2000)}
    data = interactions(users)
    drawn = sample_negatives(leave_one_out(data), data, 1, seed=0)["negatives"].explode()
    counts = Counter(drawn)
    assert set(counts) == set(CATALOGUE[2:])
    assert all(abs(count - 200) < 5 * 200**0.5 for count in counts.values())  # 5 standard deviations


def test_too_few_items_left_is_an_error():
    data = interactions({"u1": CATALOGUE[:4]})
    with pytest.raises(ValueError, match="9 negatives are wanted, but user 'u1' has had 4 of 12 items"):
        sample_negatives(leave_one_out(data), data, 9, seed=0)
