"""The commands one after the other on a tiny model: prepare, leaks, evaluate, recommend, explain."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import polars as pl
import pytest
from support import make_model, make_tokenizer
from tokenizers.normalizers import Lowercase
from transformers.utils import logging

from dmpo_trl.cli import COMMANDS, main
from dmpo_trl.cli.options import ModelArguments, Parser
from dmpo_trl.data import Prepared
from dmpo_trl.evaluation import RankingResult, report
from dmpo_trl.modeling.loading import load_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model, and ratings of 30 users in MovieLens' format."""
    folder = tmp_path_factory.mktemp("cli")
    make_model().save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    raw = folder / "raw"
    raw.mkdir()
    movies = "".join(f"{movie},Film {movie} (19{movie:02}),Drama\n" for movie in range(10, 50))
    (raw / "movies.csv").write_text(f"movieId,title,genres\n{movies}")
    ratings = "".join(
        f"{user},{10 + (7 * user + 3 * step) % 40},4.0,{1000 + step}\n" for user in range(1, 31) for step in range(5)
    )
    (raw / "ratings.csv").write_text(f"userId,movieId,rating,timestamp\n{ratings}")
    return folder


@pytest.fixture(scope="module")
def prepared(folders):
    config = folders / "prepare.yaml"
    config.write_text(f"dataset: movielens\npath: {folders / 'raw'}\ncandidates: 5\nnegatives: 2\n")
    main(["prepare", "--config", str(config), "--output_dir", str(folders / "data"), "--test_users", "4"])
    return folders / "data"


def test_prepare_reports_what_it_wrote_and_why(folders, capsys, caplog):
    arguments = ["--dataset", "movielens", "--path", str(folders / "raw"), "--output_dir", str(folders / "again")]
    main(["prepare", *arguments, "--candidates", "5"])
    out = capsys.readouterr().out
    assert out.count("24 train, 3 validation") == 2  # once for preference and once for sft
    assert "150 interactions of 30 users became 24 training examples of 24 users." in out
    assert "Of each user the latest 1 (examples_per_user; 0 takes all)." in out
    assert "'train'" not in caplog.text  # the same counts again, as a Python dictionary
    with pytest.raises(SystemExit, match="holds prepared data already"):
        main(["prepare", *arguments])


@pytest.fixture
def two_aliens(tmp_path):
    """A table in which the titles of two items differ in case only."""
    titles = {3: "ALIEN", 5: "Alien"}
    seen = [(user, place, (user + place) % 9) for user in range(9) for place in range(5)]
    rows = [f"u{user},i{film},{place},{titles.get(film, f'Film {film}')}" for user, place, film in seen]
    (tmp_path / "views.csv").write_text("\n".join(["user,item,timestamp,title", *rows]))
    options = {"dataset": "table", "path": tmp_path / "views.csv", "candidates": 3, "negatives": 2}
    return ["prepare", *(text for name, value in options.items() for text in (f"--{name}", str(value)))]


@pytest.mark.parametrize("conversational", ["true", "false"])
@pytest.mark.parametrize("ignores_case", [True, False])
def test_prepare_names_titles_that_are_the_same_tokens(two_aliens, ignores_case, conversational, tmp_path, caplog):
    tokenizer = make_tokenizer()
    if ignores_case:
        tokenizer.backend_tokenizer.normalizer = Lowercase()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    options = ["--tokenizer", str(tmp_path / "tokenizer"), "--conversational", conversational]
    logging.warning_once.cache_clear()
    main([*two_aliens, "--output_dir", str(tmp_path / "data"), *options])
    assert ("have the same tokens" in caplog.text) == ignores_case
    assert ("'ALIEN' and 'Alien'" in caplog.text) == ignores_case


def test_prepare_refuses_a_tokenizer_before_the_work(two_aliens, tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "plain")
    for folder, message in (("plain", "has no chat template.*conversational false"), ("none", "is neither a folder")):
        with pytest.raises(SystemExit, match=f"--tokenizer .*{folder} {message}"):
            main([*two_aliens, "--output_dir", str(tmp_path / "data"), "--tokenizer", str(tmp_path / folder)])
    assert not (tmp_path / "data").exists()


