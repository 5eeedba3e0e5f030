"""Priors: what comes out is the formula over the candidates that the documentation names."""

import json
import re

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import make_model, make_tokenizer, save_model

from dmpo_trl.data import MOVIES
from dmpo_trl.evaluation import ItemKNN
from dmpo_trl.recommend import Prior, Recommender, UserHistory
from dmpo_trl.recommend.prior import Fusion, ranked
from dmpo_trl.recommend.recommendation import as_json

HISTORY = ["100", "106"]
SEEN = {"100", "106"}
NUMBERS = st.lists(st.integers(-9, 9), min_size=1, max_size=7)


@pytest.fixture(scope="module")
def parts(items):
    return make_model(), make_tokenizer(), items, MOVIES.plain()


def by_number(user, history, candidates):
    """An item's number, the larger the better."""
    return np.array([float(item) for item in candidates])


def with_prior(parts, prior, weight=2.0, **options):
    return Recommender(*parts, prior=prior, prior_weight=weight, **options)


def z(values):
    values = np.array(values, dtype=float)
    return (values - values.mean()) / values.std() if values.std() else np.zeros(len(values))


def check_fused(found, own, prior, weight):
    """`found` are the candidates of `own` (score by item), in the order of the formula."""
    expected = z(list(own.values())) + weight * z([prior[item] for item in own])
    expected = dict(zip(own, expected, strict=True))
    assert [one.score for one in found] == pytest.approx([expected[one.item] for one in found], abs=1e-4)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert [one.model_score for one in found] == pytest.approx([own[one.item] for one in found], abs=2e-5)
    assert [one.prior_score for one in found] == [prior[one.item] for one in found]
    best = sorted(expected.values(), reverse=True)[: len(found)]
    assert [one.score for one in found] == pytest.approx(best, abs=1e-4)


@given(st.data(), NUMBERS, st.sampled_from([0.0, 0.5, 3.0]))
def test_the_order_is_that_of_the_formula(data, scores, weight):
    prior = data.draw(st.lists(st.integers(-9, 9), min_size=len(scores), max_size=len(scores)))
    items = [f"i{n}" for n in range(len(scores))]
    fusion = Fusion(Prior("mine", lambda *_: np.array(prior, dtype=float)), weight)
    found = ranked(items, items, np.array(scores, dtype=float), ["h"], None, fusion)
    check_fused(found, dict(zip(items, scores, strict=True)), dict(zip(items, prior, strict=True)), weight)


@pytest.mark.parametrize("score", ["sum", "mean"])
def test_ranking_is_over_the_candidates_given(parts, score):
    candidates = ["101", "103", "110", "112"]
    own = {one.item: one.score for one in Recommender(*parts, score=score).rank(HISTORY, candidates)}
    found = with_prior(parts, Prior("number", by_number), score=score).rank(HISTORY, candidates)
    check_fused(found, own, {item: float(item) for item in own}, 2.0)


@pytest.mark.parametrize("score", ["sum", "mean"])
def test_an_exact_search_is_over_the_whole_catalogue(parts, items, score):
    left = [item for item in items["item"] if item not in SEEN | {"112"}]
    own = {one.item: one.score for one in Recommender(*parts, score=score).rank(HISTORY, left)}
    recommender = with_prior(parts, Prior("number", by_number), score=score)
    found = recommender.recommend(HISTORY, k=4, exclude=["112"], num_beams=1, exact=True)
    assert len(found) == 4
    check_fused(found, own, {item: float(item) for item in own}, 2.0)


@pytest.mark.parametrize("score", ["sum", "mean"])
def test_a_search_with_beams_is_over_as_many_items_as_there_are_beams(parts, score):
    by_sum = Recommender(*parts).recommend(HISTORY, k=5, num_beams=5)
    own = {one.item: one.score for one in Recommender(*parts, score=score).rank(HISTORY, [one.item for one in by_sum])}
    found = with_prior(parts, Prior("number", by_number), score=score).recommend(HISTORY, k=2, num_beams=5)
    assert len(found) == 2
    check_fused(found, own, {item: float(item) for item in own}, 2.0)


def test_a_prior_without_weight_in_it_changes_no_order(parts):
    alone = Recommender(*parts).recommend(HISTORY, k=5, num_beams=50)
    found = with_prior(parts, Prior("number", by_number), 0.0).recommend(HISTORY, k=5, num_beams=50)
    assert [one.item for one in found] == [one.item for one in alone]
    assert alone[0].model_score is alone[0].prior_score is None


def test_a_user_who_has_had_everything_gets_nothing(parts, items):
    recommender = with_prior(parts, Prior("number", by_number))
    assert recommender.recommend(items["item"].to_list(), k=1) == []


