import pytest

from dmpo_trl._closest import closest


@pytest.mark.parametrize(
    ("unknown", "known", "found"),
    [
        ("tset", ["test", "validation"], ["test"]),
        ("VAL", ["test", "validation"], ["validation"]),
        ("num", ["number", "num_beams", "nine"], ["num_beams", "number"]),
        ("ml", ["amazon", "movielens", "lastfm"], ["movielens"]),
        ("ml", ["movielens", "musicals", "mammals", "minerals"], []),  # too many to be a hint
        ("xyzzy", ["model", "data"], []),
        ("", ["model", "data"], []),
    ],
)
def test_the_closest_names_come_first_and_are_few(unknown, known, found):
    assert closest(unknown, known) == found


def test_no_more_than_three_names_are_given():
    assert closest("item", [f"item_{letter}" for letter in "abcde"]) == ["item_a", "item_b", "item_c"]
