import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dmpo_trl.data import MOVIES
from dmpo_trl.evaluation import RankingResult, rank_at_random, rank_by_popularity, rank_with_model
from dmpo_trl.evaluation.ranking import full_catalogue, rank_by_log_prob, score_candidates
from dmpo_trl.scoring import CompletionScores

DATASET = Dataset.from_list(
    [
        {"user": "u1", "items": ["a", "b", "c"], "positive": 1, "prompt": "p q ", "candidates": ["x", "y y", "z"]},
        {"user": "u2", "items": ["c", "d"], "positive": 0, "prompt": "q ", "candidates": ["z", "x y z"]},
    ]
)


def test_random_choice_is_its_expectation():
    metrics = rank_at_random(DATASET).metrics(["hr@1", "auc", "mrr"])
    assert metrics == pytest.approx({"hr@1": (1 / 3 + 1 / 2) / 2, "auc": 0.5, "mrr": (11 / 18 + 3 / 4) / 2})


def test_popularity_ranks_by_count_and_unknown_items_last():
    result = rank_by_popularity(DATASET, {"a": 5, "b": 7, "c": 1})
    assert [scores.tolist() for scores in result.scores] == [[5, 7, 1], [1, 0]]
    assert result.metrics(["hr@1", "auc"]) == {"hr@1": 1, "auc": 1}


def test_differences_are_paired_by_user():
    rng = np.random.default_rng(0)
    users = [f"u{i}" for i in range(200)]
    scores = [rng.normal(size=20) for _ in users]
    items = [[str(i) for i in range(20)]] * 200
    worse = RankingResult("worse", users, scores, [0] * 200, items)
    lifted = [values + np.eye(20)[0] * 0.1 for values in scores]  # the positive a little higher, for each user
    better = RankingResult("better", users, lifted, [0] * 200, items)
    difference = better.minus(worse, ["auc"])["auc"]
    assert difference.p_value == 2e-4  # the least that 9,999 draws can give: not one went as far
    assert difference.mean == pytest.approx(better.metrics(["auc"])["auc"] - worse.metrics(["auc"])["auc"])
    # Unpaired intervals overlap by far; the paired one excludes 0
    assert better.intervals(["auc"])["auc"].low < worse.intervals(["auc"])["auc"].high
    assert 0 < difference.low < difference.mean < difference.high
    with pytest.raises(ValueError, match="better and other ranked different users"):
        better.minus(RankingResult("other", users[::-1], scores, [0] * 200, items))
    others = [items[0], items[0][::-1], *items[2:]]
    with pytest.raises(ValueError, match="better and other ranked different candidates of user u1"):
        better.minus(RankingResult("other", users, scores, [0] * 200, others))


@pytest.fixture
def model_and_tokenizer():
    vocabulary = {token: i for i, token in enumerate(["<eos>", "<unk>", *"pqxyz"])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<eos>", pad_token="<eos>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=7,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config).eval(), tokenizer


def log_prob(model, tokenizer, prompt, completion) -> tuple[float, int]:
    """Oracle: one sequence at a time, one token at a time."""
    context = tokenizer(prompt)["input_ids"]
    tokens = [*tokenizer(completion)["input_ids"], tokenizer.eos_token_id]
    total = 0.0
    for token in tokens:
        with torch.no_grad():
            logits = model(torch.tensor([context])).logits[0, -1].double()
        total += float(logits.log_softmax(-1)[token])
        context = [*context, token]
    return total, len(tokens)


@pytest.mark.parametrize("score", ["sum", "mean"])
def test_model_scores_are_log_probs(model_and_tokenizer, score):
    model, tokenizer = model_and_tokenizer
    result = rank_with_model(model, tokenizer, DATASET, score=score, name="tiny")
    assert (result.name, result.users, result.positives) == ("tiny", ["u1", "u2"], [1, 0])
    for row, scores in zip(DATASET, result.scores, strict=True):
        expected = [log_prob(model, tokenizer, row["prompt"], completion) for completion in row["candidates"]]
        wanted = [total / length if score == "mean" else total for total, length in expected]
        assert scores == pytest.approx(wanted, abs=1e-5)


def test_the_kind_of_score_is_checked():
    with pytest.raises(ValueError, match="'sum' or 'mean', not 'median'"):
        rank_with_model(None, None, DATASET, score="median", name="x")


