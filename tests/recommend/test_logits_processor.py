import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmpo_trl.recommend import TitleArrays, TitleTrie, TitleTrieLogitsProcessor

VOCABULARY = 12
CATALOGUES = st.lists(st.lists(st.integers(3, 8), min_size=1, max_size=4), min_size=1, max_size=12)


def allowed_by_definition(sequences, excluded, beginning):
    """The tokens that lead on to a title of which an item is left."""
    left = [sequence for row, sequence in enumerate(sequences) if row not in excluded]
    length = len(beginning)
    return {one[length] for one in left if list(one[:length]) == list(beginning) and len(one) > length}


@given(CATALOGUES, st.data())
def test_what_may_come_is_what_the_titles_say(sequences, data):
    """Rows of two prompts, each with its own excluded items: within titles, at their ends, and off them."""
    titles = TitleArrays.of(TitleTrie(sequences), spare=[2])
    if titles.end_appended:
        sequences = [[*sequence, titles.end_token] for sequence in sequences]
    rows = st.sets(st.integers(0, len(sequences) - 1), max_size=len(sequences) - 1)
    excluded = [data.draw(rows), data.draw(rows)]
    excluded = [own if 0 not in titles.blocked(own) else set() for own in excluded]
    length = data.draw(st.integers(0, titles.depth))
    beginnings = st.lists(st.integers(0, VOCABULARY - 1), min_size=length, max_size=length)
    long_enough = [sequence[:length] for sequence in sequences if len(sequence) >= length]
    beginnings = beginnings | st.sampled_from(long_enough)
    beams = data.draw(st.lists(beginnings, min_size=4, max_size=4))
    processor = TitleTrieLogitsProcessor(titles, prompt_length=2, excluded=excluded)
    scores = torch.randn(4, VOCABULARY, generator=torch.Generator().manual_seed(0))
    got = processor(torch.tensor([[9, 9, *beam] for beam in beams]), scores)
    for row, beam in enumerate(beams):
        expected = allowed_by_definition(sequences, excluded[row // 2], beam)
        logps = scores[row].log_softmax(-1)
        if titles.end_appended:
            logps[titles.end_token] = 0.0
        if not expected:  # ended, or no title: the end, below all that counts
            expected = {titles.end_token}
            logps[titles.end_token] = torch.finfo(torch.float32).min
        for token in range(VOCABULARY):
            value = logps[token] if token in expected else -torch.inf
            torch.testing.assert_close(got[row, token], torch.as_tensor(value))


def test_nodes_say_which_title_was_spelled():
    titles = TitleArrays.of(TitleTrie([[5, 6, 2], [5, 2], [5, 2]]))
    processor = TitleTrieLogitsProcessor(titles, prompt_length=0)
    nodes = processor.nodes(torch.tensor([[5, 6, 2], [5, 2, 0], [5, 2, 5], [5, 6, 6], [7, 0, 99]]))
    assert [titles.rows_at(node).tolist() for node in nodes.tolist()] == [[0], [1, 2], [1, 2], [], []]


def test_a_model_of_fewer_tokens_is_refused():
    processor = TitleTrieLogitsProcessor(TitleArrays.of(TitleTrie([[5, 6, 2]])), prompt_length=1)
    with pytest.raises(ValueError, match="The titles have token 6, the model 6 tokens"):
        processor(torch.tensor([[1]]), torch.zeros(1, 6))


def test_rows_that_fit_no_prompts_are_refused():
    processor = TitleTrieLogitsProcessor(TitleArrays.of(TitleTrie([[5, 2], [6, 2]])), 1, excluded=[[0], [1]])
    with pytest.raises(ValueError, match="3 rows cannot be shared out among 2 prompts"):
        processor(torch.ones(3, 1, dtype=torch.int64), torch.zeros(3, 8))


def test_nothing_left_is_refused():
    titles = TitleArrays.of(TitleTrie([[5, 2], [6, 2]]))
    with pytest.raises(ValueError, match="prompt 1 has every title excluded"):
        TitleTrieLogitsProcessor(titles, 1, excluded=[[0], [0, 1]])
