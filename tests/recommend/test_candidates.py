"""Retrieve, then rank: what comes out is what scoring each title on its own orders, of what was proposed."""

import logging

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import naive_logp

from dmpo_trl.evaluation import ItemKNN
from dmpo_trl.preprocessing.tokenize import tokenize_completions
from dmpo_trl.recommend import Candidates, Prior, Recommender

HISTORY = ["100", "Star Wars"]
ITEMS = [str(100 + row) for row in range(14)]
POPULARITY = {item: (7 * int(item)) % 5 for item in ITEMS}
HAD = pl.DataFrame(
    [(f"u{user}", ITEMS[(user * 3 + step) % 14]) for user in range(12) for step in range(5)],
    schema=["user", "item"],
    orient="row",
)


@torch.no_grad()
def alone(case, history, item, score="sum"):
    """The score of one item, from the definition, with no other title beside it."""
    catalogue = case.recommender.catalogue
    title = catalogue.titles[catalogue.rows([item], "item")[0]]
    prompt = case.template.prompt([catalogue.titles[row] for row in catalogue.rows(history, "history")])
    prompt_ids, (ids,) = tokenize_completions(case.tokenizer, prompt, [case.template.completion(title)])
    logp = naive_logp(case.model, prompt_ids, ids).item()
    return logp / len(ids) if score == "mean" else logp


def check(found, case, history, candidates, score="sum"):
    """What was found are the best of the candidates, by their scores one at a time."""
    scores = {item: alone(case, history, item, score) for item in candidates}
    assert {one.item for one in found} <= set(candidates)
    assert [one.score for one in found] == pytest.approx([scores[one.item] for one in found], abs=2e-5)
    assert [one.score for one in found] == pytest.approx(sorted(scores.values())[::-1][: len(found)], abs=2e-5)


@pytest.mark.parametrize("score", ["sum", "mean"])
def test_the_most_popular_are_ranked_by_their_exact_scores(case, items, score):
    recommender = Recommender(case.model, case.tokenizer, items, case.template, score=score)
    candidates = Candidates.best_by(Prior.popularity(POPULARITY), per_user=6)
    left = [item for item in ITEMS if item not in {"100", "106", "112"}]
    best = sorted(left, key=lambda item: -POPULARITY[item])[:6]  # stable: equal ones in the catalogue's order
    found = recommender.recommend(HISTORY, 4, exclude=["The Rock"], candidates=candidates)
    assert len(found) == 4
    check(found, case, HISTORY, best, score)


def test_item_knn_proposes_by_similarity_and_then_by_popularity(case):
    knn = ItemKNN(HAD)
    candidates = Candidates.best_by(Prior.item_knn(HAD), ties=Prior.popularity(POPULARITY), per_user=9)
    histories = [HISTORY, ["110"], []]
    found = case.recommender.recommend_batch(histories, 9, candidates=candidates)
    for history, own in zip(histories, found, strict=True):
        ids = [case.recommender.catalogue.items[row] for row in case.recommender.catalogue.rows(history, "history")]
        left = [item for item in ITEMS if item not in ids]
        scores = dict(zip(left, knn.score(ids, left), strict=True))
        best = sorted(left, key=lambda item: (-scores[item], -POPULARITY[item]))[:9]
        assert {one.item for one in own} == set(best)
        check(own, case, history, best)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    history=st.lists(st.sampled_from(ITEMS), max_size=4),
    exclude=st.lists(st.sampled_from(ITEMS), max_size=6),
    per_user=st.integers(1, 14),
    k=st.integers(1, 14),
    order=st.permutations(ITEMS),
)
def test_any_users_candidates_are_the_first_that_may_come_out(case, history, exclude, per_user, k, order):
    k = min(k, per_user)
    candidates = Candidates("mine", lambda user, had, left: order, per_user)
    catalogue = case.recommender.catalogue
    out = {catalogue.items[row] for row in catalogue.of_same_title(catalogue.rows(history + exclude, "x"))}
    left = [item for item in order if item not in out][:per_user]
    found = case.recommender.recommend(history, k, exclude=exclude, candidates=candidates)
    assert len(found) == min(k, len(left))
    check(found, case, history, left)


