"""Prefix tries: which tokens of a batch stand in which row, what each sees, and what scores which completion.

A row is a forest of token sequences in depth-first order. Three vectors describe it: the token ids, the depth of each
node (its position id), and the index just past its last descendant (`subtree_end`). Token `q` sees token `k` if and
only if `k <= q < subtree_end[k]`: its ancestors and itself. Pure Python; tensors begin in the collator.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

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
    sequences = [
        (list(prompt) + list(completion), len(prompt))
        for prompt, prompt_completions in zip(prompts, completions, strict=True)
        for completion in prompt_completions
    ]
    numbers = range(len(sequences)) if numbers is None else numbers
    row = Row(completions={number: [] for number in numbers})
    entries: dict[tuple[int, int], int] = {}
    path: list[int] = []  # nodes of the sequence before, root first
    previous: list[int] = []
    # In lexicographic order each sequence shares its longest prefix with the one before it: depth-first order
    for index in sorted(range(len(sequences)), key=lambda i: sequences[i][0]):
        ids, prompt_length = sequences[index]
        nodes = ids[:-1]
        shared = common_prefix_length(previous, nodes)
        for node in path[shared:]:
            row.subtree_end[node] = len(row.input_ids)
        del path[shared:]
        first, new = len(row.input_ids), len(nodes) - shared
        path += range(first, first + new)
        row.input_ids += nodes[shared:]
        row.position_ids += range(shared, len(nodes))
        row.subtree_end += [-1] * new
        previous = nodes
        start = max(prompt_length, 1)
        pairs = zip(path[start - 1 :], ids[start:], strict=True)
        row.completions[numbers[index]] = [entries.setdefault(pair, len(entries)) for pair in pairs]
    for node in path:
        row.subtree_end[node] = len(row.input_ids)
    row.scored_nodes = [node for node, _ in entries]
    row.scored_targets = [target for _, target in entries]
    return row


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
