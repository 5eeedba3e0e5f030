"""Scores of completions against the naive oracle: one sequence, one forward, the model's own logits."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from support import (
    COMPLETIONS,
    COPYING,
    PROMPTS,
    SHARING,
    TITLES,
    check_scores,
    make_model,
    make_tokenizer,
    naive_logp,
)

import dmpo_trl.scoring as scoring
from dmpo_trl import score_completions


@pytest.mark.parametrize("name", [*SHARING, *COPYING])
def test_scores_are_the_models_own(name):
    model, tokenizer = make_model(name), make_tokenizer()
    for tokens_per_batch in (40, 4096):  # a few completions a forward, and everything in one
        found = score_completions(model, tokenizer, PROMPTS, COMPLETIONS, tokens_per_batch=tokens_per_batch)
        check_scores(found, model, tokenizer, PROMPTS, COMPLETIONS)


def test_messages_and_adapters():
    tokenizer = make_tokenizer()
    model = get_peft_model(make_model(), LoraConfig(target_modules="all-linear", init_lora_weights=False)).eval()
    prompts = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    completions = [[[{"role": "assistant", "content": text}] for text in options] for options in COMPLETIONS]
    check_scores(score_completions(model, tokenizer, prompts, completions), model, tokenizer, prompts, completions)


LLAMA, TOKENIZER = make_model("llama"), make_tokenizer()
WORDS = st.lists(st.sampled_from("abcdé"), min_size=1, max_size=8).map("".join)
QUESTIONS = st.lists(
    st.tuples(st.text("xyz", min_size=1, max_size=30), st.lists(WORDS, min_size=1, max_size=12)), max_size=5
)


@settings(deadline=None, max_examples=30)
@given(QUESTIONS, st.integers(1, 200), st.booleans())
def test_any_lists_in_forwards_of_any_size(questions, tokens_per_batch, share):
    prompts = [f"{prompt}:" for prompt, _ in questions]
    completions = [options for _, options in questions]
    found = score_completions(
        LLAMA, TOKENIZER, prompts, completions, tokens_per_batch=tokens_per_batch, prefix_sharing=share
    )
    check_scores(found, LLAMA, TOKENIZER, prompts, completions)


@pytest.fixture
def forwards(monkeypatch):
    """The token ids of each forward."""
    scoring.prepare_for_scoring(LLAMA, LLAMA, "auto")  # the probe's own forwards are none of ours
    calls = []
    own_forward = LLAMA.forward

    def forward(*args, **kwargs):
        calls.append(kwargs["input_ids"])
        return own_forward(*args, **kwargs)

    monkeypatch.setattr(LLAMA, "forward", forward)
    return calls


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("tokens_per_batch", [50, 128, 1000])
def test_a_catalogue_stays_within_the_bound(forwards, share, tokens_per_batch):
    catalogue = [f" {title} {number}" for number in range(30) for title in TITLES]
    prompts = ["Watched: Alien, Babe. Next:", *(["Watched: Toy Story. Next:"] * 5)]
    completions = [catalogue, *([catalogue[:7]] * 5)]
    options = {"prefix_sharing": share, "tokens_per_batch": tokens_per_batch}
    found = score_completions(LLAMA, TOKENIZER, prompts, completions, **options)
    sizes = [ids.numel() for ids in forwards]
    assert max(sizes) <= tokens_per_batch
    check_scores(found, LLAMA, TOKENIZER, prompts, completions)
    if not share:
        # Nothing is wasted either: two forwards in a row would not have fitted into one
        assert all(first + second > 0.8 * tokens_per_batch for first, second in pairwise(sizes))


def test_only_a_single_long_sequence_passes_the_bound(forwards):
    prompts, completions = ["Watched: " + "x" * 100, "Next:"], [[" Alien", " Babe"], [" Alien", " Babe"]]
    score_completions(LLAMA, TOKENIZER, prompts, completions, tokens_per_batch=20, prefix_sharing=True)
    length = len(TOKENIZER(prompts[0])["input_ids"])
    assert all(ids.numel() <= 20 or (ids.size(0) == 1 and ids.size(1) < length + 10) for ids in forwards)
    assert sum(ids.numel() > 20 for ids in forwards) == 2  # one for each completion of the long prompt


def test_histories_in_common_do_not_pass_the_bound(forwards):
    """Rows that the layout joins are longer than those that were counted."""
    history = "Watched: " + ", ".join(TITLES) + ". "
    prompts = [f"{history}{number}:" for number in range(4)] + ["x" * 40 + str(number) for number in range(30)]
    completions = [[" Alien", " Babe"]] * len(prompts)
    for tokens_per_batch in range(60, 600, 60):
        forwards.clear()
        found = score_completions(
            LLAMA, TOKENIZER, prompts, completions, tokens_per_batch=tokens_per_batch, prefix_sharing=True
        )
        assert max(ids.numel() for ids in forwards) <= tokens_per_batch
    check_scores(found, LLAMA, TOKENIZER, prompts, completions)


@pytest.mark.parametrize("prompt_length", [5, 60, 300])
def test_long_lists_are_cut_where_a_token_costs_least(prompt_length):
    rng = np.random.default_rng(0)
    options = [rng.integers(0, 10**6, 9).tolist() for _ in range(1000)]  # nothing in common: eight nodes each
    balance = 3456.0
    scorer = scoring._Scorer(LLAMA, torch.device("cpu"), True, 10**6, 0, balance)
    pieces = list(scorer._cut_for_trie(0, list(range(prompt_length)), options))
    assert sorted(option for piece in pieces for option in piece.options) == list(range(1000))

    def cost(rows: int) -> float:
        lengths = [prompt_length + 8 * len(part) for part in np.array_split(np.arange(1000), rows)]
        return sum(length + length**2 / balance for length in lengths)

    ours = sum(piece.length + piece.length**2 / balance for piece in pieces)
    assert ours <= 1.02 * min(cost(rows) for rows in range(1, 300))


def test_the_layout_weighs_attention_as_the_trainer_does(monkeypatch):
    balances = []
    original = scoring.lay_out
    monkeypatch.setattr(
        scoring,
        "lay_out",
        lambda *args, **kwargs: balances.append(kwargs["attention_balance"]) or original(*args, **kwargs),
    )
    score_completions(LLAMA, TOKENIZER, PROMPTS, COMPLETIONS)
    assert set(balances) == {6.0 * LLAMA.config.hidden_size}


def test_modes_and_gradients_are_left_as_they_were():
    model = make_model("llama").train()
    model.model.layers[0].eval()  # frozen by its owner
    before = [module.training for module in model.modules()]
    stream = scoring.stream_scores(
        model, TOKENIZER, zip(PROMPTS * 99, COMPLETIONS * 99, strict=True), tokens_per_batch=64
    )
    next(stream)
    assert torch.is_grad_enabled()  # also between two scores
    assert [module.training for module in model.modules()] == before
    stream.close()
    model.model.norm.register_forward_hook(lambda module, args, output: 1 / 0 if not module.training else None)
    with pytest.raises(ZeroDivisionError):
        score_completions(model, TOKENIZER, PROMPTS, COMPLETIONS, prefix_sharing=False)
    assert [module.training for module in model.modules()] == before


def test_a_stream_is_taken_up_as_it_is_scored():
    taken = []

    def questions():
        for number in range(500):
            taken.append(number)
            yield PROMPTS[number % 3], COMPLETIONS[number % 3]

    stream = scoring.stream_scores(LLAMA, TOKENIZER, questions(), tokens_per_batch=64)
    first = [next(stream) for _ in range(3)]
    check_scores(first, LLAMA, TOKENIZER, PROMPTS, COMPLETIONS)
    assert 3 <= len(taken) < 200
    assert len(list(stream)) == 497


def test_what_cannot_be_scored_is_named_before_the_work(monkeypatch):
    monkeypatch.setattr(scoring, "stream_scores", lambda *args, **kwargs: pytest.fail("work was done"))
    with pytest.raises(ValueError, match="2 prompts, but 1 lists of completions"):
        score_completions(LLAMA, TOKENIZER, ["a", "b"], [["c"]])
    with pytest.raises(ValueError, match="prompt 1: there are no completions"):
        score_completions(LLAMA, TOKENIZER, ["a", "b"], [["c"], []])
    monkeypatch.undo()
    with pytest.raises(ValueError, match="prompt 0: there are no completions"):
        list(scoring.stream_scores(LLAMA, TOKENIZER, [("a", [])]))


@pytest.mark.parametrize("tokens_per_batch", [0, -5])
def test_a_batch_has_at_least_one_token(tokens_per_batch):
    with pytest.raises(ValueError, match=f"`tokens_per_batch` must be at least 1, got {tokens_per_batch}"):
        score_completions(LLAMA, TOKENIZER, PROMPTS, COMPLETIONS, tokens_per_batch=tokens_per_batch)
    one = score_completions(LLAMA, TOKENIZER, PROMPTS[:1], COMPLETIONS[:1], tokens_per_batch=1)
    check_scores(one, LLAMA, TOKENIZER, PROMPTS[:1], COMPLETIONS[:1])


def test_nothing_to_score():
    assert score_completions(LLAMA, TOKENIZER, [], []) == []


@pytest.mark.parametrize("share", [True, False])
def test_the_first_token_after_an_empty_prompt_is_not_counted(share):
    """Nothing predicts it: it is in neither the sum nor the length."""
    (scores,) = score_completions(LLAMA, TOKENIZER, [""], [["Alien", "Star Wars, Toy Story"]], prefix_sharing=share)
    ids = [TOKENIZER(text + TOKENIZER.eos_token)["input_ids"] for text in ("Alien", "Star Wars, Toy Story")]
    assert scores.lengths.tolist() == [len(own) - 1 for own in ids]
    with torch.no_grad():
        assert scores.logps == pytest.approx([float(naive_logp(LLAMA, [], own)) for own in ids], abs=1e-4)


def test_a_completion_of_which_nothing_is_scored_is_refused():
    """Its mean would be 0 / 0."""
    with pytest.raises(ValueError, match="prompt 0: completion 1 has no token that a token before it predicts"):
        score_completions(LLAMA, TOKENIZER, [""], [["Alien", ""]])  # the end-of-sequence token alone
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="prompt 1: completion 0 has no token"):
        score_completions(LLAMA, tokenizer, ["a", "a"], [["b"], [""]])
