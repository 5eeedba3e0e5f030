"""Blocks of a row's attention: which squares of queries and keys a kernel visits, from `subtree_end` alone."""

from collections.abc import Iterable

import torch

from .lengths import BLOCK


def visible_blocks(subtree_end: torch.Tensor, block: int = BLOCK) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which blocks have a visible pair of a query and a key, and which have visible pairs only.

    Token q sees token k if and only if `k <= q < subtree_end[k]`. Block (i, j) holds the queries from `block * i` and
    the keys from `block * j` on. It has a visible pair if and only if j = i, or j < i and one of its keys has an end
    beyond the first query, `max(end in j) > block * i`; and visible pairs only if and only if j < i and all keys have
    ends beyond the last query, `min(end in j) >= block * (i + 1)`. So no tensor has the square of a row's length.

    Args:
        subtree_end: Index just past each token's last descendant, (rows, length), on any device. A last block that is
            not full goes on as padding, of which each token is a tree of its own.
        block: Tokens of a block.

    Returns:
        `visited` and `full`, (rows, blocks of queries, blocks of keys) each; what is full is visited.

    Example:
        >>> visited, full = visible_blocks(torch.tensor([[6, 6, 4, 4, 6, 6]]), block=2)
        >>> visited[0].int().tolist(), full[0].int().tolist()
        ([[1, 0, 0], [1, 1, 0], [1, 0, 1]], [[0, 0, 0], [1, 0, 0], [1, 0, 0]])
    """
    rows, length = subtree_end.shape
    count = -(-length // block)
    padding = torch.arange(length + 1, count * block + 1, device=subtree_end.device).expand(rows, -1)
    ends = torch.cat([subtree_end, padding], dim=1).view(rows, 1, count, block)
    first = block * torch.arange(count, device=subtree_end.device)[:, None]  # of each block of queries, (count, 1)
    before = first > first.T
    visited = before & (ends.amax(-1) > first)
    full = before & (ends.amin(-1) >= first + block)
    return visited | (first == first.T), full


def count_visible_blocks(runs: Iterable[tuple[int, int]], length: int, block: int = BLOCK) -> int:
    """Count the blocks of one row that [`visible_blocks`] finds to have a visible pair, without its tensors.

    Blocks of queries see a block of keys up to the last descendant of any key in it. So the blocks of a row of any
    length are counted in as many steps as it has runs and blocks of keys.

    Args:
        runs: Of each run of tokens with a common end, the number of its tokens, and how many tokens after its first
            one the subtree of all of them ends. What follows the last run is padding.
        length: Tokens of the row, a multiple of `block`.
        block: Tokens of a block.

    Example:
        >>> count_visible_blocks([(2, 6), (2, 2), (2, 2)], length=6, block=2)
        5
    """
    last = list(range(block, length + 1, block))  # a query sees itself: the end of the block at least
    start = 0
    for tokens, end in runs:
        for index in range(start // block, -(-(start + tokens) // block)) if tokens else ():
            last[index] = max(last[index], start + end)
        start += tokens
    return sum(-(-end // block) - index for index, end in enumerate(last))