def test_leaks_reports_on_a_prepared_folder(prepared, capsys):
    main(["leaks", "--train", str(prepared)])
    assert "No leak found." in capsys.readouterr().out


def test_leaks_ends_with_status_one_where_it_found_a_problem(prepared, capsys):
    train = pl.read_parquet(prepared / "preference" / "train.parquet")
    train.write_parquet(prepared.parent / "same.parquet")
    with pytest.raises(SystemExit) as stop:
        main(["leaks", "--train", str(prepared), "--test", str(prepared.parent / "same.parquet")])
    assert stop.value.code == 1
    assert "23 of 23 test rows are in train" in capsys.readouterr().out


def test_evaluate_prints_tables_and_keeps_every_users_scores(folders, prepared, capsys):
    model = str(folders / "model")
    out = folders / "evaluation"
    arguments = ["--model", model, "--data", str(prepared), "--baseline", model, "--generate"]
    main(["evaluate", *arguments, "--output_dir", str(out)])
    text = capsys.readouterr().out
    assert "4 test users, candidates ranked" in text
    # A model is no better than itself
    assert (
        f"{model} (sum) and baseline {model} (sum) cannot be told apart: hr@1 +0.000 [+0.000, +0.000], p = 1." in text
    )
    assert "| valid |" in (out / "table.md").read_text()
    result = RankingResult.from_parquet(out / "mean.parquet")
    assert [len(scores) for scores in result.scores] == [5] * 4


def test_evaluates_report_is_narrow_names_the_model_and_explains_its_columns(folders, prepared, capsys):
    baseline = folders / "sft"
    if not baseline.exists():
        baseline.symlink_to(folders / "model")
    out = folders / "report"
    models = ["--model", str(folders / "model"), "--baseline", str(baseline)]
    main(["evaluate", *models, "--data", str(prepared), "--output_dir", str(out)])
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert max(len(line) for line in lines if str(folders) not in line) <= 100
    assert {"random", "popularity", "model (sum)", "model (mean)", "sft (sum)", "sft (mean)"} <= {
        line.partition("  ")[0] for line in lines
    }
    for column in (
        *("hr@1", "mrr", "auc", "coverage@5", "popularity@5", "target_popularity"),
        *("popularity_lift@5", "long_tail@5", "target_long_tail"),
    ):
        assert any(
            line.startswith((f"{column}:", f"{column.replace('@5', '@k').replace('@1', '@k')}:")) for line in lines
        )
    # Of 5 candidates the first 5 say nothing
    assert "hr@5" not in text
    # The same figures for programs
    found = json.loads((out / "metrics.json").read_text())
    result = RankingResult.from_parquet(out / "mean.parquet")
    assert (found["model"], found["users"], found["split"]) == (str(folders / "model"), 4, "test")
    assert found["ranking"]["model (mean)"]["auc"]["mean"] == result.metrics(["auc"])["auc"]
    assert found["differences"]["model (sum) - sft (sum)"]["mrr"] == {"mean": 0, "low": 0, "high": 0, "p_value": 1}
    assert "mrr" in found["differences"]["model (mean) - model (sum)"]
    frame = pl.read_csv(out / "metrics.csv")
    (row,) = frame.filter(table="ranking", name="model (mean)", metric="auc").to_dicts()
    assert row["mean"] == pytest.approx(found["ranking"]["model (mean)"]["auc"]["mean"])
    assert row["p_value"] is None
    assert set(frame["table"]) == {"ranking", "differences", "first", "by_popularity"}
    # These users cannot be divided otherwise: the words that stand in the place of a table
    shown = set(Prepared.load(prepared).interactions.filter("shown")["item"])
    assert {row["items"][row["positive"]] for row in Prepared.load(prepared).ranking["test"]} <= shown
    assert found["notes"]["by_target"] == ["all 4 targets are known."]
    assert "by target, in a training example (known) or in none (cold): all 4 targets are known." in text
    assert "Results by the number of items that a user had before the target: all 4 users had 0 to 4 items." in text


