from bisect import bisect_right
from collections import Counter
from itertools import accumulate, permutations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmpo_trl.data import negatives as module
from dmpo_trl.data._random import uniform
from dmpo_trl.data.examples import leave_one_out, next_items
from dmpo_trl.data.interactions import Interactions
from dmpo_trl.data.negatives import hard_negatives, sample_negatives

CATALOGUE = [f"i{i:02}" for i in range(12)]
ITEMS = pl.DataFrame({"item": CATALOGUE, "title": [item.upper() for item in CATALOGUE]})


def interactions(items_by_user: dict[str, list[str]]) -> Interactions:
    rows = [(user, item, time) for user, items in items_by_user.items() for time, item in enumerate(items)]
    return Interactions(pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row"), ITEMS)


@settings(deadline=None)
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
    with pytest.raises(ValueError, match="9 candidates are wanted"):
        sample_negatives(leave_one_out(data), data, 9, seed=0, called="candidates")


HAD_BY_USER = st.dictionaries(
    st.sampled_from(["u1", "u2", "u3", "u4"]),
    st.lists(st.sampled_from(CATALOGUE), min_size=2, max_size=6, unique=True),
    min_size=1,
)


@settings(deadline=None)
@given(HAD_BY_USER, st.integers(1, 2), st.integers(0, 9), st.sampled_from(["uniform", "popularity"]), st.data())
def test_draws_are_those_of_a_loop(had, n, seed, strategy, draw):
    """Draws one item after the other and passes over those that were had or drawn, until the row is full."""
    data = interactions(had)
    counts = Counter(item for items in had.values() for item in items)
    weights = [counts[item] ** 0.5 if strategy == "popularity" else 1 for item in CATALOGUE]
    examples = next_items(data)
    examples = examples[draw.draw(st.permutations(range(examples.height)))]
    drawable = {item for item, weight in zip(CATALOGUE, weights, strict=True) if weight}
    if any(len(drawable - set(items)) < n for items in had.values()):
        with pytest.raises(ValueError, match=f"{n} negatives are wanted"):
            sample_negatives(examples, data, n, seed=seed, strategy=strategy, alpha=0.5)
        return
    result = sample_negatives(examples, data, n, seed=seed, strategy=strategy, alpha=0.5)
    assert result.drop("negatives").equals(examples)

    upto, rows_of = list(accumulate(weights)), Counter()
    for user, negatives in result.select("user", "negatives").rows():
        numbers = uniform(seed, [user], np.arange(12)[None] + (rows_of[user] << 32), stream="negatives, draw")[0]
        drawn = (CATALOGUE[bisect_right(upto, number * upto[-1])] for number in numbers)
        expected = list(dict.fromkeys(item for item in drawn if item not in had[user]))[:n]
        # A row that is not full after as many draws as there are items is finished in another way
        assert negatives[: len(expected)] == expected
        assert len(set(negatives)) == n
        assert set(negatives) <= drawable - set(had[user])
        rows_of[user] += 1


@pytest.mark.parametrize("items", [3, 6])  # fewer and more than the first draws
def test_popular_items_are_drawn_in_proportion(items):
    weights = dict(zip(CATALOGUE, [4, 2, 1, 1, 1, 1][:items], strict=False))
    times = [[item for item, weight in weights.items() if weight > fan] for fan in range(4)]
    users = {f"u{i}": ["i11"] for i in range(4000)}
    data = interactions(users | {f"fan{i}": had for i, had in enumerate(times)})
    examples = pl.DataFrame({"user": list(users)})
    drawn = sample_negatives(examples, data, 2, seed=0, strategy="popularity", alpha=2.0)["negatives"]
    counts = Counter(map(tuple, drawn))
    power = {item: weight**2 for item, weight in weights.items()}
    total = sum(power.values())
    for first, second in permutations(weights, 2):
        expected = 4000 * power[first] / total * power[second] / (total - power[first])
        assert abs(counts[first, second] - expected) < 5 * expected**0.5
    assert sum(counts.values()) == sum(counts[pair] for pair in permutations(weights, 2))


def test_popularity_can_be_counted_elsewhere():
    data = interactions({f"u{i}": CATALOGUE[:2] for i in range(9)} | {"fan": CATALOGUE[2:]})
    examples = pl.DataFrame({"user": [f"u{i}" for i in range(9)]})
    popularity = pl.DataFrame({"item": ["i04", "i03", "i02", "unknown"], "popularity": [1, 2, 0, 9]})
    drawn = sample_negatives(examples, data, 2, seed=0, strategy="popularity", popularity=popularity)
    assert all(sorted(items) == ["i03", "i04"] for items in drawn["negatives"])


@pytest.mark.parametrize("options", [{}, {"strategy": "popularity"}, {"strategy": "in_batch", "batch_size": 9}])
def test_blocks_of_rows_change_nothing(options, monkeypatch):
    data = interactions({f"u{i}": CATALOGUE[i : i + 4] for i in range(9)})
    examples = next_items(data)
    n = 1 if options.get("strategy") == "in_batch" else 7
    examples = examples.sample(fraction=1, shuffle=True, seed=4)
    whole = sample_negatives(examples, data, n, seed=3, **options)
    monkeypatch.setattr(module, "CELLS", 30)
    assert sample_negatives(examples, data, n, seed=3, **options).equals(whole)


def test_examples_of_a_user_get_different_negatives():
    data = interactions({"u1": CATALOGUE[:4], "u2": CATALOGUE[:4]})
    negatives = sample_negatives(next_items(data), data, 4, seed=0)["negatives"].to_list()
    assert len({tuple(row) for row in negatives}) == 6


@settings(deadline=None)
@given(HAD_BY_USER, st.integers(1, 3), st.integers(1, 4), st.integers(0, 9))
def test_in_batch_takes_the_targets_of_the_others(had, n, batch_size, seed):
    data = interactions(had)
    examples = next_items(data).sample(fraction=1, shuffle=True, seed=seed)
    targets = examples["target"].to_list()
    allowed = []
    for row, user in enumerate(examples["user"]):
        start = row // batch_size * batch_size
        allowed.append(set(targets[start : start + batch_size]) - set(had[user]))

    def sample() -> list[list[str]]:
        options = {"strategy": "in_batch", "batch_size": batch_size}
        return sample_negatives(examples, data, n, seed=seed, **options)["negatives"].to_list()

    if not all(allowed):
        with pytest.raises(ValueError, match=f"row {allowed.index(set())} has no negative in its batch"):
            sample()
        return
    for negatives, choice in zip(sample(), allowed, strict=True):
        assert len(negatives) == len(set(negatives)) == min(n, len(choice))
        assert set(negatives) <= choice


def test_short_batches_are_counted(caplog):
    data = interactions({f"u{i}": [CATALOGUE[i], CATALOGUE[i + 6]] for i in range(5)})
    sample_negatives(leave_one_out(data), data, 2, seed=0, strategy="in_batch", batch_size=3)
    assert "2 of 5 examples get fewer than 2 negatives from their batch" in caplog.text


@given(st.integers(1, 4), st.integers(0, 9))
@settings(deadline=None)
def test_hard_negatives_score_highest(n, seed):
    data = interactions({"u1": CATALOGUE[:4], "u2": CATALOGUE[3:6]})
    examples = next_items(data)
    value = {item: place * 7 % 12 for place, item in enumerate(CATALOGUE)}
    pools = []

    def score(frame: pl.DataFrame) -> list[list[float]]:
        pools.extend(frame["candidates"].to_list())
        return [[value[item] for item in row] for row in frame["candidates"]]

    result = hard_negatives(examples, data, n, seed=seed, score=score, pool=5)
    assert result.columns == [*examples.columns, "negatives"]
    assert pools == sample_negatives(examples, data, 5, seed=seed)["negatives"].to_list()
    expected = [sorted(pool, key=value.get, reverse=True)[:n] for pool in pools]
    assert result["negatives"].to_list() == expected


def test_what_cannot_be_done_is_said():
    data = interactions({"u1": CATALOGUE[:4], "u2": CATALOGUE[:2]})
    examples = leave_one_out(data)
    cases = {
        "strategy must be one of uniform, popularity, in_batch, it is 'hard'": {"strategy": "hard"},
        "must be positive and finite, they are 2 and 0": {"strategy": "popularity", "alpha": 0},
        "must be positive and finite, they are 2 and nan": {"strategy": "popularity", "alpha": float("nan")},
        "must be positive and finite, they are 2 and inf": {"strategy": "popularity", "alpha": float("inf")},
        "batch_size must be at least 1, it is 0": {"strategy": "in_batch", "batch_size": 0},
        "belongs to the strategy 'in_batch', which needs it; it is None": {"strategy": "in_batch"},
        "needs it; it is 8": {"batch_size": 8},
        "2 negatives are wanted, but user 'u1' has had 4 of 4 items": {"strategy": "popularity"},
    }
    for message, options in cases.items():
        with pytest.raises(ValueError, match=message):
            sample_negatives(examples, data, 2, seed=0, **options)
    with pytest.raises(ValueError, match="user 'stranger' has no interaction"):
        sample_negatives(pl.DataFrame({"user": ["u1", "stranger"]}), data, 2, seed=0)
    with pytest.raises(ValueError, match="pool must be at least n = 3, it is 2"):
        hard_negatives(examples, data, 3, seed=0, score=lambda frame: [], pool=2)
    with pytest.raises(ValueError, match=r"must return \(2, 4\) scores, it returned \(0,\)"):
        hard_negatives(examples, data, 3, seed=0, score=lambda frame: [], pool=4)
    with pytest.raises(ValueError, match="nan for 1 examples"):
        hard_negatives(examples, data, 1, seed=0, score=lambda frame: [[1, 2], [1, float("nan")]], pool=2)


def test_a_batch_of_more_examples_than_there_are_is_all_of_them():
    """Its matrix would be 179 GiB."""
    films = ["alien", "babe", "fargo", "heat"]
    interactions = pl.DataFrame({"user": ["ann", "bob"], "item": films[:2], "timestamp": [1, 2]})
    data = Interactions(interactions, pl.DataFrame({"item": films, "title": films}))
    examples = pl.DataFrame({"user": ["ann", "bob"], "target": ["alien", "babe"]})
    drawn = sample_negatives(examples, data, 1, seed=0, strategy="in_batch", batch_size=10**9)
    assert drawn["negatives"].to_list() == [["babe"], ["alien"]]


def test_an_alpha_that_overflows_is_refused_and_one_that_does_not_is_taken():
    films = ["alien", "babe", "fargo", "heat"]
    rows = [("ann", "alien", 1), ("bob", "babe", 2), ("cid", "babe", 3), ("cid", "fargo", 4), ("dan", "heat", 5)]
    interactions = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
    data = Interactions(interactions, pl.DataFrame({"item": films, "title": films}))
    examples = pl.DataFrame({"user": ["ann"]})
    drawn = sample_negatives(examples, data, 1, seed=0, strategy="popularity", alpha=1000.0)
    assert drawn["negatives"].to_list() == [["babe"]]
    with pytest.raises(ValueError, match=r"alpha=2000\.0 is too large for a popularity of 2"):
        sample_negatives(examples, data, 1, seed=0, strategy="popularity", alpha=2000.0)
