"""Catalogue: items by id and by title, and the trie of their tokenised titles."""

from __future__ import annotations

import difflib
import logging
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import polars as pl
from transformers import PreTrainedTokenizerBase

from .._common_prefix import common_prefix_length
from ..data.prompts import PromptTemplate
from ..data.tidy import tidy_title, tidy_titles
from ..preprocessing.ties import pairs_of_equal_tokens, text_of, warn_of_equal_tokens
from ..preprocessing.tokenize import tokenize_completions

logger = logging.getLogger(__name__)

# What a title becomes depends on the end of the prompt before it. Prompts that agree in this many last tokens, or in
# those that follow the history if they are fewer, and in what some sample titles become after them, share a trie.
_TAIL = 8
_QUOTED = 200  # characters of an unknown title, which may be anything, that a message shows
_SAMPLES = 3
_TRIES_KEPT = 8
_AT_ONCE = 4096  # titles tokenised together: the prompt stands before each


class Catalogue:
    """Items that can be recommended, numbered by their row.

    Args:
        items: Columns `item` (String, unique) and `title` (String; several items may share one). Titles become what
            [`tidy_title`] makes of them, as in every reader.

    Attributes:
        frame: The table.
        items: Id of each item, by row.
        titles: Title of each item, by row.

    Raises:
        ValueError: A column is missing, there are no rows, an item is null, empty or repeated, or a title is null or
            empty.

    Example:
        >>> catalogue = Catalogue(pl.DataFrame({"item": [7, 8], "title": ["Alien", "Heidi"]}))
        >>> catalogue.rows(["8", "Alien"], "history")
        [1, 0]
    """

    def __init__(self, items: pl.DataFrame) -> None:
        if missing := {"item", "title"} - set(items.columns):
            raise ValueError(f"items: no column {sorted(missing)[0]!r}; the columns are {items.columns}.")
        items = items.with_columns(pl.col("item", "title").cast(pl.String))
        titles, changed = tidy_titles(items["title"])
        if changed:
            logger.info("Titles of the catalogue changed, as in every reader: %s", changed)
        items = items.with_columns(titles)
        if items.is_empty():
            raise ValueError("items: no rows, so there is nothing to recommend.")
        bad = items.filter(pl.any_horizontal(pl.col("item", "title").fill_null("") == ""))
        if not bad.is_empty():
            raise ValueError(f"items: {bad.height} row(s) without an item or a title; the first is {bad.row(0)}.")
        if repeated := items.filter(items["item"].is_duplicated())["item"].to_list():
            raise ValueError(f"items: item {repeated[0]!r} is in several rows; keep one.")
        self.frame = items
        self.items: list[str] = items["item"].to_list()
        self.titles: list[str] = items["title"].to_list()
        self._row = {item: row for row, item in enumerate(self.items)}
        self._rows_of_title: dict[str, list[int]] = {}
        for row, title in enumerate(self.titles):
            self._rows_of_title.setdefault(title, []).append(row)

    def rows(self, entries: Iterable[str], what: str) -> list[int]:
        """Return the row of each entry, an item id or a title (the first item of that title).

        Args:
            entries: Item ids or titles, which may differ in white space and the like (see [`tidy_title`]). What is
                both counts as an id.
            what: Name of the argument, for the message.

        Raises:
            ValueError: An entry is neither, and the message gives the closest titles; or `entries` is a text, not a
                list.
        """
        if isinstance(entries, str):  # else each letter would be looked up, and "12" be the items "1" and "2"
            raise ValueError(f"{what}: give a list of items, not the text {_quoted(entries)}.")
        rows = []
        for entry in entries:
            row = self._row.get(entry)
            if row is None:
                title = tidy_title(entry) if isinstance(entry, str) else entry
                row = self._rows_of_title.get(title, [None])[0]
            if row is None:
                close = difflib.get_close_matches(str(entry), self.titles, n=3, cutoff=0.5)
                close = [str(entry)] if str(entry) in self._row else close  # a number: ids are texts
                hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
                raise ValueError(f"{what}: {_quoted(entry)} is neither an item id nor a title of the catalogue.{hint}")
            rows.append(row)
        return rows

    def of_same_title(self, rows: Iterable[int]) -> list[int]:
        """Return the rows of all items that have the title of one of `rows`: a model cannot tell them apart.

        Args:
            rows: Rows of items.
        """
        return [row for title in {self.titles[row] for row in rows} for row in self._rows_of_title[title]]