def test_evaluate_computes_the_metrics_that_are_chosen(folders, prepared, capsys):
    arguments = ["--model", str(folders / "model"), "--data", str(prepared), "--output_dir", str(folders / "chosen")]
    main(["evaluate", *arguments, "--metrics", "recall@3", "mrr@2", "pooled_auc"])
    capsys.readouterr()
    found = json.loads((folders / "chosen" / "metrics.json").read_text())
    assert list(found["ranking"]["model (sum)"]) == ["recall@3", "mrr@2", "pooled_auc"]
    assert list(found["differences"]["model (sum) - popularity"]) == ["recall@3", "mrr@2"]
    main(["evaluate", *arguments[:4], "--metrics", "pooled_auc"])  # no user has a value of it
    assert "told apart" not in capsys.readouterr().out


def write_scores(prepared, path):
    """Somebody's scores: the target of each test and validation user is first."""
    rows = [
        (row["user"], item, float(place == row["positive"]) + 0.1 * (place % 2))
        for split in ("validation", "test")
        for row in Prepared.load(prepared).ranking[split]
        for place, item in enumerate(row["items"])
    ]
    pl.DataFrame(rows, schema=["user", "item", "score"], orient="row").write_parquet(path)


def test_evaluate_ranks_by_counts_and_by_anybodys_scores_and_with_them(folders, prepared, capsys):
    write_scores(prepared, folders / "scores.parquet")
    out = folders / "fused"
    arguments = ["--model", str(folders / "model"), "--data", str(prepared), "--output_dir", str(out)]
    main(["evaluate", *arguments, "--scores", f"mine={folders / 'scores.parquet'}", "--fuse", "mine"])
    capsys.readouterr()
    found = json.loads((out / "metrics.json").read_text())["ranking"]
    assert {"popularity", "popularity_shown", "item_knn", "item_knn_shown", "mine"} <= found.keys()
    assert found["mine"]["hr@1"]["mean"] == 1.0
    (fused,) = (name for name in found if name.startswith("sum + "))
    assert re.fullmatch(r"sum \+ [\d.]+ mine", fused)
    assert found[fused]["ndcg@5" if "ndcg@5" in found[fused] else "mrr"]["mean"] > found["model (sum)"]["mrr"]["mean"]
    differences = json.loads((out / "metrics.json").read_text())["differences"]
    assert {f"{fused} - mine", f"{fused} - model (sum)", "model (sum) - mine"} <= differences.keys()
    # Counts of what is shown are those of the training examples
    knn = RankingResult.from_parquet(out / "item_knn_shown.parquet")
    assert knn.users == RankingResult.from_parquet(out / "sum.parquet").users


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scores", "mine"], "--scores takes NAME=FILE"),
        (["--scores", "../up=file"], "--scores takes NAME=FILE"),
        (["--scores", "item_knn=file"], "--scores takes NAME=FILE"),
        (["--scores", "model=file"], "--scores takes NAME=FILE"),
        (["--scores", "baseline-sum=file"], "--scores takes NAME=FILE"),
        (["--scores", "mine=file", "mine=other"], "--scores names two files 'mine'"),
        (["--scores", "mine=none.parquet"], "none.parquet is not a file"),
        (["--fuse", "mine"], "--fuse must be one of popularity, popularity_shown, item_knn, item_knn_shown"),
        (["--fuse", "item_knn", "--split", "validation"], "rank those of --split test with it"),
    ],
    ids=str,
)
def test_evaluate_refuses_rankers_that_there_are_not_before_it_loads_the_model(prepared, options, message):
    with pytest.raises(SystemExit, match=message):
        main(["evaluate", "--model", "no such model", "--data", str(prepared), *options])


