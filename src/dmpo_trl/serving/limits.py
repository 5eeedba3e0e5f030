"""Limits of the service: how much a request may ask for, and how many may wait."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass


@dataclass(frozen=True)
class ServiceLimits:
    """What the service takes at most, and how it searches.

    Attributes:
        history: Items of a history, and of those to exclude.
        candidates: Items to rank.
        k: Items to recommend.
        body: Bytes of a request.
        waiting: Requests that wait for the model; what comes on top is told to come again.
        batch: Requests that one model call answers.
        num_beams: Beams of a search; see `Recommender.recommend`.

    Example:
        >>> ServiceLimits(history=2).check(["Alien", "Heidi", "Babe"], "history")
        Traceback (most recent call last):
        ...
        ValueError: history: 3 items, and this service takes 2 at most.
    """

    history: int = 200
    candidates: int = 1_000
    k: int = 100
    body: int = 1_000_000
    waiting: int = 256
    batch: int = 16
    num_beams: int = 100

    def check(self, items: Sized, what: str) -> None:
        """Refuse a list that is too long.

        Args:
            items: The list.
            what: Its name in the request: `history`, `exclude` or `candidates`.

        Raises:
            ValueError: It is too long.
        """
        most = self.candidates if what == "candidates" else self.history
        if len(items) > most:
            raise ValueError(f"{what}: {len(items)} items, and this service takes {most} at most.")

    def check_k(self, k: int) -> None:
        """Refuse to recommend too many items.

        Args:
            k: Their number.

        Raises:
            ValueError: It is too high.
        """
        if k > self.k:
            raise ValueError(f"k: {k} items, and this service recommends {self.k} at most.")
