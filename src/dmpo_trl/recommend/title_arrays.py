"""The trie of titles as flat arrays, for tensors on any device and for files that other programs read."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from .catalogue import TitleTrie


@dataclass(frozen=True, eq=False)
class TitleArrays:
    """The trie of a catalogue's tokenised titles in compressed sparse rows (CSR). Node 0 is the root.

    Every title ends in `end_token`, which stands nowhere else. Where what ends a completion in training is such a
    token it is that one. Elsewhere (`end_appended`) a token that no title has is put behind each: it stands for the
    end alone, the model is not asked for its probability.

    Attributes:
        first_edge: The edges of node `n` are `first_edge[n]` to `first_edge[n + 1] - 1`, (nodes + 1,).
        edge_token: Token of each edge, rising within a node, (edges,).
        edge_child: Node that each edge leads to, (edges,).
        first_item: The items that end in node `n` are `item_row[first_item[n] : first_item[n + 1]]`, (nodes + 1,).
        item_row: Rows of items in the catalogue, (items,).
        end_token: The token that ends every title: `eos_token_id` for `generate`.
        end_appended: Whether it was put behind the titles.
        depth: Number of tokens of the longest title, its end included: `max_new_tokens` for `generate`.

    Example:
        >>> titles = TitleArrays.of(TitleTrie([[5, 6, 2], [5, 7, 2], [5, 2]]))
        >>> titles.end_token, titles.depth, titles.end_appended
        (2, 3, False)
        >>> titles.edge_token[titles.first_edge[1] : titles.first_edge[2]]  # after token 5: the end, 6 or 7
        array([2, 6, 7])
        >>> TitleArrays.of(TitleTrie([[5, 6], [5]]), spare=[5, 1]).end_token  # put behind titles without an end
        1
    """

    first_edge: np.ndarray
    edge_token: np.ndarray
    edge_child: np.ndarray
    first_item: np.ndarray
    item_row: np.ndarray
    end_token: int
    end_appended: bool
    depth: int

    @classmethod
    def of(cls, trie: TitleTrie, spare: Sequence[int] = ()) -> TitleArrays:
        """Return the arrays of a trie.

        Args:
            trie: The trie.
            spare: Tokens that may be put behind titles that no token of their own ends, for instance the tokenizer's
                special tokens; of these, and then of all, the first that no title has is taken.
        """
        nodes = len(trie.token)
        owner, child = trie.children(np.arange(nodes))
        token = trie.token[child]
        ends = np.flatnonzero(trie.ends_item)
        last = np.unique(trie.token[ends])
        appended = len(last) > 1 or (trie.token == last[0]).sum() > len(ends) or bool(np.isin(ends, owner).any())
        end_token = int(last[0])
        leaves = ends
        if appended:
            taken = set(token.tolist())
            end_token = next(one for one in [*spare, *range(len(taken) + 1)] if one not in taken)
            leaves = nodes + np.arange(len(ends))
            owner, child = np.append(owner, ends), np.append(child, leaves)
            token = np.append(token, np.full(len(ends), end_token))
            nodes += len(ends)
        order = np.lexsort((token, owner))
        at, rows = trie.items_at(ends)
        counts = np.zeros(nodes, dtype=np.int64)
        counts[leaves] = np.bincount(at, minlength=len(ends))
        return cls(
            first_edge=np.searchsorted(owner[order], np.arange(nodes + 1)),
            edge_token=token[order],
            edge_child=child[order],
            first_item=np.append(0, np.cumsum(counts)),
            item_row=rows,
            end_token=end_token,
            end_appended=appended,
            depth=trie.depth + appended,
        )

    @property
    def nodes(self) -> int:
        """Return the number of nodes."""
        return len(self.first_edge) - 1

    def rows_at(self, node: int) -> np.ndarray:
        """Return the rows of the items that end in a node; none where it is within a title, or -1."""
        return self.item_row[self.first_item[node] : self.first_item[node + 1]] if node >= 0 else self.item_row[:0]

    def blocked(self, rows: Iterable[int]) -> np.ndarray:
        """Return the nodes below which nothing is left when these items must not come out, in rising order.

        Args:
            rows: Rows of items.
        """
        leaf_of = np.empty(len(self.item_row), dtype=np.int64)
        leaf_of[self.item_row] = np.repeat(np.arange(self.nodes), np.diff(self.first_item))
        parent = np.full(self.nodes, -1)
        parent[self.edge_child] = np.repeat(np.arange(self.nodes), np.diff(self.first_edge))
        gone = np.bincount(leaf_of[sorted(set(rows))], minlength=self.nodes)
        found = np.flatnonzero((gone > 0) & (gone == np.diff(self.first_item)))
        blocked = [found]
        children = np.diff(self.first_edge)
        while len(found):  # a level at a time: what has lost its last child
            above, lost = np.unique(parent[found], return_counts=True)
            children[above[above >= 0]] -= lost[above >= 0]
            found = above[(above >= 0) & (children[above] == 0)]
            blocked.append(found)
        return np.unique(np.concatenate(blocked))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the arrays to a file in the format `.npz`, which needs no pickle.

        Args:
            path: The file, whatever its ending.

        Example:
            >>> titles.save("titles.npz")  # doctest: +SKIP
        """
        with open(path, "wb") as file:  # to a path, numpy would add an ending
            np.savez_compressed(file, allow_pickle=False, **asdict(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TitleArrays:
        """Read the arrays that `save` or `dmpo-trl export` wrote. Nothing in the file is run.

        Args:
            path: The file.

        Raises:
            ValueError: It holds something else, or is damaged.

        Example:
            >>> titles = TitleArrays.load("exported/titles.npz")  # doctest: +SKIP
        """
        try:
            with open(path, "rb") as file:
                arrays = np.load(file, allow_pickle=False)
                values = {name: arrays[name] for name in cls.__dataclass_fields__}
        except (LookupError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} does not hold the arrays of titles ({error}); export the model anew.") from error
        for name, convert in (("end_token", int), ("end_appended", bool), ("depth", int)):
            values[name] = convert(values[name])
        return cls(**values)
