import json
import os
import signal
from multiprocessing import get_context

import polars as pl
import pyarrow.parquet as pq
import pytest
import torch

from dmpo_trl.recommend import Recommendation, UserHistory
from dmpo_trl.recommend.batch import check_output, write_recommendations
from dmpo_trl.writing import scratch

MODEL = torch.nn.Module()  # which a process could have whole
RUN = {"k": 2, "model": "abc"}
USERS = [(f"u{number}", [str(number), "1", "2"]) for number in range(150)]  # three parts, of 64, 64 and 22


def last_of_the_history(batch):
    return [
        [Recommendation(item, f"title {item}", -float(rank)) for rank, item in enumerate(user.history[-2:])]
        for user in batch
    ]


def accept(user):
    pass


def write(users, path, batch_size=2, *, run=RUN, recommend=last_of_the_history, check=accept, overwrite=False):
    return write_recommendations(
        users, path, batch_size, run=run, recommend=recommend, check=check, model=MODEL, overwrite=overwrite
    )


def fail_after(batches):
    """Recommends to so many batches."""
    left = iter(range(batches))

    def recommend(batch):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return last_of_the_history(batch)

    return recommend


def test_batches_of_users_go_to_one_file_in_a_new_folder(tmp_path):
    batches = []

    def recommend(batch):
        batches.append([user.user for user in batch])
        return last_of_the_history(batch)

    users = [("a", ["1", "2", "3"]), UserHistory("b", ["4"], ["5"]), ("c", [])]
    path = tmp_path / "new" / "folder" / "all.parquet"
    assert write(iter(users), path, recommend=recommend) == 3
    assert batches == [["a", "b"], ["c"]]
    assert list(path.parent.iterdir()) == [path]
    assert pl.read_parquet(path).rows() == [
        ("a", 1, "2", "title 2", 0.0),
        ("a", 2, "3", "title 3", -1.0),
        ("b", 1, "4", "title 4", 0.0),
    ]


def test_no_users_are_an_empty_file(tmp_path):
    path = tmp_path / "all.parquet"
    assert write([], path) == 0
    assert pl.read_parquet(path).columns == ["user", "rank", "item", "title", "score"]


@pytest.mark.parametrize("one_pass", [True, False])
def test_a_faulty_user_is_named_before_the_search(tmp_path, one_pass):
    def check(user):
        if "x" in [*user.history, *user.seen]:
            raise ValueError("seen: 'x' is unknown.")

    def recommend(batch):
        raise AssertionError("searched")

    good = [] if one_pass else USERS  # all of them are looked at, where that can be
    users = [*good, UserHistory("a", ["1"]), UserHistory("b", ["1"], ["x"])]
    with pytest.raises(ValueError, match=r"^user 'b': seen: 'x' is unknown"):
        write(iter(users) if one_pass else users, tmp_path / "all.parquet", 1, recommend=recommend, check=check)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("one_pass", [True, False])
@pytest.mark.parametrize("apart", [1, 70])  # in one part, and in two
def test_a_user_who_is_listed_twice_is_refused_with_both_places(tmp_path, one_pass, apart):
    users = [(number, ["1"]) for number in range(80)]
    users.insert(3 + apart, ("3", ["2"]))
    searched = []

    def recommend(batch):
        searched.extend(user.user for user in batch)
        return last_of_the_history(batch)

    with pytest.raises(ValueError, match=rf"^Users 4 and {4 + apart} of the list are both called '3'.* Leave one out"):
        write(iter(users) if one_pass else users, tmp_path / "all.parquet", recommend=recommend)
    assert not (tmp_path / "all.parquet").exists()
    assert len(searched) == (64 if one_pass and apart == 70 else 0)


def test_a_batch_has_at_least_one_user(tmp_path):
    with pytest.raises(ValueError, match="batch_size must be at least 1, it is 0"):
        write([], tmp_path / "all.parquet", 0)


@pytest.mark.parametrize("one_pass", [True, False])
@pytest.mark.parametrize("then", [2, 3, 200])  # the batch size after the interruption, out of memory for instance
def test_an_interrupted_run_goes_on_at_its_next_part(tmp_path, then, one_pass, caplog):
    write(USERS, tmp_path / "whole.parquet")
    path = tmp_path / "all.parquet"
    with pytest.raises(KeyboardInterrupt):
        write(USERS, path, 2, recommend=fail_after(70))  # 64 batches are two parts
    assert not path.exists()
    parts = tmp_path / "all.parquet.parts"
    assert len(list(parts.glob("part-*.parquet"))) == 2
    assert json.loads((parts / "run.json").read_text()) == {**RUN, "users per part": 64}
    searched = []

    def recommend(batch):
        searched.extend(user.user for user in batch)
        return last_of_the_history(batch)

    caplog.set_level("INFO")
    assert write(iter(USERS) if one_pass else USERS, path, then, recommend=recommend) == 150
    assert searched == [user for user, _ in USERS[128:]]
    assert "Going on behind the 2 parts of an interrupted run" in caplog.text
    assert path.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["all.parquet", "whole.parquet"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run": {"k": 3, "model": "abc"}}, r"another k \(was 2, is 3\)\. Run that one to its end"),
        ({"run": {"k": 2, "model": "x", "new": 1}}, r"another model \(was abc, is x\), new \(was None, is 1\)\."),
        ({"users": [("other", ["1"]), *USERS[1:]]}, r"another list of users\. Run that one to its end"),
        ({"users": USERS[:127]}, r"another list of users"),
        ({"users": USERS[:64]}, r"another number of users \(was 2 parts, is 1\)\."),
    ],
)
def test_an_interrupted_run_does_not_go_on_as_another(tmp_path, change, message):
    path = tmp_path / "all.parquet"
    with pytest.raises(KeyboardInterrupt):
        write(USERS, path, recommend=fail_after(70))
    parts = {file.name: file.read_bytes() for file in path.with_name("all.parquet.parts").iterdir()}
    users = change.pop("users", USERS)
    with pytest.raises(ValueError, match=message):
        write(users, path, recommend=fail_after(0), **change)
    assert {file.name: file.read_bytes() for file in path.with_name("all.parquet.parts").iterdir()} == parts
    write(USERS, path)
    assert [file.name for file in tmp_path.iterdir()] == ["all.parquet"]


