import logging

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import COPYING, SHARING, VOCAB_SIZE, make_model, naive_logp

from dmpo_trl.recommend.catalogue import TitleTrie
from dmpo_trl.recommend.decoding import branching, choice
from dmpo_trl.recommend.decoding.beam_search import Search, beam_search, exact_search

EOS = 2
# The fastest way that is right; what is not named here takes all beams of a user in one row
WAYS = dict.fromkeys(COPYING, "CachedPrefixes") | {"mamba": "RecomputedPrefixes"}


def random_titles(seed, count, *, end=True):
    """Token sequences with common beginnings, some prefixes of others, some equal."""
    generator = np.random.default_rng(seed)
    alphabet = generator.integers(6, VOCAB_SIZE, 4)
    titles = [generator.choice(alphabet, generator.integers(1, 5)).tolist() for _ in range(count)]
    return [[*title, EOS] if end else title for title in titles]


def random_prompt(seed, length):
    return np.random.default_rng(seed).integers(6, VOCAB_SIZE, length).tolist()


@torch.no_grad()
def exhaustive(model, prompt, titles, excluded=()):
    """Every title scored by itself from the definition, best first."""
    scores = {tuple(title): naive_logp(model, prompt, title).item() for title in titles}
    return sorted((-scores[tuple(title)], row) for row, title in enumerate(titles) if row not in excluded)


def assert_same(found, expected, k):
    """Same scores in the same order; rows may differ only where scores are within float error of each other."""
    assert len(found) == min(k, len(expected))
    expected_scores = {row: -score for score, row in expected}
    for (score, row), (negated, _) in zip(found, expected, strict=False):
        assert score == pytest.approx(-negated, abs=2e-5)
        assert score == pytest.approx(expected_scores[row], abs=2e-5)
    assert len({row for _, row in found}) == len(found)


@pytest.mark.parametrize("name", SHARING | COPYING)
def test_full_width_is_exhaustive_on_every_architecture(name):
    """Prompts longer and shorter than the windows of 8, of unequal length, so that padding and windows matter."""
    model = make_model(name)
    attention = model.config._attn_implementation
    prompts = [random_prompt(1, 17), random_prompt(2, 5)]
    titles = [random_titles(3, 25), random_titles(4, 15)]
    excluded = [(), (0, 7)]
    searches = [Search(*search, k=6) for search in zip(prompts, map(TitleTrie, titles), excluded, strict=True)]
    beam_search(model, searches, num_beams=100)
    for search, *case in zip(searches, prompts, titles, excluded, strict=True):
        assert_same(search.found, exhaustive(model, *case), 6)
    assert model.config._attn_implementation == attention
    assert choice.chosen_prefixes(model).__name__ == WAYS.get(name, "BranchingPrefixes")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10_000),
    counts=st.lists(st.integers(1, 14), min_size=1, max_size=3),
    end=st.booleans(),
    k=st.integers(1, 8),
    data=st.data(),
)
def test_full_width_is_exhaustive_on_any_catalogue(llama, seed, counts, end, k, data):
    cases = []
    for user, count in enumerate(counts):
        excluded = data.draw(st.sets(st.integers(0, count - 1)))
        titles = random_titles(seed + user, count, end=end)
        cases.append((random_prompt(seed + user, 1 + (seed + user) % 9), titles, excluded))
    searches = [Search(prompt, TitleTrie(titles), excluded, k) for prompt, titles, excluded in cases]
    beam_search(llama, searches, num_beams=60)
    for search, case in zip(searches, cases, strict=True):
        assert_same(search.found, exhaustive(llama, *case), k)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 60),
    k=st.integers(1, 8),
    num_beams=st.integers(1, 4),
    data=st.data(),
)
def test_what_is_proven_is_exhaustive(llama, seed, count, k, num_beams, data):
    titles, prompt = random_titles(seed, count), random_prompt(seed, 5)
    excluded = data.draw(st.sets(st.integers(0, count - 1)))
    expected = exhaustive(llama, prompt, titles, excluded)
    search = Search(prompt, TitleTrie(titles), excluded, k)
    beam_search(llama, [search], num_beams)
    if search.proven:
        assert_same(search.found, expected, k)
    search = Search(prompt, TitleTrie(titles), excluded, k)
    exact_search(llama, [search], num_beams)
    assert search.proven
    assert_same(search.found, expected, k)


