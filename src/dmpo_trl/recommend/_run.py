"""Fingerprint of a run over many users: what their recommendations depend on."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

from ..modeling.fingerprint import hash_of
from ..work import describe_scoring


def describe_run(recommender: Any, **options: Any) -> dict[str, Any]:
    """Describe a run, so that an interrupted one is continued with the same model, data and options only.

    Args:
        recommender: The `Recommender`.
        **options: Those of the search.

    Returns:
        A short value for each name, for JSON; in processes other than the main one without the model's.

    Example:
        >>> describe_run(recommender, k=10)  # doctest: +SKIP
    """
    catalogue = recommender.catalogue
    run = {
        **options,
        "score": recommender.score,
        "prior": None if recommender.fusion is None else recommender.fusion.describe(),
        **describe_scoring(recommender.model, recommender.tokenizer),
        "catalogue": hash_of([catalogue.items, catalogue.titles]),
        "template": hash_of(recommender.template.to_dict()),
        "dmpo-trl": version("dmpo-trl"),
    }
    plain: dict[str, Any] = json.loads(json.dumps(run, default=int))  # numpy's numbers too
    return plain