def test_one_scoring_serves_both_kinds_of_score(model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    scored = score_candidates(model, tokenizer, DATASET)
    for score in ("sum", "mean"):
        result = rank_by_log_prob(DATASET, scored, score=score, name="tiny")
        alone = rank_with_model(model, tokenizer, DATASET, score=score, name="tiny")
        assert [own.tolist() for own in result.scores] == [own.tolist() for own in alone.scores]
        assert result.items == DATASET["items"][:]
    with pytest.raises(ValueError, match="'sum' or 'mean', not 'median'"):
        rank_by_log_prob(DATASET, scored, score="median", name="x")


TITLES = {"a": "x", "b": "y y", "c": "z", "d": "x y z", "e": "p"}


@pytest.mark.parametrize("template", [MOVIES, MOVIES.plain()])
def test_the_full_catalogue_leaves_out_what_the_user_has_had(template):
    dataset = DATASET.add_column("history", [["e"], ["a", "b"]])
    rows = list(full_catalogue(dataset, TITLES, template))
    assert [row["items"] for row in rows] == [["a", "b", "c", "d"], ["c", "d", "e"]]
    assert [row["items"][row["positive"]] for row in rows] == ["b", "c"]
    assert [row["prompt"] for row in rows] == ["p q ", "q "]
    for row in rows:
        assert row["candidates"] == [template.completion(TITLES[item]) for item in row["items"]]
    # What the user had before the history
    more = dataset.add_column("seen", [["c", "e"], ["a", "b", "e"]])
    rows = list(full_catalogue(more, TITLES, template))
    assert [row["items"] for row in rows] == [["a", "b", "d"], ["c", "d"]]
    # All that the user has had, the target among it
    seen = {"u1": {"a", "b", "e"}}
    rows = list(full_catalogue(dataset, TITLES, template, seen=seen))
    assert [row["items"] for row in rows] == [["b", "c", "d"], ["a", "b", "c", "d", "e"]]


@pytest.mark.parametrize("template", [MOVIES, MOVIES.plain()])
def test_the_full_catalogue_is_exported_as_it_is_read(tmp_path, template):
    dataset = full_catalogue(DATASET.add_column("history", [["e"], ["a", "b"]]), TITLES, template)
    assert dataset[1]["items"] == ["c", "d", "e"]
    dataset.to_parquet(tmp_path / "users.parquet")
    assert list(Dataset.from_parquet(str(tmp_path / "users.parquet"), cache_dir=str(tmp_path))) == list(dataset)
    assert dataset.to_polars().to_dicts() == dataset.to_list() == list(dataset)


def test_the_full_catalogue_is_ranked_like_any_candidates(model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    dataset = full_catalogue(DATASET.add_column("history", [["e"], ["a", "b"]]), TITLES, MOVIES.plain())
    result = rank_with_model(model, tokenizer, dataset, score="sum", name="tiny", tokens_per_batch=8)
    for row, scores in zip(dataset, result.scores, strict=True):
        expected = [log_prob(model, tokenizer, row["prompt"], TITLES[item])[0] for item in row["items"]]
        assert scores == pytest.approx(expected, abs=1e-5)
    assert rank_by_popularity(dataset, {"b": 2, "e": 1}).metrics(["hr@1"]) == {"hr@1": 0.5}


def test_what_has_no_full_catalogue_is_named():
    dataset = DATASET.add_column("history", [["e"], ["a", "b"]])
    with pytest.raises(ValueError, match="target 'b' of user u1"):
        full_catalogue(dataset, {"a": "x"}, MOVIES)
    with pytest.raises(ValueError, match="lists the candidates in the prompt"):
        full_catalogue(dataset, TITLES, MOVIES.with_candidates())


def test_nothing_is_ranked_by_scores_without_an_order():
    scored = [CompletionScores(np.array([-1.0, np.nan, -2.0]), np.ones(3)), CompletionScores(np.zeros(2), np.ones(2))]
    with pytest.raises(ValueError, match=r"User 'u1': the score of candidate 1 is NaN.*dtype"):
        rank_by_log_prob(DATASET, scored, score="sum", name="x")
    with pytest.raises(ValueError, match="no users to rank"):
        rank_at_random(DATASET.select([]))
