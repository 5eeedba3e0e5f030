"""Growing prefixes: next-token log-probs of many sequences that begin alike."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import groupby
from typing import Any, cast

import numpy as np
import torch
from transformers import DynamicCache

from ...modeling.generation import left_padded
from ...modeling.loading import base_model_of


class Prefixes(ABC):
    """A batch of token sequences, and the log-probs of what may come next.

    Attributes:
        logits: Logits of the next token of each sequence, (rows, V), float32.
        normalizer: Of each, what `log_normalizer` returns, (rows,).
    """

    logits: torch.Tensor
    normalizer: torch.Tensor

    @abstractmethod
    def __init__(self, model: Any, prompts: Sequence[Sequence[int]]) -> None: ...

    @abstractmethod
    def extend(self, parents: np.ndarray, tokens: np.ndarray, owners: np.ndarray, forced: np.ndarray) -> None:
        """Replace the sequences by `sequences[parents[i]] + [tokens[i]]`.

        Args:
            parents: Indices of the sequences to go on with.
            tokens: The token that follows each.
            owners: Of the forced tokens, indices of the new sequences, sorted.
            forced: The tokens that alone can follow then. They may be computed ahead and change no number.
        """

    def log_probs(self, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Return the log-probs of `tokens[i]` after the sequence `rows[i]`, in nats, float64."""
        row, token = (torch.from_numpy(values).to(self.logits.device) for values in (rows, tokens))
        return (self.logits[row, token] - self.normalizer[row]).cpu().numpy()


class CachedPrefixes(Prefixes):
    """Prefixes in a key-value cache, whose rows are copied as the prefixes branch.

    Args:
        model: A causal language model, or a `PeftModel` around one.
        prompts: Token ids of the first sequences; they are padded on the left.
    """

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]]) -> None:
        self._model, base_model = model, base_model_of(model)
        self._device = base_model.get_input_embeddings().weight.device
        self._accepts = accepted_arguments(base_model)
        self._cache = DynamicCache(config=base_model.config)
        self._cache_argument = cache_argument(base_model)
        ids, mask = left_padded(prompts, 0)
        self._mask = mask.to(self._device)
        self._forward(ids.to(self._device))

    def extend(self, parents: np.ndarray, tokens: np.ndarray, owners: np.ndarray, forced: np.ndarray) -> None:
        """Go on with some sequences; see `Prefixes`."""
        rows = torch.from_numpy(parents).to(self._device)
        self._cache.reorder_cache(cast(torch.LongTensor, rows))
        self._mask = torch.nn.functional.pad(self._mask[rows], (0, 1), value=1)
        self._forward(torch.from_numpy(tokens).to(self._device)[:, None])

    def _forward(self, ids: torch.Tensor) -> None:
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": self._mask}
        if "position_ids" in self._accepts:
            inputs["position_ids"] = (self._mask.cumsum(dim=-1) - 1).clamp(min=0)[:, -ids.size(1) :]
        if "logits_to_keep" in self._accepts:
            inputs["logits_to_keep"] = 1
        inputs[self._cache_argument] = self._cache
        self.logits = self._model(**inputs, use_cache=True).logits[:, -1].float()
        self.normalizer = log_normalizer(self.logits)


class RecomputedPrefixes(Prefixes):
    """Prefixes computed from their first token on at each step, without padding: right for every model, and slow.

    Args:
        model: A causal language model, or a `PeftModel` around one.
        prompts: Token ids of the first sequences.
        tokens_per_forward: Bound on the tokens of a forward.
    """

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], tokens_per_forward: int = 4096) -> None:
        self._model, base_model = model, base_model_of(model)
        self._device = base_model.get_input_embeddings().weight.device
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in accepted_arguments(base_model) else {}
        self._tokens_per_forward = tokens_per_forward
        self._forward([list(prompt) for prompt in prompts])

    def extend(self, parents: np.ndarray, tokens: np.ndarray, owners: np.ndarray, forced: np.ndarray) -> None:
        """Go on with some sequences; see `Prefixes`."""
        self._forward([[*self._sequences[row], token] for row, token in zip(parents, tokens.tolist(), strict=True)])

    def _forward(self, sequences: list[list[int]]) -> None:
        self._sequences = sequences
        logits = []
        for length, group in groupby(sequences, key=len):
            ids = torch.tensor(list(group), device=self._device)
            for part in ids.split(max(1, self._tokens_per_forward // length)):
                output = self._model(
                    input_ids=part, attention_mask=torch.ones_like(part), use_cache=False, **self._options
                )
                logits.append(output.logits[:, -1].float())
        self.logits = torch.cat(logits)
        self.normalizer = log_normalizer(self.logits)


def log_normalizer(logits: torch.Tensor) -> torch.Tensor:
    """Return the log of the sum of the exponentials of each row, (rows,), float64.

    In float32 a sum over a vocabulary of 50,000 is off by 1e-5, always to the same side: 1e-4 over a title. The
    exponentials themselves are off to either side, and less.
    """
    sums = []
    for part in logits.split(16):  # of a size that stays in a processor's cache
        largest = part.float().amax(dim=-1, keepdim=True)
        sums.append((part - largest).exp_().sum(dim=-1, dtype=torch.float64).log() + largest.squeeze(-1))
    return torch.cat(sums)


def accepted_arguments(base_model: Any) -> set[str]:
    """Return the names of the arguments of the model's own forward.

    Args:
        base_model: A transformers model.
    """
    return set(inspect.signature(base_model.forward).parameters)


def cache_argument(base_model: Any) -> str:
    """Return the name of the argument for the key-value cache, which transformers 5.24 renames one model at a time."""
    return "cache" if "cache" in accepted_arguments(base_model) else "past_key_values"
