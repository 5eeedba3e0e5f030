"""Counts in words, for messages."""

from __future__ import annotations

from collections.abc import Mapping


def counts_in_words(counts: Mapping[str, int]) -> str:
    """Return each count before what it counts.

    Args:
        counts: By what they count, in the plural.

    Example:
        >>> counts_in_words({"rows": 1200, "users": 3}), counts_in_words({})
        ('1,200 rows, 3 users', 'nothing')
    """
    return ", ".join(f"{count:,} {what}" for what, count in counts.items()) or "nothing"