def test_a_damaged_part_is_made_again(tmp_path, caplog):
    path = tmp_path / "all.parquet"
    with pytest.raises(KeyboardInterrupt):
        write(USERS, path, recommend=fail_after(70))
    first = min((tmp_path / "all.parquet.parts").glob("part-*.parquet"), key=lambda file: file.stat().st_mtime_ns)
    first.write_bytes(first.read_bytes()[:50])  # by a power cut
    write(USERS, path)
    assert f"{first} is damaged; its users are computed again" in caplog.text
    write(USERS, tmp_path / "whole.parquet")
    assert path.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_a_file_that_appears_during_the_search_is_not_replaced(tmp_path):
    path = tmp_path / "all.parquet"

    def recommend(batch):
        path.write_text("theirs")
        return last_of_the_history(batch)

    with pytest.raises(FileExistsError, match=r"parquet appeared during the work .* the result is in .*all-2\.par"):
        write(USERS[:3], path, recommend=recommend)
    assert path.read_text() == "theirs"
    assert pl.read_parquet(tmp_path / "all-2.parquet").height == 6
    with pytest.raises(FileExistsError, match=r"all\.parquet exists already"):
        write(USERS[:3], path, recommend=fail_after(0))
    write(USERS[:3], path, overwrite=True)
    assert pl.read_parquet(path).height == 6


def test_two_runs_with_one_output_do_not_meet(tmp_path):
    path = tmp_path / "all.parquet"

    def recommend(batch):
        for other in (lambda: write(USERS, path), lambda: check_output(path, overwrite=True)):
            with pytest.raises(BlockingIOError, match=r"Another process is writing .*all\.parquet\. Wait"):
                other()
        return last_of_the_history(batch)

    assert write(USERS[:2], path, recommend=recommend) == 2


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "all.parquet").symlink_to(tmp_path / "disk" / "real.parquet")
    write(USERS[:3], tmp_path / "all.parquet")
    assert (tmp_path / "all.parquet").is_symlink()
    assert [file.name for file in (tmp_path / "disk").iterdir()] == ["real.parquet"]


def kill_after_placing(path, step):
    """Die when the file is there already: before it is cleaned up, or in the midst of it."""
    steps = iter(range(100))

    def dying(function):
        def wrapped(file, *arguments, **options):
            if "parts" in str(file) and next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(file, *arguments, **options)

        return wrapped

    def recommend(batch):
        os.unlink, os.rmdir = dying(os.unlink), dying(os.rmdir)
        return last_of_the_history(batch)

    write(USERS[:3], path, recommend=recommend)


@pytest.mark.parametrize("step", range(5))  # before the part, the manifest, the whole, the lock, the folder
def test_a_run_killed_when_its_file_is_there_is_cleaned_up(tmp_path, step):
    path = tmp_path / "all.parquet"
    context = get_context("forkserver")  # polars, once its threads run, waits for ever in a fork of this process
    context.set_forkserver_preload([__name__])
    process = context.Process(target=kill_after_placing, args=(path, step))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert pq.read_table(path).num_rows == 6
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(FileExistsError, match="exists already"):
        check_output(path, overwrite=False)
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_of_others_in_the_place_of_the_parts_is_refused_before_the_work(tmp_path):
    (tmp_path / "all.parquet.parts").mkdir()
    (tmp_path / "all.parquet.parts" / "part-00000.parquet").write_text("theirs")
    for call in (
        lambda: check_output(tmp_path / "all.parquet", overwrite=True),
        lambda: write([], tmp_path / "all.parquet"),
    ):
        with pytest.raises(FileExistsError, match="parts is in the way"):
            call()
    assert (tmp_path / "all.parquet.parts" / "part-00000.parquet").read_text() == "theirs"


def test_the_leftovers_of_a_run_without_a_part_are_removed(tmp_path):
    with scratch(tmp_path / "other", tmp_path / "x") as made:
        (made / "dmpo-trl.lock").rename(tmp_path / "lock")
    (tmp_path / "all.parquet.parts").mkdir()
    (tmp_path / "lock").rename(tmp_path / "all.parquet.parts" / "dmpo-trl.lock")
    check_output(tmp_path / "all.parquet", overwrite=False)
    assert list(tmp_path.iterdir()) == []


def test_numbers_are_names_too(tmp_path):
    write([(7, ["1", "2"]), ("b", ["3"])], tmp_path / "all.parquet")
    assert pl.read_parquet(tmp_path / "all.parquet")["user"].to_list() == ["7", "7", "b"]
