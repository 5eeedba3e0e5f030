from hashlib import blake2b

import numpy as np
import polars as pl
import pytest
from scipy import stats

from dmpo_trl.data._random import uniform

USERS = pl.Series([f"user {i}" for i in range(20_000)])
FIRST = np.zeros(len(USERS), dtype=np.int64)


def splitmix64(state: int, draws: int) -> float:
    """The published generator, one number after the other, in Python's integers."""
    mask = 2**64 - 1
    for _ in range(draws + 1):
        state = (state + 0x9E3779B97F4A7C15) & mask
        bits = state
        bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & mask
        bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & mask
        bits ^= bits >> 31
    return (bits >> 11) / 2**53


def test_the_reference_generator_gives_the_published_numbers():
    # The first output of splitmix64 with seed 1234567, https://rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64
    assert splitmix64(1234567, 0) == (6457827717110365317 >> 11) / 2**53


def test_is_splitmix64_started_at_a_hash_of_seed_stream_and_user():
    draw = np.array([[0, 7, 3], [1, 1, 12]])
    got = uniform(5, np.array(["ann", "bøb"]), draw, stream="order")
    for user, row, draws in zip(["ann", "bøb"], got, draw, strict=True):
        start = int.from_bytes(blake2b(f"5/order/{user}".encode(), digest_size=8).digest(), "little")
        assert row.tolist() == [splitmix64(start, n) for n in draws]


def test_fixed_values():
    got = uniform(0, pl.Series(["ann", "bob"]), np.array([0, 0]))
    assert got == pytest.approx([0.29513403, 0.34673183], abs=1e-8)


def test_a_number_depends_on_nothing_but_its_own_user_and_draw():
    whole = uniform(0, USERS, FIRST)
    assert uniform(0, USERS[::-1], FIRST)[::-1].tolist() == whole.tolist()
    assert uniform(0, USERS[5:7].cast(pl.Categorical), FIRST[5:7]).tolist() == whole[5:7].tolist()


@pytest.mark.parametrize(
    "other",
    [
        uniform(1, USERS, FIRST),
        uniform(0, USERS, FIRST, stream="order"),
        uniform(0, USERS, FIRST + 1),
        uniform(0, USERS.str.replace("user", "User"), FIRST),
    ],
)
def test_seed_stream_draw_and_user_each_give_independent_numbers(other):
    numbers = uniform(0, USERS, FIRST)
    assert abs(np.corrcoef(numbers, other)[0, 1]) < 5 / len(USERS) ** 0.5  # 5 standard deviations


def test_uniform_across_users_and_across_draws():
    assert stats.kstest(uniform(0, USERS, FIRST), "uniform").pvalue > 1e-3
    one = uniform(0, pl.Series(["ann"]), np.arange(20_000)[None])
    assert one.shape == (1, 20_000)
    assert stats.kstest(one[0], "uniform").pvalue > 1e-3
    assert ((one >= 0) & (one < 1)).all()


def test_a_draw_for_every_user_is_needed():
    with pytest.raises(ValueError, match=r"each of the 2 users, its shape is \(3,\)"):
        uniform(0, pl.Series(["ann", "bob"]), np.arange(3))
