import json
import logging
from copy import deepcopy
from dataclasses import replace

import polars as pl
import pytest
import torch
from peft import LoraConfig, get_peft_model
from support import make_model, make_tokenizer, naive_logp
from transformers import AutoModelForCausalLM

from dmpo_trl.data import MOVIES
from dmpo_trl.data.preparation.folder import FORMAT
from dmpo_trl.preprocessing.tokenize import tokenize_completions
from dmpo_trl.recommend import NonFiniteScoresError, Recommender
from dmpo_trl.recommend._run import describe_run
from dmpo_trl.scoring import score_completions
from dmpo_trl.writing import MANIFEST, checksums

HISTORY = ["100", "Star Wars", "111"]
SEEN = {"100", "106", "111"}


def assert_same(found, expected):
    """Scores may differ by float32 rounding, which depends on where in memory weights lie."""
    assert [(one.item, one.title) for one in found] == [(one.item, one.title) for one in expected]
    assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=2e-5)


@torch.no_grad()
def naive_scores(case, history, items):
    """Log-prob and length of every title after the history, by item, from the definition."""
    title = dict(items.iter_rows())
    prompt = case.template.prompt([title.get(entry, entry) for entry in history])
    scores = {}
    for item, text in title.items():
        prompt_ids, (ids,) = tokenize_completions(case.tokenizer, prompt, [case.template.completion(text)])
        scores[item] = naive_logp(case.model, prompt_ids, ids).item(), len(ids)
    return scores


def test_recommends_what_scoring_the_catalogue_would(case, items):
    found = case.recommender.recommend(HISTORY, k=7, exclude=["The Rock"], num_beams=50)
    scores = {item: score for item, (score, _) in naive_scores(case, HISTORY, items).items()}
    left = sorted((item for item in scores if item not in SEEN | {"112"}), key=lambda item: -scores[item])
    assert [one.item for one in found] == left[:7]
    assert [one.score for one in found] == pytest.approx([scores[item] for item in left[:7]], abs=2e-5)
    assert [one.title for one in found] == [dict(items.iter_rows())[one.item] for one in found]
    completions = [case.template.completion(one.title) for one in found]
    prompt = case.template.prompt(["Alien", "Star Wars", "Babe"])
    logps = score_completions(case.model, case.tokenizer, [prompt], [completions])[0].logps
    assert [one.score for one in found] == pytest.approx(logps, abs=2e-5)


def test_items_of_one_title_come_out_and_go_out_together(case):
    """A user who had one, or wants none of it, is not shown the other."""
    everything = case.recommender.recommend(["Heidi"], k=13, num_beams=50)
    places = {one.item: place for place, one in enumerate(everything)}
    assert places["105"] == places["103"] + 1
    assert everything[places["103"]].score == everything[places["105"]].score
    without = [one.item for one in everything if one.item not in ("103", "105")]
    for entry in ("103", "105", "The Mask"):
        found = case.recommender.recommend(["Heidi"], k=11, exclude=[entry], num_beams=50)
        assert [one.item for one in found] == without
        assert "The Mask" not in [one.title for one in case.recommender.recommend([entry], k=11, num_beams=50)]


def test_more_than_are_left_gives_all_that_are_left(case, items, caplog):
    with caplog.at_level(logging.WARNING, logger="dmpo_trl.recommend.recommender"):
        found = case.recommender.recommend(HISTORY, k=100, num_beams=1)  # the beam is raised to k
    assert {one.item for one in found} == set(items["item"]) - SEEN
    assert "k=100, but 1 of 1 users have fewer items left" in caplog.text
    assert case.recommender.recommend(items["item"].to_list(), k=1) == []


def test_a_batch_is_its_users(case):
    histories = [["100"], HISTORY, [], ["Toy Story", "Toy Story 2", "Heidi", "Babe", "The Rock"]]
    batch = case.recommender.recommend_batch(histories, 3, num_beams=3)
    for history, found in zip(histories, batch, strict=True):
        alone = case.recommender.recommend(history, 3, num_beams=3)
        assert [one.item for one in found] == [one.item for one in alone]
        assert [one.score for one in found] == pytest.approx([one.score for one in alone], abs=2e-5)