def test_a_template_that_lists_candidates_lists_those(case, items):
    template = case.template.with_candidates()
    recommender = Recommender(case.model, case.tokenizer, items, template)
    candidates = Candidates.best_by(Prior.popularity(POPULARITY), per_user=4)
    found = recommender.recommend(HISTORY, 4, candidates=candidates)
    left = sorted((item for item in ITEMS if item not in {"100", "106"}), key=lambda item: -POPULARITY[item])[:4]
    assert found == recommender.rank(HISTORY, left)


def test_a_prior_orders_the_candidates_with_the_model(case, items):
    prior = Prior.popularity(POPULARITY)
    recommender = Recommender(case.model, case.tokenizer, items, case.template, prior=prior, prior_weight=1e6)
    found = recommender.recommend(HISTORY, 3, candidates=Candidates("mine", lambda *_: ["101", "104", "109"], 3))
    assert [one.prior_score for one in found] == sorted(POPULARITY[item] for item in ("101", "104", "109"))[::-1]


def test_the_number_of_forwards_does_not_grow_with_the_users(case):
    """All users of a batch are scored together, with no step after another."""
    candidates, forwards = Candidates("mine", lambda *_: ITEMS, 14), []
    case.recommender.recommend(["101"], 3, candidates=candidates)  # the probe is not what this counts
    handle = case.model.register_forward_hook(lambda *_: forwards.append(1))
    try:
        case.recommender.recommend_batch([["100"], ["101"], ["102"]], 3, candidates=candidates)
    finally:
        handle.remove()
    assert len(forwards) == 1


# Candidates of a file


def write(path, rows, schema=("user", "item")):
    pl.DataFrame(rows, schema=list(schema), orient="row").write_parquet(path)
    return path


def test_a_file_lists_ids_or_titles_in_its_own_order_or_by_score(items, tmp_path):
    rows = [("b", "Aliens"), ("a", "112"), ("b", "113"), ("a", "Heidi"), ("b", "100")]
    candidates = Candidates.of_file(write(tmp_path / "c.parquet", rows), items)
    assert candidates.propose("a", [], []) == ["112", "110"]
    assert candidates.propose("b", [], []) == ["101", "113", "100"]
    scored = [(*row, score) for row, score in zip(rows, [0.5, 1, 2.5, 7, 0.5], strict=True)]
    candidates = Candidates.of_file(write(tmp_path / "s.parquet", scored, ["user", "item", "score"]), items)
    assert candidates.propose("a", [], []) == ["110", "112"]
    assert candidates.propose("b", [], []) == ["113", "101", "100"]  # equal ones in the file's order


def test_candidates_of_a_file_are_ranked_without_what_was_had(case, items, tmp_path, caplog):
    rows = [("a", item) for item in ("100", "105", "Heidi", "113", "109")] + [("b", "101")]
    candidates = Candidates.of_file(write(tmp_path / "c.parquet", rows), items, per_user=3)
    found = case.recommender.recommend(HISTORY, 3, exclude=["The Mask"], candidates=candidates, user="a")
    check(found, case, HISTORY, ["110", "113", "109"])  # 105 has an excluded title
    caplog.set_level(logging.WARNING)
    assert case.recommender.recommend(["101"], 3, candidates=candidates, user="b") == []
    assert "1 of 1 users have fewer candidates that they have not had" in caplog.text
    with pytest.raises(ValueError, match="no candidates of user 'c'"):
        case.recommender.recommend([], 3, candidates=candidates, user="c")
    with pytest.raises(ValueError, match="say which user it is"):
        case.recommender.recommend([], 3, candidates=candidates)


@pytest.mark.parametrize(
    ("rows", "schema", "message"),
    [
        ([("a", "100"), ("a", "Heidy")], ["user", "item"], r"row 1: item: 'Heidy' is neither .*'Heidi'\? Correct it"),
        ([("a", "100"), ("b", "100"), ("a", "Alien")], ["user", "item"], r"row 0: user 'a' has the item '100' in sev"),
        ([("a", "100"), ("b", None)], ["user", "item"], r"row 1: the item is None\. Fill it in, or take the row out"),
        ([(None, "100")], ["user", "item"], r"row 0: the user is None"),
        ([("a", "100", float("nan"))], ["user", "item", "score"], r"row 0: the score is nan"),
        ([("a", "100", "x")], ["user", "item", "score"], "the column `score` must hold numbers, it has String"),
        ([("a", ["100"])], ["user", "item"], "the column `item` must hold texts or numbers, it has List"),
        ([("a", "100")], ["name", "item"], r"no column \['user'\]; it has \['name', 'item'\]"),
    ],
)
def test_a_faulty_row_is_named_with_a_remedy(items, tmp_path, rows, schema, message):
    path = write(tmp_path / "c.parquet", rows, schema)
    with pytest.raises(ValueError, match=message):
        Candidates.of_file(path, items)