def test_counts_are_those_of_evaluate(parts):
    rows = [("u", "100"), ("u", "101"), ("v", "100"), ("v", "101"), ("v", "110"), ("w", "106"), ("w", "110")]
    interactions = pl.DataFrame(rows, schema=["user", "item"], orient="row")
    found = with_prior(parts, Prior.item_knn(interactions, shrinkage=1)).rank(HISTORY, ["101", "110", "112"])
    expected = ItemKNN(interactions, shrinkage=1).score(HISTORY, ["101", "110", "112"])
    assert {one.item: one.prior_score for one in found} == dict(zip(["101", "110", "112"], expected, strict=True))
    found = with_prior(parts, Prior.popularity({"101": 7.0})).rank(HISTORY, ["101", "110"])
    assert {one.item: one.prior_score for one in found} == {"101": 7.0, "110": 0.0}


@pytest.fixture
def file(tmp_path):
    rows = [("u", "101", 1.0), ("u", "110", 5.0), ("v", "101", 9.0)]
    pl.DataFrame(rows, schema=["user", "item", "score"], orient="row").write_parquet(tmp_path / "mine.parquet")
    return tmp_path / "mine.parquet"


def test_a_file_has_scores_by_user_and_the_others_are_last(parts, file, caplog):
    recommender = with_prior(parts, Prior.of_file(file))
    assert recommender.fusion.prior.name == "mine"
    found = recommender.rank(HISTORY, ["101", "110", "112"], user="u")
    assert {one.item: one.prior_score for one in found} == {"101": 1.0, "110": 5.0, "112": -3.0}
    found = recommender.recommend_batch([HISTORY, HISTORY], k=20, users=["u", "v"])
    assert [{one.item: one.prior_score for one in own}["101"] for own in found] == [1.0, 9.0]
    assert not caplog.records or "decides alone" not in caplog.text
    recommender.rank(HISTORY, ["112", "111"], user="v")
    assert "has no score of any candidate of user 'v': the model decides alone" in caplog.text


def test_candidates_without_a_score_are_counted_once(parts, file, caplog):
    recommender = with_prior(parts, Prior.of_file(file))
    recommender.rank(HISTORY, ["101", "110"], user="u")
    assert "no score" not in caplog.text
    for user in ("u", "v", "u"):
        recommender.rank(HISTORY, ["101", "110", "112"], user=user)
    assert [record.message for record in caplog.records if "no score" in record.message] == [
        f"{file}: 1 of 3 candidates of user 'u' have no score; they rank last, tied. Further users are not counted "
        "here. Score the whole catalogue if all of it should count."
    ]


@pytest.mark.parametrize("unit", [1e-3, 1e3])
def test_the_unit_of_a_files_scores_changes_no_recommendation(parts, file, unit):
    own = with_prior(parts, Prior.of_file(file)).rank(HISTORY, ["101", "110", "112"], user="u")
    pl.read_parquet(file).with_columns(pl.col("score") * unit).write_parquet(file)
    found = with_prior(parts, Prior.of_file(file)).rank(HISTORY, ["101", "110", "112"], user="u")
    assert [one.item for one in found] == [one.item for one in own]
    assert [one.score for one in found] == pytest.approx([one.score for one in own], abs=1e-4)


def test_users_without_scores_are_refused_before_the_search(parts, file, tmp_path, monkeypatch):
    recommender = with_prior(parts, Prior.of_file(file))
    monkeypatch.setattr(
        "dmpo_trl.recommend.recommender.find", lambda *_, **__: pytest.fail("something was searched for")
    )
    with pytest.raises(ValueError, match="has scores by user: say which user it is"):
        recommender.recommend(HISTORY)
    with pytest.raises(ValueError, match=r"mine\.parquet has no scores of user 'w'"):
        recommender.recommend(HISTORY, user="w")
    with pytest.raises(ValueError, match="users: 1 histories need one entry each, there are 2"):
        recommender.recommend_batch([HISTORY], users=["u", "v"])
    with pytest.raises(ValueError, match=r"user 'w': .*mine\.parquet has no scores of user 'w'"):
        recommender.recommend_all([("u", HISTORY), ("w", HISTORY)], tmp_path / "all.parquet")
    assert not (tmp_path / "all.parquet").exists()


def test_many_users_get_both_scores_in_a_file(parts, tmp_path):
    users = [UserHistory("u", HISTORY), UserHistory("v", ["110"], seen=["111"])]
    recommender = with_prior(parts, Prior("number", by_number))
    recommender.recommend_all(users, tmp_path / "all.parquet", k=3)
    frame = pl.read_parquet(tmp_path / "all.parquet")
    assert frame.columns == ["user", "rank", "item", "title", "score", "model_score", "prior_score"]
    for user, history, seen in users:
        expected = recommender.recommend(history, k=3, exclude=seen)
        own = frame.filter(user=user)
        assert own["item"].to_list() == [one.item for one in expected]
        for name in ("score", "model_score", "prior_score"):
            assert own[name].to_list() == pytest.approx([getattr(one, name) for one in expected], abs=1e-4)
    Recommender(*parts).recommend_all(users, tmp_path / "alone.parquet", k=3)
    assert pl.read_parquet(tmp_path / "alone.parquet").columns == ["user", "rank", "item", "title", "score"]


