"""What a model has no embedding for is refused in words, with the user and the number of tokens, in every use."""

import polars as pl
import pytest
from support import make_model, make_tokenizer
from support.users import TITLES, make_users
from transformers import GPT2LMHeadModel

from dmpo_trl.data import MOVIES
from dmpo_trl.evaluation.generation import generate_items
from dmpo_trl.evaluation.ranking import score_candidates
from dmpo_trl.modeling.limits import Limits
from dmpo_trl.preprocessing.tokenize import tokenize_completions
from dmpo_trl.recommend import Candidates, Recommender
from dmpo_trl.recommend.catalogue import PromptTries
from dmpo_trl.scoring import score_completions

ITEMS = pl.DataFrame({"item": [str(row) for row in range(len(TITLES))], "title": TITLES})
HISTORY = TITLES[:2]


def test_limits_are_those_of_the_embeddings():
    assert Limits.of(make_model()) == Limits(384, float("inf"))  # rotary positions are computed
    assert Limits.of(make_model("gpt2", n_positions=40)) == Limits(384, 40)


def test_limits_bind_where_a_text_can_be_beyond_them():
    assert Limits.of(make_model("gpt2")).bind(make_tokenizer())
    assert not Limits.of(make_model()).bind(make_tokenizer())
    assert Limits.of(make_model(vocab_size=200)).bind(make_tokenizer())


def tokens_of(prompt, completions):
    tokenizer = make_tokenizer()
    prompt_ids, ids = tokenize_completions(tokenizer, prompt, completions)
    return len(prompt_ids) + max(map(len, ids))


def longest_prompt():
    return max(tokens_of(row["prompt"], row["candidates"]) for row in make_users(4))


def recommender(**changes):
    return Recommender(make_model("gpt2", **changes), make_tokenizer(), ITEMS, MOVIES.plain())


def question():
    """Number of tokens of the question for the words."""
    text = f"{MOVIES.plain().prompt(HISTORY)}{TITLES[3]}\nWhy do you recommend {TITLES[3]}? Answer in one sentence.\n"
    return len(make_tokenizer()(text)["input_ids"])


def catalogue():
    return tokens_of(MOVIES.plain().prompt(HISTORY), TITLES)


def score(**changes):
    prompts, completions = ([row[name] for row in make_users(4)] for name in ("prompt", "candidates"))
    return score_completions(make_model("gpt2", **changes), make_tokenizer(), prompts, completions)


def generate(**changes):
    return generate_items(make_model("gpt2", **changes), make_tokenizer(), make_users(4), TITLES, name="x")


USES = {
    "scoring": (score, longest_prompt, r"prompt \d: "),
    "ranking": (
        lambda **changes: score_candidates(make_model("gpt2", **changes), make_tokenizer(), make_users(4)),
        longest_prompt,
        r"user '\w+': ",
    ),
    "generation": (
        generate,
        lambda: max(tokens_of(row["prompt"], TITLES) for row in make_users(4)),
        r"user '\w+': ",
    ),
    "recommend": (lambda **changes: recommender(**changes).recommend(HISTORY, 2), catalogue, "history: "),
    "exact": (lambda **changes: recommender(**changes).recommend(HISTORY, 2, exact=True), catalogue, "history: "),
    "rank": (
        lambda **changes: recommender(**changes).rank(HISTORY, TITLES[2:]),
        lambda: tokens_of(MOVIES.plain().prompt(HISTORY), TITLES[2:]),
        "prompt 0: ",
    ),
    "explain": (
        lambda **changes: recommender(**changes).explain(HISTORY, TITLES[3], max_new_tokens=0),
        lambda: tokens_of(MOVIES.plain().prompt(HISTORY), [TITLES[3]]),
        "prompt 0: ",
    ),
}


