"""Titles only, in plain `transformers.generate`: a logits processor over the arrays of a trie."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from transformers import LogitsProcessor

from .title_arrays import TitleArrays


class _Tensors(NamedTuple):
    """The arrays on a device, and what is looked up in them."""

    first_edge: torch.Tensor  # (nodes + 1,)
    token: torch.Tensor  # (edges,)
    child: torch.Tensor  # (edges,)
    edges: torch.Tensor  # node * stride + token of each edge, rising, (edges,)
    blocked: torch.Tensor  # prompt * nodes + node of each that must not come out, rising, (blocked,)


class TitleTrieLogitsProcessor(LogitsProcessor):
    """Lets only titles of the catalogue come out of `generate`, each with what ends a completion in training.

    Works for greedy search, beams and sampling, and for batches of prompts padded on the left. The arrays are moved to
    the logits' device once; a step is a handful of tensor operations for all beams of all prompts together.

    What may come next keeps its log-prob over the whole vocabulary, all else becomes minus infinity: the sum over a
    title is the score that [`Recommender.rank`] gives it, in nats. `generate` must be told of the end, with
    `eos_token_id=titles.end_token` and `max_new_tokens=titles.depth`; [`TitleGeneration`] does all of this.

    A row that has ended goes on with the end, at a score so low that no beam takes it.

    Args:
        titles: The titles as they continue the prompts.
        prompt_length: Number of columns of the prompts, padding included: `input_ids.shape[1]` before `generate`.
        excluded: Rows of items that must not come out, one entry per prompt; by default none. Where items share a
            title, it is out when all of them are.

    Raises:
        ValueError: An entry of `excluded` leaves no title.

    Example:
        >>> from dmpo_trl.recommend import TitleTrie
        >>> titles = TitleArrays.of(TitleTrie([[5, 6, 2], [5, 7, 2], [4, 2]]))
        >>> only_titles = TitleTrieLogitsProcessor(titles, prompt_length=3)
        >>> ids = torch.tensor([[0, 1, 3, 5], [1, 3, 3, 4]])  # one token of a title behind prompts of up to three
        >>> logits = torch.zeros(2, 8)
        >>> only_titles(ids, logits).isfinite().int().tolist()  # 6 or 7 go on, the other title ends
        [[0, 0, 0, 0, 0, 0, 1, 1], [0, 0, 1, 0, 0, 0, 0, 0]]
    """

    def __init__(
        self, titles: TitleArrays, prompt_length: int, excluded: Sequence[Iterable[int]] | None = None
    ) -> None:
        self.titles = titles
        self.prompt_length = prompt_length
        blocked = [titles.blocked(rows) for rows in excluded or ()]
        if empty := [prompt for prompt, nodes in enumerate(blocked) if 0 in nodes]:
            raise ValueError(f"excluded: prompt {empty[0]} has every title excluded, so nothing can come out.")
        self._prompts = max(len(blocked), 1)
        keys = [prompt * titles.nodes + nodes for prompt, nodes in enumerate(blocked)]
        self._blocked = np.concatenate([*keys, np.empty(0, dtype=np.int64)])
        self._most = int(max(titles.edge_token.max(), titles.end_token))
        self._stride = self._most + 2  # one more than there are tokens, for tokens that no title has
        self._tensors: _Tensors | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return the log-probs of the tokens that may come next, all others at minus infinity.

        Args:
            input_ids: Prompts and what was generated, (prompts x beams, length).
            scores: Logits or log-probs, (prompts x beams, vocabulary).

        Raises:
            ValueError: A title has a token that the model does not have, or the rows are not as many for each prompt.
        """
        if scores.shape[-1] <= self._most:
            raise ValueError(
                f"The titles have token {self._most}, the model {scores.shape[-1]} tokens. Use the tokenizer that the "
                "model was trained with."
            )
        if len(scores) % self._prompts:
            raise ValueError(f"{len(scores)} rows cannot be shared out among {self._prompts} prompts in `excluded`.")
        own = self._on(scores.device)
        nodes = self._walk(own, input_ids[:, self.prompt_length :])
        rows, edges = self._edges(own, nodes)
        tokens = own.token[edges]
        logps = scores[rows, tokens] - scores.logsumexp(-1)[rows]
        if self.titles.end_appended:
            logps = logps.masked_fill(tokens == self.titles.end_token, 0.0)
        allowed = torch.full_like(scores, -torch.inf)
        allowed[:, self.titles.end_token] = torch.finfo(scores.dtype).min
        allowed[rows, self.titles.end_token] = -torch.inf  # where something else may come
        allowed[rows, tokens] = logps
        return cast(torch.FloatTensor, allowed)

    def nodes(self, generated: torch.Tensor) -> torch.Tensor:
        """Return the node that each row of generated tokens ends in, (rows,): -1 where it is no beginning of a title.

        What follows the end of a title does not count.

        Args:
            generated: Tokens behind the prompts, (rows, length).
        """
        own = self._on(generated.device)
        nodes = self._walk(own, generated)
        return torch.where(nodes < self.titles.nodes, nodes, -1)

    def _on(self, device: torch.device) -> _Tensors:
        """Return the arrays on a device, with one node more that has no edges: for what is no title."""
        if self._tensors is None or self._tensors.token.device != device:
            titles = self.titles
            first = np.append(titles.first_edge, titles.first_edge[-1])
            keys = np.repeat(np.arange(titles.nodes), np.diff(titles.first_edge)) * self._stride + titles.edge_token
            arrays = (first, titles.edge_token, titles.edge_child, keys, self._blocked)
            self._tensors = _Tensors(*(torch.as_tensor(array, dtype=torch.int64, device=device) for array in arrays))
        return self._tensors

    def _walk(self, own: _Tensors, generated: torch.Tensor) -> torch.Tensor:
        """Return the node of each row; `titles.nodes` stands for none, and the end of a title is kept."""
        nodes = torch.zeros(len(generated), dtype=torch.int64, device=generated.device)
        for tokens in generated.clamp(max=self._stride - 1).unbind(1):
            wanted = nodes * self._stride + tokens
            place = torch.searchsorted(own.edges, wanted).clamp(max=len(own.edges) - 1)
            after = torch.where(own.edges[place] == wanted, own.child[place], self.titles.nodes)
            ended = (own.first_edge[nodes + 1] == own.first_edge[nodes]) & (nodes < self.titles.nodes)
            nodes = torch.where(ended, nodes, after)
        return nodes

    def _edges(self, own: _Tensors, nodes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the edges that lead on from the nodes: for each the index in `nodes`, and the edge."""
        counts = own.first_edge[nodes + 1] - own.first_edge[nodes]
        rows = torch.repeat_interleave(counts)
        within = torch.arange(len(rows), device=nodes.device) - (counts.cumsum(0) - counts)[rows]
        edges = own.first_edge[nodes][rows] + within
        if len(own.blocked):
            wanted = rows // (len(nodes) // self._prompts) * self.titles.nodes + own.child[edges]
            place = torch.searchsorted(own.blocked, wanted).clamp(max=len(own.blocked) - 1)
            open_ = own.blocked[place] != wanted
            rows, edges = rows[open_], edges[open_]
        return rows, edges
