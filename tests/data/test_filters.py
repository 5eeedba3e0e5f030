from collections import Counter

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmpo_trl.data.filters import k_core
from dmpo_trl.data.interactions import Interactions

ITEMS = pl.DataFrame({"item": list("vwxyz"), "title": list("VWXYZ")})
PAIRS = st.sets(st.tuples(st.sampled_from("abcdef"), st.sampled_from("vwxyz")), min_size=1)


def interactions(pairs) -> Interactions:
    rows = [(user, item, time) for time, (user, item) in enumerate(pairs)]
    return Interactions(pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row"), ITEMS)


def brute_force(pairs: set, users: int, items: int) -> set:
    """One user or item at a time, whichever is found first."""
    for place, least in ((0, users), (1, items)):
        for name, count in Counter(pair[place] for pair in pairs).items():
            if count < least:
                return brute_force({pair for pair in pairs if pair[place] != name}, users, items)
    return pairs


@settings(deadline=None)
@given(PAIRS, st.integers(1, 4), st.integers(1, 4))
def test_nothing_more_can_be_left_out(pairs, users, items):
    core = brute_force(pairs, users, items)
    data = interactions(pairs)
    if not core:
        with pytest.raises(ValueError, match=f"No user has {users} items that {items} users have"):
            k_core(data, users=users, items=items)
        return
    result = k_core(data, users=users, items=items)
    assert set(result.interactions.select("user", "item").rows()) == core
    assert set(result.titles()) == {item for _, item in core}
    dropped = {
        "interactions outside the k-core": len(pairs) - len(core),
        "users outside the k-core": len({user for user, _ in pairs} - {user for user, _ in core}),
        "items outside the k-core": 5 - len({item for _, item in core}),
    }
    assert result.dropped == {reason: count for reason, count in dropped.items() if count}
    assert k_core(result, users=users, items=items).dropped == result.dropped


def test_what_was_dropped_before_is_kept():
    data = Interactions(
        interactions([("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"), ("c", "z")]).interactions,
        ITEMS,
        dropped={"interactions with an empty or unreadable field": 2},
        order="position",
        files=("ratings.csv",),
    )
    core = k_core(data, users=2, items=2)
    assert core.dropped["interactions with an empty or unreadable field"] == 2
    assert (core.order, core.files) == ("position", ("ratings.csv",))
    with pytest.raises(ValueError, match="must be at least 1, they are 0 and 1"):
        k_core(data, users=0, items=1)
