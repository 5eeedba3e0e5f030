import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmpo_trl._common_prefix import common_prefix_length
from dmpo_trl.batching.trie import build_row, join_trees, pack, plan_rows

# Few distinct tokens, so that sequences share prefixes often
ids = st.lists(st.integers(0, 2), max_size=6)
completion = st.lists(st.integers(0, 2), min_size=1, max_size=5)
examples = st.lists(st.tuples(ids, st.lists(completion, min_size=1, max_size=4)), min_size=1, max_size=4)


def ancestors(row, node):
    """Tokens that `node` sees, by the mask's definition."""
    return [row.input_ids[k] for k in range(node + 1) if node < row.subtree_end[k]]


@given(ids, ids)
def test_common_prefix_length(a, b):
    length = common_prefix_length(a, b)
    assert a[:length] == b[:length]
    assert length == min(len(a), len(b)) or a[length] != b[length]


@given(examples)
def test_every_scored_token_sees_its_own_prefix_and_nothing_else(batch):
    prompts, completions = zip(*batch, strict=True)
    row = build_row(prompts, completions)
    sequences = [(prompt, option) for prompt, options in batch for option in options]
    for number, (prompt, option) in enumerate(sequences):
        whole = prompt + option
        start = max(len(prompt), 1)
        entries = row.completions[number]
        assert [row.scored_targets[entry] for entry in entries] == whole[start:]
        for position, entry in enumerate(entries, start):
            node = row.scored_nodes[entry]
            assert ancestors(row, node) == whole[:position]
            assert row.position_ids[node] == position - 1


@given(examples)
def test_every_distinct_prefix_stands_once(batch):
    prompts, completions = zip(*batch, strict=True)
    row = build_row(prompts, completions)
    prefixes = {
        tuple((prompt + option)[:length])
        for prompt, options in batch
        for option in options
        for length in range(1, len(prompt + option))
    }
    assert len(row.input_ids) == len(prefixes)
    assert {tuple(ancestors(row, node)) for node in range(len(row.input_ids))} == prefixes
    pairs = list(zip(row.scored_nodes, row.scored_targets, strict=True))
    assert len(pairs) == len(set(pairs))


def test_numbers_name_the_completions():
    row = build_row([[1], [2]], [[[3], [4]], [[5]]], numbers=[7, 8, 2])
    assert list(row.completions) == [7, 8, 2]


@settings(max_examples=200)
@given(
    st.lists(st.tuples(ids, st.integers(1, 30)), min_size=1, max_size=8),
    st.sampled_from([1.0, 20.0, 1e3, float("inf")]),
)
def test_rows_hold_every_example_once(prompts_and_sizes, balance):
    prompts, extra = zip(*prompts_and_sizes, strict=True)
    sizes = [len(prompt) + more for prompt, more in zip(prompts, extra, strict=True)]
    rows = plan_rows(prompts, sizes, balance)
    assert sorted(example for row in rows for example in row) == list(range(len(prompts)))


def test_examples_of_one_history_share_a_row_and_strangers_do_not():
    history, other = list(range(100)), list(range(500, 600))
    prompts = [[*history, 1], [*other, 2], [*history, 3], [*other, 4]]
    rows = plan_rows(prompts, [150] * 4, balance=1000.0)
    assert sorted(map(sorted, rows)) == [[0, 2], [1, 3]]


def test_wide_attention_is_not_worth_a_short_common_beginning():
    prompts = [[0, 1, *range(10 * i, 10 * i + 400)] for i in range(1, 3)]
    assert len(plan_rows(prompts, [450, 450], balance=1000.0)) == 2
    assert len(plan_rows(prompts, [450, 450], balance=float("inf"))) == 1


def test_short_rows_are_packed_into_the_length_of_the_longest():
    prompts = [[i] * 3 for i in range(4)]
    rows = plan_rows(prompts, [100, 60, 40, 30], balance=1e-9)
    assert sorted(map(sorted, rows)) == [[0], [1, 2], [3]]


def test_trees_fill_rows_up_to_the_capacity():
    assert sorted(map(sorted, pack([100, 60, 40, 30], 130))) == [[0, 3], [1, 2]]
    assert len(pack([100, 60, 40, 30], 230)) == 1
    assert sorted(map(sorted, pack([100, 60, 40, 30], 10))) == [[0], [1, 2], [3]]  # the longest needs its length


@given(examples)
def test_trees_side_by_side_score_what_each_does_alone(batch):
    trees = [
        build_row([prompt], [options], [(i, j) for j in range(len(options))])
        for i, (prompt, options) in enumerate(batch)
    ]
    row = join_trees(trees)
    assert len(row.input_ids) == sum(len(tree.input_ids) for tree in trees)
    for tree in trees:
        for number, entries in tree.completions.items():
            joined = row.completions[number]
            assert [row.scored_targets[e] for e in joined] == [tree.scored_targets[e] for e in entries]
            for own, alone in zip(joined, entries, strict=True):
                assert ancestors(row, row.scored_nodes[own]) == ancestors(tree, tree.scored_nodes[alone])
    assert len(row.completions) == sum(len(options) for _, options in batch)


@pytest.mark.parametrize("prompt", [[], [5]])
def test_a_completion_of_one_token_needs_no_node(prompt):
    row = build_row([prompt], [[[9]]])
    assert row.input_ids == prompt
    assert row.completions[0] == ([0] if prompt else [])
