"""Fingerprint of a run over many users: what their recommendations depend on."""

from __future__ import annotations

import json
from importlib.metadata import version
from itertools import chain
from typing import Any

import torch
from datasets.fingerprint import Hasher

from ..modeling.fingerprint import config_of, weight_buffers


def describe_run(recommender: Any, **options: Any) -> dict[str, Any]:
    """Describe a run, so that an interrupted one is continued with the same model, data and options only.

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
        "prior": None if recommender.fusion is None else recommender.fusion.describe(),
        "model": _hash_of_model(recommender.model),
        "tokenizer": _hash([tokenizer.get_vocab(), tokenizer.chat_template]),
        "catalogue": _hash([catalogue.items, catalogue.titles]),
        "template": _hash(recommender.template.to_dict()),
        "dmpo-trl": version("dmpo-trl"),
    }


def _hash(value: Any) -> str:
    return Hasher.hash_bytes([json.dumps(value, sort_keys=True).encode()])


def _hash_of_model(model: Any) -> str:
    weights = {name: weight for name, weight in model.state_dict().items() if isinstance(weight, torch.Tensor)}
    config = json.dumps(config_of(model), sort_keys=True, default=str).encode()
    return Hasher.hash_bytes(chain([config], weight_buffers(weights)))