def test_scores_without_validation_users_are_refused_before_the_model_is_loaded(prepared, tmp_path):
    write_scores(prepared, tmp_path / "all.parquet")
    others = Prepared.load(prepared).ranking["test"]["user"]
    pl.read_parquet(tmp_path / "all.parquet").filter(pl.col("user").is_in(others)).write_parquet(
        tmp_path / "s.parquet"
    )
    options = ["--scores", f"mine={tmp_path / 's.parquet'}", "--fuse", "mine"]
    with pytest.raises(SystemExit, match=r"--fuse mine chooses its weight on the validation users\. .*s\.parquet"):
        main(["evaluate", "--model", "no such model", "--data", str(prepared), *options])


def test_evaluate_refuses_a_metric_that_is_none_before_it_reads_anything():
    with pytest.raises(SystemExit, match=r"Unknown metric 'map@5'; there are hr@k, recall@k"):
        main(["evaluate", "--model", "no such model", "--data", "none", "--metrics", "map@5"])


def test_evaluate_ranks_the_whole_catalogue(folders, prepared, capsys):
    arguments = ["--model", str(folders / "model"), "--data", str(prepared), "--users", "2", "--whole_catalogue"]
    main(["evaluate", *arguments, "--output_dir", str(folders / "whole")])
    assert "2 test users, the whole catalogue" in capsys.readouterr().out
    result = RankingResult.from_parquet(folders / "whole" / "sum.parquet")
    assert [len(scores) for scores in result.scores] == [36] * 2  # 40 films less the 4 of the history


def test_evaluate_refuses_a_single_user_before_it_loads_the_model(prepared):
    with pytest.raises(SystemExit, match=r"1 test users \(of 4\).*Raise `--users`"):
        main(["evaluate", "--model", "no such model", "--data", str(prepared), "--users", "1"])


def test_evaluate_finds_that_there_is_no_baseline_before_it_loads_the_model(folders, prepared, monkeypatch):
    monkeypatch.setattr("dmpo_trl.evaluation.load_for_ranking", lambda *_, **__: pytest.fail("the model was loaded"))
    arguments = ["--model", str(folders / "model"), "--data", str(prepared)]
    with pytest.raises(SystemExit, match=rf"dmpo-trl evaluate: The model {folders / 'nosuch'} cannot be loaded"):
        main(["evaluate", *arguments, "--baseline", str(folders / "nosuch")])


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        (["evaluate"], "tokens_per_batch", 0),
        (["evaluate"], "top_k", 0),
        (["recommend", "--history", "10"], "k", 0),
        (["recommend", "--history", "10"], "num_beams", -1),
        (["recommend", "--split", "test", "--output", "all.parquet"], "batch_size", 0),
        (["explain", "--history", "10"], "max_new_tokens", -1),
    ],
)
def test_numbers_that_are_too_low_are_refused_before_the_model_is_loaded(command, option, value, prepared):
    least = 0 if option == "max_new_tokens" else 1
    with pytest.raises(SystemExit, match=f"--{option} must be at least {least}, it is {value}"):
        main([*command, "--model", "no such model", "--data", str(prepared), f"--{option}", str(value)])


def test_train_refuses_to_rank_no_users_before_it_loads_data_and_model(tmp_path):
    arguments = ["--model_name_or_path", "no such model", "--dataset_name", "none", "--output_dir", str(tmp_path)]
    with pytest.raises(SystemExit, match="--ranking_users must be at least 1, it is 0"):
        main(["train", *arguments, "--bf16", "False", "--ranking_data", "none", "--ranking_users", "0"])


def test_recommend_finds_that_there_are_no_users_before_it_loads_the_model(folders, prepared):
    arguments = ["--model", "no such model", "--data", str(prepared), "--users", str(folders / "nobody.jsonl")]
    with pytest.raises(SystemExit, match=r"The file of --users, .*nobody.jsonl, does not exist"):
        main(["recommend", *arguments, "--output", str(folders / "nobody.parquet")])