@pytest.mark.parametrize(
    ("second_token", "proven"), [(-0.25, True), (-0.5, False), (-0.75, False), (-1.25, False), (-5.0, False)]
)
def test_what_was_left_out_must_be_below_the_last_item_found(second_token, proven):
    """One beam of two titles: the other, at -1.5 after its first token, could still be as good as what was found."""
    search = Search([6], TitleTrie([[6, EOS], [7, EOS]]), (), k=1)
    search.advance(*search.children(), np.array([-1.0, -1.5]), num_beams=1)
    assert search.left_out == -1.5
    search.advance(*search.children(), np.array([second_token]), num_beams=1)
    assert search.found == [(-1.0 + second_token, 0)]
    assert search.proven is proven


def test_too_few_beams_prove_nothing(llama):
    """Scores of a beam that misses the best item: not proven; with more beams it is found."""
    missed = 0
    for seed in range(20):
        titles, prompt = random_titles(seed, 60), random_prompt(seed, 5)
        best = -exhaustive(llama, prompt, titles)[0][0]
        narrow = Search(prompt, TitleTrie(titles), (), 1)
        beam_search(llama, [narrow], num_beams=1)
        if narrow.found[0][0] < best - 1e-4:
            missed += 1
            assert not narrow.proven
            exact_search(llama, [narrow], num_beams=1)
            assert narrow.found[0][0] == pytest.approx(best, abs=2e-5)
    assert missed


@pytest.fixture(scope="module")
def llama():
    return make_model("llama")


@pytest.mark.parametrize("num_beams", [1, 2, 5])
def test_any_width_gives_k_distinct_items_with_their_exact_scores(llama, num_beams):
    titles, prompt = random_titles(5, 30), random_prompt(5, 7)
    expected = exhaustive(llama, prompt, titles, {3, 4})
    scores = {row: -negated for negated, row in expected}
    search = Search(prompt, TitleTrie(titles), {3, 4}, num_beams)
    beam_search(llama, [search], num_beams)
    assert len({row for _, row in search.found}) == num_beams
    for score, row in search.found:
        assert score == pytest.approx(scores[row], abs=2e-5)
    assert [score for score, _ in search.found] == sorted((score for score, _ in search.found), reverse=True)


@pytest.mark.parametrize("num_beams", [3, 5, 40])
@pytest.mark.parametrize("seed", range(4))
def test_against_transformers_own_constrained_beam_search(llama, num_beams, seed):
    """Never worse at any place, and equal where every title fits into the beam."""
    titles = [list(title) for title in {tuple(title) for title in random_titles(seed, 30)}]
    prompt, k = random_prompt(seed, 6), 3

    def allowed(_, ids):
        begun = ids[len(prompt) :].tolist()
        return sorted({title[len(begun)] for title in titles if title[: len(begun)] == begun and title != begun}) or [
            EOS
        ]

    ids = torch.tensor([prompt])
    output = llama.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        num_beams=num_beams,
        num_return_sequences=k,
        prefix_allowed_tokens_fn=allowed,
        length_penalty=0.0,
        early_stopping="never",
        do_sample=False,
        max_new_tokens=6,
        eos_token_id=EOS,
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
        renormalize_logits=False,
    )
    theirs = []
    for sequence in output.sequences[:, len(prompt) :].tolist():
        title = sequence[: sequence.index(EOS) + 1]
        with torch.no_grad():
            theirs.append(naive_logp(llama, prompt, title).item())
    search = Search(prompt, TitleTrie(titles), (), k)
    beam_search(llama, [search], num_beams)
    ours = [score for score, _ in search.found]
    assert all(own >= other - 2e-5 for own, other in zip(ours, theirs, strict=True))
    if num_beams == 40:
        assert ours == pytest.approx(theirs, abs=2e-5)


def test_users_do_not_influence_each_other(llama):
    prompts = [random_prompt(seed, 3 + 4 * seed) for seed in range(4)]
    titles = [random_titles(seed, 20) for seed in range(4)]
    together = [Search(prompt, TitleTrie(own), (), 4) for prompt, own in zip(prompts, titles, strict=True)]
    beam_search(llama, together, num_beams=4)
    for search, prompt, own in zip(together, prompts, titles, strict=True):
        alone = Search(prompt, TitleTrie(own), (), 4)
        beam_search(llama, [alone], num_beams=4)
        assert [row for _, row in alone.found] == [row for _, row in search.found]
        np.testing.assert_allclose([s for s, _ in alone.found], [s for s, _ in search.found], atol=2e-5)


def test_nothing_left_gives_nothing(llama):
    titles = random_titles(0, 3)
    search = Search(random_prompt(0, 4), TitleTrie(titles), {0, 1, 2}, 2)
    beam_search(llama, [search], num_beams=2)
    assert search.found == []


