"""Priors: what counts, or another recommender, know of items, fused with the model's scores when recommending."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import polars as pl

from ..evaluation.fusion import check_weight, fuse_scores
from ..evaluation.item_knn import ItemKNN
from ..evaluation.score_file import read_scores, scores_of
from ..writing import sha256
from .recommendation import Recommendation

logger = logging.getLogger(__name__)

Score = Callable[[str | None, Sequence[str], Sequence[str]], np.ndarray]
"""Scores of candidates for a user (None where there is no name) with a history; all items by identifier."""


def _anybody(user: str | None) -> None:
    """Accept any user."""


@dataclass(frozen=True)
class Prior:
    """Scores of items that do not come from the model: popularity, ItemKNN, a file, or a function of your own.

    A [`Recommender`] with a prior orders by `z(model) + weight * z(prior)`, as [`fuse`] does, with z the score in
    standard deviations from the mean over the same candidates: in `rank` those that are given, in `recommend` those
    that the beams found, with `exact=True` all items of the catalogue that may come out.

    Args:
        name: Its name in results.
        score: Returns one score per candidate, (candidates,), the higher the better, given the user (None where there
            is no name), the history and the candidates, both as item identifiers.
        version: Another text where the scores are others: `recommend_all` continues an interrupted run only with the
            same.
        check: Raises a `ValueError` for a user of whom there are no scores, before anything is searched for.

    Example:
        Films before 1990 first:

        >>> years = {"1": 1979, "2": 1986, "3": 1995}
        >>> def old(user, history, candidates):
        ...     return np.array([float(years[item] < 1990) for item in candidates])
        >>> prior = Prior("old", old)
        >>> recommender = Recommender.from_pretrained("my-model", prior=prior, prior_weight=0.5)  # doctest: +SKIP
    """

    name: str
    score: Score
    version: str = ""
    check: Callable[[str | None], object] = _anybody

    @classmethod
    def popularity(cls, counts: Mapping[str, float], *, name: str = "popularity") -> Prior:
        """Score items by how many users had them, the same for every user.

        Args:
            counts: Count by item; an item without one counts 0.
            name: Its name in results.

        Example:
            >>> Prior.popularity({"a": 5, "b": 7}).score(None, [], ["b", "c"])
            array([7., 0.])
        """

        def score(user: str | None, history: Sequence[str], candidates: Sequence[str]) -> np.ndarray:
            return np.array([counts.get(item, 0) for item in candidates], dtype=float)

        return cls(name, score, _hash(repr(sorted(counts.items())).encode()))

    @classmethod
    def item_knn(cls, interactions: pl.DataFrame, *, shrinkage: float = 10.0, name: str = "item_knn") -> Prior:
        """Score items by how similar they are to the history, going by who had both; see [`ItemKNN`].

        Args:
            interactions: Columns `user` and `item`; `prepared.interactions.filter("shown")` is what the model saw.
            shrinkage: See [`ItemKNN`].
            name: Its name in results.

        Raises:
            ValueError: As in [`ItemKNN`].

        Example:
            >>> rows = [("u1", "alien"), ("u1", "aliens"), ("u2", "babe")]
            >>> prior = Prior.item_knn(pl.DataFrame(rows, schema=["user", "item"], orient="row"), shrinkage=0)
            >>> prior.score(None, ["alien"], ["aliens", "babe"])
            array([1., 0.])
        """
        knn = ItemKNN(interactions, shrinkage=shrinkage)

        def score(user: str | None, history: Sequence[str], candidates: Sequence[str]) -> np.ndarray:
            return knn.score(history, candidates)

        stored = BytesIO()
        interactions.select(pl.col("user", "item").cast(pl.String)).write_ipc(stored)
        return cls(name, score, _hash(stored.getbuffer()) + f", shrinkage {shrinkage:g}")

    @classmethod
    def of_file(cls, path: str | Path, *, name: str | None = None) -> Prior:
        """Score items by a file of another recommender's scores of user and item; see [`rank_by_file`].

        Every user to recommend to needs a name and scores in the file. Candidates without a score rank last, tied; for
        the first user who has such candidates a warning in the log gives their number. Where no candidate has a score,
        the model decides alone, and a warning says so of each such user.

        Args:
            path: A Parquet file of columns `user`, `item` and `score`.
            name: Its name in results; by default that of the file.

        Raises:
            ValueError: As in [`rank_by_file`].

        Example:
            >>> prior = Prior.of_file("scores.parquet")  # doctest: +SKIP
            >>> recommender.recommend(["Alien"], user="u1")  # of one with this prior  # doctest: +SKIP
        """
        by_user = read_scores(path)
        logged: set[str] = set()

        def check(user: str | None) -> None:
            if user is None:
                raise ValueError(f"{path} has scores by user: say which user it is, not only the history.")
            if user not in by_user:
                raise ValueError(f"{path} has no scores of user {user!r}. Score all users to recommend to.")

        def score(user: str | None, history: Sequence[str], candidates: Sequence[str]) -> np.ndarray:
            own = by_user[str(user)]
            missing = sum(item not in own for item in candidates)
            if 0 < missing == len(candidates):
                logger.warning("%s has no score of any candidate of user %r: the model decides alone.", path, user)
            elif missing and not logged:
                logged.add(str(user))
                logger.warning(
                    "%s: %d of %d candidates of user %r have no score; they rank last, tied. Further users are not "
                    "counted here. Score the whole catalogue if all of it should count.",
                    *(path, missing, len(candidates), user),
                )
            return scores_of(own, candidates)

        return cls(name or Path(path).stem, score, sha256(Path(path)), check)

    def scores(self, user: str | None, history: Sequence[str], candidates: Sequence[str]) -> np.ndarray:
        """Return what `score` does, checked, (candidates,).

        Args:
            user, history, candidates: See `score`.

        Raises:
            ValueError: `score` returns another number of scores, or one that is not finite.

        Example:
            >>> Prior("of nothing", lambda user, history, candidates: []).scores(None, [], ["b"])
            Traceback (most recent call last):
            ...
            ValueError: The prior of nothing must return a finite number for each of 1 candidates; it returned ...
        """
        found = np.asarray(self.score(user, history, candidates), dtype=float)
        if found.shape != (len(candidates),) or not np.isfinite(found).all():
            raise ValueError(
                f"The prior {self.name} must return a finite number for each of {len(candidates)} candidates; it "
                f"returned scores of the shape {found.shape}, of which {int(np.isfinite(found).sum())} are finite."
            )
        return found


@dataclass(frozen=True)
class Fusion:
    """A prior and its weight.

    Args:
        prior: The prior.
        weight: See [`fuse`].

    Raises:
        ValueError: The weight is not a number of at least 0.

    Example:
        >>> Fusion(Prior.popularity({"2": 9}), 2.0).weight
        2.0
    """

    prior: Prior
    weight: float

    def __post_init__(self) -> None:
        """Check the weight."""
        check_weight(self.weight)

    @classmethod
    def of(cls, prior: Prior | None, weight: float | None) -> Fusion | None:
        """Return the fusion that a user asks for, None where there is no prior.

        Args:
            prior: The prior.
            weight: Its weight.

        Raises:
            ValueError: One is given without the other, or the weight is not a number of at least 0.
        """
        if prior is None and weight is None:
            return None
        if prior is None:
            raise ValueError("There is a `prior_weight`, but no `prior` that it could be of: give both or none.")
        if weight is None:
            raise ValueError(
                f"The prior {prior.name} needs a `prior_weight`. `dmpo-trl evaluate --fuse NAME` chooses it on the "
                'validation users: of "sum + 2 item_knn" it is 2. In Python: choose_weight.'
            )
        return cls(prior, weight)

    def describe(self) -> list[str | float]:
        """Return what the order of a user's items depends on beside the model."""
        return [self.prior.name, self.prior.version, self.weight]


