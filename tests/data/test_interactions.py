import datetime
import math
from decimal import Decimal

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmpo_trl.data import Interactions, read_table

ITEMS = pl.DataFrame({"item": ["i1", "i2"], "title": ["Alien", "Babe"]})
INTERACTIONS = pl.DataFrame({"user": ["u1", "u1"], "item": ["i1", "i2"], "timestamp": [1, 2]})


def test_clean_tables_are_taken_as_they_are():
    data = Interactions(INTERACTIONS, ITEMS)
    assert data.titles() == {"i1": "Alien", "i2": "Babe"}
    assert data.dropped == {}


def test_printed_it_is_one_line():
    interactions = pl.DataFrame({"user": ["u1", "u1", None], "item": ["i1", "i2", "i2"], "timestamp": [1, 2, 3]})
    shown = "Interactions(2 interactions of 1 users with 2 items, by time; 1 rows dropped)"
    assert str(Interactions.from_raw(interactions, ITEMS)) == shown


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
            "'timestamp' has 1 empty or infinite value",
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
        "interactions with an empty or unreadable field": 2,
        "items without a title": 1,
        "items listed twice": 1,
        "items merged into another of the same title": 1,
        "interactions with an unknown item": 2,
        "earlier interactions of a user with the same item": 1,
    }
    assert "Read 8 interactions, 6 items" in caplog.text


@pytest.mark.parametrize("kind", [pl.String, pl.Categorical])
def test_blank_text_is_empty(kind):
    interactions = pl.DataFrame(
        [("u1", "i1", 1), ("u1", "i2", 2), ("", "i1", 3), ("u2", " ", 4), (" \t", "i2", 5), ("u2", "i3", 6)],
        schema=["user", "item", "timestamp"],
        orient="row",
    ).cast({"user": kind, "item": kind})
    items = pl.DataFrame({"item": ["i1", "i2", "", "i3", "\u00a0"], "title": ["Alien", "Babe", "Dune", "\n ", "Emma"]})
    items = items.cast({"item": kind, "title": kind})
    data = Interactions.from_raw(interactions, items)
    assert data.interactions.rows() == [("u1", "i1", 1), ("u1", "i2", 2)]
    assert data.titles() == {"i1": "Alien", "i2": "Babe"}
    assert data.dropped == {
        "interactions with an empty or unreadable field": 3,
        "items without a title": 3,
        "interactions with an unknown item": 1,
    }
    for column in ("item", "title"):
        blank = ITEMS.with_columns(pl.Series(column, ["i1", " "])).cast({column: kind})
        with pytest.raises(ValueError, match=f"items: column '{column}' has 1 empty values"):
            Interactions(INTERACTIONS[:1], blank)
    with pytest.raises(ValueError, match="interactions: column 'user' has 2 empty values"):
        Interactions(INTERACTIONS.with_columns(user=pl.lit("")).cast({"user": kind}), ITEMS)


def test_a_blank_item_with_a_title_is_no_item():
    rows = pl.DataFrame({"user": ["u", "u"], "item": ["i", " "], "timestamp": [1, 2], "title": ["Alien", "Babe"]})
    data = read_table(rows)
    assert data.titles() == {"i": "Alien"}
    assert data.dropped == {"interactions with an empty or unreadable field": 1}


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


def test_infinite_times_and_ratings_are_left_out_and_counted():
    raw = pl.DataFrame({"user": ["u"] * 4, "item": ["a", "b", "c", "d"], "timestamp": [1.0, math.inf, 2.0, -math.inf]})
    raw = raw.with_columns(rating=pl.Series([4.0, 4.0, math.nan, 4.0]))
    data = Interactions.from_raw(raw, pl.DataFrame({"item": ["a", "b", "c", "d"], "title": ["A", "B", "C", "D"]}))
    assert data.interactions["item"].to_list() == ["a"]
    assert data.dropped == {"interactions with a time or rating that is not a finite number": 3}


