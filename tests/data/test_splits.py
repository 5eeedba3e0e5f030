import polars as pl
import pytest

from dmpo_trl.data import Interactions, leave_one_out, split_users


def interactions(rows: list[tuple]) -> Interactions:
    frame = pl.DataFrame(rows, schema=["user", "item", "timestamp", "rating"], orient="row")
    items = frame.select("item").unique().with_columns(title=pl.col("item").str.to_uppercase())
    return Interactions(frame, items)


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


def test_groups_of_users_are_disjoint_whatever_the_order():
    examples = pl.DataFrame({"user": [f"u{i % 20}" for i in range(60)], "target": [str(i) for i in range(60)]})
    groups = split_users(examples, {"train": 12, "test": 5}, seed=0)
    users = {name: set(group["user"]) for name, group in groups.items()}
    assert {name: len(members) for name, members in users.items()} == {"train": 12, "test": 5}
    assert not users["train"] & users["test"]
    assert all(group.height == 3 * len(users[name]) for name, group in groups.items())  # all rows of a user
    again = split_users(examples.reverse(), {"train": 12, "test": 5}, seed=0)
    assert {name: set(group["user"]) for name, group in again.items()} == users
    other = split_users(examples, {"train": 12, "test": 5}, seed=1)
    assert set(other["train"]["user"]) != users["train"]


def test_too_few_users_is_an_error():
    with pytest.raises(ValueError, match="need 3 users, there are 2"):
        split_users(pl.DataFrame({"user": ["a", "b"]}), {"train": 2, "test": 1}, seed=0)
