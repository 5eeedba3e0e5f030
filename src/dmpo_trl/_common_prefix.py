"""Common prefixes of sequences."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any


def common_prefix_length(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Count the leading elements that `a` and `b` share, by bisection over slice comparisons (which run in C)."""
    shortest = min(len(a), len(b))
    return bisect_left(range(shortest), True, key=lambda i: a[: i + 1] != b[: i + 1])
