import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmpo_trl.data import Interactions

ITEMS = pl.DataFrame({"item": ["i1", "i2"], "title": ["Alien", "Babe"]})
INTERACTIONS = pl.DataFrame({"user": ["u1", "u1"], "item": ["i1", "i2"], "timestamp": [1, 2]})


def test_clean_tables_are_taken_as_they_are():
    data = Interactions(INTERACTIONS, ITEMS)
    assert data.titles() == {"i1": "Alien", "i2": "Babe"}
    assert data.dropped == {}


@pytest.mark.parametrize(
    ("interactions", "items", "message"),
    [
        (INTERACTIONS.drop("timestamp"), ITEMS, "interactions: column 'timestamp' is missing"),
        (INTERACTIONS.cast({"timestamp": pl.String}), ITEMS, "'timestamp' must be numeric"),
        (INTERACTIONS.with_columns(rating=pl.lit("5")), ITEMS, "'rating' must be numeric"),
        (INTERACTIONS.with_columns(user=pl.lit(3)), ITEMS, "'user' must be text"),
        (INTERACTIONS.with_columns(user=pl.lit(None, pl.String)), ITEMS, "'user' has 2 nulls"),
        (pl.concat([INTERACTIONS, INTERACTIONS[1:]]), ITEMS, "2 rows repeat another row's user and item.*'i2'"),
        (INTERACTIONS, ITEMS[:1], "1 items are not in items, the first is 'i2'"),
        (INTERACTIONS, ITEMS.drop("title"), "items: column 'title' is missing"),
        (INTERACTIONS, pl.concat([ITEMS, ITEMS[:1]]), "items: 2 rows repeat another row's item"),
        (INTERACTIONS, ITEMS.with_columns(title=pl.lit("Alien")), "items: 2 rows repeat another row's title"),
    ],
)
def test_what_breaks_the_contract_is_named(interactions, items, message):
    with pytest.raises(ValueError, match=message):
        Interactions(interactions, items)


def test_from_raw_counts_what_it_drops(caplog):
    caplog.set_level("INFO")
    items = pl.DataFrame(
        {
            "item": ["i1", "i2", "i2", "i3", "i4", "i5"],
            "title": ["Alien", "Babe", "Babe again", "Alien", None, "Fargo"],
        }
    )
    rows = [
        ("u1", "i1", 5, 4.0),
        ("u1", "i3", 1, 5.0),  # the same title as i1, and earlier
        ("u1", "i2", 3, 3.0),
        ("u1", "i4", 3, 3.0),  # has no title
        ("u1", "i9", 3, 3.0),  # is not listed
        (None, "i1", 3, 3.0),
        ("u2", "i5", None, 3.0),
        ("u2", "i3", 2, 1.0),
    ]
    raw = pl.DataFrame(rows, schema=["user", "item", "timestamp", "rating"], orient="row")
    data = Interactions.from_raw(raw, items)
    assert data.interactions.rows() == [("u2", "i1", 2, 1.0), ("u1", "i2", 3, 3.0), ("u1", "i1", 5, 4.0)]
    assert data.titles() == {"i1": "Alien", "i2": "Babe", "i5": "Fargo"}
    assert data.dropped == {
        "interactions with an empty field": 2,
        "items without a title": 1,
        "items listed twice": 1,
        "items merged into another of the same title": 1,
        "interactions with an unknown item": 2,
        "earlier interactions of a user with the same item": 1,
    }
    assert "Read 8 interactions and 6 items" in caplog.text


def test_from_raw_with_nothing_left_is_an_error():
    with pytest.raises(ValueError, match="No interaction is left of 2 read"):
        Interactions.from_raw(INTERACTIONS, ITEMS.with_columns(item=pl.lit("other")))


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.integers(0, 3)), min_size=1))
def test_from_raw_accounts_for_every_row(rows):
    raw = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
    data = Interactions.from_raw(raw, pl.DataFrame({"item": ["x", "y", "z"], "title": ["X", "Y", "X"]}))
    interactions = (count for reason, count in data.dropped.items() if "interactions" in reason)
    assert data.interactions.height + sum(interactions) == len(rows)
    # The latest of a user's interactions with a title stays
    latest = {}
    for user, item, timestamp in rows:
        key = user, item.replace("z", "x")
        latest[key] = max(timestamp, latest.get(key, 0))
    assert {(user, item): timestamp for user, item, timestamp in data.interactions.rows()} == latest
