"""Negative sampling: items that a user never had."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from ._columns import lists, positions
from ._random import uniform
from .interactions import Interactions

logger = logging.getLogger(__name__)

STRATEGIES = ("uniform", "popularity", "in_batch")
CELLS = 8_000_000  # of a matrix with a row per example; a bigger one is made in blocks of rows


def sample_negatives(
    examples: pl.DataFrame,
    data: Interactions,
    n: int,
    *,
    seed: int,
    strategy: str = "uniform",
    alpha: float = 1.0,
    popularity: pl.DataFrame | None = None,
    batch_size: int | None = None,
    called: str = "negatives",
) -> pl.DataFrame:
    """Add `n` different items to each example, from all the items that its user never had.

    "Had" means any interaction at any time and with any rating: an item of the user's history, of the future or one
    that was disliked is never drawn. What is drawn depends on `seed`, the user and the place of the example among the
    user's, never on the target, so that the negatives do not give the target away (candidates seeded by the target do:
    the published LastFM files of S-DPO can be solved from the candidate lists alone). Training and evaluation need
    different seeds: with the same one, a user's test candidates are what the model has learnt to reject.

    Args:
        examples: Rows with a column `user`, and for "in_batch" also `target`.
        data: The interactions, of all users.
        n: Negatives per example.
        seed: Another seed gives other negatives.
        strategy: "uniform"; "popularity", one after the other with a probability proportional to the item's
            popularity to the power of `alpha` (items without any are then never drawn); or "in_batch",
            uniformly from the targets of the other examples in the same batch.
        alpha: Above 0; 1 draws as often as items are had, 0.75 as word2vec does (Mikolov et al. 2013,
            https://arxiv.org/abs/1310.4546).
        popularity: For "popularity", columns `item` and `popularity`, a count; items that are not there count 0. By
            default the number of the item's interactions in `data`, which counts what is held out too.
        batch_size: For "in_batch", so many consecutive rows are a batch.
        called: What the items are called in messages.

    Returns:
        `examples` with a column `negatives` (List[String] of `n` items). With "in_batch" a row has fewer where its
        batch does not hold `n`, which is counted and logged.

    Raises:
        ValueError: Where a user has no interaction in `data`, or never had fewer than `n` of the items that can be
            drawn; with "in_batch" where a batch holds none for a row.

    Example:
        >>> films = ["alien", "babe", "fargo", "heat"]
        >>> rows = [("ann", "alien", 1), ("ann", "babe", 2), ("bob", "fargo", 3), ("bob", "heat", 4)]
        >>> interactions = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
        >>> data = Interactions(interactions, pl.DataFrame({"item": films, "title": [film.title() for film in films]}))
        >>> examples = pl.DataFrame({"user": ["ann", "bob"], "target": ["babe", "heat"]})
        >>> sample_negatives(examples, data, 2, seed=0)["negatives"].to_list()
        [['heat', 'fargo'], ['babe', 'alien']]
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, it is {strategy!r}.")
    if n < 1 or not 0 < alpha < math.inf:
        raise ValueError(f"n and alpha must be positive and finite, they are {n} and {alpha}.")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, it is {batch_size}.")
    if (batch_size is None) == (strategy == "in_batch"):
        raise ValueError(f"batch_size belongs to the strategy 'in_batch', which needs it; it is {batch_size}.")
    rows = _Rows.of(examples, data, seed)
    if batch_size is not None:
        batch_size = min(batch_size, max(len(examples), 1))
        target = positions(examples["target"], rows.catalogue)
        step = batch_size * max(1, CELLS // batch_size**2)  # whole batches
        blocks = [_from_batches(part, target[part.place], n, batch_size) for part in rows.blocks(step)]
        negatives, counts = (np.concatenate(block) for block in zip(*blocks, strict=True))
        if short := int((counts < n).sum()):
            logger.warning("%d of %d examples get fewer than %d negatives from their batch", short, len(counts), n)
        return examples.with_columns(_items("negatives", negatives, rows.catalogue, counts))

    weights = np.ones(len(rows.catalogue))
    if strategy == "popularity":
        if popularity is None:
            popularity = data.interactions.group_by("item").agg(popularity=pl.len())
        counts = np.zeros(len(weights))
        place = positions(popularity["item"], rows.catalogue)
        counts[place[place >= 0]] = popularity["popularity"].to_numpy()[place >= 0]
        with np.errstate(over="ignore"):
            weights = np.where(counts > 0, counts**alpha, 0)
            if not np.isfinite(weights.sum()):
                raise ValueError(f"alpha={alpha} is too large for a popularity of {counts.max():g}; lower it.")
    _check_enough(rows, n, weights > 0, called)
    negatives = np.concatenate([_draw(part, weights, n) for part in rows.blocks(max(1, CELLS // (2 * n)))])
    return examples.with_columns(_items("negatives", negatives.ravel(), rows.catalogue, np.full(len(negatives), n)))


def hard_negatives(
    examples: pl.DataFrame,
    data: Interactions,
    n: int,
    *,
    seed: int,
    score: Callable[[pl.DataFrame], np.ndarray | Sequence[Sequence[float]]],
    pool: int,
) -> pl.DataFrame:
    """Add the `n` items that score highest among `pool` items drawn uniformly from those that the user never had.

    Args:
        examples: Rows with a column `user`, and what `score` needs.
        data: The interactions, of all users.
        n: Negatives per example.
        seed: Of the pool, as in [`sample_negatives`].
        score: Gets `examples` with a column `candidates` (List[String] of `pool` items) and returns the candidates'
            scores, (E, pool), higher where an item looks more like a target: popularity, or an earlier model's
            log-probs.
        pool: Candidates per example, at least `n`. The larger, the harder the negatives, and the more of them are
            items that the user would have liked.

    Returns:
        `examples` with a column `negatives` (List[String] of `n` items, the hardest first).

    Raises:
        ValueError: As [`sample_negatives`], and for scores of another shape or that are not numbers.

    Example:
        >>> films = ["alien", "babe", "fargo", "heat"]
        >>> rows = [("ann", "alien", 1), ("ann", "babe", 2), ("bob", "fargo", 3), ("bob", "heat", 4)]
        >>> interactions = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
        >>> data = Interactions(interactions, pl.DataFrame({"item": films, "title": [film.title() for film in films]}))
        >>> examples = pl.DataFrame({"user": ["ann"]})
        >>> def longest(rows):
        ...     return [[len(item) for item in candidates] for candidates in rows["candidates"]]
        >>> hard_negatives(examples, data, 1, seed=0, score=longest, pool=2)["negatives"].to_list()
        [['fargo']]
    """
    if pool < n:
        raise ValueError(f"pool must be at least n = {n}, it is {pool}.")
    drawn = sample_negatives(examples, data, pool, seed=seed).rename({"negatives": "candidates"})
    scores = np.asarray(score(drawn), dtype=float)
    if scores.shape != (drawn.height, pool):
        raise ValueError(f"score must return {(drawn.height, pool)} scores, it returned {scores.shape}.")
    if np.isnan(scores).any():
        raise ValueError(f"score returned nan for {int(np.isnan(scores).any(axis=1).sum())} examples.")
    best = np.argsort(-scores, axis=1, kind="stable")[:, :n] + pool * np.arange(len(scores))[:, None]
    candidates = drawn["candidates"].explode()
    return examples.with_columns(_items("negatives", best.ravel(), candidates, np.full(len(best), n)))


@dataclass(frozen=True)
class _Rows:
    """Examples as numbers: E rows of U users, M items."""

    catalogue: pl.Series  # (M,), sorted
    names: pl.Series  # (U,), sorted
    had: np.ndarray  # user * M + item of all the interactions of these users, sorted
    seed: int
    place: np.ndarray  # (E,) of the row in all examples
    user: np.ndarray  # (E,)
    nth: np.ndarray  # (E,) how many rows of this user come before it

    @classmethod
    def of(cls, examples: pl.DataFrame, data: Interactions, seed: int) -> _Rows:
        catalogue, names = data.items["item"].sort(), examples["user"].cast(pl.String).unique().sort()
        had = positions(data.interactions["user"], names) * np.int64(len(catalogue))
        had += positions(data.interactions["item"], catalogue)
        had.sort()
        had = had[np.searchsorted(had, 0) :]  # other users have position -1
        user = positions(examples["user"], names)
        nth = pl.Series("user", user).to_frame().select(pl.int_range(pl.len()).over("user")).to_series().to_numpy()
        return cls(catalogue, names, had, seed, np.arange(len(user)), user, nth)

    def take(self, index: np.ndarray | slice) -> _Rows:
        return replace(self, place=self.place[index], user=self.user[index], nth=self.nth[index])

    def blocks(self, size: int) -> Iterator[_Rows]:
        for start in range(0, len(self.user), size):
            yield self.take(slice(start, start + size))

    def uniform(self, draws: int, stream: str) -> np.ndarray:
        """Return numbers in [0, 1), (E, draws). Rows of a user have numbers of their own."""
        draw = (self.nth[:, None].astype(np.int64) << 32) + np.arange(draws)
        return uniform(self.seed, self.names.gather(self.user), draw, stream=f"negatives, {stream}")

    def never_had(self, items: np.ndarray) -> np.ndarray:
        """Mark which of (E, C) items their row's user never had."""
        pairs = self.user[:, None] * np.int64(len(self.catalogue)) + items
        found = np.searchsorted(self.had, pairs)
        return self.had[np.minimum(found, len(self.had) - 1)] != pairs


def _check_enough(rows: _Rows, n: int, drawable: np.ndarray, called: str) -> None:
    size = np.int64(len(rows.catalogue))
    starts = np.searchsorted(rows.had, np.arange(len(rows.names) + 1) * size)
    if not (had := np.diff(starts)).all():
        raise ValueError(f"examples: user {rows.names[int(had.argmin())]!r} has no interaction in data.")
    had = np.diff(np.append(0, np.cumsum(drawable[rows.had % size]))[starts])  # only what could be drawn counts
    worst, items = int(had.argmax()), int(drawable.sum())
    if items - had[worst] < n:
        raise ValueError(
            f"{n} {called} are wanted, but user {rows.names[worst]!r} has had {had[worst]} of {items} items; ask for "
            "fewer."
        )


def _draw(rows: _Rows, weights: np.ndarray, n: int) -> np.ndarray:
    """Return the first `n` different items that were never had, (E, n), of an endless series of draws per row."""
    upto = np.cumsum(weights)
    chosen = np.full((len(rows.user), n), -1)
    unfinished = np.arange(len(rows.user))
    draws = 2 * n
    while len(unfinished):
        part = rows.take(unfinished)
        items = np.searchsorted(upto, part.uniform(draws, "draw") * upto[-1], side="right")
        fresh = part.never_had(items) & _is_first(items)
        nth = np.cumsum(fresh, axis=1)
        if draws > len(weights):  # a row that gets nowhere is cheaper to finish by looking at every item once
            chosen[unfinished] = _finish(part, weights, n, np.where(fresh & (nth <= n), items, -1))
            break
        done = nth[:, -1] >= n
        chosen[unfinished[done]] = items[done][(fresh & (nth <= n))[done]].reshape(-1, n)
        unfinished, draws = unfinished[~done], 2 * draws  # the series begins with the same draws again
    return chosen


def _finish(rows: _Rows, weights: np.ndarray, n: int, chosen: np.ndarray) -> np.ndarray:
    """Go on from the items chosen, (E, C) with -1 between them, as if drawing went on until there are `n`.

    Items in the order of exponential variables with their weights as rates are items drawn one after the other with
    probabilities proportional to the weights (Efraimidis and Spirakis 2006, https://doi.org/10.1016/j.ipl.2005.11.003).
    """
    finished = []
    for index in np.array_split(np.arange(len(chosen)), 1 + len(chosen) * len(weights) // CELLS):
        part = rows.take(index)
        with np.errstate(divide="ignore"):
            order = -np.log1p(-part.uniform(len(weights), "finish")) / weights
        order[~part.never_had(np.arange(len(weights))[None])] = np.inf
        row, column = np.nonzero(chosen[index] >= 0)
        order[row, chosen[index][row, column]] = column - chosen.shape[1]  # they stay first, in their order
        finished.append(np.argsort(order, axis=1, kind="stable")[:, :n])
    return np.concatenate(finished)


def _from_batches(rows: _Rows, target: np.ndarray, n: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return items, one row after the other, and how many of them each row has."""
    batches = np.full((-(-len(target) // batch_size), batch_size), -1)
    batches.ravel()[: len(target)] = target
    batch = np.arange(len(target)) // batch_size
    items = batches[batch]  # (E, batch size)
    allowed = (items >= 0) & (items != target[:, None]) & _is_first(batches)[batch] & rows.never_had(items)
    order = np.where(allowed, rows.uniform(batch_size, "in batch"), np.inf).argsort(axis=1, kind="stable")
    counts = np.minimum(allowed.sum(axis=1), n)
    if not counts.all():
        raise ValueError(
            f"examples: row {rows.place[counts.argmin()]} has no negative in its batch of {batch_size}: its user has "
            "had all the targets; shuffle the examples, or make batch_size larger."
        )
    return np.take_along_axis(items, order, axis=1)[np.arange(batch_size) < counts[:, None]], counts


def _is_first(items: np.ndarray) -> np.ndarray:
    """Mark the items that did not occur before in their row."""
    order = np.argsort(items, axis=1, kind="stable")
    ordered = np.take_along_axis(items, order, axis=1)
    first = np.ones(items.shape, bool)
    np.put_along_axis(first, order[:, 1:], ordered[:, 1:] != ordered[:, :-1], axis=1)
    return first


def _items(name: str, places: np.ndarray, catalogue: pl.Series, counts: np.ndarray) -> pl.Series:
    return lists(catalogue.gather(places).alias(name), counts)
