import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.interactions import interactions

from dmpo_trl.data.examples import next_items
from dmpo_trl.data.interactions import Interactions
from dmpo_trl.data.splits import few_shot, split_by_time, split_leave_one_out, split_users

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


def test_only_training_histories_grow():
    data = interactions([("u", f"i{place}", place, 5.0) for place in range(12)])
    parts = split_leave_one_out(data, history_length=4, min_history=2, growing=True)
    assert parts["train"]["history"].list.len().to_list() == [2, 3, 2, 3, 4, 2, 3, 4]
    assert parts["test"]["history"].to_list() == [["i7", "i8", "i9", "i10"]]
    timed = split_by_time(data, validation_from=8, test_from=10, history_length=4, min_history=2, growing=True)
    assert timed["train"]["history"].list.len().to_list() == [2, 3, 4, 2, 3, 4]
    assert timed["test"]["history"].list.len().to_list() == [4, 4]


def test_a_seed_below_zero_is_refused_by_its_name():
    with pytest.raises(ValueError, match="seed must be at least 0, it is -1"):
        split_users(pl.DataFrame({"user": ["ann"]}), {"all": 1}, seed=-1)