@pytest.mark.parametrize("score", ["sum", "mean"])
def test_rank_sorts_by_the_score_asked_for(case, items, score):
    recommender = Recommender(case.model, case.tokenizer, items, case.template, score=score)
    candidates = items["item"].to_list()[::-1]
    scores = {
        item: logp / length if score == "mean" else logp
        for item, (logp, length) in naive_scores(case, HISTORY, items).items()
    }
    found = recommender.rank(HISTORY, candidates)
    assert [one.item for one in found] == sorted(candidates, key=lambda item: (-round(scores[item], 4), -int(item)))
    assert [one.score for one in found] == pytest.approx([scores[one.item] for one in found], abs=2e-5)


def test_a_template_with_candidates_ranks_and_does_not_recommend(case, items):
    recommender = Recommender(case.model, case.tokenizer, items, case.template.with_candidates())
    assert len(recommender.rank(HISTORY, ["101", "102"])) == 2
    with pytest.raises(ValueError, match="rank candidates"):
        recommender.recommend(HISTORY)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.recommend(["Toy Stroy"]), r"history: 'Toy Stroy' is neither.*'Toy Story'"),
        (lambda r: r.recommend([], exclude=["x"]), "exclude: 'x' is neither an item id nor a title"),
        (lambda r: r.recommend([], k=0), "at least 1"),
        (lambda r: r.recommend_batch([[], []], exclude=[[]]), "exclude: 2 histories need one entry each, there are 1"),
        (lambda r: r.recommend_batch([[]], exclude=[]), "exclude: 1 histories need one entry each, there are 0"),
        (lambda r: r.rank([], ["Matrix"]), r"candidates: 'Matrix' is neither.*'The Matrix'"),
        (lambda r: r.rank(["100"], []), "nothing to rank"),
        (lambda r: Recommender(r.model, r.tokenizer, r.catalogue.frame, r.template, score="max"), "'sum' or 'mean'"),
    ],
)
def test_what_cannot_be_done_is_said(case, call, message):
    with pytest.raises(ValueError, match=message):
        call(case.recommender)


def test_the_exact_search_finds_what_ranking_the_catalogue_finds(case):
    candidates = [item for item in case.recommender.catalogue.items if item not in HISTORY]
    ranked = Recommender(case.model, case.tokenizer, case.recommender.catalogue.frame, case.template).rank(
        HISTORY, candidates
    )
    assert_same(case.recommender.recommend(HISTORY, 4, num_beams=1, exact=True), ranked[:4])


def mean_scores(case, items):
    return {item: score / length for item, (score, length) in naive_scores(case, HISTORY, items).items()}


def test_with_the_mean_it_recommends_what_ranking_by_the_mean_would(case, items):
    """As many beams as there are titles find all of them; what `rank` says of them is the outcome, its score too."""
    recommender = Recommender(case.model, case.tokenizer, items, case.template, score="mean")
    scores = mean_scores(case, items)
    left = sorted((item for item in scores if item not in SEEN), key=lambda item: -scores[item])
    sums = {item: score for item, (score, _) in naive_scores(case, HISTORY, items).items()}
    assert left != sorted(left, key=lambda item: -sums[item])  # or the test would show nothing
    for options in ({"num_beams": 50}, {"num_beams": 1, "exact": True}):
        found = recommender.recommend(HISTORY, 5, **options)
        assert [one.item for one in found] == left[:5]
        assert [one.score for one in found] == pytest.approx([scores[one.item] for one in found], abs=2e-5)
    assert recommender.recommend(items["item"].to_list(), 5) == []


def test_with_the_mean_few_beams_give_the_best_of_what_they_found(case, items):
    recommender = Recommender(case.model, case.tokenizer, items, case.template, score="mean")
    by_sum = {one.item for one in case.recommender.recommend(HISTORY, 4, num_beams=4)}
    scores = mean_scores(case, items)
    found = [one.item for one in recommender.recommend(HISTORY, 2, num_beams=4)]
    assert found == sorted(sorted(by_sum), key=lambda item: -scores[item])[:2]  # two ids share a title


