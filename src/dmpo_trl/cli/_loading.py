"""Loading of the recommender that a command answers with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate import PartialState

from ..modeling.loading import cast_adapter
from ..recommend import Recommender


def load_recommender(path: str, loading: Mapping[str, Any], **parts: Any) -> Recommender:
    """Load a recommender to this process's device, to be asked only: an adapter gets the type of its model.

    Args:
        path: Folder or hub id of its model.
        loading: For the model's `from_pretrained`.
        **parts: For `Recommender.from_pretrained`: `data`, or `items` and `template`; `score`, `prior`, ...

    Raises:
        ValueError: As in `Recommender.from_pretrained`.

    Example:
        >>> load_recommender("outputs/dmpo", {}, data="data")  # doctest: +SKIP
    """
    recommender = Recommender.from_pretrained(path, **parts, **loading)
    cast_adapter(recommender.model.to(PartialState().device))
    return recommender