def test_prompt_and_beams_are_computed_once_and_nothing_a_beam_times(llama):
    trie = TitleTrie(random_titles(0, 20))
    search = Search(random_prompt(0, 50), trie, (), 8)
    beam_search(llama, [search], num_beams=8)  # the probe of the model is not what this counts
    shapes = []
    handle = llama.model.register_forward_pre_hook(
        lambda _, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        beam_search(llama, [Search(random_prompt(0, 50), trie, (), 8)], num_beams=8)
    finally:
        handle.remove()
    assert shapes[0] == (1, 50)
    assert all(rows == 1 for rows, _ in shapes)
    assert sum(length for _, length in shapes[1:]) < len(trie.token)


def test_a_model_whose_cache_is_wrong_is_recomputed_with_one_warning(caplog):
    model = make_model("llama")
    forward = model.forward

    def forgets(*args, attention_mask=None, position_ids=None, **kwargs):
        return forward(*args, **kwargs)

    prompts, titles = [random_prompt(1, 9), random_prompt(2, 4)], random_titles(3, 20)
    model.forward = forgets
    with caplog.at_level(logging.WARNING, logger=choice.__name__):
        for _ in range(2):
            searches = [Search(prompt, TitleTrie(titles), (), 5) for prompt in prompts]
            beam_search(model, searches, num_beams=60)
    assert len([record for record in caplog.records if "without a cache" in record.message]) == 1
    for search, prompt in zip(searches, prompts, strict=True):
        assert_same(search.found, exhaustive(make_model("llama"), prompt, titles), 5)


@pytest.mark.parametrize("name", ["llama", "qwen2_windows"])
@pytest.mark.parametrize("tokens", [branching._TOKENS_ON_CPU, branching._TOKENS])
def test_a_title_longer_than_what_is_computed_at_once(name, tokens, monkeypatch):
    """With windows of 8 tokens, several times over, and a branch in the middle of it."""
    monkeypatch.setattr(branching, "_TOKENS_ON_CPU", tokens)
    model, prompt = make_model(name), random_prompt(1, 9)
    long = random_prompt(2, 2 * branching._AHEAD + 40)
    titles = [[*random_titles(3, 1, end=False)[0], EOS], [*long, EOS], [*long[:-30], 7, EOS], [*long[:20], 8, EOS]]
    search = Search(prompt, TitleTrie(titles), (), k=4)
    beam_search(model, [search], num_beams=4)
    expected = exhaustive(model, prompt, titles)
    assert [row for _, row in search.found] == [row for _, row in expected]
    assert [score for score, _ in search.found] == pytest.approx([-score for score, _ in expected], rel=1e-6)


@pytest.mark.parametrize("name", ["llama", "qwen2_windows"])
def test_rows_grow_by_few_lengths_with_the_same_outcome(name, monkeypatch):
    """As on a GPU: what fills rows up is seen by nothing and changes no score."""
    monkeypatch.setattr(branching, "_COLUMNS_ON_CPU", 8)
    model, prompts, titles = make_model(name), [random_prompt(1, 9), random_prompt(2, 21)], random_titles(3, 30)
    searches = [Search(prompt, TitleTrie(titles), (), 5) for prompt in prompts]
    beam_search(model, searches, num_beams=1)  # the probe of the model is not what this counts
    widths = []
    handle = model.register_forward_pre_hook(
        lambda _, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    searches = [Search(prompt, TitleTrie(titles), (), 5) for prompt in prompts]
    beam_search(model, searches, num_beams=60)
    handle.remove()
    assert widths[0] == 24  # the longer prompt, rounded up
    assert all(width % 8 == 0 for width in widths)
    for search, prompt in zip(searches, prompts, strict=True):
        assert_same(search.found, exhaustive(model, prompt, titles), 5)


@pytest.mark.parametrize("tokens", [1, 7, 40])
def test_the_tokens_of_a_forward_are_bounded_whatever_must_follow(llama, monkeypatch, tokens):
    """Titles of up to 30 tokens that branch early: computed ahead is only what there is room for."""
    prompt, generator = random_prompt(1, 9), np.random.default_rng(5)
    titles = [[*generator.integers(6, VOCAB_SIZE, generator.integers(1, 30)).tolist(), EOS] for _ in range(12)]
    search = Search(prompt, TitleTrie(titles), (), 6)
    beam_search(llama, [search], num_beams=12)  # the probe of the model is not what this counts
    monkeypatch.setattr(branching, "_TOKENS_ON_CPU", tokens)
    widths = []
    handle = llama.register_forward_pre_hook(
        lambda _, args, kwargs: widths.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    search = Search(prompt, TitleTrie(titles), (), 6)
    try:
        beam_search(llama, [search], num_beams=12)
    finally:
        handle.remove()
    assert_same(search.found, exhaustive(llama, prompt, titles), 6)
    assert max(widths[1:]) <= max(tokens, 12)
