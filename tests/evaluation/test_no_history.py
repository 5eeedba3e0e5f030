"""Ranking by how unlikely a title is without a history, against one sequence at a time."""

import numpy as np
import pytest
from datasets import Dataset
from support import make_model, make_tokenizer

from dmpo_trl.data import MOVIES
from dmpo_trl.evaluation import NoHistoryRanker, fuse, rank_with_model, reference_without_history, score_candidates
from dmpo_trl.scoring import score_completions

TITLES = {"1": "Alien", "2": "Babe, the gallant pig of the farm", "3": "Heidi", "4": "Aliens"}
TEMPLATE = MOVIES.plain()


def questions(*users: tuple[str, list[str]]) -> Dataset:
    return Dataset.from_list(
        [
            {
                "user": f"u{number}",
                "prompt": TEMPLATE.prompt([TITLES[item] for item in history]),
                "items": items,
                "candidates": [TEMPLATE.completion(TITLES[item]) for item in items],
                "positive": 0,
            }
            for number, (history, items) in enumerate(users)
        ]
    )


@pytest.fixture(scope="module")
def model():
    return make_model().eval()


DATASET = questions(("1", ["2", "3"]), ("23", ["1", "2", "4"]))


def test_the_score_is_minus_the_log_prob_after_a_prompt_without_titles(model, monkeypatch):
    monkeypatch.setattr("dmpo_trl.evaluation.no_history._TITLES_PER_ROW", 3)  # four titles: two parts
    result = NoHistoryRanker(model, make_tokenizer(), TEMPLATE).rank(DATASET)
    prompt = TEMPLATE.prompt([])
    alone = {
        item: score_completions(model, make_tokenizer(), [prompt], [[title]], prefix_sharing=False)[0].logps[0]
        for item, title in TITLES.items()
    }
    for items, scores in zip(result.items, result.scores, strict=True):
        np.testing.assert_allclose(scores, [-alone[item] for item in items], rtol=1e-5)
    assert result.name == "no_history"
    assert [len(scores) for scores in result.scores] == [2, 3]


def test_at_equal_weight_and_spread_the_fusion_is_pointwise_mutual_information(model):
    """`z(model) + w z(no history)` orders as `log p(title | history) - a log p(title)`, a = w times the spreads."""
    by_model = rank_with_model(model, make_tokenizer(), DATASET, score="sum", name="model")
    unlikely = NoHistoryRanker(model, make_tokenizer(), TEMPLATE).rank(DATASET)
    fused = fuse(by_model, unlikely, 0.5)
    for own, without, both in zip(by_model.scores, unlikely.scores, fused.scores, strict=True):
        expected = own + 0.5 * own.std() / without.std() * without
        assert np.argsort(both).tolist() == np.argsort(expected).tolist()


def test_who_has_no_history_is_ranked_by_the_model_alone(model):
    dataset = questions(("", ["2", "3", "1"]), ("1", ["2", "3", "4"]))
    by_model = rank_with_model(model, make_tokenizer(), dataset, score="sum", name="model")
    unlikely = NoHistoryRanker(model, make_tokenizer(), TEMPLATE).rank(dataset)
    assert unlikely.scores[0].tolist() == [0, 0, 0]
    assert unlikely.scores[1].min() > 0
    fused = fuse(by_model, unlikely, 1.0)
    assert np.argsort(fused.scores[0]).tolist() == np.argsort(by_model.scores[0]).tolist()


def test_a_template_of_another_kind_than_the_prompts_is_refused(model):
    with pytest.raises(ValueError, match=r"give the template that the prompts were made with \(`template.plain\(\)`"):
        NoHistoryRanker(model, make_tokenizer(), MOVIES).rank(DATASET)


def test_a_template_that_lists_the_candidates_is_refused(model):
    with pytest.raises(ValueError, match="no_history: the template lists the candidates"):
        NoHistoryRanker(model, make_tokenizer(), TEMPLATE.with_candidates())


def test_a_title_is_scored_once(model, monkeypatch):
    scored = []

    def score(model, tokenizer, questions):
        scored.extend(completion for own in questions["candidates"] for completion in own)
        return score_candidates(model, tokenizer, questions)

    monkeypatch.setattr("dmpo_trl.evaluation.no_history.score_candidates", score)
    ranker = NoHistoryRanker(model, make_tokenizer(), TEMPLATE)
    first, again = ranker.rank(DATASET), ranker.rank(questions(("1", ["2", "3", "4"])))
    assert sorted(scored) == sorted(map(TEMPLATE.completion, TITLES.values()))
    assert again.scores[0][:2].tolist() == first.scores[0].tolist()


@pytest.mark.parametrize("several", [False, True], ids=["one chosen", "several chosen"])
@pytest.mark.parametrize("template", [TEMPLATE, MOVIES], ids=["text", "messages"])
def test_the_reference_is_what_the_model_says_of_each_title_without_a_history(model, template, several):
    def title(item):
        return template.completion(TITLES[item])

    rows = [(["1"], ["2", "4"], ["3"]), (["3"], ["1", "2"], ["4", "2", "3"][: 2 - several])]
    dataset = Dataset.from_list(
        [
            {
                "prompt": template.prompt([TITLES[item] for item in history]),
                "chosen": [title(item) for item in chosen] if several else title(chosen[0]),
                "rejected": [title(item) for item in rejected if item not in chosen],
            }
            for history, chosen, rejected in rows
        ]
    )
    found = reference_without_history(dataset, model, make_tokenizer(), template)

    def alone(item):
        nothing = [template.prompt([])]
        return score_completions(model, make_tokenizer(), nothing, [[title(item)]], prefix_sharing=False)[0].logps[0]

    for row, (_, chosen, rejected) in zip(found, rows, strict=True):
        expected = [alone(item) for item in chosen]
        assert row["ref_chosen_logps"] == pytest.approx(expected if several else expected[0], rel=1e-5)
        assert row["ref_rejected_logps"] == pytest.approx([alone(i) for i in rejected if i not in chosen], rel=1e-5)
    with pytest.raises(ValueError, match="has the column ref_chosen_logps already"):
        reference_without_history(found, model, make_tokenizer(), template)


def test_a_faulty_row_is_named(model):
    dataset = Dataset.from_list([{"prompt": "Seen:", "chosen": "Alien", "rejected": ["Alien"]}])
    with pytest.raises(ValueError, match="Row 0 of the preference dataset, column `rejected`: "):
        reference_without_history(dataset, model, make_tokenizer(), TEMPLATE)
