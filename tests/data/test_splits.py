import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmpo_trl.data import MOVIES, ranking_dataset
from dmpo_trl.data.examples import leave_one_out, next_items, seen_before
from dmpo_trl.data.interactions import Interactions
from dmpo_trl.data.splits import few_shot, split_by_time, split_leave_one_out, split_users


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


RATINGS = st.dictionaries(
    st.tuples(st.sampled_from("abc"), st.sampled_from([f"i{i}" for i in range(9)])),
    st.tuples(st.integers(0, 20), st.integers(1, 5)),
    min_size=1,
)
OPTIONS = st.fixed_dictionaries(
    {
        "min_rating": st.sampled_from([None, 3]),
        "history_length": st.integers(1, 4),
        "min_history": st.integers(1, 3),
        "per_user": st.sampled_from([None, 1, 2]),
    }
)
PARTS = ("train", "validation", "test")


def brute_force(ratings, min_rating, history_length, min_history, per_user) -> dict[str, list[tuple]]:
    """Every example of each user."""
    examples = {}
    for user in sorted({user for user, _ in ratings}):
        own = [
            (time, item) for (u, item), (time, rating) in ratings.items() if u == user and rating >= (min_rating or 0)
        ]
        own.sort(key=lambda row: row[0])
        examples[user] = [
            (user, [item for _, item in own[:place]][-history_length:], own[place][1], own[place][0])
            for place in range(min_history, len(own))
        ]
    return examples


def latest(rows: list, per_user: int | None) -> list:
    return rows if per_user is None else rows[-per_user:]


def check(split, expected: dict[str, list[tuple]]):
    """The split gives what is expected, or says that a part is empty."""
    if all(expected.values()):
        assert {name: part.rows() for name, part in split().items()} == expected
    else:
        with pytest.raises(ValueError, match=r"liked items and one more|No rating reaches"):
            split()


@pytest.fixture
def many() -> Interactions:
    """Enough for every part of every split."""
    rows = [(f"u{user}", f"i{user}-{time}", 10 * time + user, 5.0) for user in range(3) for time in range(6)]
    return interactions(rows)


@settings(deadline=None)
@given(RATINGS, OPTIONS, st.randoms(use_true_random=False))
def test_every_split_is_the_brute_force_one(ratings, options, order):
    rows = [(user, item, time, float(rating)) for (user, item), (time, rating) in ratings.items()]
    data, per_user = interactions(rows), options["per_user"]
    users = brute_force(ratings, **options)
    every = [row for own in users.values() for row in latest(own, per_user)]
    check(lambda: {"all": next_items(data, **options)}, {"all": every})

    enough = {user: len(own) >= 3 for user, own in users.items()}
    expected = {
        "train": [row for user, own in users.items() for row in latest(own[:-2] if enough[user] else own, per_user)],
        "validation": [own[-2] for user, own in users.items() if enough[user]],
        "test": [own[-1] for user, own in users.items() if enough[user]],
    }
    check(lambda: split_leave_one_out(data, **options), expected)

    first, second = sorted(order.sample(range(1, 21), 2))
    bounds = {"train": (0, first), "validation": (first, second), "test": (second, 99)}
    expected = {
        name: [row for own in users.values() for row in latest([r for r in own if start <= r[3] < end], per_user)]
        for name, (start, end) in bounds.items()
    }
    check(lambda: split_by_time(data, validation_from=first, test_from=second, **options), expected)


@settings(deadline=None)
@given(RATINGS.filter(lambda ratings: len({time for time, _ in ratings.values()}) > 4))
def test_cuts_can_be_shares_of_the_interactions(ratings):
    data = interactions([(user, item, time, float(rating)) for (user, item), (time, rating) in ratings.items()])
    times = sorted(time for time, _ in ratings.values())
    cuts = [times[int(share * len(times))] for share in (0.5, 0.75)]
    outcomes = []
    for first, second in ((0.5, 0.75), cuts):
        try:
            parts = split_by_time(data, validation_from=first, test_from=second)
            outcomes.append({name: part.rows() for name, part in parts.items()})
        except ValueError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


def test_no_training_target_is_later_than_the_cut(many):
    parts = split_by_time(many, validation_from=0.5, test_from=0.75)
    train, validation, test = (parts[name]["timestamp"] for name in PARTS)
    assert train.max() < validation.min() <= validation.max() < test.min()
    with pytest.raises(ValueError, match="orders by 'plays', which cannot be compared between users"):
        split_by_time(Interactions(many.interactions, many.items, order="plays"), validation_from=0.5, test_from=0.75)
    with pytest.raises(ValueError, match="one more for the test part"):
        split_by_time(many, validation_from=0.5, test_from=999)


@pytest.mark.parametrize(("validation", "test"), [(0.9, 0.5), (20, 10), (0.5, 0.5), (0.9, 3)])
def test_cuts_in_the_wrong_order_are_refused_as_such(many, validation, test):
    with pytest.raises(ValueError, match=r"test must begin after the validation.*raise test_from or lower validation"):
        split_by_time(many, validation_from=validation, test_from=test)


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


