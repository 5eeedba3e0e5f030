"""Beam search over a trie of titles: only titles of the catalogue can come out."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ...modeling.loading import evaluation_mode
from ..catalogue import TitleTrie
from .choice import open_prefixes
from .prefixes import Prefixes

logger = logging.getLogger(__name__)

_ROUNDING = 0.5  # nats; a title's score depends a little on what is computed beside it, most in half precision


class NonFiniteScoresError(ValueError):
    """A log-prob of a title is not a number, which is the model's fault and not the caller's."""

    def __init__(self) -> None:
        super().__init__(
            "The model's log-probs of titles are not finite; try another dtype, for instance dtype='float32'."
        )


@dataclass
class Search:
    """The beam search of one user.

    Args:
        prompt_ids: Token ids of the prompt.
        trie: The titles as they continue this prompt.
        excluded: Rows of items that must not come out.
        k: Number of items wanted.
    """

    prompt_ids: Sequence[int]
    trie: TitleTrie
    excluded: Iterable[int]
    k: int
    nodes: np.ndarray = field(init=False)  # of the beams, (beams,)
    scores: np.ndarray = field(init=False)  # summed log-probs, (beams,)
    found: list[tuple[float, int]] = field(init=False, default_factory=list)  # (score, row), best first
    left_out: float = field(init=False, default=-np.inf)  # best score of a beginning that was not followed
    floor: float = field(init=False, default=-np.inf)  # what scores less cannot be among the k best

    def __post_init__(self) -> None:
        self.excluded = frozenset(self.excluded)
        self._excluded_rows = np.array(sorted(self.excluded), dtype=np.int64)
        self._excluded_nodes, self._excluded_counts = self.trie.excluded_counts(self.excluded)
        self._begin()

    def _begin(self) -> None:
        self.nodes, self.scores = np.zeros(1, dtype=np.int64), np.zeros(1)
        if self._remaining(self.nodes)[0] == 0:
            self.nodes, self.scores = self.nodes[:0], self.scores[:0]

    @property
    def proven(self) -> bool:
        """Return whether what was found is what scoring every item would give.

        A score only falls as tokens are added, so that nothing can come of a beginning that is below the k-th item.
        """
        return self.left_out == -np.inf or (len(self.found) == self.k and self.left_out < self.found[-1][0])

    def restart(self) -> None:
        """Begin again, to be run with more beams; what the first run found bounds the second."""
        if len(self.found) == self.k:
            self.floor = self.found[-1][0] - _ROUNDING
        self.found, self.left_out = [], -np.inf
        self._begin()

    def _remaining(self, nodes: np.ndarray) -> np.ndarray:
        """Return the number of items in and below each node that may come out."""
        remaining = self.trie.count[nodes]
        if len(self._excluded_nodes):
            place = np.searchsorted(self._excluded_nodes, nodes).clip(max=len(self._excluded_nodes) - 1)
            remaining = remaining - np.where(self._excluded_nodes[place] == nodes, self._excluded_counts[place], 0)
        return remaining

    def children(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the nodes that the beams may go on to: for each the index of its beam, and its node."""
        owner, children = self.trie.children(self.nodes)
        allowed = self._remaining(children) > 0
        return owner[allowed], children[allowed]

    def advance(self, owner: np.ndarray, children: np.ndarray, logps: np.ndarray, num_beams: int) -> np.ndarray:
        """Take in the log-probs of the children and keep the best as the new beams; return their parents' indices."""
        scores = self.scores[owner] + logps
        remaining = self._remaining(children)
        ends = np.flatnonzero(self.trie.ends_item[children])
        if len(ends):
            at, rows = self.trie.items_at(children[ends])
            allowed = ~np.isin(rows, self._excluded_rows)
            at, rows = ends[at[allowed]], rows[allowed]
            remaining -= np.bincount(at, minlength=len(remaining))
            found = [*self.found, *zip(scores[at].tolist(), rows.tolist(), strict=True)]
            # Equal scores come out in the order of the catalogue
            self.found = heapq.nsmallest(self.k, found, key=lambda entry: (-entry[0], entry[1]))

        # A score only falls as tokens are added: what is below the k-th item found cannot get among the k
        bar = self.found[-1][0] if len(self.found) == self.k else self.floor
        kept = np.flatnonzero((remaining > 0) & (scores >= bar))
        if len(kept) > num_beams:
            kept = kept[np.argsort(-scores[kept], kind="stable")]
            self.left_out = max(self.left_out, float(scores[kept[num_beams]]))
            kept = kept[:num_beams]
        self.nodes, self.scores = children[kept], scores[kept]
        return owner[kept]