def _quoted(entry: object) -> str:
    text = repr(entry)
    return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}... ({len(text):,} characters)"


class TitleTrie:
    """Token sequences merged into a tree; node 0 is the root, nodes are numbered in depth-first order.

    Args:
        sequences: Token ids of each title, by the item's row. Equal sequences end in the same node.

    Attributes:
        token: Token of each node, (nodes,); -1 for the root.
        count: Number of items that end in each node or below it, (nodes,).
        ends_item: Whether an item ends in each node, (nodes,).
        depth: Number of tokens of the longest sequence.

    Example:
        >>> trie = TitleTrie([[5, 6], [5, 7], [5]])  # 5 begins three titles and ends one
        >>> trie.token.tolist(), trie.count.tolist(), trie.ends_item.tolist()
        ([-1, 5, 6, 7], [3, 3, 1, 1], [False, True, True, True])
    """

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        token, parent, depth = array("q", [-1]), array("q", [-1]), array("q", [0])  # of a million nodes and more
        self._end = np.empty(len(sequences), dtype=np.int64)  # the node that each item ends in
        self._order = np.array(sorted(range(len(sequences)), key=lambda row: list(sequences[row])))
        path = [0]
        previous: Sequence[int] = []
        for row in self._order:
            ids = sequences[row]
            shared = common_prefix_length(previous, ids)
            del path[shared + 1 :]
            for position in range(shared, len(ids)):
                parent.append(path[-1])
                path.append(len(token))
                token.append(ids[position])
                depth.append(position + 1)
            self._end[row] = path[-1]
            previous = ids
        self.token, self._parent = np.array(token, dtype=np.int64), np.array(parent, dtype=np.int64)
        self._sorted_end = self._end[self._order]
        self._children = np.argsort(self._parent, kind="stable")[1:]  # grouped by parent
        self._first_child = np.searchsorted(self._parent[self._children], np.arange(len(token) + 1))
        self.count = np.bincount(self._end, minlength=len(token))
        self.ends_item = self.count > 0
        self.depth = max(depth)
        by_depth = np.argsort(depth, kind="stable")
        levels = np.split(by_depth, np.flatnonzero(np.diff(np.array(depth)[by_depth])) + 1)
        for nodes in levels[:0:-1]:
            np.add.at(self.count, self._parent[nodes], self.count[nodes])
        # In depth-first order an only child is the next node: what must follow a node are the tokens up to the first
        # one that has not a single child, or whose child is the end of a title
        children = np.append(np.diff(self._first_child), 0)
        stops = np.flatnonzero((children[:-1] != 1) | (children[1:] == 0))
        self._forced_end = stops[np.searchsorted(stops, np.arange(len(token)))] + 1

    def items_at(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the items that end in several nodes: the index of each one's node in `nodes`, and its row.

        Those of a node are in catalogue order.
        """
        owner, places = ranges(*np.searchsorted(self._sorted_end, [nodes, nodes + 1]))
        return owner, self._order[places]

    def excluded_counts(self, rows: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
        """Count how many of these items end in or below a node: the nodes on their paths, sorted, and the counts."""
        nodes = self._end[sorted(set(rows))]
        paths = []
        while len(nodes):
            paths.append(nodes)
            nodes = self._parent[nodes]
            nodes = nodes[nodes >= 0]
        return np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *paths]), return_counts=True)

    def children(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the children of several nodes: the index of each one's parent in `nodes`, and its node."""
        owner, places = ranges(self._first_child[nodes], self._first_child[nodes + 1])
        return owner, self._children[places]

    def forced_after(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the tokens that must follow several nodes: the index of each one's node in `nodes`, and the token.

        They end where the trie branches, or with the last token but one.
        """
        owner, places = ranges(nodes + 1, self._forced_end[nodes])
        return owner, self.token[places]


def ranges(first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers from `first` to before `last` of several ranges, one after the other.

    Args:
        first: Where each range begins, (ranges,).
        last: Where it ends, at least its beginning, (ranges,).

    Returns:
        The index of each number's range, and the numbers, (numbers,).

    Example:
        >>> ranges(np.array([5, 9, 2]), np.array([7, 9, 3]))
        (array([0, 0, 2]), array([5, 6, 2]))
    """
    lengths = last - first
    owner = np.repeat(np.arange(len(first)), lengths)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths - first, lengths)


class PromptTries:
    """Prompts tokenised together with the catalogue's titles, exactly as in training.

    A trie is built once and serves every prompt that ends in the same tokens and after which a few sample titles
    become the same tokens, as do all prompts of a template: they end in the same question, or at least in the same
    chat markers or line break. Any other prompt gets a trie of its own. The latest few tries are kept.

    Args:
        tokenizer: The tokenizer.
        titles: The titles, by row.
        template: Makes the prompts and completions.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, titles: Sequence[str], template: PromptTemplate) -> None:
        self._tokenizer = tokenizer
        self._completions = [template.completion(title) for title in titles]
        by_title = sorted(range(len(titles)), key=titles.__getitem__)
        self._samples = [self._completions[row] for row in by_title[:: max(1, len(titles) // _SAMPLES)]]
        after = template.around()[-1]
        self._tail = min(_TAIL, self._common_end(*(template.messages(f"{item}{after}") for item in "Q7"))) or _TAIL
        self._tries: dict[Any, tuple[int, TitleTrie]] = {}

    def __call__(self, prompt: Any) -> tuple[list[int], TitleTrie]:
        """Return the token ids of a prompt (cut where a title's tokens begin) and the trie of the titles after it."""
        prompt_ids, samples = self._tokenize(prompt, self._samples)
        key = (tuple(prompt_ids[-self._tail :]), tuple(map(tuple, samples)))
        if key not in self._tries:
            own_ids, sequences = self._tokenize(prompt, self._completions)
            if not own_ids:
                raise ValueError(f"No token of the prompt {prompt!r} is left before the titles; begin it otherwise.")
            all_equal = not isinstance(prompt, str) and len(set(map(tuple, sequences))) == 1
            if all_equal and len({text_of(completion).strip().casefold() for completion in self._completions}) > 1:
                raise ValueError(
                    "All titles have the same tokens: the chat template leaves the text of a message out, as one does "
                    "that takes lists of parts. Use a tokenizer whose template takes text, or train on plain text."
                )
            warn_of_equal_tokens(pairs_of_equal_tokens(self._completions, sequences))
            cut = len(prompt_ids) - len(own_ids)
            trie = TitleTrie(sequences)
            logger.info("Built a trie of %d nodes over %d titles", len(trie.token), len(sequences))
            if cut >= self._tail:  # the titles begin before the tokens that were compared
                return own_ids, trie
            while len(self._tries) >= _TRIES_KEPT:
                del self._tries[next(iter(self._tries))]
            self._tries[key] = cut, trie
        cut, trie = self._tries[key]
        return prompt_ids[: len(prompt_ids) - cut], trie

    def _common_end(self, *prompts: Any) -> int:
        """Return how many tokens two prompts have in common at their end."""
        first, second = (self._tokenize(prompt, self._samples)[0][::-1] for prompt in prompts)
        return common_prefix_length(first, second)

    def _tokenize(self, prompt: Any, completions: Sequence[Any]) -> tuple[list[int], list[list[int]]]:
        parts = [
            tokenize_completions(
                self._tokenizer,
                prompt,
                completions[first : first + _AT_ONCE],
                special_tokens_in_text=False,
            )
            for first in range(0, len(completions), _AT_ONCE)
        ]
        prompt_ids = min((ids for ids, _ in parts), key=len)  # where the first title of all begins
        return prompt_ids, [ids[len(prompt_ids) :] + title for ids, titles in parts for title in titles]
