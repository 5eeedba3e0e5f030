"""`evaluate` with several kinds of candidates: a table for each, the whole catalogue first."""

import json

import numpy as np
import polars as pl
import pytest
from support.prepared import model_and_table

from dmpo_trl.cli import main
from dmpo_trl.cli._protocols import in_order
from dmpo_trl.data import Prepared
from dmpo_trl.evaluation import (
    NoHistoryRanker,
    RankingResult,
    full_catalogue,
    fuse,
    load_for_ranking,
    rank_with_model,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = model_and_table(tmp_path_factory.mktemp("protocols"), steps=6)
    common = ["--dataset", "table", "--path", str(folder / "rows.csv"), "--template", "movies", "--candidates", "5"]
    strategies = ["--candidate_strategy", "uniform", "popularity"]
    main(["prepare", *common, *strategies, "--test_users", "4", "--output_dir", str(folder / "data")])
    return folder


def evaluate(folders, out, *options):
    model = str(folders / "model")
    main(["evaluate", "--model", model, "--data", str(folders / "data"), "--output_dir", str(out), *options])
    return json.loads((out / "metrics.json").read_text())


def expected(folders, dataset):
    """The ranking by the sum, from the public functions."""
    model, tokenizer = load_for_ranking(str(folders / "model"))
    return rank_with_model(model, tokenizer, dataset, score="sum", name="sum", special_tokens_in_text=False)


def test_each_protocol_has_a_table_and_the_whole_catalogue_is_first(folders, tmp_path, capsys):
    prepared = Prepared.load(folders / "data")
    options = ["--catalogue_users", "3", "--fuse", "item_knn", "--baseline", str(folders / "model")]
    found = evaluate(folders, tmp_path / "out", *options)
    text = capsys.readouterr().out
    titles = (
        "3 test users, all items that a user has not had, the log-prob of every title computed:",
        "4 test users, candidates ranked by the sum of log-probs or their mean per token.",
        "4 test users, candidates drawn by popularity:",
    )
    places = [text.index(title) for title in titles]
    assert places == sorted(places)
    assert [text.count(title) for title in titles] == [1, 1, 1]
    assert "users]; candidates drawn uniformly.\n" in text
    assert "see --catalogue_users" not in text
    written = (tmp_path / "out" / "table.md").read_text()
    assert [written.count(title) for title in titles] == [1, 1, 1]

    whole = prepared.ranking["test"].select(range(3))
    whole = full_catalogue(whole, dict(prepared.items.select("item", "title").iter_rows()), prepared.template)
    users = {"catalogue": whole, "popularity": prepared.protocols["popularity"]["test"]}
    for name, dataset in users.items():
        result = expected(folders, dataset)
        own = found[f"ranking_{name}"]
        assert own.keys() == found["ranking"].keys()  # the same rankers, the baseline and the fused one among them
        figure = own[f"{folders / 'model'} (sum)"]["mrr"]["mean"]
        assert figure == pytest.approx(result.metrics(["mrr"])["mrr"])
        kept = RankingResult.from_parquet(tmp_path / "out" / name / "sum.parquet")
        assert (kept.users, kept.items, kept.positives) == (result.users, result.items, result.positives)
        for scores, others in zip(kept.scores, result.scores, strict=True):
            assert scores.tolist() == pytest.approx(others.tolist(), abs=1e-5)
    assert {name: own["users"] for name, own in found["protocols"].items()} == {"catalogue": 3, "popularity": 4}
    # hr@10 says something only where there are more than ten candidates
    assert "hr@10" in found["ranking_catalogue"]["random"]
    assert "hr@10" not in found["ranking_popularity"]["random"]
    frame = pl.read_csv(tmp_path / "out" / "metrics.csv")
    assert {"ranking", "ranking_catalogue", "ranking_popularity"} <= set(frame["table"])
    assert (tmp_path / "out" / "sum.parquet").exists()
    evaluate(folders, tmp_path / "out", "--overwrite")  # replaces the folders in it too
    assert "otherwise than the whole catalogue: see --catalogue_users." in capsys.readouterr().out
    assert not (tmp_path / "out" / "catalogue").exists()


def test_what_the_model_says_of_anybody_is_a_ranker_of_each_protocol(folders, tmp_path):
    prepared = Prepared.load(folders / "data")
    found = evaluate(folders, tmp_path / "out", "--catalogue_users", "2", "--fuse", "no_history")
    model, tokenizer = load_for_ranking(str(folders / "model"))
    (fused,) = (name for name in found["ranking"] if name.startswith("sum + "))
    weight = float(fused.split()[2])
    popular = prepared.protocols["popularity"]["test"]
    for folder, table, dataset in (
        ("", "ranking", prepared.ranking["test"]),
        ("popularity", "ranking_popularity", popular),
    ):
        unlikely = NoHistoryRanker(model, tokenizer, prepared.template, special_tokens_in_text=False).rank(dataset)
        kept = RankingResult.from_parquet(tmp_path / "out" / folder / "no_history.parquet")
        for scores, own in zip(kept.scores, unlikely.scores, strict=True):
            np.testing.assert_allclose(scores, own, rtol=1e-4)
        both = fuse(expected(folders, dataset), unlikely, weight)
        assert found[table][fused]["auc"]["mean"] == pytest.approx(both.metrics(["auc"])["auc"])
    assert found["ranking_catalogue"].keys() == found["ranking"].keys()


def test_a_template_that_lists_the_candidates_has_no_prompt_without_a_history(folders, tmp_path):
    data = tmp_path / "data"
    common = ["--dataset", "table", "--path", str(folders / "rows.csv"), "--template", "movies", "--test_users", "3"]
    main(["prepare", *common, "--candidates", "5", "--list_candidates", "--output_dir", str(data)])
    with pytest.raises(SystemExit, match="no_history: the template lists the candidates"):
        main(["evaluate", "--model", "no such model", "--data", str(data), "--fuse", "no_history"])


def test_random_choice_is_the_same_for_the_whole_catalogue_as_the_formula(folders, tmp_path):
    found = evaluate(folders, tmp_path / "out", "--catalogue_users", "2")
    sizes = np.array([40 - 5] * 2)  # of 40 films the users have had five others
    assert found["ranking_catalogue"]["random"]["hr@5"]["mean"] == pytest.approx((5 / sizes).mean())


def test_the_whole_catalogue_for_all_users_leaves_the_others_to_tables_of_their_own(folders, tmp_path, capsys):
    found = evaluate(folders, tmp_path / "out", "--whole_catalogue", "--users", "2")
    text = capsys.readouterr().out
    assert text.index("2 test users, the whole catalogue ranked") < text.index("2 test users, candidates drawn unif")
    assert text.index("candidates drawn uniformly:") < text.index("2 test users, candidates drawn by popularity:")
    assert {name: own["users"] for name, own in found["protocols"].items()} == {"uniform": 2, "popularity": 2}


def test_order_is_that_of_the_catalogue_uniform_and_popularity():
    assert in_order(["popularity", "uniform", "catalogue"]) == ["catalogue", "uniform", "popularity"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--catalogue_users", "1"], "--catalogue_users must be at least 2, it is 1"),
        (["--catalogue_users", "3", "--whole_catalogue"], "--whole_catalogue ranks all users among all items already"),
    ],
)
def test_what_cannot_be_is_refused_before_the_model_is_loaded(folders, options, message):
    with pytest.raises(SystemExit, match=message):
        main(["evaluate", "--model", "no such model", "--data", str(folders / "data"), *options])