@pytest.mark.parametrize(
    ("kind", "times", "cuts"),
    [
        (pl.Int8, [-128, -1, 0, 127], (0, 100)),
        (pl.Int8, [-128, -1, 0, 127], (-0.5, 126.5)),
        (pl.UInt64, [2**64 - 4, 2**64 - 3, 2**64 - 2, 2**64 - 1], (2**64 - 2, 2**64 - 1)),
        (pl.Int64, [2**60 - 2, 2**60 - 1, 2**60, 2**60 + 1], (float(2**60), 2**60 + 1)),
        (pl.Float32, [2.0**24 - 2, 2.0**24, 2.0**24 + 2, 2.0**24 + 4], (2.0**24 + 1, 2.0**24 + 3)),
        (pl.Decimal(20, 2), [1, 2, 3, 4], (2.5, 3.5)),
    ],
)
def test_cuts_fall_where_the_numbers_say_in_any_type(kind, times, cuts):
    data = interactions([("u1", f"i{place}", place, 1) for place in range(4)])
    data = Interactions(data.interactions.with_columns(timestamp=pl.Series(times, dtype=kind)), data.items)
    parts = split_by_time(data, validation_from=cuts[0], test_from=cuts[1])
    assert {name: part["target"].to_list() for name, part in parts.items()} == {
        "train": ["i1"],
        "validation": ["i2"],
        "test": ["i3"],
    }


def test_leave_one_out_measures_its_leak(many, caplog):
    parts = split_leave_one_out(many)
    train, test = parts["train"]["timestamp"].to_list(), parts["test"]["timestamp"].to_list()
    assert max(train) < min(test)  # these users go side by side
    assert "0.0% of the training targets are later than a test target on average, and 0.0% of the test" in caplog.text
    caplog.clear()
    late = many.interactions.with_columns(timestamp=pl.col("timestamp") + 30 * (pl.col("user") == "u2"))
    parts = split_leave_one_out(Interactions(late, many.items))
    train, test = parts["train"]["timestamp"].to_list(), parts["test"]["timestamp"].to_list()
    share = sum(a > b for a in train for b in test) / len(train) / len(test)
    leaking = sum(any(a > b for a in train) for b in test) / len(test)
    assert share > 0
    assert f"{share:.1%} of the training targets" in caplog.text
    assert f"{leaking:.1%} of the test targets" in caplog.text
    caplog.clear()
    split_leave_one_out(Interactions(many.interactions, many.items, order="position"))
    assert "without times (order 'position') nobody can tell how much" in caplog.text


@pytest.mark.parametrize("name", ["history_length", "min_history", "per_user"])
def test_numbers_below_one_are_refused(many, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, it is 0"):
        next_items(many, **{name: 0})


def test_few_users_keep_all_their_examples(many):
    examples = next_items(many)
    few = few_shot(examples, 2, seed=0)
    assert few["user"].n_unique() == 2
    assert few.rows() == examples.filter(pl.col("user").is_in(few["user"].unique().to_list())).rows()
    assert {tuple(few_shot(examples, 1, seed=seed)["user"].unique()) for seed in range(20)} == {
        ("u0",),
        ("u1",),
        ("u2",),
    }
    with pytest.raises(ValueError, match="need 4 users, there are 3"):
        few_shot(examples, 4, seed=0)


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


def test_negative_numbers_of_users_do_not_mean_all_but():
    examples = pl.DataFrame({"user": ["a", "b", "c"]})
    for users in (0, -1):
        with pytest.raises(ValueError, match=rf"users must be at least 1, it is {users}\."):
            few_shot(examples, users, seed=0)
    with pytest.raises(ValueError, match=r"The size of the group 'test' must be at least 0, it is -1\."):
        split_users(examples, {"train": 2, "test": -1}, seed=0)
    assert split_users(examples, {"train": 3, "test": 0}, seed=0)["test"].is_empty()


def test_a_cut_that_is_not_a_number_is_refused(many):
    for cuts in ((float("nan"), 0.9), (0.8, float("nan"))):
        with pytest.raises(ValueError, match=r"test must begin after .* the time nan"):
            split_by_time(many, validation_from=cuts[0], test_from=cuts[1])


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


def test_only_training_histories_grow():
    data = interactions([("u", f"i{place}", place, 5.0) for place in range(12)])
    parts = split_leave_one_out(data, history_length=4, min_history=2, growing=True)
    assert parts["train"]["history"].list.len().to_list() == [2, 3, 2, 3, 4, 2, 3, 4]
    assert parts["test"]["history"].to_list() == [["i7", "i8", "i9", "i10"]]
    timed = split_by_time(data, validation_from=8, test_from=10, history_length=4, min_history=2, growing=True)
    assert timed["train"]["history"].list.len().to_list() == [2, 3, 4, 2, 3, 4]
    assert timed["test"]["history"].list.len().to_list() == [4, 4]


def test_growing_histories_need_room_to_grow(data):
    with pytest.raises(ValueError, match="history_length must be at least min_history"):
        next_items(data, history_length=2, min_history=3, growing=True)


def test_a_history_may_be_longer_than_any_integer_of_the_tables():
    rows = [("ann", "alien", 1), ("ann", "babe", 2), ("ann", "fargo", 3)]
    interactions = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
    items = pl.DataFrame({"item": ["alien", "babe", "fargo"], "title": ["Alien", "Babe", "Fargo"]})
    examples = next_items(Interactions(interactions, items), history_length=10**13)
    assert examples["history"].to_list() == [["alien"], ["alien", "babe"]]


def test_a_seed_below_zero_is_refused_by_its_name():
    with pytest.raises(ValueError, match="seed must be at least 0, it is -1"):
        split_users(pl.DataFrame({"user": ["ann"]}), {"all": 1}, seed=-1)