def ranked(
    items: Sequence[str],
    titles: Sequence[str],
    scores: np.ndarray,
    history: Sequence[str],
    user: str | None,
    fusion: Fusion | None,
) -> list[Recommendation]:
    """Order candidates by the model's scores, or with a prior by both; equal ones keep their order.

    Args:
        items: Identifiers of the candidates.
        titles: Their titles.
        scores: The model's scores, (candidates,).
        history: Identifiers of the user's items.
        user: The user's name, where there is one.
        fusion: The prior and its weight, where there is one.

    Returns:
        The candidates, from best to worst.

    Raises:
        ValueError: As in [`Prior.scores`], or one of the model's scores is not finite.

    Example:
        >>> fusion = Fusion(Prior.popularity({"2": 9}), 2.0)
        >>> ranked(["1", "2"], ["Alien", "Babe"], np.array([-3.0, -5.0]), [], None, fusion)[0]
        Recommendation(item='2', title='Babe', score=1.0, model_score=-5.0, prior_score=9.0)
    """
    if fusion is None or not items:
        order = np.argsort(-scores, kind="stable")
        return [Recommendation(items[i], titles[i], float(scores[i])) for i in order]
    prior = fusion.prior.scores(user, history, items)
    fused = fuse_scores(scores, prior, fusion.weight)
    return [
        Recommendation(items[i], titles[i], float(fused[i]), float(scores[i]), float(prior[i]))
        for i in np.argsort(-fused, kind="stable")
    ]


def _hash(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()