def test_recommend_names_the_file_and_line_that_are_not_utf_8(folders, prepared):
    users = folders / "latin.jsonl"
    users.write_bytes(b'{"user": 1, "history": ["10"]}\n{"user": "Am\xe9lie", "history": ["10"]}\n')
    arguments = ["--model", str(folders / "model"), "--data", str(prepared), "--users", str(users)]
    with pytest.raises(SystemExit, match=rf"{users}, line 2: .*utf-8"):
        main(["recommend", *arguments, "--output", str(folders / "latin.parquet")])


def test_evaluate_loads_the_model_once_for_ranking_and_generation(folders, prepared, monkeypatch):
    loaded = []
    load = report.load_model_and_tokenizer
    monkeypatch.setattr(
        report, "load_model_and_tokenizer", lambda path, **options: loaded.append(path) or load(path, **options)
    )
    main(["evaluate", "--model", str(folders / "model"), "--data", str(prepared), "--generate", "--users", "2"])
    assert loaded == [str(folders / "model")]


def test_evaluate_computes_intervals_in_the_main_process_alone(folders, prepared, capsys, monkeypatch):
    def fail(*_):
        raise AssertionError("another process resamples the users")

    monkeypatch.setattr("accelerate.PartialState.is_main_process", property(lambda self: False))
    monkeypatch.setattr(RankingResult, "intervals", fail)
    monkeypatch.setattr(RankingResult, "minus", fail)
    model = str(folders / "model")
    main(["evaluate", "--model", model, "--data", str(prepared), "--baseline", model, "--users", "2"])
    assert capsys.readouterr().out == ""


def test_what_train_saves_recommends_without_the_prepared_folder(folders, prepared, capsys):
    out = folders / "trained"
    arguments = ["--model_name_or_path", str(folders / "model"), "--dataset_name", str(prepared)]
    on_a_cpu = ["--bf16", "False", "--report_to", "none", "--max_steps", "1", "--save_strategy", "no"]
    main(["train", *arguments, *on_a_cpu, "--output_dir", str(out)])
    history = ["--history", "10", "Film 13 (1913)", "--k", "3"]
    capsys.readouterr()
    main(["recommend", "--model", str(out), *history])
    alone = capsys.readouterr().out
    main(["recommend", "--model", str(out), "--data", str(prepared), *history])
    assert alone == capsys.readouterr().out
    assert len(alone.splitlines()) == 3


def test_train_ranks_users_of_the_folder_that_it_trains_on_and_evaluates_on_its_validation(folders, prepared, capfd):
    """As the help of --ranking_data says; TRL's default split is called test."""
    model = ["--model_name_or_path", str(folders / "model"), "--output_dir", str(folders / "ranked")]
    on_a_cpu = ["--bf16", "False", "--report_to", "none", "--max_steps", "1", "--save_strategy", "no"]
    every_step = ["--eval_strategy", "steps", "--eval_steps", "1", "--dataset_name", str(prepared)]
    main(["train", *model, *on_a_cpu, *every_step, "--ranking_data", str(prepared)])
    out = capfd.readouterr().out
    assert "eval_loss" in out
    assert "eval_ndcg@5" in out
    with pytest.raises(SystemExit, match="no split 'tset'; set --dataset_test_split to one of train, validation"):
        main(["train", *model, *on_a_cpu, *every_step, "--dataset_test_split", "tset"])


def test_the_example_of_trains_help_trains(folders, prepared, tmp_path, monkeypatch, capsys):
    """As it stands, with another model: nothing about precision, on a CPU too."""
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("  dmpo-trl train --model"))
    monkeypatch.chdir(tmp_path)
    os.symlink(prepared, "data")
    main([*shlex.split(line.replace("Qwen/Qwen3-0.6B", str(folders / "model")))[1:], "--max_steps", "1"])
    assert (tmp_path / "outputs" / "dmpo" / "model.safetensors").exists()