def test_many_users_are_streamed_to_parquet(case, tmp_path):
    users = [(f"u{number}", [str(100 + number)]) for number in range(5)]
    path = tmp_path / "all.parquet"
    given = ((user, history, ["Heidi"]) if user == "u1" else (user, history) for user, history in users)
    count = case.recommender.recommend_all(given, path, k=3, num_beams=4, batch_size=2)
    assert count == 5
    assert list(tmp_path.iterdir()) == [path]
    frame = pl.read_parquet(path)
    assert frame.columns == ["user", "rank", "item", "title", "score"]
    for user, history in users:
        expected = case.recommender.recommend(history, 3, exclude=["Heidi"] if user == "u1" else (), num_beams=4)
        rows = frame.filter(user=user)
        assert rows["rank"].to_list() == [1, 2, 3]
        assert rows["item"].to_list() == [one.item for one in expected]
        assert rows["title"].to_list() == [one.title for one in expected]
        assert rows["score"].to_list() == pytest.approx([one.score for one in expected], abs=2e-5)


def test_an_unfinished_file_does_not_appear_and_the_old_one_stays(case, tmp_path):
    path = tmp_path / "all.parquet"
    path.write_text("old")
    with pytest.raises(ValueError, match=r"user 'b': history: 'Ailen' is neither.*'Alien'"):
        case.recommender.recommend_all([("a", ["100"]), ("b", ["Ailen"])], path, k=2, batch_size=1, overwrite=True)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


def test_another_model_catalogue_or_template_is_another_run(case, items):
    """And the same one, loaded anew, is the same."""

    def described(recommender):
        return describe_run(recommender, k=3)

    def parts(**others):
        given = {"model": case.model, "items": items, "template": case.template} | others
        return Recommender(given["model"], case.tokenizer, given["items"], given["template"])

    own = described(case.recommender)
    assert described(parts(model=deepcopy(case.model))) == own
    changed = deepcopy(case.model)
    with torch.no_grad():
        changed.lm_head.weight[3, 3] += 1e-3
    others = {
        "model": parts(model=changed),
        "catalogue": parts(items=items.head(5)),
        "template": parts(template=replace(case.template, question="And then?")),
    }
    for name, other in others.items():
        assert {key for key, value in described(other).items() if own[key] != value} == {name}
    assert described(parts(model=deepcopy(case.model).bfloat16()))["model"] != own["model"]


def test_saved_and_loaded_it_recommends_the_same(case, items, tmp_path):
    recommender = Recommender(case.model, case.tokenizer, items, case.template, score="mean")
    recommender.save_pretrained(tmp_path / "model")
    loaded = Recommender.from_pretrained(tmp_path / "model")
    assert (loaded.score, loaded.template) == ("mean", case.template)
    assert_same(loaded.recommend(HISTORY, 3), recommender.recommend(HISTORY, 3))
    AutoModelForCausalLM.from_pretrained(tmp_path / "model")  # plain transformers can load it

    other = replace(case.template, question="And then?")
    loaded = Recommender.from_pretrained(tmp_path / "model", items=items.head(2), template=other, dtype=torch.bfloat16)
    assert loaded.template == other
    assert loaded.model.dtype == torch.bfloat16
    assert {one.item for one in loaded.recommend([], 2)} == {"100", "101"}


@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_an_adapter_is_loaded_with_its_base_model(items, tmp_path, with_tokenizer):
    base, tokenizer = make_model("llama"), make_tokenizer()
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    config = LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config)
    recommender = Recommender(model, tokenizer, items, MOVIES)
    recommender.save_pretrained(tmp_path / "adapter")
    if not with_tokenizer:
        for file in (tmp_path / "adapter").glob("*token*"):
            file.unlink()
        assert not (tmp_path / "adapter" / "tokenizer.json").exists()
    loaded = Recommender.from_pretrained(tmp_path / "adapter")
    found = loaded.recommend(HISTORY, 5)
    assert [one.item for one in found] == [one.item for one in recommender.recommend(HISTORY, 5)]
    plain = Recommender(base, tokenizer, items, MOVIES).recommend(HISTORY, 5)
    assert [one.score for one in found] != pytest.approx([one.score for one in plain], abs=1e-3)


