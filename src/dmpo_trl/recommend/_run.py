"""Fingerprint of a run over many users: what the recommendations of a user depend on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import torch
from datasets.fingerprint import Hasher


def describe_run(recommender: Any, **options: Any) -> dict[str, Any]:
    """Describe a run, so that one that was interrupted goes on with nothing else.

    Args:
        recommender: The `Recommender`.
        **options: Those of the search.

    Returns:
        A short value for each name, for JSON.

    Example:
        >>> describe_run(recommender, k=10)  # doctest: +SKIP
    """
    catalogue, tokenizer = recommender.catalogue, recommender.tokenizer
    return {
        **options,
        "score": recommender.score,
        "model": Hasher.hash_bytes(_weights(recommender.model)),
        "tokenizer": _hash([tokenizer.get_vocab(), tokenizer.chat_template]),
        "catalogue": _hash([catalogue.items, catalogue.titles]),
        "template": _hash(recommender.template.to_dict()),
        "dmpo-trl": version("dmpo-trl"),
    }


def _hash(value: Any) -> str:
    return Hasher.hash_bytes([json.dumps(value, sort_keys=True).encode()])


def _weights(model: Any) -> Iterator[Any]:
    """Yield the bytes of a model's config and weights; of weights that are not in memory the names alone."""
    yield model.config.to_json_string().encode()
    for name, weight in sorted(model.state_dict().items()):
        if isinstance(weight, torch.Tensor):
            yield f"{name} {weight.dtype} {tuple(weight.shape)}".encode()
            if not weight.is_meta:
                yield weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