def test_an_interrupted_run_is_continued_with_the_same_prior_only(parts, tmp_path, monkeypatch):
    users = [(str(n), HISTORY) for n in range(70)]
    first = with_prior(parts, Prior("number", by_number, "1"))
    monkeypatch.setattr(first, "recommend_batch", failing_after(64, lambda histories: [[]] * len(histories)))
    with pytest.raises(KeyboardInterrupt):
        first.recommend_all(users, tmp_path / "all.parquet", k=3)
    for other in (
        with_prior(parts, Prior("number", by_number, "2")),
        with_prior(parts, Prior("number", by_number, "1"), 1.0),
        Recommender(*parts),
    ):
        with pytest.raises(ValueError, match=r"interrupted run that had another prior"):
            other.recommend_all(users, tmp_path / "all.parquet", k=3)


def failing_after(users, recommend):
    done = 0

    def batch(histories, **_):
        nonlocal done
        if done >= users:
            raise KeyboardInterrupt
        done += len(histories)
        return recommend(histories)

    return batch


def test_versions_follow_what_the_scores_come_from(file):
    rows = pl.DataFrame({"user": ["u", "v"], "item": ["a", "b"]})
    same = [Prior.item_knn(rows).version, Prior.popularity({"a": 1, "b": 2}).version, Prior.of_file(file).version]
    again = [
        Prior.item_knn(rows.clone()).version,
        Prior.popularity({"b": 2, "a": 1}).version,
        Prior.of_file(file).version,
    ]
    assert same == again
    pl.read_parquet(file).head(2).write_parquet(file)
    others = [
        Prior.item_knn(rows.reverse().head(1)).version,
        Prior.item_knn(rows, shrinkage=1).version,
        Prior.popularity({"a": 1, "b": 3}).version,
        Prior.of_file(file).version,
    ]
    assert len({*same, *others}) == 7


@pytest.mark.parametrize(
    ("prior", "weight", "message"),
    [
        (Prior("number", by_number), None, "The prior number needs a `prior_weight`. `dmpo-trl evaluate --fuse NAME`"),
        (None, 1.0, "There is a `prior_weight`, but no `prior`"),
        (Prior("number", by_number), -1.0, "The weight must be a number of at least 0, it is -1.0"),
        (Prior("number", by_number), float("nan"), "The weight must be a number of at least 0, it is nan"),
    ],
)
def test_a_prior_and_its_weight_belong_together(parts, prior, weight, message, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=re.escape(message)):
        Recommender(*parts, prior=prior, prior_weight=weight)
    Recommender(*parts).save_catalogue(save_model(tmp_path / "model"))
    monkeypatch.setattr(
        "dmpo_trl.recommend.recommender.load_model_and_tokenizer", lambda *_, **__: pytest.fail("a model was loaded")
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Recommender.from_pretrained(tmp_path / "model", prior=prior, prior_weight=weight)


@pytest.mark.parametrize(
    ("scores", "shown"),
    [
        (np.zeros(3), r"\(3,\), of which 3"),
        (np.array([1.0, np.nan]), r"\(2,\), of which 1"),
        (0.0, r"\(\), of which 1"),
    ],
)
def test_a_prior_that_does_not_score_its_candidates_is_refused(parts, scores, shown):
    recommender = with_prior(parts, Prior("odd", lambda *_: scores))
    with pytest.raises(ValueError, match=f"prior odd must return a finite number for each of 2 candidates.*{shown}"):
        recommender.rank(HISTORY, ["101", "110"])


def test_loaded_from_a_folder_it_ranks_with_the_prior(parts, tmp_path):
    save_model(tmp_path / "model")
    Recommender(*parts).save_catalogue(tmp_path / "model")
    loaded = Recommender.from_pretrained(tmp_path / "model", prior=Prior("number", by_number), prior_weight=2.0)
    expected = with_prior(parts, Prior("number", by_number)).rank(HISTORY, ["101", "110"])
    assert [one.item for one in loaded.rank(HISTORY, ["101", "110"])] == [one.item for one in expected]


def test_json_has_the_scores_that_there_are(parts):
    found = with_prior(parts, Prior("number", by_number)).rank(HISTORY, ["101", "110"])
    (first, _) = json.loads(as_json({"user": "u"}, found, "sum"))["recommendations"]
    assert first.keys() == {"rank", "item", "title", "score", "model_score", "prior_score"}
    alone = Recommender(*parts).rank(HISTORY, ["101", "110"])
    (first, _) = json.loads(as_json({"user": "u"}, alone, "sum"))["recommendations"]
    assert first.keys() == {"rank", "item", "title", "score"}
