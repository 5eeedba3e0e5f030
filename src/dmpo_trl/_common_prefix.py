"""Common prefixes of sequences."""

from collections.abc import Sequence
from typing import Any


def common_prefix_length(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Count the leading elements that `a` and `b` share, by comparisons of slices, which run in C.

    Slices get longer while they are equal, then the one that is not is halved: about twice the prefix is compared.
    """
    length = min(len(a), len(b))
    low, high = 0, min(16, length)
    while low < high and a[low:high] == b[low:high]:
        low, high = high, min(high + 2 * (high - low), length)
    while low < high:
        middle = (low + high) // 2
        if a[low : middle + 1] == b[low : middle + 1]:
            low = middle + 1
        else:
            high = middle
    return low
