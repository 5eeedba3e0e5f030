"""The prior of what a model says without a history."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..evaluation.no_history import check_lists_nothing
from ..modeling.fingerprint import hash_of_model
from .prior import Prior
from .recommender import Recommender


def prior_without_history(recommender: Recommender, *, name: str = "no_history") -> Prior:
    """Return the prior that scores items by how unlikely a model finds their titles without any history.

    With it a [`Recommender`] takes out what the model would say without knowing the user; see [`NoHistoryRanker`].
    Each item is scored when it is first a candidate, and its score is kept: make the prior anew when the weights
    change. Of a user without a history the model decides alone.

    Args:
        recommender: The recommender whose model it is, without a prior.
        name: Its name in results.

    Raises:
        ValueError: The recommender has a prior, or its template lists the candidates.

    Example:
        >>> alone = Recommender.from_pretrained("my-model")  # doctest: +SKIP
        >>> parts = alone.model, alone.tokenizer, alone.catalogue.frame, alone.template  # doctest: +SKIP
        >>> prior = prior_without_history(alone)  # doctest: +SKIP
        >>> recommender = Recommender(*parts, prior=prior, prior_weight=1.0)  # doctest: +SKIP
    """
    check_lists_nothing(recommender.template)
    if recommender.fusion is not None:
        raise ValueError(f"The recommender has the prior {recommender.fusion.prior.name}: give one without.")
    known: dict[str, float] = {}

    def score(user: str | None, history: Sequence[str], candidates: Sequence[str]) -> np.ndarray:
        if not history:
            return np.zeros(len(candidates))
        if unknown := [item for item in candidates if item not in known]:
            known.update({one.item: -one.score for one in recommender.rank([], unknown)})
        return np.array([known[item] for item in candidates])

    version = f"{hash_of_model(recommender.model)}, {recommender.score}, {recommender.template.to_dict()}"
    return Prior(name, score, version)