def test_recommend_prints_items_for_one_history(folders, prepared, capsys):
    history = ["--history", "10", "Film 13 (1913)"]
    main(["recommend", "--model", str(folders / "model"), "--data", str(prepared), *history, "--k", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all("Film" in line and "Film 10 " not in line and "Film 13 " not in line for line in lines)


def test_recommend_prints_json_for_one_user_and_lines_of_it_for_many(folders, prepared, capsys):
    model = ["recommend", "--model", str(folders / "model"), "--data", str(prepared), "--k", "2"]
    main([*model, "--history", "10", "11"])
    plain = capsys.readouterr().out.splitlines()
    main([*model, "--history", "10", "11", "--json"])
    one = json.loads(capsys.readouterr().out)
    assert (one["history"], one["score"]) == (["10", "11"], "sum")
    for line, found in zip(plain, one["recommendations"], strict=True):
        assert line.split(". ", 1)[1] == f"{found['title']}  ({found['item']}, log-prob {found['score']:.2f})"
    users = folders / "json.jsonl"
    users.write_text(
        '{"user": "a", "history": ["10", "11"]}\n{"user": "b", "history": ["12"], "seen": ["13"]}\n'
        '{"user": "c", "history": ["10", "11"]}\n'
    )
    main([*model, "--users", str(users), "--json", "--batch_size", "2"])
    many = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["user"] for row in many] == ["a", "b", "c"]
    for row in (many[0], many[2]):
        assert [own["item"] for own in row["recommendations"]] == [own["item"] for own in one["recommendations"]]
    assert not {"12", "13"} & {own["item"] for own in many[1]["recommendations"]}


@pytest.mark.parametrize("options", [[], ["--json", "--output", "out.parquet"]], ids=str)
def test_recommend_to_many_users_needs_one_place_for_the_outcome(options, prepared):
    arguments = ["--model", "no such model", "--data", str(prepared), "--split", "test"]
    with pytest.raises(SystemExit, match="need one of --output, the Parquet file to write, and --json"):
        main(["recommend", *arguments, *options])


def test_recommend_names_the_score_that_is_saved_with_the_model(folders, prepared, capsys):
    saved = folders / "by-mean"
    shutil.copytree(folders / "model", saved, dirs_exist_ok=True)
    made = Prepared.load(prepared)
    (saved / "recommender.json").write_text(json.dumps({"template": made.template.to_dict(), "score": "mean"}))
    made.items.write_parquet(saved / "items.parquet")
    main(["recommend", "--model", str(saved), "--history", "10", "--k", "1"])
    found = re.search(r"\((\d+), mean log-prob per token (-\d+\.\d\d)\)", capsys.readouterr().out)
    main(["explain", "--model", str(saved), "--history", "10", "--max_new_tokens", "0"])
    explained = capsys.readouterr().out
    assert f"(score {found[2]}, mean per token)" in explained  # of the same item, by the same score


def test_recommend_writes_a_file_for_many_users_and_replaces_none(folders, prepared):
    users, output = folders / "users.jsonl", folders / "recommendations.parquet"
    users.write_text("".join(json.dumps({"user": user, "history": ["10", "11"]}) + "\n" for user in range(5)))
    arguments = ["--model", str(folders / "model"), "--data", str(prepared), "--users", str(users), "--k", "2"]
    main(["recommend", *arguments, "--output", str(output)])
    frame = pl.read_parquet(output)
    assert frame["user"].to_list() == [str(user) for user in range(5) for _ in range(2)]
    with pytest.raises(SystemExit, match="exists already"):
        main(["recommend", *arguments, "--output", str(output)])


def test_recommend_leaves_out_all_that_the_users_of_a_split_had(folders, prepared):
    output = folders / "split.parquet"
    arguments = ["--model", str(folders / "model"), "--data", str(prepared), "--split", "test", "--k", "100"]
    main(["recommend", *arguments, "--output", str(output)])
    users = Prepared.load(prepared).ranking["test"]
    assert len(users) > 1
    for row in users:
        items = set(pl.read_parquet(output).filter(user=row["user"])["item"])
        assert items == {str(movie) for movie in range(10, 50)} - set(row["seen"])


@pytest.mark.parametrize(
    ("line", "problem"), [("{", "line 2"), ('{"user": 1}', "'history'"), ('{"user": 1, "history": "1"}', "lists")]
)
def test_recommend_names_the_line_of_a_bad_user(folders, prepared, line, problem):
    users = folders / "bad.jsonl"
    users.write_text('{"user": 1, "history": ["10"]}\n' + line + "\n")
    arguments = ["--model", str(folders / "model"), "--data", str(prepared), "--users", str(users)]
    with pytest.raises(SystemExit, match=problem):
        main(["recommend", *arguments, "--output", str(folders / "bad.parquet")])
    assert not (folders / "bad.parquet").exists()


def test_explain_prints_effects_and_draws_them(folders, prepared, capsys):
    picture = folders / "why.svg"
    arguments = ["--model", str(folders / "model"), "--data", str(prepared), "--history", "10", "11", "12"]
    main(["explain", *arguments, "--item", "20", "--picture", str(picture), "--max_new_tokens", "3"])
    out = capsys.readouterr().out
    assert "Film 20 (1920)" in out
    assert all(f"Film {movie} " in out for movie in (10, 11, 12))
    assert picture.read_text().lstrip().startswith("<?xml")


def test_explain_finds_that_matplotlib_is_missing_before_it_loads_the_model(prepared, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    arguments = ["--model", "no such model", "--data", str(prepared), "--history", "10", "--picture", "why.png"]
    with pytest.raises(SystemExit, match="dmpo-trl explain: A picture needs matplotlib"):
        main(["explain", *arguments])


def test_explain_says_so_where_nothing_is_left_to_recommend(folders, prepared):
    everything = [str(movie) for movie in range(10, 50)]
    arguments = ["--model", str(folders / "model"), "--data", str(prepared), "--max_new_tokens", "0"]
    with pytest.raises(SystemExit, match=r"holds the whole catalogue, so nothing is left .* with --item"):
        main(["explain", *arguments, "--history", *everything])


@pytest.mark.parametrize(
    "command", [["evaluate"], ["recommend", "--history", "10"], ["explain", "--history", "10", "--item", "20"]]
)
def test_a_precision_that_is_none_is_refused_with_those_that_are(command, prepared, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--model", "no such model", "--data", str(prepared), "--dtype", "float99"])
    assert stop.value.code == 2
    assert "invalid choice: 'float99'" in capsys.readouterr().err


def test_every_precision_that_is_offered_loads_a_model(folders):
    (dtype,) = (option for option in Parser("explain", ModelArguments, example="").options if option.dest == "dtype")
    for name in dtype.choices:
        load_model(str(folders / "model"), dtype=name)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_commands_help_says_what_it_does_and_how(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert COMMANDS[command][1:] in " ".join(text.split())
    assert f"  dmpo-trl {command}" in text  # an example to begin with
    assert "(default: None)" not in text


@pytest.mark.parametrize(
    ("arguments", "module", "loader"),
    [
        (["evaluate"], "dmpo_trl.evaluation", "load_for_ranking"),
        (["recommend", "--history", "10"], "dmpo_trl.recommend.Recommender", "from_pretrained"),
        (["explain", "--history", "10"], "dmpo_trl.recommend.Recommender", "from_pretrained"),
    ],
)
def test_options_of_loading_are_handed_on(arguments, module, loader, folders, prepared, monkeypatch):
    calls = []

    def load(*_, data=None, items=None, template=None, **options):
        calls.append(options)
        raise ValueError("stopped")

    monkeypatch.setattr(f"{module}.{loader}", load)
    for options, expected in [
        ([], {}),
        (["--revision", "v2"], {"revision": "v2"}),
        (["--trust_remote_code", "--dtype", "bfloat16"], {"trust_remote_code": True, "dtype": "bfloat16"}),
    ]:
        with pytest.raises(SystemExit, match="stopped"):
            main([*arguments, "--model", str(folders / "model"), "--data", str(prepared), *options])
        assert calls.pop() == expected


def test_the_revision_of_a_model_is_not_that_of_its_baseline(folders, prepared, monkeypatch):
    calls = []

    def load(*model, **options):
        calls.append(options)
        if len(calls) == 2:
            raise ValueError("stopped")
        return report.load_for_ranking(*model, dtype=options["dtype"])

    monkeypatch.setattr("dmpo_trl.evaluation.load_for_ranking", load)
    model = [
        "--model",
        str(folders / "model"),
        "--baseline",
        str(folders / "model"),
        "--data",
        str(prepared),
        "--users",
        "2",
    ]
    with pytest.raises(SystemExit, match="stopped"):
        main(["evaluate", *model, "--revision", "main", "--dtype", "float32"])
    assert calls == [{"revision": "main", "dtype": "float32"}, {"dtype": "float32"}]


@pytest.mark.parametrize(
    "error",
    [
        ValueError("Wrong."),
        FileNotFoundError("Not there."),
        ConnectionError("No."),
        ImportError("Not installed."),
        FloatingPointError("Not finite."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_that_speaks_to_the_user_ends_a_command_with_its_message_alone(error, monkeypatch):
    def fail(_):
        raise error

    monkeypatch.setattr("dmpo_trl.cli.env.run", fail)
    with pytest.raises(SystemExit) as stop:
        main(["env"])
    assert stop.value.code == f"dmpo-trl env: {error}"
    with pytest.raises(type(error)):
        main(["--verbose", "env"])


def test_training_that_diverges_ends_with_its_message_alone(folders, prepared, tmp_path):
    arguments = ["--model_name_or_path", str(folders / "model"), "--dataset_name", str(prepared)]
    on_a_cpu = ["--bf16", "False", "--report_to", "none", "--max_steps", "3", "--save_strategy", "no"]
    diverging = ["--learning_rate", "1e30", "--lr_scheduler_type", "constant"]
    with pytest.raises(SystemExit, match=r"dmpo-trl train: The (log-probs|gradients) of a batch are not finite after"):
        main(["train", *arguments, *on_a_cpu, *diverging, "--output_dir", str(tmp_path / "out")])


def test_a_failed_download_ends_a_command_with_its_message_alone(tmp_path, monkeypatch):
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("DMPO_TRL_CACHE", str(tmp_path / "cache"))
    arguments = ["--dataset", "movielens", "--version", "100k", "--download", "--output_dir", str(tmp_path / "data")]
    with pytest.raises(SystemExit, match="dmpo-trl prepare: Could not download"):
        main(["prepare", *arguments])


def test_a_command_that_is_none_is_answered_with_the_closest(capsys):
    for word, answer in [("trian", "did you mean train?"), ("xyzzy", "`dmpo-trl --help` lists them")]:
        with pytest.raises(SystemExit) as stop:
            main([word, "--model", "x"])
        assert stop.value.code == 2
        assert answer in capsys.readouterr().err


def test_no_command_prints_the_help(capsys):
    main([])
    assert "commands, in the order of a project" in capsys.readouterr().out


@pytest.mark.parametrize(("given", "sleeps"), [({}, True), ({"OMP_WAIT_POLICY": "ACTIVE"}, False)])
def test_threads_that_wait_sleep_unless_somebody_says_otherwise(given, sleeps):
    """How often a thread of OpenMP looks before it sleeps, found when torch loaded it: GNU's calls its default PASSIVE
    too, and looks 300,000 times. Other implementations do not print it like that."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | given
    done = subprocess.run(
        [sys.executable, "-m", "dmpo_trl.cli", "env"],
        env=environment | {"OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.findall(r"GOMP_SPINCOUNT = '(\w+)'", done.stderr)
    if not found:
        pytest.skip("torch is built with another OpenMP")
    assert {count == "0" for count in found} == {sleeps}


def test_every_command_has_help_and_help_needs_no_model():
    code = (
        "import sys; from dmpo_trl.cli import main\ntry: main(['--help'])\n"
        "except SystemExit: pass\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(f"  {command} " in done.stdout for command in COMMANDS)
