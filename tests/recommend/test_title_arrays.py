import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmpo_trl.recommend import TitleArrays, TitleTrie

TOKENS = st.lists(st.integers(3, 6), min_size=1, max_size=4)
CATALOGUES = st.lists(TOKENS, min_size=1, max_size=12)


def spelled(titles):
    """Every way from the root to the end of a title, with its rows: walked in Python."""
    found, open_ = {}, [((), 0)]
    while open_:
        path, node = open_.pop()
        if (rows := titles.rows_at(node).tolist()) != []:
            found[path] = rows
        for edge in range(titles.first_edge[node], titles.first_edge[node + 1]):
            open_.append(((*path, int(titles.edge_token[edge])), int(titles.edge_child[edge])))
    return found


def rows_of(sequences):
    found = {}
    for row, sequence in enumerate(sequences):
        found.setdefault(tuple(sequence), []).append(row)
    return found


@given(CATALOGUES, st.booleans())
def test_the_arrays_spell_every_title_and_nothing_else(sequences, end):
    sequences = [[*sequence, 2] if end else sequence for sequence in sequences]
    titles = TitleArrays.of(TitleTrie(sequences), spare=[3, 1])
    last = {sequence[-1] for sequence in sequences}
    own_end = len(last) == 1 and all(sequence.index(sequence[-1]) == len(sequence) - 1 for sequence in sequences)
    assert titles.end_appended is not own_end
    expected = sequences if own_end else [[*sequence, titles.end_token] for sequence in sequences]
    assert spelled(titles) == rows_of(expected)
    assert titles.depth == max(map(len, expected))
    assert not any(titles.end_token in sequence[:-1] for sequence in expected)
    steps = zip(titles.first_edge[:-1], titles.first_edge[1:], strict=True)
    assert all((np.diff(titles.edge_token[first:last]) > 0).all() for first, last in steps)


@given(CATALOGUES, st.data())
def test_blocked_is_where_only_excluded_items_are_left(sequences, data):
    titles = TitleArrays.of(TitleTrie(sequences))
    excluded = data.draw(st.sets(st.integers(0, len(sequences) - 1)))
    below = {node: set(titles.rows_at(node).tolist()) for node in range(titles.nodes)}
    for _ in range(titles.depth):  # every node gets what its children have
        for node in range(titles.nodes):
            for child in titles.edge_child[titles.first_edge[node] : titles.first_edge[node + 1]]:
                below[node] |= below[int(child)]
    assert titles.blocked(excluded).tolist() == [node for node in below if below[node] <= excluded]


@pytest.mark.parametrize("name", ["titles.npz", "titles", "titles.v2"])
def test_a_file_gives_the_same_arrays(tmp_path, name):
    titles = TitleArrays.of(TitleTrie([[5, 6], [5], [4, 4, 4]]))
    titles.save(tmp_path / name)
    loaded = TitleArrays.load(tmp_path / name)
    for name in TitleArrays.__dataclass_fields__:
        assert np.array_equal(getattr(loaded, name), getattr(titles, name))
        assert isinstance(getattr(loaded, name), type(getattr(titles, name)))


@pytest.mark.parametrize("damage", ["text", "cut", "other", "pickle"])
def test_a_file_of_something_else_is_refused(tmp_path, damage):
    path = tmp_path / "titles.npz"
    TitleArrays.of(TitleTrie([[5, 6]])).save(path)
    if damage == "text":
        path.write_text("titles")
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "other":
        np.savez(path, first_edge=np.zeros(3))
    else:
        np.savez(path, **dict.fromkeys(TitleArrays.__dataclass_fields__, np.array([print])))
    with pytest.raises(ValueError, match="does not hold the arrays of titles"):
        TitleArrays.load(path)