def test_what_is_no_parquet_file_is_named(items, tmp_path):
    (tmp_path / "c.parquet").write_text("user,item")
    with pytest.raises(ValueError, match=r"c\.parquet is not a Parquet file"):
        Candidates.of_file(tmp_path / "c.parquet", items)
    with pytest.raises(ValueError, match="is not a file"):
        Candidates.of_file(tmp_path / "none.parquet", items)
    empty = pl.DataFrame(schema={"user": pl.String, "item": pl.String})
    empty.write_parquet(tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match="no candidates of user 'a'"):
        Candidates.of_file(tmp_path / "empty.parquet", items).check("a")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 5}, "k=5, but a user has at most 4 candidates"),
        ({"k": 2, "exact": True}, "`exact` proves what is best of the whole catalogue"),
    ],
)
def test_what_cannot_be_is_refused(case, tmp_path, options, message):
    candidates = Candidates.best_by(Prior.popularity(POPULARITY), per_user=4)
    for call in (
        lambda: case.recommender.recommend(HISTORY, candidates=candidates, **options),
        lambda: case.recommender.recommend_all([], tmp_path / "x.parquet", candidates=candidates, **options),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(ValueError, match="at least one candidate, `per_user` is 0"):
        Candidates.best_by(Prior.popularity(POPULARITY), per_user=0)
    with pytest.raises(ValueError, match="candidates of mine: 'Ailen' is neither"):
        case.recommender.recommend([], 1, candidates=Candidates("mine", lambda *_: ["Ailen"]))


@pytest.mark.parametrize("scores", [np.full(14, np.nan), np.arange(2.0), 1.0], ids=["nan", "few", "one"])
def test_a_prior_that_does_not_score_the_catalogue_proposes_nothing(case, scores):
    odd, known = Prior("odd", lambda *_: scores), Prior.popularity(POPULARITY)
    for candidates in (Candidates.best_by(odd, per_user=3), Candidates.best_by(known, ties=odd, per_user=3)):
        with pytest.raises(ValueError, match="The prior odd must return a finite number for each of 12 candidates"):
            case.recommender.recommend(HISTORY, 2, candidates=candidates)


def test_other_candidates_are_another_run(case, tmp_path):
    """And nothing is searched for where a user of the file is missing."""
    path, users = tmp_path / "all.parquet", [("a", ["100"]), ("b", ["101"])]
    items = case.recommender.catalogue.frame
    candidates = Candidates.of_file(write(tmp_path / "c.parquet", [("a", "102"), ("a", "103")]), items, per_user=2)
    with pytest.raises(ValueError, match=r"user 'b': .*no candidates of user 'b'"):
        case.recommender.recommend_all(users, path, 2, candidates=candidates)
    assert case.recommender.recommend_all(users[:1], path, 2, candidates=candidates) == 1
    assert set(pl.read_parquet(path)["item"]) == {"102", "103"}
    described = [
        Candidates.best_by(Prior.popularity(POPULARITY), per_user=3).describe(),
        Candidates.best_by(Prior.popularity(POPULARITY), per_user=4).describe(),
        Candidates.best_by(Prior.popularity({"100": 1}), per_user=4).describe(),
        candidates.describe(),
    ]
    assert len(set(map(str, described))) == 4


def test_scores_do_not_depend_on_who_is_ranked_beside(case):
    candidates = Candidates("mine", lambda user, had, left: np.random.default_rng(len(had)).permutation(ITEMS), 8)
    histories = [["100"], ["101", "102"], ["Heidi", "Babe", "113"]]
    together = case.recommender.recommend_batch(histories, 4, candidates=candidates)
    for history, own in zip(histories, together, strict=True):
        (single,) = case.recommender.recommend_batch([history], 4, candidates=candidates)
        assert [one.item for one in own] == [one.item for one in single]
        assert [one.score for one in own] == pytest.approx([one.score for one in single], abs=2e-5)