@pytest.mark.parametrize("use", USES)
def test_more_tokens_than_learned_positions_are_refused_and_as_many_are_not(use):
    compute, tokens, name = USES[use]
    enough = tokens() - 1  # the last token is predicted, and predicts nothing
    compute(n_positions=enough)
    with pytest.raises(ValueError, match=rf"{name}the prompt has \d+ tokens, .* and the model has {enough - 1} posit"):
        compute(n_positions=enough - 1)


@pytest.mark.parametrize("use", USES)
def test_tokens_that_the_model_does_not_know_are_refused(use):
    compute, _, name = USES[use]
    with pytest.raises(ValueError, match=rf"{name}token \d+ is unknown to the model, which has embeddings for 200 to"):
        compute(vocab_size=200)


def test_where_only_the_words_are_too_long_the_message_says_how_many_there_can_be():
    enough = question() + 5 - 1
    recommender(n_positions=enough).explain(HISTORY, TITLES[3], max_new_tokens=5)
    with pytest.raises(ValueError, match=r"The model's own words: .* Set `max_new_tokens` to at most 5\."):
        recommender(n_positions=enough).explain(HISTORY, TITLES[3], max_new_tokens=6)
    with pytest.raises(ValueError, match=r"Set `max_new_tokens` to at most 0, for none\."):
        recommender(n_positions=question() - 1).explain(HISTORY, TITLES[3], max_new_tokens=1)


@pytest.mark.parametrize("way", ["search", "candidates", "candidates in the prompt"])
def test_a_user_of_many_is_named_before_anybody_is_searched_for(tmp_path, way, monkeypatch):
    users, items = [("ann", HISTORY[:1]), ("bob", HISTORY)], ITEMS["item"].to_list()[3:6]
    candidates = None if way == "search" else Candidates("any", lambda *_: items, 3)
    template = MOVIES.plain().with_candidates() if way == "candidates in the prompt" else MOVIES.plain()
    titles = TITLES if way == "search" else TITLES[3:6]
    shown = titles if way == "candidates in the prompt" else None
    enough = tokens_of(template.prompt(HISTORY, shown), titles) - 1

    def recommend(positions):
        short = Recommender(make_model("gpt2", n_positions=positions), make_tokenizer(), ITEMS, template)
        return short.recommend_all(users, tmp_path / "all.parquet", 2, candidates=candidates, overwrite=True)

    assert recommend(enough) == 2
    monkeypatch.setattr(GPT2LMHeadModel, "forward", None)  # nothing is computed
    with pytest.raises(ValueError, match=r"^user 'bob': history: the prompt has"):
        recommend(enough - 1)


@pytest.mark.parametrize(("kind", "times"), [("gpt2", 2), ("llama", 1)])
def test_only_where_a_prompt_can_be_too_long_it_is_made_to_be_checked(tmp_path, kind, times, monkeypatch):
    made, call = [], PromptTries.__call__
    monkeypatch.setattr(PromptTries, "__call__", lambda self, prompt: made.append(prompt) or call(self, prompt))
    many = Recommender(make_model(kind), make_tokenizer(), ITEMS, MOVIES.plain())
    many.recommend_all([("ann", HISTORY[:1]), ("bob", HISTORY)], tmp_path / "all.parquet", 2)
    assert len(made) == 2 * times


def test_padding_is_masked_so_that_the_model_need_not_know_its_token():
    """As with a padding token that was added to the tokenizer alone."""
    tokenizer, users = make_tokenizer(), make_users(4)
    size = len(tokenizer)
    assert len({len(tokenizer(row["prompt"])["input_ids"]) for row in users}) > 1
    expected = generate_items(make_model(vocab_size=size), tokenizer, users, TITLES, name="x").outputs
    scores = score_candidates(make_model(vocab_size=size), tokenizer, users)
    tokenizer.add_special_tokens({"pad_token": "<padding>"})
    assert tokenizer.pad_token_id == size
    assert generate_items(make_model(vocab_size=size), tokenizer, users, TITLES, name="x").outputs == expected
    again = score_candidates(make_model(vocab_size=size), tokenizer, users)
    assert all((one.logps == other.logps).all() for one, other in zip(scores, again, strict=True))
