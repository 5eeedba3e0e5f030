"""Prefix tries: which tokens of a batch stand in which row, what each sees, and what scores which completion.

A row is a forest of token sequences in depth-first order. Three vectors describe it: the token ids, the depth of each
node (its position id), and the index just past its last descendant (`subtree_end`). Token `q` sees token `k` if and
only if `k <= q < subtree_end[k]`: its ancestors and itself. Pure Python; tensors begin in the collator.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from .._common_prefix import common_prefix_length

TokenIds = Sequence[int]


@dataclass
class Row:
    """One row of a batch and the completions it scores.

    Attributes:
        input_ids: Token of each node, in depth-first order.
        position_ids: Depth of each node in its tree.
        subtree_end: Index just past each node's last descendant.
        scored_nodes: Nodes whose prediction is scored, one entry for each distinct (node, next token).
        scored_targets: The next token of each of these entries.
        completions: For each completion, by its index in the batch, the entries whose log-probs add up to its own.
    """

    input_ids: list[int] = field(default_factory=list)
    position_ids: list[int] = field(default_factory=list)
    subtree_end: list[int] = field(default_factory=list)
    scored_nodes: list[int] = field(default_factory=list)
    scored_targets: list[int] = field(default_factory=list)
    completions: dict[int, list[int]] = field(default_factory=dict)


def build_row(
    prompts: Sequence[TokenIds], completions: Sequence[Sequence[TokenIds]], numbers: Sequence[int] | None = None
) -> Row:
    """Merge sequences `prompt + completion` into one row in which every distinct prefix stands once.

    The last token of a sequence predicts nothing, so it gets no node of its own. The first token of a sequence has
    no predecessor: it is scored only where the prompt is not empty, as everywhere in language modelling.

    Args:
        prompts: Token ids of each prompt.
        completions: For each prompt, the token ids of its completions.
        numbers: The completions' indices in the batch, in the order given; 0, 1, 2, ... by default.

    Returns:
        The row. Its completions come in the order given.
    """
    counter = count() if numbers is None else iter(numbers)
    own_numbers = [[next(counter) for _ in own] for own in completions]
    row = Row(completions={number: [] for own in own_numbers for number in own})
    path: list[int] = []  # nodes of the sequence before, root first
    for trunk, shared, branches in _branches(prompts, completions, own_numbers):
        _leave(row, path, shared)
        _enter(row, path, trunk[shared:])
        _add_branches(row, path, branches)
    _leave(row, path, 0)
    return row


def count_nodes(prompts: Sequence[TokenIds], completions: Sequence[Sequence[TokenIds]]) -> int:
    """Count the tokens of the row that `build_row` makes.

    Args:
        prompts: Token ids of each prompt.
        completions: For each prompt, the token ids of its completions.

    Example:
        >>> count_nodes([[1, 2]], [[[3, 4], [3, 5], [6]]])
        3
    """
    number = 0
    for trunk, shared, branches in _branches(prompts, completions, completions):
        number += len(trunk) - shared
        previous: list[int] = []
        for ids, _, _ in branches:
            nodes = ids[:-1]
            number += len(nodes) - common_prefix_length(previous, nodes)
            previous = nodes
    return number


_Branch = tuple[list[int], Any, int]


def _branches(
    prompts: Sequence[TokenIds], completions: Sequence[Sequence[TokenIds]], numbers: Sequence[Sequence[Any]]
) -> Iterator[tuple[list[int], int, list[_Branch]]]:
    """Yield groups of sequences that begin with the same trunk, in lexicographic order.

    Args:
        prompts: Token ids of each prompt.
        completions: For each prompt, the token ids of its completions.
        numbers: What each completion is called.

    Yields:
        The trunk, how many of its tokens it shares with the one before, and its branches, in lexicographic order: what
        follows the trunk, the completion's number, and the place of its first scored token.
    """
    lists = [list(prompt) for prompt in prompts]
    before: list[int] = []
    for stem, members in _groups_by_stem(lists):
        # The stem's last token may predict, so a branch begins with it
        trunk, last = stem[:-1], stem[-1:]
        branches = [
            (last + lists[i][len(stem) :] + list(completion), number, max(len(lists[i]), 1) - len(trunk))
            for i in members
            for completion, number in zip(completions[i], numbers[i], strict=True)
        ]
        if branches:
            yield trunk, min(common_prefix_length(before, stem), len(trunk)), sorted(branches)
            before = stem


def _add_branches(row: Row, path: list[int], branches: list[_Branch]) -> None:
    """Add sequences below the last node of `path`, and what they score.

    Args:
        row: The row.
        path: Nodes that all branches begin below.
        branches: Tokens of each, in lexicographic order, so that each shares its longest prefix with the one before
            it: depth-first order. With it the number of its completion, and the place of its first scored token.
    """
    depth = len(path)
    previous: list[int] = []
    entries: list[int] = []  # of each token of the branch but the first, the scored entry; -1 where nobody scores it
    for ids, number, start in branches:
        same = common_prefix_length(previous, ids)
        _leave(row, path, depth + min(same, max(len(previous) - 1, 0), max(len(ids) - 1, 0)))
        _enter(row, path, ids[len(path) - depth : -1])
        previous = ids
        del entries[max(same - 1, 0) :]
        new = max(start - 1, len(entries))
        for place in range(start - 1, len(entries)):
            if entries[place] < 0:  # a completion that begins later, behind a longer prompt, did not score it
                entries[place] = len(row.scored_nodes)
                row.scored_nodes.append(path[depth + place])
                row.scored_targets.append(ids[place + 1])
        entries += [-1] * (new - len(entries))
        first, count_new = len(row.scored_nodes), max(len(ids) - 1 - new, 0)
        entries += range(first, first + count_new)
        row.scored_nodes += path[depth + new :]
        row.scored_targets += ids[new + 1 :]
        row.completions[number] = entries[start - 1 :]


def _groups_by_stem(prompts: list[list[int]]) -> list[tuple[list[int], list[int]]]:
    """Group prompts by the shortest of them that each begins with, its stem, in lexicographic order.

    No stem is the beginning of another, so that all sequences of a group stand before those of the next.
    """
    groups: list[tuple[list[int], list[int]]] = []
    for i in sorted(range(len(prompts)), key=prompts.__getitem__):
        stem = groups[-1][0] if groups else None
        if stem is not None and prompts[i][: len(stem)] == stem:
            groups[-1][1].append(i)
        else:
            groups.append((prompts[i], [i]))
    return groups


def _enter(row: Row, path: list[int], tokens: list[int]) -> None:
    """Append nodes below the last one of `path`."""
    first, depth = len(row.input_ids), len(path)
    path += range(first, first + len(tokens))
    row.input_ids += tokens
    row.position_ids += range(depth, depth + len(tokens))
    row.subtree_end += [-1] * len(tokens)


def _leave(row: Row, path: list[int], depth: int) -> None:
    """End the subtrees of the nodes from `depth` on."""
    for node in path[depth:]:
        row.subtree_end[node] = len(row.input_ids)
    del path[depth:]


def join_trees(trees: Sequence[Row]) -> Row:
    """Join `trees` side by side in one row; what they have in common is not shared."""
    row = Row()
    for tree in trees:
        nodes, entries = len(row.input_ids), len(row.scored_nodes)
        row.input_ids += tree.input_ids
        row.position_ids += tree.position_ids
        row.subtree_end += [nodes + end for end in tree.subtree_end]
        row.scored_nodes += [nodes + node for node in tree.scored_nodes]
        row.scored_targets += tree.scored_targets
        row.completions |= {number: [entries + i for i in own] for number, own in tree.completions.items()}
    return row


def plan_trees(prompts: Sequence[TokenIds], sizes: Sequence[int], balance: float) -> list[tuple[int, list[int]]]:
    """Distribute examples over trees so that sharing a prefix pays for the wider attention it brings.

    A tree of L tokens costs `L + L**2 / balance`: the second term is dense attention, and `balance` the length at
    which it costs as much as all the rest. An example joins the tree of the example whose prompt resembles its own
    most when that costs less than a tree to itself.

    Args:
        prompts: Token ids of each example's prompt.
        sizes: Number of tokens that each example needs alone.
        balance: Length, in tokens, at which attention costs as much as the rest of the model.

    Returns:
        Of each tree, the number of tokens and the indices of the examples.
    """

    def cost(length: int) -> float:
        return length + length**2 / balance

    trees: list[tuple[int, list[int]]] = []
    previous = -1
    for example in sorted(range(len(prompts)), key=lambda i: list(prompts[i])):
        size = sizes[example]
        if trees:
            length, members = trees[-1]
            joint = length + size - common_prefix_length(prompts[previous], prompts[example])
            if cost(joint) <= cost(length) + cost(size):
                trees[-1] = (joint, [*members, example])
                previous = example
                continue
        trees.append((size, [example]))
        previous = example
    return trees


def pack(lengths: Sequence[int], capacity: int = 0) -> list[list[int]]:
    """Distribute trees over as few rows as possible, by first-fit decreasing bin packing.

    Args:
        lengths: Tokens of each tree.
        capacity: Tokens of a row; at least those of the longest tree, which every row is padded to anyway.

    Returns:
        The indices of the trees of each row.
    """
    capacity = max(capacity, *lengths)
    rows: list[tuple[int, list[int]]] = []
    for tree in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        for index, (filled, members) in enumerate(rows):
            if filled + lengths[tree] <= capacity:
                rows[index] = (filled + lengths[tree], [*members, tree])
                break
        else:
            rows.append((lengths[tree], [tree]))
    return [members for _, members in rows]


def plan_rows(prompts: Sequence[TokenIds], sizes: Sequence[int], balance: float) -> list[list[int]]:
    """Distribute examples over rows in which attention is dense: a row holds one tree, or several short ones.

    Args:
        prompts: Token ids of each example's prompt.
        sizes: Number of tokens that each example needs alone.
        balance: Length, in tokens, at which attention costs as much as the rest of the model; see `plan_trees`.

    Returns:
        The indices of the examples of each row.
    """
    trees = plan_trees(prompts, sizes, balance)
    return [[i for tree in row for i in trees[tree][1]] for row in pack([length for length, _ in trees])]
