import errno
import multiprocessing
import os
import signal

import polars as pl
import pytest

from dmpo_trl.writing import real_path, scratch


def fail(folder, file=None, error=ZeroDivisionError, **options):
    with scratch(folder, folder.with_name("out"), **options) as work:
        if file:
            (work / file).write_text("x")
        raise error


def test_work_is_gone_at_the_end_and_after_an_error(tmp_path):
    folder = tmp_path / "work"
    with scratch(folder, tmp_path / "out") as work:
        (work / "new").mkdir()
        (work / "new" / "file").write_text("x")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ZeroDivisionError):
        fail(folder, "file")
    assert list(tmp_path.iterdir()) == []


def test_what_is_kept_stays_after_an_error_and_goes_in_the_end(tmp_path):
    folder = tmp_path / "work"
    with pytest.raises(ZeroDivisionError):
        fail(folder, "part", keep=True)
    with scratch(folder, tmp_path / "out", keep=True) as work:
        assert (work / "part").read_text() == "x"
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ZeroDivisionError):
        fail(folder, keep=True)
    assert list(tmp_path.iterdir()) == []  # nothing to go on with


def leave(folder):
    with scratch(folder, folder.with_name("out")) as work:
        (work / "half").mkdir()
        (work / "half" / "file").write_text("x")
        os.kill(os.getpid(), signal.SIGKILL)


def killed(target, *arguments):
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_what_a_killed_process_left_is_named_and_removed(tmp_path, caplog):
    killed(leave, tmp_path / "work")
    assert (tmp_path / "work" / "half" / "file").exists()
    with scratch(tmp_path / "work", tmp_path / "out") as work:
        assert not (work / "half").exists()
    assert f"Removing {tmp_path / 'work'}, which an interrupted run left" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_held_by_one_process_at_a_time(tmp_path):
    with scratch(tmp_path / "work", tmp_path / "out") as work:
        (work / "file").write_text("x")
        with pytest.raises(BlockingIOError, match=r"Another process is writing .*out\."):
            scratch(tmp_path / "work", tmp_path / "out").__enter__()
        assert (work / "file").read_text() == "x"


@pytest.mark.parametrize("make", ["file", "folder", "link"])
def test_what_others_made_is_left_as_it_is(tmp_path, make):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "file").write_text("x")
    if make == "file":
        (tmp_path / "work").write_text("x")
    elif make == "folder":
        (tmp_path / "theirs").rename(tmp_path / "work")
    else:
        (tmp_path / "work").symlink_to(tmp_path / "theirs")
    with pytest.raises(FileExistsError, match=r"work is in the way: work on .*out would go there"):
        scratch(tmp_path / "work", tmp_path / "out").__enter__()
    assert sum(path.is_file() for path in tmp_path.rglob("*")) == (2 if make == "file" else 1)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "Error writing bytes to file"),  # pyarrow's names no file
        pl.exceptions.ComputeError("underlying IO error: No space left on device (os error 28)"),
        pl.exceptions.ComputeError("underlying IO error: Disk quota exceeded (os error 122)"),
    ],
)
def test_a_full_disk_is_told_with_the_output(tmp_path, error):
    with pytest.raises(OSError, match=rf"No room to write {tmp_path}/out\. Free some and run again \("):
        fail(tmp_path / "work", "file", error)
    assert list(tmp_path.iterdir()) == []


def test_a_link_into_a_folder_that_is_not_there_is_refused(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "out")
    with pytest.raises(FileNotFoundError, match=r"disk is not there\. Is a disk missing\?"):
        real_path(tmp_path / "out")
    (tmp_path / "disk").mkdir()
    assert real_path(tmp_path / "out") == (tmp_path / "disk" / "out").resolve()
