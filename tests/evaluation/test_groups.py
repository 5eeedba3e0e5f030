"""Groups of users against their definition, user by user."""

import numpy as np
import polars as pl
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from dmpo_trl.evaluation import RankingResult, cold_start_groups, group_intervals, history_groups
from dmpo_trl.evaluation.groups import HISTORY_BOUNDS

USERS = st.lists(
    st.tuples(st.lists(st.sampled_from("abcdef"), min_size=2, max_size=4, unique=True), st.integers(0, 1)),
    min_size=1,
    max_size=8,
)


def plain(groups):
    return {name: rows.tolist() for name, rows in groups.items()}


@given(USERS, st.sets(st.sampled_from("abcdefgh")))
def test_a_user_is_cold_whose_target_is_unknown(users, known):
    rows = [{"user": f"u{n}", "items": items, "positive": place} for n, (items, place) in enumerate(users)]
    found = plain(cold_start_groups(Dataset.from_list(rows), known))
    expected = {"known": [], "cold": []}
    for row, (items, place) in enumerate(users):
        expected["known" if items[place] in known else "cold"].append(row)
    assert found == {name: rows for name, rows in expected.items() if rows}  # an empty group is not there
    assert list(found) == [name for name in ("known", "cold") if name in found]


@given(
    st.lists(st.integers(0, 130), min_size=1, max_size=12),
    st.one_of(st.just(HISTORY_BOUNDS), st.sets(st.integers(1, 120), max_size=4).map(sorted)),
)
def test_every_user_is_in_the_group_whose_name_holds_their_number(lengths, bounds):
    rows = [{"user": f"u{n}", "seen": ["a"] * length, "history": ["a"]} for n, length in enumerate(lengths)]
    found = plain(history_groups(Dataset.from_list(rows), bounds=bounds))
    assert sorted(row for own in found.values() for row in own) == list(range(len(lengths)))
    ends = []
    for name, own in found.items():
        low, *high = map(int, name.removesuffix(" or more").split(" to "))
        high = np.inf if name.endswith("or more") else high[0] if high else low
        assert own
        assert all(low <= lengths[row] <= high for row in own)
        ends += [low, high]
    assert ends == sorted(ends)  # from short to long
    assert len(found) <= len(bounds) + 1


def test_the_history_counts_where_nobody_says_what_was_before_it():
    rows = [{"user": "u1", "history": ["a"] * 5}, {"user": "u2", "history": ["a"] * 4}]
    assert plain(history_groups(Dataset.from_list(rows))) == {"0 to 4": [1], "5 to 9": [0]}


@pytest.mark.parametrize("bounds", [[0], [5, 5], [10, 5], [-1]])
def test_bounds_that_do_not_increase_are_refused(bounds):
    with pytest.raises(ValueError, match="bounds must be increasing numbers from 1 on"):
        history_groups(Dataset.from_list([{"history": ["a"]}]), bounds=bounds)


def result(count):
    rng = np.random.default_rng(0)
    scores = [rng.normal(size=4) for _ in range(count)]
    return RankingResult("r", [f"u{n}" for n in range(count)], scores, [0, 3] * (count // 2), [list("abcd")] * count)


def test_a_groups_figures_are_those_of_its_users_alone():
    whole = result(20)
    rows = np.array([1, 4, 5, 18])
    found = group_intervals(whole, {"some": rows, "one": np.array([2])}, ["mrr", "pooled_auc"])
    assert found.keys() == {"some"}  # one user has no interval
    alone = RankingResult(
        "r",
        [f"u{n}" for n in rows],
        [whole.scores[n] for n in rows],
        [[0, 3][n % 2] for n in rows],
        [list("abcd")] * 4,
    )
    assert found["some"] == alone.intervals(["mrr", "pooled_auc"])
    assert found["some"]["mrr"].mean == pytest.approx(whole.per_user("mrr")[rows].mean())
    with pytest.raises(ValueError, match="Unknown metric"):
        group_intervals(whole, {"some": rows}, ["map"])


def test_rows_are_taken_in_their_order():
    taken = result(6).of_rows([4, 1])
    assert taken.users == ["u4", "u1"]
    assert taken.positives == [0, 3]
    assert taken.scores[1].tolist() == result(6).scores[1].tolist()
    with pytest.raises(ValueError, match="no users to rank"):
        result(6).of_rows([])


def test_known_is_what_the_model_saw_or_what_the_users_had():
    interactions = pl.DataFrame({"user": ["u", "u"], "item": ["a", "b"], "shown": [True, False]})
    rows = [{"user": "v", "items": ["a", "b"], "positive": 1}]
    dataset = Dataset.from_list(rows)
    assert list(cold_start_groups(dataset, interactions.filter("shown")["item"])) == ["cold"]
    assert list(cold_start_groups(dataset, interactions["item"])) == ["known"]
