"""`dmpo-trl recommend --prior` and `--candidates`: by the names of `evaluate`, or a file."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
from support import make_model
from support.prepared import model_and_table

from dmpo_trl.cli import main
from dmpo_trl.data import Prepared
from dmpo_trl.evaluation import rank_by_item_knn, rank_by_popularity
from dmpo_trl.evaluation.fusion import fuse_scores
from dmpo_trl.evaluation.item_knn import ItemKNN
from dmpo_trl.recommend import Recommender, prior_without_history


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = model_and_table(tmp_path_factory.mktemp("prior"), steps=6)
    common = ["--dataset", "table", "--path", str(folder / "rows.csv"), "--template", "movies", "--candidates", "5"]
    main(["prepare", *common, "--history_length", "2", "--test_users", "3", "--output_dir", str(folder / "data")])
    return folder


def recommend(folders, *options):
    main(["recommend", "--model", str(folders / "model"), "--data", str(folders / "data"), *options])


@pytest.mark.parametrize("name", ["popularity", "popularity_shown", "item_knn", "item_knn_shown"])
def test_counts_are_those_that_evaluate_ranks_by(folders, name, capsys):
    prepared = Prepared.load(folders / "data")
    recommend(
        folders, "--split", "test", "--json", "--k", "50", "--num_beams", "50", "--prior", name, "--prior_weight", "2"
    )
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    users = prepared.ranking["test"]
    assert [line["user"] for line in lines] == users["user"][:]
    assert {(line["prior"], line["prior_weight"]) for line in lines} == {(name, 2.0)}
    had = prepared.interactions.filter("shown") if name.endswith("shown") else prepared.interactions
    if name.startswith("item_knn"):
        expected = rank_by_item_knn(users, ItemKNN(had))
    else:
        expected = rank_by_popularity(users, dict(had.group_by("item").len().iter_rows()))
    for line, items, scores in zip(lines, expected.items, expected.scores, strict=True):
        found = {one["item"]: one["prior_score"] for one in line["recommendations"]}
        assert [found[item] for item in items] == pytest.approx(scores.tolist())
    assert len({one["prior_score"] for line in lines for one in line["recommendations"]}) > 1


def test_one_user_is_told_both_scores(folders, capsys):
    recommend(folders, "--history", "1", "4", "--k", "2", "--prior", "item_knn", "--prior_weight", "1")
    first, second = capsys.readouterr().out.splitlines()
    assert " of log-prob -" in first
    assert " and item_knn 0." in first + second


def test_a_file_scores_the_users_of_a_split(folders, tmp_path, capsys):
    users = Prepared.load(folders / "data").ranking["test"]["user"][:]
    rows = [(user, str(item), float(item)) for user in users for item in range(40)]
    frame = pl.DataFrame(rows, schema=["user", "item", "score"], orient="row")
    frame.write_parquet(tmp_path / "mine.parquet")
    prior = ["--prior", str(tmp_path / "mine.parquet"), "--prior_weight", "100"]
    recommend(folders, "--split", "test", "--output", str(tmp_path / "all.parquet"), "--k", "3", *prior)
    found = pl.read_parquet(tmp_path / "all.parquet")
    assert found["prior_score"].to_list() == [float(item) for item in found["item"]]
    assert found.filter(rank=1)["item"].cast(pl.Int64).min() > 34  # the model hardly counts
    frame.filter(user=users[0]).write_parquet(tmp_path / "mine.parquet")
    with pytest.raises(SystemExit, match=rf"mine.parquet has no scores of user '{users[1]}'"):
        main(["recommend", "--model", "none", "--data", str(folders / "data"), "--split", "test", "--json", *prior])
    with pytest.raises(SystemExit, match=r"mine.parquet has scores by user: say which user it is"):
        main(["recommend", "--model", "none", "--data", str(folders / "data"), "--history", "1", *prior])


def test_what_the_model_says_of_anybody_is_taken_out(folders, capsys):
    """The order is that of z(log p(title | history)) - w z(log p(title | no history))."""
    everything = ["--k", "50", "--num_beams", "50", "--json"]
    recommend(folders, "--history", "1", "4", *everything, "--prior", "no_history", "--prior_weight", "0.5")
    found = json.loads(capsys.readouterr().out)["recommendations"]
    alone = Recommender.from_pretrained(str(folders / "model"), data=folders / "data")
    items = [one["item"] for one in found]
    with_history = np.array([{one.item: one.score for one in alone.rank(["1", "4"], items)}[item] for item in items])
    without = np.array([{one.item: one.score for one in alone.rank([], items)}[item] for item in items])
    assert [one["model_score"] for one in found] == pytest.approx(with_history.tolist(), rel=1e-4)
    assert [one["prior_score"] for one in found] == pytest.approx((-without).tolist(), rel=1e-4)
    expected = fuse_scores(with_history, -without, 0.5)
    assert [one["score"] for one in found] == pytest.approx(expected.tolist(), abs=1e-3)
    assert expected.argsort().tolist() != with_history.argsort().tolist()


def test_without_a_history_the_model_decides_alone(folders):
    alone = Recommender.from_pretrained(str(folders / "model"), data=folders / "data")
    prior = prior_without_history(alone)
    parts = alone.model, alone.tokenizer, alone.catalogue.frame, alone.template
    fused = Recommender(*parts, prior=prior, prior_weight=4.0)
    items = alone.catalogue.items[:9]
    assert [one.item for one in fused.rank([], items)] == [one.item for one in alone.rank([], items)]
    assert [one.item for one in fused.rank(["3"], items)] != [one.item for one in alone.rank(["3"], items)]
    other = Recommender(make_model(seed=1), *parts[1:])
    assert prior_without_history(other).version != prior.version == prior_without_history(alone).version
    with pytest.raises(ValueError, match="The recommender has the prior no_history"):
        prior_without_history(fused)
    listing = Recommender(*parts[:3], alone.template.with_candidates())
    with pytest.raises(ValueError, match="no_history: the template lists the candidates"):
        prior_without_history(listing)


def test_a_weight_that_is_no_number_is_refused_before_the_model_is_loaded(folders):
    options = ["--data", str(folders / "data"), "--history", "1", "--prior", "no_history", "--prior_weight", "nan"]
    with pytest.raises(SystemExit, match="The weight must be a number of at least 0, it is nan"):
        main(["recommend", "--model", "none", *options])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prior", "item_knn"], "--prior and --prior_weight belong together. `dmpo-trl evaluate --fuse NAME`"),
        (["--prior_weight", "1"], "--prior and --prior_weight belong together"),
        (["--prior", "item_knn", "--prior_weight", "-1"], "--prior_weight must be at least 0, it is -1"),
        (["--prior", "item_knn", "--prior_weight", "1"], "counts what the training users had: name .* --data"),
        (["--prior", "no_history"], "--prior and --prior_weight belong together"),
        (["--prior", "itemknn", "--prior_weight", "1"], "must be one of popularity, .* or a file of scores"),
        (["--output", "found.parquet"], "--output is for many users: .* the one of --history is printed"),
        (["--overwrite"], "--output is for many users"),
        (["--candidates_per_user", "20"], "how many of --candidates are scored: give those too"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_the_model_is_loaded(options, message):
    with pytest.raises(SystemExit, match=message):
        main(["recommend", "--model", "no such model", "--history", "1", *options])


# Candidates, by the same names


@pytest.mark.parametrize("name", ["popularity", "item_knn", "item_knn_shown"])
def test_candidates_are_those_that_count_most_and_are_ranked_by_the_model(folders, name, capsys):
    prepared = Prepared.load(folders / "data")
    options = ["--split", "test", "--json", "--k", "4"]
    recommend(folders, *options, "--candidates", name, "--candidates_per_user", "4")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    had = prepared.interactions.filter("shown") if name.endswith("shown") else prepared.interactions
    counts = dict(had.group_by("item").len().iter_rows())
    for line, row in zip(lines, prepared.ranking["test"], strict=True):
        left = [item for item in prepared.items["item"] if item not in {*row["history"], *row["seen"]}]
        scores = [counts.get(item, 0) for item in left]
        if name != "popularity":
            scores = list(zip(ItemKNN(had).score(row["history"], left).round(9), scores, strict=True))
        best = sorted(zip(scores, left, strict=True), key=lambda pair: pair[0], reverse=True)[:4]
        found = line["recommendations"]
        assert {own["item"] for own in found} == {item for _, item in best}
        assert [own["score"] for own in found] == sorted((own["score"] for own in found), reverse=True)


def test_candidates_of_a_file_are_checked_before_the_model_is_loaded(folders, tmp_path, capsys):
    users = Prepared.load(folders / "data").ranking["test"]["user"][:]
    path, output = tmp_path / "mine.parquet", tmp_path / "all.parquet"
    rows = [(user, item) for user in users for item in ("1", "Film 2", "30", "31", "32")]
    frame = pl.DataFrame(rows, schema=["user", "item"], orient="row")
    frame.write_parquet(path)
    options = ["--split", "test", "--output", str(output), "--k", "1", "--candidates", str(path)]
    recommend(folders, *options)
    assert set(pl.read_parquet(output)["item"]) <= {"1", "2", "30", "31", "32"}
    unloadable = ["recommend", "--model", "none", "--data", str(folders / "data"), "--overwrite", *options]
    frame.filter(user=users[0]).write_parquet(path)
    with pytest.raises(SystemExit, match=rf"mine.parquet has no candidates of user '{users[1]}'"):
        main(unloadable)
    pl.DataFrame([("a", "1"), ("a", "Flim 2")], schema=["user", "item"], orient="row").write_parquet(path)
    with pytest.raises(SystemExit, match=r"row 1: item: 'Flim 2' is neither .* 'Film 2'"):
        main(unloadable)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--candidates", "item_knn"], "--candidates item_knn counts .* name the prepared folder with --data"),
        (["--candidates", "itemknn"], "--candidates must be one of popularity, .* or a Parquet file, it is 'itemknn'"),
        (["--candidates", "item_knn", "--exact"], "leave out it or --candidates"),
        (["--candidates", "x", "--candidates_per_user", "9"], "--k 10 needs at least as many --candidates_per_user"),
    ],
    ids=str,
)
def test_candidates_that_cannot_be_are_refused_before_the_model_is_loaded(options, message):
    with pytest.raises(SystemExit, match=message):
        main(["recommend", "--model", "no such model", "--history", "1", *options])


def test_with_a_prior_the_model_ranks_by_the_sum_whatever_score_is_saved(folders, tmp_path, capsys):
    """The weight that `evaluate --fuse` chooses is one beside the sum."""
    shutil.copytree(folders / "model", tmp_path / "model")
    alone = Recommender.from_pretrained(str(tmp_path / "model"), data=folders / "data", score="mean")
    alone.save_catalogue(tmp_path / "model")
    options = ["--model", str(tmp_path / "model"), "--history", "1", "4", "--json", "--k", "3"]
    main(["recommend", *options])
    assert json.loads(capsys.readouterr().out)["score"] == "mean"
    for prior in ("no_history", "popularity"):
        main(["recommend", *options, "--data", str(folders / "data"), "--prior", prior, "--prior_weight", "0.5"])
        found = json.loads(capsys.readouterr().out)
        assert found["score"] == "sum"
        items = [one["item"] for one in found["recommendations"]]
        by_sum = Recommender.from_pretrained(str(tmp_path / "model"), score="sum").rank(["1", "4"], items)
        expected = {one.item: one.score for one in by_sum}
        assert {one["item"]: one["model_score"] for one in found["recommendations"]} == pytest.approx(
            expected, abs=1e-4
        )