@torch.no_grad()
def beam_search(model: Any, searches: Sequence[Search], num_beams: int) -> None:
    """Run the searches together; afterwards their `found` holds the best items.

    At each step a search scores every child of its beams and goes on with the `num_beams` best that do not end. Every
    title that a beam completes is found, with its own exact score; the beam limits only which beginnings are followed.
    With as many beams as the trie has nodes on a level the search is exhaustive.

    The rule is that of transformers' `generate` with `num_beams`, `length_penalty=0` and `early_stopping="never"`,
    except that there a title that ends outside the `num_beams` best of its step is lost.

    Args:
        model: A causal language model of transformers, or a `PeftModel` around one, in evaluation mode.
        searches: One search per user.
        num_beams: Number of beginnings that each search follows.

    Raises:
        NonFiniteScoresError: A log-prob of a token that may come next is not finite.
    """
    searches = [search for search in searches if len(search.nodes)]
    if not searches:
        return
    with open_prefixes(model, [search.prompt_ids for search in searches]) as prefixes:
        while searches:
            searches = _step(prefixes, searches, num_beams)


def exact_search(model: Any, searches: Sequence[Search], num_beams: int) -> None:
    """Run beam searches with ever more beams until what each has found is proven to be the best of all items.

    Args:
        model: See `beam_search`.
        searches: One search per user.
        num_beams: Number of beams of the first run; each further one, of the searches that need it, has four times as
            many, and drops at once what the one before has shown to be too low.
    """
    while searches:
        beam_search(model, searches, num_beams)
        searches = [search for search in searches if not search.proven]
        num_beams *= 4
        for search in searches:
            search.restart()


def every_item(model: Any, searches: Sequence[Search], num_beams: int) -> None:
    """Find every item that may come out, in the order of the catalogue: for scores that beginnings do not bound.

    Args:
        model: Not needed.
        searches: One search per user; what they find has no score yet.
        num_beams: Not needed.
    """
    for search in searches:
        search.found = [(0.0, row) for row in range(search.trie.count[0]) if row not in search.excluded]


def _step(prefixes: Prefixes, searches: list[Search], num_beams: int) -> list[Search]:
    """Add a token to the beams of all searches; return the searches that have beams left."""
    proposals = [search.children() for search in searches]
    first_rows = np.cumsum([0, *(len(search.nodes) for search in searches[:-1])])
    rows = np.concatenate([first + owner for first, (owner, _) in zip(first_rows, proposals, strict=True)])
    tokens = np.concatenate([search.trie.token[nodes] for search, (_, nodes) in zip(searches, proposals, strict=True)])
    all_logps = prefixes.log_probs(rows, tokens)
    if not np.isfinite(all_logps).all():  # else a title that it concerns would be missing without a word
        raise NonFiniteScoresError
    logps = np.split(all_logps, np.cumsum([len(owner) for owner, _ in proposals])[:-1])
    parents = [
        first + search.advance(owner, nodes, own_logps, num_beams)
        for first, search, (owner, nodes), own_logps in zip(first_rows, searches, proposals, logps, strict=True)
    ]
    searches = [search for search in searches if len(search.nodes)]
    if searches:
        tokens = np.concatenate([search.trie.token[search.nodes] for search in searches])
        beams = np.cumsum([0, *(len(search.nodes) for search in searches)])
        forced = [search.trie.forced_after(search.nodes) for search in searches]
        owners = np.concatenate([first + owner for first, (owner, _) in zip(beams, forced, strict=False)])
        prefixes.extend(np.concatenate(parents), tokens, owners, np.concatenate([own for _, own in forced]))
    return searches


def find(model: Any, searches: Sequence[Search], k: int, num_beams: int, *, exact: bool, by_sum: bool) -> None:
    """Run the searches in the way that is asked for; afterwards their `found` holds what there is to choose from.

    Args:
        model: See `beam_search`; in any mode.
        searches: One search per user.
        k: How many items each user gets in the end.
        num_beams: Number of beginnings that each search follows.
        exact: Whether the best of all items must be among what is found.
        by_sum: Whether items are ordered by the sum of log-probs, which bounds what can come of a beginning; for
            another order an exact search leaves every item to be scored.

    Raises:
        NonFiniteScoresError: A score is not finite.
    """
    with evaluation_mode(model):
        (beam_search if not exact else exact_search if by_sum else every_item)(model, searches, num_beams)
    log_short([len(search.found) for search in searches], k)


def log_short(found: Sequence[int], k: int, where: str = "items left in the catalogue") -> None:
    """Log where fewer items were found than asked for.

    Args:
        found: Number of items of each user.
        k: How many each was to get.
        where: What there are too few of, for the message.
    """
    if short := [count for count in found if count < k]:
        logger.warning(
            "k=%d, but %d of %d users have fewer %s, and get all of them (at least %d).",
            *(k, len(short), len(found), where, min(short)),
        )