def test_catalogue_and_template_come_from_a_prepared_folder(case, items, tmp_path):
    case.model.save_pretrained(tmp_path / "model")
    case.tokenizer.save_pretrained(tmp_path / "model")
    data = tmp_path / "data"
    data.mkdir()
    items.with_columns(popularity=1).write_parquet(data / "items.parquet")
    manifest = {"format": FORMAT, "template": case.template.to_dict(), "rows": {}, "files": checksums(data)}
    (data / MANIFEST).write_text(json.dumps(manifest))
    loaded = Recommender.from_pretrained(tmp_path / "model", data=data)
    assert_same(loaded.recommend(HISTORY, 3), case.recommender.recommend(HISTORY, 3))
    assert loaded.score == "sum"  # none was saved


def test_the_saved_score_is_that_of_the_model_wherever_catalogue_and_template_come_from(case, items, tmp_path):
    Recommender(case.model, case.tokenizer, items, case.template, score="mean").save_pretrained(tmp_path / "model")
    data = tmp_path / "data"
    data.mkdir()
    items.with_columns(popularity=1).write_parquet(data / "items.parquet")
    manifest = {"format": FORMAT, "template": case.template.to_dict(), "rows": {}, "files": checksums(data)}
    (data / MANIFEST).write_text(json.dumps(manifest))
    for given in ({"data": data}, {"items": items, "template": case.template}):
        assert Recommender.from_pretrained(tmp_path / "model", **given).score == "mean"
        assert Recommender.from_pretrained(tmp_path / "model", **given, score="sum").score == "sum"
    (tmp_path / "model" / "items.parquet").unlink()
    assert Recommender.from_pretrained(tmp_path / "model", data=data).score == "mean"


def test_a_model_without_a_catalogue_says_what_to_give(tmp_path):
    make_model("llama").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no recommender\.json and items\.parquet: name the prepared folder"):
        Recommender.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "call",
    [
        lambda r: r.recommend([], 2),
        lambda r: r.recommend([], 2, exact=True),
        lambda r: r.rank(["1"], ["2", "3"]),
        lambda r: r.explain(["1"], "2", max_new_tokens=0),
    ],
    ids=["recommend", "exact", "rank", "explain"],
)
def test_a_model_that_begins_to_compute_nan_recommends_nothing_and_says_why(call):
    model = make_model("llama")
    items = pl.DataFrame({"item": ["1", "2", "3"], "title": ["Alien", "Heidi", "Babe"]})
    recommender = Recommender(model, make_tokenizer(), items, MOVIES.plain())
    call(recommender)
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.fill_(torch.nan)
    with pytest.raises(NonFiniteScoresError, match="log-probs of titles are not finite; try another dtype"):
        call(recommender)


def test_a_title_of_probability_zero_is_not_dropped_without_a_word():
    model = make_model()
    tokenizer = make_tokenizer()
    items = pl.DataFrame({"item": ["1", "2", "3"], "title": ["Alien", "Heidi", "Babe"]})
    recommender = Recommender(model, tokenizer, items, MOVIES.plain())
    first = tokenizer("Babe", add_special_tokens=False)["input_ids"][0]

    def without_first(module, args, output):
        output.logits[..., first] = -torch.inf
        return output

    model.register_forward_hook(without_first)
    for k in (1, 3):  # also where there are enough titles without it
        for exact in (False, True):
            with pytest.raises(NonFiniteScoresError, match="log-probs of titles are not finite; try another dtype"):
                recommender.recommend([], k, num_beams=1, exact=exact)


def test_nothing_comes_out_where_everything_is_excluded(case):
    assert case.recommender.recommend([], 2, exclude=case.recommender.catalogue.items) == []
