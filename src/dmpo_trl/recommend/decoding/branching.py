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
from ..catalogue import ranges
from .prefixes import Prefixes, accepted_arguments, cache_argument, log_normalizer

# Most tokens of a title that are computed in one forward, and most of all titles: the logits after each of them are in
# memory together, and the mask has a row for each
_AHEAD = 256
_TOKENS = 2048
# Tokens ahead of their turn save forwards, and many are in vain. So few cost a CPU no more than to read the weights
_TOKENS_ON_CPU = 16
# Rows grow by multiples of this, padding included: on a GPU few shapes, whose memory is found again
_COLUMNS, _COLUMNS_ON_CPU = 32, 1


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
        on_cpu = self._device.type == "cpu"
        self._most, self._columns = (_TOKENS_ON_CPU, _COLUMNS_ON_CPU) if on_cpu else (_TOKENS, _COLUMNS)
        self._cache = DynamicCache()  # without the config: windows are the mask's, and no layer drops a token
        self._cache_argument = cache_argument(base_model)
        lengths = np.array([len(prompt) for prompt in prompts])
        ends, places = np.unique(lengths - 1, return_inverse=True)
        columns = np.arange(self._rounded(lengths.max()))
        self._depth = np.tile(columns, (len(prompts), 1))  # of each token, (users, columns)
        # Of each prefix: its user, what follows its last computed token, the columns it consists of, and where in
        # `_known` the log-probs of the tokens lie that were computed ahead
        self._user = np.arange(len(prompts))
        self._next_depth = lengths
        self._sees = columns < lengths[:, None]
        self._known = np.zeros(0)
        self._ahead = np.zeros((len(prompts), 2), dtype=np.int64)  # the next one, and the end
        # Padded on the right, prompts need no mask but the causal one
        ids = [list(prompt) + [0] * (len(columns) - len(prompt)) for prompt in prompts]
        keep = {"logits_to_keep": self._tensor(ends)} if "logits_to_keep" in accepted_arguments(base_model) else {}
        logits = self._forward(np.array(ids), self._depth, **keep)
        self.logits = logits[self._tensor(self._user), self._tensor(places if keep else lengths - 1)].float()
        self.normalizer = log_normalizer(self.logits)
        self._slot = self._user  # of each prefix, the row of its logits

    def log_probs(self, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Return the log-probs of next tokens; see `Prefixes`."""
        first, end = self._ahead[rows].T
        known = first < end
        logps = np.empty(len(rows))
        logps[known] = self._known[first[known]]
        logps[~known] = super().log_probs(self._slot[rows[~known]], tokens[~known])
        return logps

    def extend(self, parents: np.ndarray, tokens: np.ndarray, owners: np.ndarray, forced: np.ndarray) -> None:
        """Go on with some sequences; see `Prefixes`."""
        new = np.flatnonzero(self._ahead[parents, 0] == self._ahead[parents, 1])
        self._ahead = self._ahead[parents] + [1, 0]
        self._next_depth, self._sees, slots = self._next_depth[parents], self._sees[parents], self._slot[parents]
        users, self._user = np.unique(self._user[parents], return_inverse=True)
        if len(users) < len(self._depth):  # somebody's search has ended
            self._depth = self._depth[users]
            self._cache.reorder_cache(cast(torch.LongTensor, self._tensor(users)))
        slots[new] = len(self.logits) + np.arange(len(new))
        kept, self._slot = np.unique(slots, return_inverse=True)
        kept = kept[: len(kept) - len(new)]  # of those that are there; the new ones go behind them
        parts = [(_rows(self.logits, kept), _rows(self.normalizer, kept))]
        if len(new):
            parts.append(self._append(new, tokens, np.searchsorted(owners, [new, new + 1]), forced))
        parts = [part for part in parts if len(part[0])]
        self.logits, self.normalizer = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))

    def _append(
        self, new: np.ndarray, tokens: np.ndarray, bounds: np.ndarray, forced: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the tokens that follow prefixes.

        Args:
            new: Indices of the prefixes.
            tokens: The first token that follows each prefix.
            bounds: Where in `forced` the tokens of each of `new` begin and end that must follow then, (2, new).
            forced: These tokens.

        Returns:
            The logits after the last token of each prefix, (new, V), and what `log_normalizer` returns for them.
        """
        room = min(_AHEAD, max(self._most // len(new) - 1, 0))
        chain, places = ranges(bounds[0] - 1, np.minimum(bounds[1], bounds[0] + room))
        within = places - (bounds[0] - 1)[chain]  # place in its chain, of which 0 is the token of `tokens`
        chained = np.where(within == 0, tokens[new][chain], forced[places] if len(forced) else 0)
        last = np.append(np.flatnonzero(np.diff(chain)), len(chain) - 1)

        # The row and the column of each token: a user's tokens stand side by side
        user = self._user[new][chain]
        counts, order = np.bincount(user, minlength=len(self._depth)), np.argsort(user, kind="stable")
        column = np.empty(len(user), dtype=np.int64)
        column[order] = np.arange(len(user)) - np.repeat(np.cumsum(counts) - counts, counts)
        first, width = self._depth.shape[1], self._rounded(counts.max())
        ids, depth = np.zeros((2, len(counts), width), dtype=np.int64)
        ids[user, column], depth[user, column] = chained, self._next_depth[new][chain] + within
        sees = np.zeros((len(counts), width, first + width), dtype=bool)
        sees[:, np.arange(width), first + np.arange(width)] = True  # padding sees itself: no row of a mask is empty
        sees[user, column, :first] = self._sees[new][chain]
        token, seen = ranges(first + column - within, first + column)  # those before it in its own chain
        sees[user[token], column[token], seen] = True

        self._depth = np.concatenate([self._depth, depth], axis=1)
        self._sees = np.pad(self._sees, ((0, 0), (0, width)))
        self._sees[new] = sees[user[last], column[last]]
        self._next_depth[new] += within[last] + 1
        with branch_layout(self._tensor(self._depth), self._tensor(sees)):
            logits = _rows(self._forward(ids, depth).flatten(0, 1), user * width + column)

        # A token whose successor was computed too says how likely that is, and is not asked again
        before, ends = np.flatnonzero(within[1:]), len(self._known) + np.cumsum(within[last])
        self._ahead[new] = np.stack([ends - within[last], ends], axis=1)
        normalizer = log_normalizer(logits)
        successors = self._tensor(chained[before + 1])
        chosen = logits[self._tensor(before), successors].double() - normalizer[self._tensor(before)]
        self._known = np.append(self._known, chosen.cpu().numpy())
        return _rows(logits, last).float(), _rows(normalizer, last)

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

    def _rounded(self, columns: int) -> int:
        return -(-int(columns) // self._columns) * self._columns

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(self._device)


def _rows(values: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
    """Return rows of a tensor. Logits are large, and copied only where it is not all of them in their order."""
    if np.array_equal(rows, np.arange(len(values))):
        return values
    return values[torch.from_numpy(rows).to(values.device)]
