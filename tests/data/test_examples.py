import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.interactions import interactions

from dmpo_trl.data import MOVIES, ranking_dataset
from dmpo_trl.data.examples import leave_one_out, next_items, seen_before
from dmpo_trl.data.interactions import Interactions


@pytest.fixture
def data() -> Interactions:
    likes = [("u1", f"i{t}", t, 4.0) for t in (3, 1, 2, 5, 4)]
    return interactions(
        [*likes, ("u1", "bad", 6, 1.0), ("u2", "i9", 1, 5.0), ("u3", "i7", 1, 5.0), ("u3", "i8", 1, 5.0)]
    )


def test_last_liked_item_is_the_target(data):
    examples = leave_one_out(data, min_rating=4, history_length=3)
    # u2 liked one item only; u3's equal timestamps keep the order of the rows
    assert examples.rows() == [("u1", ["i2", "i3", "i4"], "i5"), ("u3", ["i7"], "i8")]


def test_without_a_threshold_every_interaction_counts(data):
    assert leave_one_out(data)["target"].to_list() == ["bad", "i8"]


def test_short_histories_are_left_out_and_counted(data, caplog):
    caplog.set_level("INFO")
    assert leave_one_out(data, min_history=2)["user"].to_list() == ["u1"]
    assert "2 users have fewer than 3 liked items" in caplog.text
    with pytest.raises(ValueError, match="No user has 9 liked items"):
        leave_one_out(data, min_history=9)


def test_threshold_needs_ratings(data):
    with pytest.raises(ValueError, match="no column 'rating'"):
        leave_one_out(Interactions(data.interactions.drop("rating"), data.items), min_rating=4)


@pytest.mark.parametrize("kind", [pl.Int8, pl.UInt8, pl.Int64, pl.Float32, pl.Decimal(5, 1)])
@pytest.mark.parametrize("limit", [-1, 3, 3.5, 200, 300.5])
def test_ratings_of_any_type_meet_the_limit_as_numbers_do(kind, limit):
    rows = [("u1", f"i{rating}", rating, rating) for rating in range(1, 6)]
    data = interactions(rows)
    data = Interactions(data.interactions.cast({"rating": kind}), data.items)
    expected = [f"i{rating}" for rating in range(2, 6) if rating >= limit and rating - 1 >= limit]
    if expected:
        assert next_items(data, min_rating=limit)["target"].to_list() == expected
    else:
        with pytest.raises(ValueError, match=r"No rating reaches|No user has"):
            next_items(data, min_rating=limit)


@pytest.mark.parametrize("name", ["history_length", "min_history", "per_user"])
def test_numbers_below_one_are_refused(data, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, it is 0"):
        next_items(data, **{name: 0})


ITEMS = [f"i{number}" for number in range(9)]


TIMES = st.dictionaries(st.tuples(st.sampled_from("abcd"), st.sampled_from(ITEMS)), st.integers(0, 6), min_size=1)


@given(TIMES, st.data())
def test_what_was_seen_is_every_item_before_the_target(times, draw):
    frame = pl.DataFrame([(*pair, t) for pair, t in times.items()], schema=["user", "item", "timestamp"], orient="row")
    data = Interactions(frame, pl.DataFrame({"item": ITEMS, "title": ITEMS}))
    asked = draw.draw(st.lists(st.tuples(st.sampled_from("abcdx"), st.sampled_from(ITEMS)), max_size=9))
    examples = pl.DataFrame(asked, schema={"user": pl.String, "target": pl.String}, orient="row")
    story = {
        user: [item for (owner, item), _ in sorted(times.items(), key=lambda kv: kv[1]) if owner == user]
        for user in "abcdx"
    }
    expected = [
        story[user][: story[user].index(target)] if target in story[user] else story[user] for user, target in asked
    ]
    assert seen_before(examples, data).to_list() == expected


def test_a_ranking_row_tells_what_the_user_had_beyond_the_history():
    ratings = [("a", f"i{time}", time, 1.0 if time in (1, 6) else 5.0) for time in range(8)]
    frame = pl.DataFrame(ratings, schema=["user", "item", "timestamp", "rating"], orient="row")
    data = Interactions(frame, pl.DataFrame({"item": ITEMS, "title": ITEMS}))
    examples = next_items(data, min_rating=4, history_length=2, per_user=1)
    row = ranking_dataset(examples.with_columns(negatives=pl.lit(["i8"])), data, MOVIES, seed=0)[0]
    assert row["history"] == ["i4", "i5"]
    assert row["seen"] == ["i0", "i1", "i2", "i3", "i4", "i5", "i6"]  # the disliked ones too


def grown_histories(items, history_length, min_history, per_user):
    """The definition for the items of one user: blocks are laid out from the last target backwards."""
    targets = list(range(min_history, len(items)))[-per_user if per_user else 0 :]
    rows, last = [], len(items) - 1
    for target in reversed(targets):
        if last - target > history_length - min_history:
            last = target  # a new block ends here
        rows.append((items[max(last - history_length, 0) : target], items[target]))
    return rows[::-1]


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=4),
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(1, 12) | st.none(),
)
def test_growing_histories_are_prefixes_of_each_other(sizes, history_length, min_history, per_user):
    history_length = max(history_length, min_history)
    rows = [(f"u{user}", f"i{user}-{place}", place, 5.0) for user, size in enumerate(sizes) for place in range(size)]
    expected = [
        (f"u{user}", history, target)
        for user, size in enumerate(sizes)
        for history, target in grown_histories(
            [f"i{user}-{place}" for place in range(size)], history_length, min_history, per_user
        )
    ]
    options = {"history_length": history_length, "min_history": min_history, "per_user": per_user, "growing": True}
    if not expected:
        with pytest.raises(ValueError, match="No user has"):
            next_items(interactions(rows), **options)
        return
    examples = next_items(interactions(rows), **options)
    assert examples.select("user", "history", "target").rows() == expected
    lengths = examples["history"].list.len()
    assert lengths.min() >= min_history
    assert lengths.max() <= history_length
    # The same targets as those of the latest histories, and the last history of a user is the same
    latest = next_items(interactions(rows), **options | {"growing": False})
    assert examples["target"].to_list() == latest["target"].to_list()
    last = pl.col("user").is_last_distinct()
    assert examples.filter(last).rows() == latest.filter(last).rows()


def test_growing_histories_need_room_to_grow(data):
    with pytest.raises(ValueError, match="history_length must be at least min_history"):
        next_items(data, history_length=2, min_history=3, growing=True)


def test_a_history_may_be_longer_than_any_integer_of_the_tables():
    rows = [("ann", "alien", 1), ("ann", "babe", 2), ("ann", "fargo", 3)]
    interactions = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
    items = pl.DataFrame({"item": ["alien", "babe", "fargo"], "title": ["Alien", "Babe", "Fargo"]})
    examples = next_items(Interactions(interactions, items), history_length=10**13)
    assert examples["history"].to_list() == [["alien"], ["alien", "babe"]]
