import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import make_tokenizer

from dmpo_trl.data import MOVIES, PromptTemplate
from dmpo_trl.data.tidy import tidy_title
from dmpo_trl.preprocessing.tokenize import tokenize_completions
from dmpo_trl.recommend.catalogue import Catalogue, PromptTries, TitleTrie

# Few tokens and short sequences: prefixes of others, equal ones and common beginnings are the rule, not the exception
SEQUENCES = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=12)


def nodes_of(trie, row, sequences):
    """The path of an item, walked by the public children() from the root."""
    node, path = 0, []
    for token in sequences[row]:
        _, children = trie.children(np.array([node]))
        (node,) = [child for child in children if trie.token[child] == token]
        path.append(int(node))
    return path


@given(SEQUENCES, st.sets(st.integers(0, 11)))
def test_trie_is_the_set_of_prefixes(sequences, excluded):
    trie = TitleTrie(sequences)
    excluded = {row for row in excluded if row < len(sequences)}
    paths = [nodes_of(trie, row, sequences) for row in range(len(sequences))]
    prefix_of = {0: ()} | {
        node: tuple(ids[: i + 1]) for path, ids in zip(paths, sequences, strict=True) for i, node in enumerate(path)
    }
    assert len(trie.token) == len(prefix_of) == len(set(prefix_of.values()))  # every distinct prefix stands once

    counts = dict(zip(*map(np.ndarray.tolist, trie.excluded_counts(excluded)), strict=True))
    for node, prefix in prefix_of.items():
        below = [row for row, ids in enumerate(sequences) if tuple(ids[: len(prefix)]) == prefix]
        here = [row for row in below if len(sequences[row]) == len(prefix)]
        assert trie.count[node] == len(below)
        assert trie.items_at(np.array([node]))[1].tolist() == here
        assert bool(trie.ends_item[node]) == bool(here)
        assert counts.get(node, 0) == len(excluded & set(below))


@given(SEQUENCES)
def test_what_must_follow_a_node_is_read_off_without_a_walk(sequences):
    trie = TitleTrie(sequences)
    for start in range(len(trie.token)):
        node, expected = start, []
        while len(only := trie.children(np.array([node]))[1]) == 1 and len(trie.children(only)[1]):
            node = only[0]
            expected.append(int(trie.token[node]))
        assert trie.forced_after(np.array([start]))[1].tolist() == expected


@given(SEQUENCES)
def test_children_of_several_nodes_are_those_of_each(sequences):
    trie = TitleTrie(sequences)
    nodes = np.arange(len(trie.token))[::-1]
    owner, children = trie.children(nodes)
    together = [(int(nodes[i]), int(child)) for i, child in zip(owner, children, strict=True)]
    assert together == [(int(node), int(child)) for node in nodes for child in trie.children(np.array([node]))[1]]


@given(SEQUENCES)
def test_items_and_forced_tokens_of_several_nodes_are_those_of_each(sequences):
    trie = TitleTrie(sequences)
    nodes = np.arange(len(trie.token))[::-1]
    for of in (trie.items_at, trie.forced_after):
        owner, values = of(nodes)
        alone = [(place, value) for place, node in enumerate(nodes) for value in of(np.array([node]))[1].tolist()]
        assert list(zip(owner.tolist(), values.tolist(), strict=True)) == alone


def test_entries_are_ids_or_titles():
    catalogue = Catalogue(pl.DataFrame({"item": ["7", "8", "9"], "title": ["Alien", "7", "Alien"]}))
    assert catalogue.rows(["8", "Alien", "7"], "history") == [1, 0, 0]  # "7" is an id before it is a title
    with pytest.raises(
        ValueError, match=r"candidates: 'Alein' is neither an item id nor a title.*Did you mean 'Alien'"
    ):
        catalogue.rows(["9", "Alein"], "candidates")


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({"item": ["1"], "name": ["Alien"]}, "no column 'title'"),
        ({"item": [], "title": []}, "no rows"),
        ({"item": ["1", "2"], "title": ["Alien", ""]}, r"1 row\(s\) without an item or a title.*'2'"),
        ({"item": ["1", None], "title": ["Alien", "Heidi"]}, r"1 row\(s\) without"),
        ({"item": ["1", "1"], "title": ["Alien", "Heidi"]}, "'1' is in several rows"),
    ],
)
def test_faulty_catalogues(items, message):
    with pytest.raises(ValueError, match=message):
        Catalogue(pl.DataFrame(items))


TITLES = ["Alien", "Aliens", "The Mask", "The Matrix", "Toy Story", "  Heidi", "s", "Alien 3"]


ASKED_LAST = PromptTemplate("Liked:", "Which film next?")
TITLE = st.text("abs. ", min_size=1, max_size=6).map(tidy_title).filter(bool)  # as readers give them


