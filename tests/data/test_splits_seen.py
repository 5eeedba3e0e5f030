import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from dmpo_trl.data import MOVIES, next_items, ranking_dataset
from dmpo_trl.data.interactions import Interactions
from dmpo_trl.data.splits import seen_before

ITEMS = [f"i{number}" for number in range(9)]
TIMES = st.dictionaries(st.tuples(st.sampled_from("abcd"), st.sampled_from(ITEMS)), st.integers(0, 6), min_size=1)


def interactions(times: dict[tuple[str, str], int]) -> Interactions:
    frame = pl.DataFrame(
        [(*pair, time) for pair, time in times.items()], schema=["user", "item", "timestamp"], orient="row"
    )
    return Interactions(frame, pl.DataFrame({"item": ITEMS, "title": [item.upper() for item in ITEMS]}))


@given(TIMES, st.data())
def test_what_was_seen_is_every_item_before_the_target(times, draw):
    data = interactions(times)
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
