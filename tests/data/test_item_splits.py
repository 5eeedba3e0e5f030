"""Splits by item against their definition, user by user, and what they promise of every row."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.interactions import interactions

from dmpo_trl.data import hold_out_items, leak_report, only_items, sample_negatives, split_items
from dmpo_trl.data.interactions import Interactions

ITEMS = [f"i{number}" for number in range(9)]
RATINGS = st.dictionaries(
    st.tuples(st.sampled_from("abcde"), st.sampled_from(ITEMS)),
    st.tuples(st.integers(0, 20), st.integers(1, 5)),
    min_size=1,
)
HELD_OUT = st.lists(st.sampled_from(ITEMS), min_size=2, max_size=5, unique=True).flatmap(
    lambda items: st.integers(1, len(items) - 1).map(lambda n: {"validation": items[:n], "test": items[n:]})
)
OPTIONS = st.fixed_dictionaries(
    {
        "min_rating": st.sampled_from([None, 3]),
        "history_length": st.integers(1, 4),
        "min_history": st.integers(1, 2),
        "per_user": st.sampled_from([None, 1, 2]),
    }
)


def brute_force(ratings, held_out, min_rating, history_length, min_history, per_user):
    """Every example of each part, from the words of the documentation."""
    kinds = {item: name for name, items in held_out.items() for item in items}
    parts = {"train": [], "validation": [], "test": []}
    for user in sorted({user for user, _ in ratings}):
        own = [(t, item) for (u, item), (t, rating) in ratings.items() if u == user and rating >= (min_rating or 0)]
        own.sort(key=lambda row: row[0])
        if not own:
            continue
        time, last = own[-1]
        known = [(t, item) for t, item in own if item not in kinds]
        if last in kinds:
            if len(known) >= min_history:
                history = [item for _, item in known][-history_length:]
                parts[kinds[last]].append((user, history, last, time))
            continue
        rows = [
            (user, [item for _, item in known[:place]][-history_length:], known[place][1], known[place][0])
            for place in range(min_history, len(known))
        ]
        parts["train"] += rows if per_user is None else rows[-per_user:]
    return parts


@settings(deadline=None)
@given(RATINGS, HELD_OUT, OPTIONS)
def test_a_split_is_the_brute_force_one(ratings, held_out, options):
    data = interactions([(user, item, time, float(rating)) for (user, item), (time, rating) in ratings.items()])
    expected = brute_force(ratings, held_out, **options)
    if all(expected.values()):
        assert {name: part.rows() for name, part in split_items(data, held_out, **options).items()} == expected
    else:
        with pytest.raises(ValueError, match=r"liked items and one more for the|No rating reaches"):
            split_items(data, held_out, **options)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 50), st.booleans(), st.sampled_from(["uniform", "popularity"]))
def test_training_never_shows_a_held_out_item(seed, growing, strategy):
    """Neither in a history nor as a target or negative; and those who are tested do not train."""
    data = busy(users=60)
    held_out = hold_out_items(data, {"validation": 0.2, "test": 0.2}, seed=seed)
    parts = split_items(data, held_out, history_length=4, min_history=2, growing=growing)
    secret = {item for items in held_out.values() for item in items}
    known = set(data.items["item"]) - secret
    train = sample_negatives(parts["train"], only_items(data, known), 3, seed=seed, strategy=strategy)
    shown = {*train["history"].explode(), *train["target"], *train["negatives"].explode()}
    assert not shown & secret
    for name in ("validation", "test"):
        assert set(parts[name]["target"]) <= set(held_out[name])
        assert not set(parts[name]["history"].explode()) & secret
        assert not set(parts[name]["user"]) & set(parts["train"]["user"])
    assert not set(parts["validation"]["user"]) & set(parts["test"]["user"])
    # New items are asked for among new items that the user never had
    test = sample_negatives(parts["test"], only_items(data, held_out["test"]), 2, seed=seed + 100)
    had = {user: set(own["item"]) for (user,), own in data.interactions.group_by("user")}
    for user, target, negatives in test.select("user", "target", "negatives").rows():
        assert {*negatives, target} <= set(held_out["test"])
        assert not set(negatives) & had[user]


@pytest.mark.parametrize("seed", range(3))
def test_a_split_by_item_has_no_leak(seed):
    data = busy(users=300)
    held_out = hold_out_items(data, {"validation": 0.3, "test": 0.3}, seed=seed)
    parts = split_items(data, held_out)
    secret = {item for items in held_out.values() for item in items}
    known = only_items(data, set(data.items["item"]) - secret)
    train = sample_negatives(parts["train"], known, 3, seed=seed)
    test = sample_negatives(parts["test"], only_items(data, held_out["test"]), 4, seed=seed + 100)
    report = leak_report(train, test)
    assert report.findings == []
    assert report["shared targets"][0].values["share"] == 0


def busy(users):
    """Users who had 12 of 40 items each, in random order."""
    rng = np.random.default_rng(0)
    own = [rng.permutation(40)[:12] for _ in range(users)]
    return interactions(
        [(f"u{user:03}", f"i{item:02}", place, 5.0) for user in range(users) for place, item in enumerate(own[user])]
    )


@given(st.floats(0.05, 0.45), st.floats(0.05, 0.45), st.integers(0, 99), st.randoms(use_true_random=False))
def test_the_draw_depends_on_the_seed_and_the_items_alone(validation, test, seed, random):
    items = [f"i{number}" for number in range(40)]
    first = interactions([("ann", item, time, 5.0) for time, item in enumerate(items)])
    shuffled = random.sample(items, 40)
    table = pl.DataFrame({"item": shuffled, "title": [item.upper() for item in shuffled]})
    again = Interactions(pl.DataFrame({"user": ["bob"], "item": ["i3"], "timestamp": [1]}), table)
    shares = {"validation": validation, "test": test}
    found = {name: own.to_list() for name, own in hold_out_items(first, shares, seed=seed).items()}
    assert found == {name: own.to_list() for name, own in hold_out_items(again, shares, seed=seed).items()}
    assert {name: len(own) for name, own in found.items()} == {
        name: round(40 * share) for name, share in shares.items()
    }
    assert not set(found["validation"]) & set(found["test"])


def test_another_seed_holds_out_other_items():
    data = busy(users=9)
    drawn = {tuple(hold_out_items(data, {"test": 0.3}, seed=seed)["test"]) for seed in range(40)}
    assert len(drawn) == 40
    assert set().union(*drawn) == set(data.items["item"])


def test_what_cannot_be_held_out_is_refused():
    data = busy(users=3)
    for share in (0.0, -0.1, 1.0, 0.001, float("nan")):
        with pytest.raises(ValueError, match="The share of test items must be above 0 and below 1"):
            hold_out_items(data, {"test": share}, seed=0)
    with pytest.raises(ValueError, match=r"leave none of \d+ items to train on"):
        hold_out_items(data, {"validation": 0.5, "test": 0.5}, seed=0)
    with pytest.raises(ValueError, match="seed must be at least 0, it is -1"):
        hold_out_items(data, {"test": 0.5}, seed=-1)
    with pytest.raises(ValueError, match="1 items are held out twice, for example 'i00'"):
        split_items(data, {"validation": ["i00"], "test": ["i00", "i01"]})


def test_only_some_items():
    data = busy(users=3)
    some = only_items(data, ["i00", "i01", "nowhere"])
    assert some.items["item"].to_list() == [item for item in data.items["item"] if item in ("i00", "i01")]
    expected = data.interactions.filter(pl.col("item").is_in(["i00", "i01"]))
    assert some.interactions.rows() == expected.rows()
    assert (some.order, some.read) == (data.order, data.read)
