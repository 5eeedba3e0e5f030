"""ItemKNN: ranking by items that the same users had."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from datasets import Dataset
from scipy import sparse

from .result import RankingResult


class ItemKNN:
    """Scores an item by how similar it is to a user's history, going by who had both.

    The similarity of items i and j is `n_ij / (sqrt(n_i n_j) + shrinkage)`, with `n_i` users who had i, and `n_ij` who
    had both: the cosine of their columns, shrunk where few users speak for it (Dacrema et al., RecSys 2019, arXiv
    1907.06902). The score of a candidate is the sum over the history.

    Args:
        interactions: Columns `user` and `item` of the users who are counted. Leave out whom you evaluate.
        shrinkage: Added to the denominator; the larger, the less a pair counts that few users had.

    Raises:
        ValueError: There are no interactions, a column is missing or has empty fields, or `shrinkage` is no
            number of at least 0.

    Example:
        >>> rows = [("u1", "alien"), ("u1", "aliens"), ("u2", "alien"), ("u2", "aliens"), ("u3", "babe")]
        >>> knn = ItemKNN(pl.DataFrame(rows, schema=["user", "item"], orient="row"), shrinkage=0)
        >>> knn.score(history=["alien"], candidates=["aliens", "babe"])
        array([1., 0.])
    """

    def __init__(self, interactions: pl.DataFrame, *, shrinkage: float = 10.0) -> None:
        if missing := {"user", "item"} - set(interactions.columns):
            raise ValueError(f"The interactions have no column {sorted(missing)}; they have {interactions.columns}.")
        if interactions.is_empty():
            raise ValueError("There are no interactions to count.")
        if not 0 <= shrinkage < np.inf:
            raise ValueError(f"shrinkage must be a number of at least 0, it is {shrinkage}.")
        for column in ("user", "item"):
            if empty := interactions[column].null_count():
                raise ValueError(f"{empty} interactions have no {column}. Drop them with `drop_nulls`.")
        pairs = interactions.select(pl.col("user").cast(pl.String), pl.col("item").cast(pl.String)).unique()
        items = pairs["item"].unique().sort()
        self._number = {item: place for place, item in enumerate(items)}
        rows = pairs["user"].rank("dense").to_numpy().astype(np.int64) - 1
        columns = pairs["item"].replace_strict(items, pl.int_range(len(items), eager=True)).to_numpy()
        had = sparse.csr_array((np.ones(len(rows)), (rows, columns)))
        counts = had.sum(axis=0)
        similarity = sparse.coo_array(had.T @ had)
        i, j = similarity.coords
        values = similarity.data / (np.sqrt(counts[i] * counts[j]) + shrinkage)
        self._similarity = sparse.csr_array((values, (i, j)), shape=(len(items), len(items)))

    def score(self, history: Sequence[str], candidates: Sequence[str]) -> np.ndarray:
        """Return one score per candidate, (candidates,). Items that nobody had score 0.

        Args:
            history: Identifiers of the user's items.
            candidates: Identifiers of the items to score.
        """
        known = sorted({self._number[item] for item in history if item in self._number})
        scores = np.zeros(len(candidates))
        if not known:
            return scores
        of_items = np.asarray(self._similarity[known].sum(axis=0)).ravel()
        places = np.array([self._number.get(item, -1) for item in candidates], dtype=int)
        scores[places >= 0] = of_items[places[places >= 0]]
        return scores


def rank_by_item_knn(dataset: Dataset, knn: ItemKNN, *, name: str = "item_knn") -> RankingResult:
    """Rank by ItemKNN, going by the history that stands in each user's prompt.

    Args:
        dataset: Columns of [`ranking_dataset`].
        knn: The similarities.
        name: Name of the result.

    Returns:
        The ranking.

    Example:
        >>> rows = [("u1", "alien"), ("u1", "aliens"), ("u2", "babe")]
        >>> knn = ItemKNN(pl.DataFrame(rows, schema=["user", "item"], orient="row"))
        >>> user = {"user": "u9", "history": ["alien"], "items": ["babe", "aliens"], "positive": 1}
        >>> rank_by_item_knn(Dataset.from_list([user]), knn).metrics(["hr@1"])
        {'hr@1': 1.0}
    """
    scores = [knn.score(history, items) for history, items in zip(dataset["history"], dataset["items"], strict=True)]
    return RankingResult.of(name, dataset, scores)
