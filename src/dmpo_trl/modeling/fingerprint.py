"""Fingerprints of models: what their numbers depend on, as bytes to hash, and hashed."""

import json
import secrets
from collections.abc import Iterable, Iterator, Mapping
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
_NOT_OF_AN_ADAPTER = {"base_model_name_or_path", "inference_mode", "peft_version", "revision"}


def config_of(model: Any) -> dict[str, Any]:
    """Return the part of a model's config that its numbers depend on: a copy elsewhere computes the same.

    Args:
        model: A transformers model, or a wrapper around one.
    """
    config = base_model_of(model).config.to_dict()
    return {name: value for name, value in config.items() if name not in _NOT_IN_THE_NUMBERS}


def all_here(weights: Iterable[torch.Tensor]) -> bool:
    """Return whether this process has the values of weights: none is sharded (FSDP, ZeRO-3) or left on the disk.

    Args:
        weights: The parameters of a model.

    Example:
        >>> all_here([torch.ones(2)]), all_here([torch.ones(2, device="meta")])
        (True, False)
    """
    return not any(hasattr(weight, "to_local") or hasattr(weight, "ds_id") or weight.is_meta for weight in weights)


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
    """Return a hash of a value, the same in every process.

    Args:
        value: What JSON can hold, sets, and what says as text what it is.

    Example:
        >>> hash_of({"a": 1, "b": 2}) == hash_of({"b": 2, "a": 1})
        True
    """
    return Hasher.hash_bytes([json.dumps(value, sort_keys=True, default=plain).encode()])


def hash_of_model(model: Any) -> str:
    """Return a hash of what a model computes and generates: weights, config, adapters, and where generation ends.

    Args:
        model: A transformers model, or a wrapper around one. Where this process has not all of its weights, the hash
            is another one each time, so that nothing is taken for that model's.
    """
    if not all_here(model.parameters()):
        return f"unknown {secrets.token_hex(16)}"
    weights = {name: weight for name, weight in model.state_dict().items() if isinstance(weight, torch.Tensor)}
    adapters = {
        name: {key: value for key, value in adapter.to_dict().items() if key not in _NOT_OF_AN_ADAPTER}
        for name, adapter in getattr(model, "peft_config", {}).items()
    }
    end = getattr(getattr(base_model_of(model), "generation_config", None), "eos_token_id", None)
    made_of = [config_of(model), adapters, getattr(model, "active_adapters", None) if adapters else None, end]
    return Hasher.hash_bytes(
        chain([json.dumps(made_of, sort_keys=True, default=plain).encode()], weight_buffers(weights))
    )


def hash_of_tokenizer(tokenizer: Any) -> str:
    """Return a hash of what a tokenizer makes of texts and conversations.

    Args:
        tokenizer: Of transformers.
    """
    made_of = [tokenizer.get_vocab(), tokenizer.chat_template, tokenizer.special_tokens_map]
    if tokenizer.is_fast:
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        # The last call sets these two
        made_of.append({name: value for name, value in backend.items() if name not in ("padding", "truncation")})
    return hash_of(made_of)


def plain(value: Any) -> Any:
    """Return what JSON cannot hold as something that it can, the same in every process: for `json.dumps(default=...)`.

    Example:
        >>> plain({"q_proj", "k_proj"})
        ['k_proj', 'q_proj']
    """
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)
