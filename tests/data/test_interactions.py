import polars as pl
import pytest
from hypothesis import given, settings
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
        (
            INTERACTIONS.with_columns(timestamp=pl.Series([1.0, float("nan")])),
            ITEMS,
            "'timestamp' has 1 empty value",
        ),
        (INTERACTIONS.with_columns(user=pl.lit(None, pl.String)), ITEMS, "'user' has 2 empty values"),
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
    assert data.interactions.rows() == [("u1", "i2", 3, 3.0), ("u1", "i1", 5, 4.0), ("u2", "i1", 2, 1.0)]
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


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.integers(0, 3)), min_size=1),
    st.sampled_from([pl.Int32, pl.Float64]),
)
def test_from_raw_accounts_for_every_row(rows, time):
    raw = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row").cast({"timestamp": time})
    data = Interactions.from_raw(raw, pl.DataFrame({"item": ["x", "y", "z"], "title": ["X", "Y", "X"]}))
    interactions = (count for reason, count in data.dropped.items() if "interactions" in reason)
    assert data.interactions.height + sum(interactions) == len(rows)
    # The latest of a user's interactions with a title stays, at the place of its row
    kept = {}
    for user, item, timestamp in sorted(rows, key=lambda row: row[2]):
        pair = user, item.replace("z", "x")
        kept.pop(pair, None)
        kept[pair] = timestamp
    in_order = sorted(((*pair, timestamp) for pair, timestamp in kept.items()), key=lambda row: row[0])
    assert data.interactions.rows() == in_order


@pytest.mark.parametrize("kind", [pl.String, pl.Categorical, pl.Int64, pl.UInt8])
def test_identifiers_of_any_type_give_the_same(kind):
    raw = pl.DataFrame({"user": ["30", "4", "4"], "item": ["7", "200", "7"], "timestamp": [3, 2, 1]})
    items = pl.DataFrame({"item": ["7", "200"], "title": ["Alien", "Babe"]})
    given = items.cast({"item": kind}) if kind != pl.Categorical else items
    data = Interactions.from_raw(raw.cast({"user": kind, "item": kind}), given)
    assert data.interactions.rows() == [("30", "7", 3), ("4", "7", 1), ("4", "200", 2)]
    assert data.interactions.schema == {"user": pl.Categorical(), "item": pl.Categorical(), "timestamp": pl.Int64}
    assert data.titles() == {"7": "Alien", "200": "Babe"}


def test_numbers_far_apart_are_identifiers_too():
    raw = pl.DataFrame({"user": [-5, 2**62], "item": [1, 1], "timestamp": [1.5, 0.5]})
    data = Interactions.from_raw(raw, pl.DataFrame({"item": [1], "title": ["Alien"]}))
    assert data.interactions.rows() == [("-5", "1", 1.5), (str(2**62), "1", 0.5)]


def test_times_too_far_apart_for_one_number_are_sorted_too():
    raw = INTERACTIONS.with_columns(timestamp=pl.Series([2**63 - 1, -(2**63)]))
    assert Interactions(raw, ITEMS).interactions["item"].to_list() == ["i2", "i1"]


def test_what_the_reader_knows_is_kept():
    raw = pl.concat([INTERACTIONS, INTERACTIONS.with_columns(user=pl.lit(None, pl.String))])
    lines = {"interactions": 9, "items": 2}
    before = {"lines that are not JSON": 3, "interactions with an empty field": 2}
    data = Interactions.from_raw(raw, ITEMS, dropped=before, order="plays", files=["a.dat"], read=lines)
    assert data.dropped == {"lines that are not JSON": 3, "interactions with an empty field": 4}
    assert (data.read, data.order, data.files) == (lines, "plays", ("a.dat",))
    assert before["interactions with an empty field"] == 2
    assert Interactions.from_raw(raw, ITEMS).read == {"interactions": 4, "items": 2}
    with pytest.raises(ValueError, match="order must be one of time, plays, position, it is 'date'"):
        Interactions(INTERACTIONS, ITEMS, order="date")
