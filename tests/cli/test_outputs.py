"""What commands write: refused before the work where something is in its place, and never over what is not ours."""

import json
from importlib import import_module

import polars as pl
import pytest
from support import make_model, make_tokenizer

from dmpo_trl.cli import main

ON_A_CPU = ["--bf16", "False", "--report_to", "none", "--max_steps", "1", "--save_strategy", "no"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    file = tmp_path_factory.mktemp("raw") / "rows.csv"
    rows = [
        f"{user},{(7 * user + 3 * step) % 40},{step},Film {(7 * user + 3 * step) % 40}"
        for user in range(30)
        for step in range(5)
    ]
    file.write_text("\n".join(["user,item,timestamp,title", *rows]) + "\n")
    return str(file)


def prepare(table, folder, *options):
    common = ["--dataset", "table", "--path", table, "--template", "movies", "--candidates", "5", "--test_users", "4"]
    main(["prepare", *common, "--output_dir", str(folder), *options])


@pytest.fixture(scope="module")
def data(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared") / "data"
    prepare(table, folder)
    return folder


@pytest.fixture
def no_model(monkeypatch):
    """Fail where a model is loaded: what is refused is refused before."""
    for name in ("evaluation.load_for_ranking", "recommend.Recommender.from_pretrained"):
        monkeypatch.setattr(f"dmpo_trl.{name}", lambda *_, **__: pytest.fail("a model was loaded"))


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("no_model")
def test_evaluate_refuses_what_it_did_not_write(model, data, tmp_path, capsys):
    arguments = ["evaluate", "--model", model, "--data", str(data)]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "table.md").write_text("my own notes")
    (tmp_path / "file").write_text("mine")
    for options in ([], ["--overwrite"]):
        with pytest.raises(SystemExit, match="notes is not empty and was not written by dmpo-trl evaluate"):
            main([*arguments, "--output_dir", str(tmp_path / "notes"), *options])
        with pytest.raises(SystemExit, match="file is a file; name a folder"):
            main([*arguments, "--output_dir", str(tmp_path / "file"), *options])
    assert contents(tmp_path) == {"notes/table.md": b"my own notes", "file": b"mine"}


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("report", ["out/report.html", "out/tables/report.html", "elsewhere/../out/report.html"])
def test_evaluate_refuses_a_report_in_its_own_folder_before_it_is_there(model, data, tmp_path, monkeypatch, report):
    monkeypatch.chdir(tmp_path)
    arguments = ["--model", model, "--data", str(data), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match=r"report\.html is in --output_dir, .* name a file elsewhere"):
        main(["evaluate", *arguments, "--report", report])
    assert not contents(tmp_path)


def test_evaluate_replaces_an_earlier_evaluation_where_it_may(model, data, tmp_path):
    out = tmp_path / "out"
    arguments = ["evaluate", "--model", model, "--data", str(data), "--output_dir", str(out)]
    main([*arguments, "--users", "2"])
    before = contents(out)
    assert {"manifest.json", "sum.parquet", "mean.parquet"} < before.keys()
    with pytest.raises(SystemExit, match=r"holds an evaluation already; choose another folder, or set \W+overwrite"):
        main(arguments)
    assert contents(out) == before
    (out / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit, match=r"did not write, or what was changed since: mine\.txt"):
        main([*arguments, "--overwrite"])
    assert contents(out) == before | {"mine.txt": b"mine"}
    (out / "mine.txt").unlink()
    main([*arguments, "--overwrite"])
    assert contents(out).keys() == before.keys()
    assert pl.read_parquet(out / "sum.parquet").height == 4
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.fixture
def two_users_per_part(monkeypatch):
    monkeypatch.setattr("dmpo_trl.work.parts.USERS_PER_PART", 2)


@pytest.fixture
def interrupted(model, data, tmp_path, monkeypatch, two_users_per_part):
    """An evaluation that failed at its second part; gives its arguments and those of the calls that follow."""
    from dmpo_trl.evaluation import ranking

    scored, calls = ranking.stream_scores, []

    def stream_scores(*arguments, total, **options):
        calls.append(total)
        if len(calls) == 2:
            raise MemoryError("full")
        return scored(*arguments, total=total, **options)

    monkeypatch.setattr(ranking, "stream_scores", stream_scores)
    arguments = ["evaluate", "--model", model, "--data", str(data), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="Memory ran out"):
        main(arguments)
    assert calls == [2, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["out.parts"]
    return arguments, calls


def test_evaluate_goes_on_where_it_was(interrupted, tmp_path, caplog):
    arguments, calls = interrupted
    main([*arguments, "--top_k", "2"])  # changes no score
    assert calls == [2, 2, 2]
    assert "2 of 4 users were done by an interrupted run" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    main([*arguments[:-1], str(tmp_path / "whole"), "--top_k", "2"])
    for name in ("sum.parquet", "mean.parquet", "metrics.csv", "table.md"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_evaluate_with_another_model_starts_over_and_says_so(interrupted, tmp_path, caplog):
    arguments, calls = interrupted
    make_model(seed=1).save_pretrained(tmp_path / "other")
    make_tokenizer().save_pretrained(tmp_path / "other")
    main(["evaluate", "--model", str(tmp_path / "other"), *arguments[3:]])
    assert calls == [2, 2, 2, 2]
    assert "1 parts in" in caplog.text
    assert "were of another evaluation, and are removed" in caplog.text
    assert not (tmp_path / "out.parts").exists()


def test_parts_of_a_finished_evaluation_are_removed(model, data, tmp_path, monkeypatch, two_users_per_part):
    """Killed when the folder had its name, and the parts were still there."""
    arguments = ["evaluate", "--model", model, "--data", str(data), "--output_dir", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr(import_module("dmpo_trl.writing.scratch"), "_remove", lambda _: None)
        main(arguments)
    assert (tmp_path / "out.parts").exists()
    with pytest.raises(SystemExit, match="holds an evaluation already"):
        main(arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("no_model")
def test_evaluate_refuses_a_folder_that_is_in_the_way_of_its_parts(model, data, tmp_path):
    (tmp_path / "out.parts").mkdir()
    (tmp_path / "out.parts" / "part-1.parquet").write_text("mine")
    with pytest.raises(SystemExit, match=r"out\.parts is in the way"):
        main(["evaluate", "--model", model, "--data", str(data), "--output_dir", str(tmp_path / "out")])
    assert contents(tmp_path) == {"out.parts/part-1.parquet": b"mine"}


@pytest.mark.usefixtures("no_model")
def test_explain_refuses_to_draw_over_a_picture(model, data, tmp_path):
    picture = tmp_path / "mine.png"
    picture.write_text("mine")
    arguments = ["explain", "--model", model, "--data", str(data), "--history", "1", "2"]
    with pytest.raises(SystemExit, match=r"mine\.png exists already; choose another file, or set \W+overwrite"):
        main([*arguments, "--picture", str(picture)])
    with pytest.raises(SystemExit, match="nowhere does not exist"):
        main([*arguments, "--picture", str(tmp_path / "nowhere" / "why.png")])
    assert contents(tmp_path) == {"mine.png": b"mine"}


def test_explain_replaces_a_picture_where_it_may(model, data, tmp_path):
    picture = tmp_path / "why.png"
    picture.write_text("old")
    arguments = ["--history", "1", "2", "--item", "5", "--max_new_tokens", "0", "--picture", str(picture)]
    main(["explain", "--model", model, "--data", str(data), *arguments, "--overwrite"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["why.png"]


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_recommend_refuses_a_folder_a_missing_folder_and_the_file_of_users(model, data, tmp_path, overwrite):
    users = tmp_path / "users.jsonl"
    users.write_text(json.dumps({"user": 1, "history": ["1"]}))
    arguments = ["recommend", "--model", model, "--data", str(data), "--users", str(users), *overwrite, "--output"]
    with pytest.raises(SystemExit, match="is a folder; name a file"):
        main([*arguments, str(tmp_path)])
    with pytest.raises(SystemExit, match="nowhere does not exist"):
        main([*arguments, str(tmp_path / "nowhere" / "all.parquet")])
    message = "is the file of --users" if overwrite else r"exists already; choose another file, or set \W+overwrite"
    with pytest.raises(SystemExit, match=rf"users\.jsonl {message}"):
        main([*arguments, str(users)])
    assert list(contents(tmp_path)) == ["users.jsonl"]


@pytest.mark.usefixtures("no_model")
def test_recommend_refuses_a_faulty_line_before_the_work(model, data, tmp_path):
    users = tmp_path / "users.jsonl"
    users.write_text(f"{json.dumps({'user': 1, 'history': ['1']})}\n\n{{")
    with pytest.raises(SystemExit, match=r"users\.jsonl, line 3: .* Correct the line"):
        main(["recommend", "--model", model, "--users", str(users), "--output", str(tmp_path / "all.parquet")])
    assert list(contents(tmp_path)) == ["users.jsonl"]


def test_recommend_names_an_unknown_item_of_the_last_user_before_the_search(model, data, tmp_path, monkeypatch):
    users = tmp_path / "users.jsonl"
    users.write_text("\n".join(json.dumps({"user": user, "history": [user]}) for user in ("1", "2", "nosuch")))
    monkeypatch.setattr("dmpo_trl.recommend.Recommender.recommend_batch", lambda *_, **__: pytest.fail("searched"))
    arguments = ["recommend", "--model", model, "--data", str(data), "--users", str(users), "--batch_size", "1"]
    with pytest.raises(SystemExit, match="user 'nosuch': history: 'nosuch' is neither"):
        main([*arguments, "--output", str(tmp_path / "all.parquet")])
    assert list(contents(tmp_path)) == ["users.jsonl"]


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr("dmpo_trl.cli._training._make_trainer", lambda *_: pytest.fail("training began"))


def train(model, data, out, *options):
    arguments = ["train", "--model_name_or_path", model, "--dataset_name", str(data), "--output_dir", str(out)]
    main([*arguments, *ON_A_CPU, *options])


@pytest.mark.usefixtures("no_training")
def test_training_into_prepared_data_is_refused(model, table, tmp_path):
    """The model's card would replace theirs, and the remedy would then delete the model."""
    prepare(table, tmp_path / "same")
    (tmp_path / "link").symlink_to(tmp_path / "same")
    before = contents(tmp_path / "same")
    for name in ("same", "link"):
        with pytest.raises(SystemExit, match=rf"{name} holds prepared data, whose README\.md .* Choose another"):
            train(model, tmp_path / "same", tmp_path / name)
    assert contents(tmp_path / "same") == before


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("mixture", [False, True])
def test_training_on_data_with_a_forged_card_is_refused(model, table, tmp_path, mixture):
    """`datasets` loads what the card says."""
    data = tmp_path / "data"
    prepare(table, data)
    pl.read_parquet(data / "preference" / "train.parquet").write_parquet(tmp_path / "evil.parquet")
    card = data / "README.md"
    card.write_text(card.read_text().replace("path: preference/train.parquet", "path: ../evil.parquet"))
    options = []
    if mixture:
        (tmp_path / "mixture.yaml").write_text(f"datasets:\n  - path: {data}\n")
        options = ["--config", str(tmp_path / "mixture.yaml")]
    with pytest.raises(SystemExit, match=r"README\.md is not the file that was prepared; prepare the data again"):
        train(model, data, tmp_path / "out", *options)


def test_prepare_writes_where_the_shell_stands(table, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    prepare(table, ".")
    prepare(table, ".", "--overwrite", "--seed", "1")
    assert json.loads((tmp_path / "here" / "manifest.json").read_text())["options"]["seed"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here"]
    assert ".unfinished" not in {path.name for path in (tmp_path / "here").iterdir()}
