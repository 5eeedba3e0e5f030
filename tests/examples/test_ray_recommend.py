"""The Ray Data job of examples/: rows of one process, whatever happens to a worker; what is wrong is refused first."""

import os
import subprocess
import sys
import time
from pathlib import Path
from secrets import token_hex

import polars as pl
import psutil
import pytest
from support import ROOT, cpu_environment, load_script, make_model, make_tokenizer

from dmpo_trl.data import MOVIES
from dmpo_trl.recommend import Recommender, UserHistory

SCRIPT = "examples/ray_recommend.py"
USERS = [
    UserHistory(
        f"u{number}", [str((7 * number + 3 * step) % 40) for step in range(1 + number % 5)], [str(number % 40)]
    )
    for number in range(200)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved recommender and the users' file."""
    folder = tmp_path_factory.mktemp("ray")
    items = pl.DataFrame({"item": [str(row) for row in range(40)], "title": [f"Film {row}" for row in range(40)]})
    Recommender(make_model(), make_tokenizer(), items, MOVIES).save_pretrained(folder / "model")
    pl.DataFrame([user._asdict() for user in USERS]).write_parquet(folder / "users.parquet")
    return folder


def command(folder, *options, users="users.parquet"):
    paths = ["--model", f"{folder}/model", "--users", f"{folder}/{users}", "--output", f"{folder}/found"]
    return [*paths, *options]


def workers(process):
    """The processes of a job that hold a recommender."""
    found = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "MapBatches(Worker)" in " ".join(child.cmdline()):
                found[child.pid] = child
        except psutil.Error:  # it has just ended
            continue
    return found


@pytest.mark.slow
def test_a_killed_worker_loses_nobody_and_repeats_nobody(folder, tmp_path):
    environment = cpu_environment() | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_TOKEN": token_hex()}
    options = ["--k", "5", "--batch_size", "4", "--users_per_block", "8", "--rows_per_file", "1"]
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(
            [sys.executable, SCRIPT, *command(folder, *options)], cwd=ROOT, env=environment, stdout=log, stderr=log
        )
        try:
            unfinished, seen = folder / "found.unfinished", {}
            while not list(unfinished.glob("*.parquet")):
                assert job.poll() is None, (tmp_path / "log").read_text()[-5000:]
                time.sleep(0.05)
            first = workers(job)
            assert len(first) == 2
            next(iter(first.values())).kill()
            done = len(list(unfinished.glob("*.parquet")))
            assert 0 < done < len(USERS) / 8
            while job.poll() is None:
                seen |= workers(job)
                time.sleep(0.05)
        finally:
            job.kill()
    assert job.returncode == 0, (tmp_path / "log").read_text()[-5000:]
    assert len(seen.keys() | first.keys()) == 3  # another one took its place
    assert not unfinished.exists()

    Recommender.from_pretrained(folder / "model").recommend_all(USERS, tmp_path / "alone.parquet", 5, batch_size=4)
    alone = pl.read_parquet(tmp_path / "alone.parquet").sort("user", "rank")
    found = pl.read_parquet(folder / "found").sort("user", "rank")
    assert found.drop("score").equals(alone.drop("score"))
    assert found["score"].to_list() == pytest.approx(alone["score"].to_list(), abs=2e-5)


@pytest.mark.parametrize(
    ("users", "message"),
    [
        ({"user": ["a"], "history": [["Film 1", "Flim 2"]]}, "history: 'Flim 2' is neither .* 'Film 2'"),
        ({"user": ["a"], "history": [[]], "seen": [["Flim 2"]]}, "seen: 'Flim 2' is neither"),
        ({"user": [None], "history": [["Film 1"]]}, "a row without user or history"),
        ({"user": ["a"], "history": [None]}, "a row without user or history"),
    ],
)
def test_users_who_cannot_be_searched_for_are_refused_before_the_job(folder, users, message, monkeypatch):
    schema = {"history": pl.List(pl.String)}
    pl.DataFrame(users, schema_overrides=schema).write_parquet(folder / "bad.parquet")
    monkeypatch.setattr(sys, "argv", ["ray_recommend.py", *command(folder, users="bad.parquet")])
    with load_script(SCRIPT) as script, pytest.raises((SystemExit, ValueError), match=message):
        script.main()
    assert not (folder / "found.unfinished").exists()


@pytest.mark.parametrize(("name", "message"), [("found", "exists; name another"), ("found.unfinished", "was killed")])
def test_what_is_there_is_not_overwritten(folder, name, message, monkeypatch, tmp_path):
    (tmp_path / name).mkdir()
    arguments = [*command(folder)[:-1], str(tmp_path / "found")]
    monkeypatch.setattr(sys, "argv", ["ray_recommend.py", *arguments])
    with load_script(SCRIPT) as script, pytest.raises(SystemExit, match=message):
        script.main()
    assert os.listdir(tmp_path) == [name]


def test_the_example_is_short():
    assert len(Path(ROOT, SCRIPT).read_text().splitlines()) <= 120


def test_who_has_seen_nothing_may_have_null(folder, tmp_path):
    pytest.importorskip("ray")
    rows = {"user": ["a", "b"], "history": [["1"], ["2"]], "seen": [None, ["3"]]}
    pl.DataFrame(rows).write_parquet(tmp_path / "users.parquet")
    with load_script(SCRIPT) as script:
        settings = script.Settings(f"{folder}/model", f"{tmp_path}/users.parquet", tmp_path / "found")
        script.check_users(settings)
        pl.DataFrame(rows | {"seen": [None, ["nothing"]]}).write_parquet(tmp_path / "users.parquet")
        with pytest.raises(ValueError, match="seen: 'nothing' is neither"):
            script.check_users(settings)