SIZES = {
    pl.Int8: (-(2**7), 2**7 - 1),
    pl.Int16: (-(2**15), 2**15 - 1),
    pl.Int32: (-(2**31), 2**31 - 1),
    pl.Int64: (-(2**63), 2**63 - 1),
    pl.Int128: (-(2**127), 2**127 - 1),
    pl.UInt8: (0, 2**8 - 1),
    pl.UInt16: (0, 2**16 - 1),
    pl.UInt32: (0, 2**32 - 1),
    pl.UInt64: (0, 2**64 - 1),
    pl.Float16: (-(2**11), 2**11),
    pl.Float32: (-(2**24), 2**24),
    pl.Float64: (-(2**53), 2**53),
    pl.Decimal(38, 0): (-(10**37), 10**37),
    pl.Decimal(38, 2): (-(10**35), 10**35),
    pl.String: (-(10**40), 10**40),
    pl.Categorical: (-(10**40), 10**40),
}
EPOCH = datetime.datetime(1970, 1, 1)
TIMES = {
    **{kind: st.integers(*SIZES[kind]) for kind in SIZES if kind not in (pl.String, pl.Categorical, pl.Float16)},
    pl.Float64: st.floats(allow_nan=False, allow_infinity=False),  # infinite times are left out
    pl.Decimal(38, 0): st.integers(-(2**63), 2**63 - 1).map(Decimal),
    pl.Decimal(38, 2): st.decimals(-(10**12), 10**12, places=2),
    pl.Datetime("ms"): st.datetimes(EPOCH, datetime.datetime(2100, 1, 1)).map(lambda t: t.replace(microsecond=7000)),
    pl.Datetime("us"): st.datetimes(EPOCH, datetime.datetime(2100, 1, 1)),
}
del TIMES[pl.Int128]  # as doubles some would be ties


def numbers_of(kind):
    low, high = SIZES[kind]
    # Near each other, where numbers are looked up in a table, at the type's ends, and anywhere
    near = st.integers(low, high - 8).flatmap(lambda start: st.integers(start, start + 8))
    return st.one_of(near, st.sampled_from([low, high]), st.integers(low, high))


def column(values, kind):
    if kind in (pl.String, pl.Categorical) or isinstance(kind, pl.Decimal):
        return pl.Series(values=[str(value) for value in values], dtype=pl.String).cast(kind)
    return pl.Series(values=values, dtype=kind)


@st.composite
def tables(draw):
    kinds = draw(st.tuples(st.sampled_from(list(SIZES)), st.sampled_from(list(SIZES)), st.sampled_from(list(TIMES))))
    users = draw(st.lists(numbers_of(kinds[0]), min_size=1, max_size=12))
    items = draw(st.lists(numbers_of(kinds[1]), min_size=1, max_size=6))
    row = st.tuples(st.sampled_from(users), st.sampled_from(items), TIMES[kinds[2]])
    return kinds, draw(st.lists(row, min_size=1, max_size=40)), draw(st.sampled_from([kinds[1], pl.String]))


@settings(deadline=None, max_examples=200)
@given(tables())
def test_columns_of_any_type_give_what_plain_python_gives(table):
    (user_kind, item_kind, time_kind), rows, catalogue_kind = table
    users, items, times = zip(*rows, strict=True)
    known = list(dict.fromkeys(items))
    data = read_table(
        pl.DataFrame(
            {"user": column(users, user_kind), "item": column(items, item_kind), "timestamp": column(times, time_kind)}
        ),
        pl.DataFrame({"item": column(known, catalogue_kind), "title": [f"title {item}" for item in known]}),
    )
    kept = {}  # The latest of each pair, of equally late ones the last
    for number, (user, item, time) in enumerate(rows):
        if (user, item) not in kept or kept[user, item][0] <= time:
            kept[user, item] = time, number
    expected = sorted((str(user), *kept[user, item], str(item)) for user, item in kept)
    found = data.interactions.select(pl.col("user", "item").cast(pl.String)).rows()
    assert found == [(user, item) for user, _, _, item in expected]
    assert data.titles() == {str(item): f"title {item}" for item in known}


def test_users_of_16_bits_stay_apart():
    generator = np.random.default_rng(0)
    users = generator.integers(-30_000, 30_000, 70_000).astype(np.int16)
    items = generator.integers(0, 40, 70_000)
    rows = pl.DataFrame({"user": users, "item": items, "timestamp": np.arange(70_000)})
    data = read_table(rows, pl.DataFrame({"item": range(40), "title": [f"title {item}" for item in range(40)]}))
    assert data.interactions["user"].n_unique() == len(set(users.tolist()))
    assert data.interactions.height == len(set(zip(users.tolist(), items.tolist(), strict=True)))