@pytest.mark.parametrize("template", [MOVIES, MOVIES.plain(), ASKED_LAST], ids=["chat", "plain", "asked last"])
@given(histories=st.lists(st.lists(TITLE, min_size=1, max_size=4), min_size=1, max_size=4))
def test_prompts_of_a_template_share_a_trie_that_is_right_for_each(template, histories):
    tokenizer = make_tokenizer()
    tries = PromptTries(tokenizer, TITLES, template)
    found = [tries(template.prompt(history)) for history in histories]
    assert len({id(trie) for _, trie in found}) == 1
    for history, (prompt_ids, trie) in zip(histories, found, strict=True):
        completions = [template.completion(title) for title in TITLES]
        expected_ids, sequences = tokenize_completions(tokenizer, template.prompt(history), completions)
        assert prompt_ids == expected_ids
        assert [
            trie.items_at(np.array(nodes_of(trie, row, sequences)[-1:]))[1][0] for row in range(len(TITLES))
        ] == list(range(len(TITLES)))


def test_a_prompt_that_merges_with_a_title_gets_its_own_trie_and_cut():
    tokenizer = make_tokenizer()
    plain = MOVIES.plain()
    tries = PromptTries(tokenizer, TITLES, plain)
    # "Alien" + "s" is one token of the tokenizer: the prompt's last token is no longer there once "s" follows
    prompts = ["Next, after Toy Story: ", "Next, after Toy Story: Alien", "Next, after Toy Story, Babe: Alien"]
    found = [tries(prompt) for prompt in prompts]
    for prompt, (prompt_ids, trie) in zip(prompts, found, strict=True):
        expected_ids, sequences = tokenize_completions(tokenizer, prompt, TITLES)
        assert prompt_ids == expected_ids
        for row in range(len(TITLES)):
            assert row in trie.items_at(np.array(nodes_of(trie, row, sequences)[-1:]))[1]
    whole = tokenizer(prompts[1])["input_ids"]
    assert len(found[1][0]) < len(whole)  # the case this test is about does occur
    assert found[0][1] is not found[1][1]


def test_a_text_is_not_a_list_of_items():
    catalogue = Catalogue(pl.DataFrame({"item": ["1", "2", "12"], "title": ["Alien", "Heidi", "Babe"]}))
    with pytest.raises(ValueError, match="history: give a list of items, not the text '12'"):
        catalogue.rows("12", "history")  # would be the items "1" and "2"


def test_a_number_is_answered_with_the_text_that_it_is_in_the_catalogue():
    catalogue = Catalogue(pl.DataFrame({"item": [1, 2], "title": ["Alien", "Heidi"]}))
    with pytest.raises(ValueError, match=r"history: 2 is neither an item id nor a title .*Did you mean '2'\?"):
        catalogue.rows([2], "history")


def test_titles_are_those_of_the_readers_and_found_as_users_write_them():
    catalogue = Catalogue(pl.DataFrame({"item": ["1", "2"], "title": ["Film 6\nAlways: Heidi", "Am\u00e9lie"]}))
    assert catalogue.titles == ["Film 6 Always: Heidi", "Am\u00e9lie"]
    assert catalogue.frame["title"].to_list() == catalogue.titles
    assert catalogue.rows(["Ame\u0301lie ", "Film 6  Always: Heidi", "Film 6\nAlways: Heidi"], "history") == [1, 0, 0]
    with pytest.raises(ValueError, match=r"1 row\(s\) without an item or a title"):
        Catalogue(pl.DataFrame({"item": ["1", "2"], "title": ["Alien", "\u200b\n"]}))


@pytest.mark.parametrize("at_once", [1, 2, 3, 5])
def test_titles_that_are_tokenised_in_parts_begin_at_the_same_token(monkeypatch, at_once):
    """A part of titles of which none merges with the prompt's last token has the whole prompt."""
    wholes = {"a": [1, 2, 3, 4], "b": [1, 2, 3, 5], "merges": [1, 2, 9], "c": [1, 2, 3]}

    def tokenize(_, prompt, completions, **options):
        cut = 2 if "merges" in completions else 3
        return prompt[:cut], [wholes[title][cut:] for title in completions]

    monkeypatch.setattr("dmpo_trl.recommend.catalogue.tokenize_completions", tokenize)
    monkeypatch.setattr("dmpo_trl.recommend.catalogue._AT_ONCE", at_once)
    tries = PromptTries.__new__(PromptTries)
    tries._tokenizer = None
    assert tries._tokenize([1, 2, 3], [*wholes]) == ([1, 2], [[3, 4], [3, 5], [9], [3]])


def test_a_chat_template_that_leaves_text_out_is_refused(items):
    """One of a model of text and images that takes lists of parts, and of a text nothing."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m['role'] }}|>{% for part in m['content'] %}{{ part['text'] }}{% endfor %}</s>"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    tries = PromptTries(tokenizer, items["title"].to_list(), MOVIES)
    with pytest.raises(ValueError, match="All titles have the same tokens: the chat template leaves the text"):
        tries(MOVIES.prompt(["Alien"]))
