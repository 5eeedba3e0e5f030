"""Splits by item: what is tested on are items that training never shows (cold start)."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
import polars as pl

from ._columns import positions
from ._random import uniform
from ._words import counts_in_words
from .examples import check_positive, examples_of, liked_of, places
from .interactions import Interactions

logger = logging.getLogger(__name__)


def hold_out_items(data: Interactions, shares: Mapping[str, float], *, seed: int) -> dict[str, pl.Series]:
    """Draw items for [`split_items`] to hold out.

    Args:
        data: The interactions.
        shares: The share of the items in each group, by its name, e.g. `{"validation": 0.1, "test": 0.1}`.
        seed: Of the draw. It does not depend on the order of the rows, nor on who had what.

    Returns:
        The identifiers of each group, disjoint.

    Raises:
        ValueError: A share is not above 0, no item is left for training or in a group, or the seed is negative.

    Example:
        >>> films = ["alien", "babe", "fargo", "heat"]
        >>> interactions = pl.DataFrame({"user": ["ann"] * 4, "item": films, "timestamp": [1, 2, 3, 4]})
        >>> data = Interactions(interactions, pl.DataFrame({"item": films, "title": films}))
        >>> {name: items.to_list() for name, items in hold_out_items(data, {"test": 0.5}, seed=0).items()}
        {'test': ['alien', 'heat']}
    """
    if seed < 0:
        raise ValueError(f"seed must be at least 0, it is {seed}.")
    items = data.items["item"].sort()
    order = uniform(seed, items, np.zeros(len(items), np.int64), stream="held-out items").argsort(kind="stable")
    held_out, start = {}, 0
    for name, share in shares.items():
        size = round(share * len(items)) if 0 < share < 1 else 0
        if size == 0:
            raise ValueError(
                f"The share of {name} items must be above 0 and below 1 and give an item or more; it is {share} of "
                f"{len(items)}."
            )
        held_out[name] = items.gather(np.sort(order[start : start + size]))
        start += size
    if start >= len(items):
        raise ValueError(f"The shares {dict(shares)} leave none of {len(items)} items to train on; lower them.")
    return held_out


def split_items(
    data: Interactions,
    held_out: Mapping[str, Collection[str]],
    *,
    min_rating: float | None = None,
    history_length: int = 10,
    min_history: int = 1,
    per_user: int | None = None,
    growing: bool = False,
) -> dict[str, pl.DataFrame]:
    """Test on items that training never shows (cold start): on the users whose last liked item is one of them.

    These users do not train; the others do, without the held-out items. No history holds any, nor does one of
    evaluation, so that the only new item in a question is the one that it asks for. Negatives are not drawn here: draw
    those of training from the items that are not held out, and compare a new item with other new ones ([`only_items`]
    selects them for [`sample_negatives`]): among old ones a ranker would find it that only tells new from old.

    Args:
        data: The interactions.
        held_out: The items that are held out, `"validation"` and `"test"`; see [`hold_out_items`].
        min_rating: As in [`next_items`].
        history_length: As in [`next_items`].
        min_history: As in [`next_items`].
        per_user: At most so many training examples per user, the latest ones; `None` takes all.
        growing: Whether the histories of training examples grow; see [`next_items`].

    Returns:
        `{"train": ..., "validation": ..., "test": ...}`, each as [`next_items`] returns it, of different users.

    Raises:
        ValueError: As in [`next_items`], for an item that is in two groups, and for a part without examples.

    Example:
        >>> films = ["alien", "babe", "fargo", "heat"]
        >>> had = {"ann": films, "bob": films[::-1], "cid": ["heat", "alien", "fargo", "babe"]}
        >>> rows = [(user, film, time) for user, own in had.items() for time, film in enumerate(own)]
        >>> interactions = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
        >>> data = Interactions(interactions, pl.DataFrame({"item": films, "title": films}))
        >>> parts = split_items(data, {"validation": ["alien"], "test": ["heat"]})
        >>> for name, part in parts.items():
        ...     print(name, part.select("user", "history", "target").rows())
        train [('cid', ['fargo'], 'babe')]
        validation [('bob', ['fargo', 'babe'], 'alien')]
        test [('ann', ['babe', 'fargo'], 'heat')]
    """
    check_positive(history_length=history_length, min_history=min_history, per_user=per_user)
    if both := set(held_out["validation"]) & set(held_out["test"]):
        raise ValueError(
            f"{len(both)} items are held out twice, for example {min(both)!r}; take them out of one part."
        )
    liked = liked_of(data, min_rating)
    _, after = places(liked)
    kind = np.zeros(liked.height, np.int8)  # 0 of items to train on, 1 to validate, 2 to test
    for number, name in enumerate(("validation", "test"), start=1):
        items = pl.Series("item", list(held_out[name]), dtype=pl.String).unique()
        kind[positions(liked["item"], items) >= 0] = number
    is_last = after == 0
    of_last = kind[np.arange(len(kind)) + after]  # what each user ends with
    kept = (kind == 0) | is_last
    liked, of_last, is_last = liked.filter(pl.Series(kept)), of_last[kept], is_last[kept]
    before, _ = places(liked)
    targets = {
        "train": of_last == 0,
        "validation": is_last & (of_last == 1),
        "test": is_last & (of_last == 2),
    }
    parts = {
        name: examples_of(
            liked, before, which, history_length, min_history, per_user, name, growing=growing and name == "train"
        )
        for name, which in targets.items()
    }
    logger.info(
        "Held out %d items to validate and %d to test; users: %s",
        *(len(held_out[name]) for name in ("validation", "test")),
        counts_in_words({name: part["user"].n_unique() for name, part in parts.items()}),
    )
    return parts


def only_items(data: Interactions, items: Collection[str]) -> Interactions:
    """Return the interactions with some items: nobody has had, and the catalogue has, no others.

    Args:
        data: The interactions.
        items: Identifiers of the items that stay.

    Example:
        >>> interactions = pl.DataFrame({"user": ["ann", "ann"], "item": ["alien", "babe"], "timestamp": [1, 2]})
        >>> data = Interactions(interactions, pl.DataFrame({"item": ["alien", "babe"], "title": ["Alien", "Babe"]}))
        >>> only_items(data, ["babe"]).items["item"].to_list()
        ['babe']
    """
    stay = pl.Series("item", list(items), dtype=pl.String).unique()
    own, known = (pl.Series(positions(table["item"], stay) >= 0) for table in (data.interactions, data.items))
    return replace(data, interactions=data.interactions.filter(own), items=data.items.filter(known))