@pytest.mark.parametrize("kind", [pl.Int8, pl.Int16, pl.Int32])
def test_narrow_times_are_sorted(kind):
    high = SIZES[kind][1]
    raw = INTERACTIONS.with_columns(timestamp=pl.Series([high, -high], dtype=kind))
    assert Interactions(raw, ITEMS).interactions["timestamp"].to_list() == [-high, high]


@pytest.mark.parametrize(
    ("users", "message"),
    [
        (pl.Series([1.0, 1.5]), r"column 'user' must be text or whole numbers, it has: 1\.5; make it text\."),
        (pl.Series(["1.5", "2"]).cast(pl.Decimal(5, 1)), r"must be text or whole numbers, it has: 1\.5;"),
        (pl.Series([1.0, 2.0**53 + 2]), "has a Float64 too large to tell from its neighbour: 9007199254740994"),
        (pl.Series([1, 2**24 + 2], dtype=pl.Float32), "has a Float32 too large to tell from its neighbour: 16777218"),
        (pl.Series([True, False]), "must be text or whole numbers, it is Boolean; cast it"),
    ],
)
def test_what_cannot_be_an_identifier_is_refused(users, message):
    with pytest.raises(ValueError, match=message):
        Interactions.from_raw(INTERACTIONS.with_columns(user=users), ITEMS)


def test_gaps_in_whole_numbers_are_dropped():
    raw = INTERACTIONS.with_columns(user=pl.Series([3.0, None]), timestamp=pl.Series([1, 2]))
    data = Interactions.from_raw(pl.concat([raw, raw[:1].with_columns(user=float("nan"))]), ITEMS)
    assert data.interactions.rows() == [("3", "i1", 1)]
    assert data.dropped == {"interactions with an empty or unreadable field": 2}


def test_times_too_far_apart_for_one_number_are_sorted_too():
    raw = INTERACTIONS.with_columns(timestamp=pl.Series([2**63 - 1, -(2**63)]))
    assert Interactions(raw, ITEMS).interactions["item"].to_list() == ["i2", "i1"]


def test_what_the_reader_knows_is_kept():
    raw = pl.concat([INTERACTIONS, INTERACTIONS.with_columns(user=pl.lit(None, pl.String))])
    lines = {"interactions": 9, "items": 2}
    before = {"lines that are not JSON": 3, "interactions with an empty or unreadable field": 2}
    data = Interactions.from_raw(raw, ITEMS, dropped=before, order="plays", files=["a.dat"], read=lines)
    assert data.dropped == {"lines that are not JSON": 3, "interactions with an empty or unreadable field": 4}
    assert (data.read, data.order, data.files) == (lines, "plays", ("a.dat",))
    assert before["interactions with an empty or unreadable field"] == 2
    assert Interactions.from_raw(raw, ITEMS).read == {"interactions": 4, "items": 2}
    with pytest.raises(ValueError, match="order must be one of time, plays, position, it is 'date'"):
        Interactions(INTERACTIONS, ITEMS, order="date")


def test_an_unknown_item_and_a_known_one_are_shown():
    interactions = pl.DataFrame({"user": ["a", "b"], "item": ["7", "8"], "timestamp": [1, 2]})
    items = pl.DataFrame({"item": ["007", "008"], "title": ["Alien", "Babe"]})
    with pytest.raises(ValueError, match=r"unknown item is '7', the first of the items '007'"):
        Interactions.from_raw(interactions, items)


@pytest.mark.parametrize(
    ("odd", "says"),
    [("NA", "'NA' is what programs write where there is none"), ("ann ", "'ann ' is another with white space around")],
)
def test_identifiers_that_are_perhaps_none_are_named_and_taken(odd, says, caplog):
    interactions = pl.DataFrame({"user": ["ann", odd, odd], "item": ["1", "1", "2"], "timestamp": [1, 2, 3]})
    items = pl.DataFrame({"item": ["1", "2"], "title": ["Alien", "Babe"]})
    data = Interactions.from_raw(interactions, items)
    assert data.interactions["user"].n_unique() == 2
    assert f"interactions: the user {says}" in caplog.text
