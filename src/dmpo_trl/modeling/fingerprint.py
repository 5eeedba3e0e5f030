"""Fingerprints of models: what their numbers depend on, as bytes to hash, and hashed."""

import json
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from datasets.fingerprint import Hasher

from .loading import base_model_of

# Where a model comes from, and what trainers set
_NOT_IN_THE_NUMBERS = {
    "_name_or_path",
    "architectures",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "transformers_version",
    "use_cache",
}


def config_of(model: Any) -> dict[str, Any]:
    """Return the part of a model's config that its numbers depend on: a copy elsewhere computes the same.

    Args:
        model: A transformers model, or a wrapper around one.
    """
    config = base_model_of(model).config.to_dict()
    return {name: value for name, value in config.items() if name not in _NOT_IN_THE_NUMBERS}


def weight_buffers(weights: Mapping[str, torch.Tensor]) -> Iterator[Any]:
    """Yield name, type, shape and bytes of each weight, by name; of weights that are not in memory no bytes.

    Args:
        weights: The weights by name. None of them is sharded.

    Example:
        >>> [bytes(part) for part in weight_buffers({"bias": torch.tensor([1], dtype=torch.uint8)})]
        [b'bias torch.uint8 (1,)', b'\\x01']
    """
    for name, weight in sorted(weights.items()):
        yield f"{name} {weight.dtype} {tuple(weight.shape)}".encode()
        if not weight.is_meta:
            yield weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()


def hash_of(value: Any) -> str:
    """Return a hash of a value that JSON can hold.

    Args:
        value: The value.

    Example:
        >>> hash_of({"a": 1, "b": 2}) == hash_of({"b": 2, "a": 1})
        True
    """
    return Hasher.hash_bytes([json.dumps(value, sort_keys=True).encode()])


def hash_of_model(model: Any) -> str:
    """Return a hash of a model's weights and of the part of its config that its numbers depend on.

    Args:
        model: A transformers model, or a wrapper around one. None of its weights is sharded.
    """
    weights = {name: weight for name, weight in model.state_dict().items() if isinstance(weight, torch.Tensor)}
    config = json.dumps(config_of(model), sort_keys=True, default=str).encode()
    return Hasher.hash_bytes(chain([config], weight_buffers(weights)))


def hash_of_tokenizer(tokenizer: Any) -> str:
    """Return a hash of a tokenizer's vocabulary and chat template.

    Args:
        tokenizer: Of transformers.
    """
    return hash_of([tokenizer.get_vocab(), tokenizer.chat_template])
