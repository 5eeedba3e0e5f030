"""Branching prefixes: a user's prompt and all its beams in one row of the cache, without a copy.

Tokens are appended to their user's row, and a table says what each sees: the prompt and its own beginning. It reaches
the model as a layout of `dmpo_trl.modeling.attention`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from transformers import DynamicCache

from ...modeling.attention import branch_layout
from ...modeling.loading import base_model_of
from .prefixes import Prefixes, accepted_arguments, cache_argument, log_normalizer

# Most tokens of a title that are computed in one forward: the logits after each of them are in memory together
_AHEAD = 256


class BranchingPrefixes(Prefixes):
    """Prefixes in one cache row per user, which nothing is copied into or out of.

    Tokens that are forced to follow are computed ahead, in the forward of the token before them.

    Args:
        model: A causal language model inside `branch_attention`, or a `PeftModel` around one.
        prompts: Token ids of the first sequences.

    Raises:
        ValueError: The model takes no position ids, so it cannot be told the depth of a token.
    """

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]]) -> None:
        self._model, base_model = model, base_model_of(model)
        if "position_ids" not in accepted_arguments(base_model):
            raise ValueError(f"{type(base_model).__name__} takes no `position_ids`.")
        self._device = base_model.get_input_embeddings().weight.device
        self._cache = DynamicCache()  # without the config: windows are the mask's, and no layer drops a token
        self._cache_argument = cache_argument(base_model)
        lengths = np.array([len(prompt) for prompt in prompts])
        ends, places = np.unique(lengths - 1, return_inverse=True)
        columns = np.arange(lengths.max())
        self._depth = np.tile(columns, (len(prompts), 1))  # of each token, (users, columns)
        # Of each prefix: its user, what follows its last computed token, the columns it consists of, and the log-probs
        # of the tokens that were computed ahead
        self._user = np.arange(len(prompts))
        self._next_depth = lengths
        self._sees = columns < lengths[:, None]
        self._known: list[list[float]] = [[] for _ in prompts]
        # Padded on the right, prompts need no mask but the causal one
        ids = [list(prompt) + [0] * (len(columns) - len(prompt)) for prompt in prompts]
        keep = {"logits_to_keep": self._tensor(ends)} if "logits_to_keep" in accepted_arguments(base_model) else {}
        logits = self._forward(np.array(ids), self._depth, **keep)
        self.logits = logits[self._tensor(self._user), self._tensor(places if keep else lengths - 1)].float()
        self._slot = self._user  # of each prefix, the row of its logits

    def log_probs(self, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Return the log-probs of next tokens; see `Prefixes`."""
        known = [self._known[row] for row in rows]
        logps = np.array([ahead[0] if ahead else np.nan for ahead in known])
        unknown = np.isnan(logps)
        logps[unknown] = super().log_probs(self._slot[rows[unknown]], tokens[unknown])
        return logps

    def extend(self, parents: np.ndarray, tokens: np.ndarray, forced: Sequence[Sequence[int] | np.ndarray]) -> None:
        """Go on with some sequences; see `Prefixes`."""
        known = [self._known[parent] for parent in parents]
        self._known = [ahead[1:] for ahead in known]
        self._next_depth, self._sees = self._next_depth[parents], self._sees[parents]
        slots, self.logits = self._slot[parents], self.logits
        users, self._user = np.unique(self._user[parents], return_inverse=True)
        if len(users) < len(self._depth):  # somebody's search has ended
            self._depth = self._depth[users]
            self._cache.reorder_cache(cast(torch.LongTensor, self._tensor(users)))
        new = {
            row: [int(tokens[row]), *map(int, forced[row][:_AHEAD])] for row, ahead in enumerate(known) if not ahead
        }
        if new:
            slots = self._append(new, slots)
        kept, self._slot = np.unique(slots, return_inverse=True)
        self.logits = self.logits[self._tensor(kept)]

    def _append(self, new: dict[int, list[int]], slots: np.ndarray) -> np.ndarray:
        """Compute the tokens that follow prefixes, and put the logits after them behind the others'."""
        first, counts, starts = self._depth.shape[1], np.zeros(len(self._depth), dtype=np.int64), {}
        for row, chain in new.items():
            starts[row] = int(counts[self._user[row]])
            counts[self._user[row]] += len(chain)
        width = int(counts.max())
        ids = np.zeros((len(counts), width), dtype=np.int64)
        depth = np.zeros_like(ids)
        sees = np.zeros((len(counts), width, first + width), dtype=bool)
        sees[:, np.arange(width), first + np.arange(width)] = True  # padding sees itself: no row of a mask is empty
        self._sees = np.pad(self._sees, ((0, 0), (0, width)))
        for row, chain in new.items():
            user, start = self._user[row], starts[row]
            for column, token in enumerate(chain, start=start):
                ids[user, column], depth[user, column] = token, self._next_depth[row]
                self._next_depth[row] += 1
                self._sees[row, first + column] = True
                sees[user, column] = self._sees[row]
        self._depth = np.concatenate([self._depth, depth], axis=1)
        with branch_layout(self._tensor(self._depth), self._tensor(sees)):
            logits = self._forward(ids, depth)

        owners = np.concatenate([[row] * (len(chain) - 1) for row, chain in new.items()]).astype(np.int64)
        columns = np.concatenate([starts[row] + np.arange(len(chain) - 1) for row, chain in new.items()])
        targets = np.array([token for chain in new.values() for token in chain[1:]], dtype=np.int64)
        if len(targets):
            rows = logits[self._tensor(self._user[owners]), self._tensor(columns)].float()
            logps = rows.gather(1, self._tensor(targets)[:, None])[:, 0] - log_normalizer(rows)
            for row, logp in zip(owners, logps.tolist(), strict=True):
                self._known[row].append(logp)

        rows_of_new = np.array(list(new))
        last = np.array([starts[row] + len(chain) - 1 for row, chain in new.items()])
        after = logits[self._tensor(self._user[rows_of_new]), self._tensor(last)].float()
        slots = slots.copy()
        slots[rows_of_new] = len(self.logits) + np.arange(len(new))
        self.logits = torch.cat([self.logits, after])
        return slots

    def _forward(self, ids: np.ndarray, depth: np.ndarray, **options: Any) -> torch.Tensor:
        options[self._cache_argument] = self._cache
        mask = torch.ones(self._depth.shape, dtype=torch.long, device=self._device)
        output = self._model(
            input_ids=self._tensor(ids),
            position_ids=self._tensor(depth),
            attention_mask=mask,
            use_cache=True,
            **options,
        )
        return cast(torch.Tensor, output.logits)

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(self._device)
