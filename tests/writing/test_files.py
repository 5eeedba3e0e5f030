import errno
import os

import pytest

from dmpo_trl.writing import check_file, new_file, scratch


def write(path, text, *, overwrite=False, during=lambda: None):
    with new_file(path, overwrite=overwrite) as file:
        assert file.name == path.resolve().name  # what is written goes by the ending
        file.write_text(text)
        during()


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "out.txt"
    with new_file(path, overwrite=False) as file:
        file.write_text("ours")
        assert not path.exists()
    assert path.read_text() == "ours"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("theirs")
    with pytest.raises(ZeroDivisionError):
        write(path, "ours", overwrite=True, during=lambda: 1 / 0)
    assert path.read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_there_is_refused_before_the_work_unless_it_may_be_replaced(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("theirs")
    with pytest.raises(FileExistsError, match=r"out\.txt exists already; choose another file, or set `overwrite`"):
        check_file(path, overwrite=False)
    check_file(path, overwrite=True)
    write(path, "ours", overwrite=True)
    assert path.read_text() == "ours"


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_during_the_work_is_not_replaced(tmp_path, monkeypatch, links):
    if not links:

        def link(source, target):
            if os.path.exists(target):
                raise FileExistsError(errno.EEXIST, "exists")
            raise OSError(errno.EPERM, "no links on this disk")

        monkeypatch.setattr(os, "link", link)
    path = tmp_path / "out.txt"
    (tmp_path / "out-2.txt").write_text("theirs too")
    with pytest.raises(FileExistsError, match=r"out\.txt appeared during the work .*; the result is in .*out-3\.txt"):
        write(path, "ours", during=lambda: path.write_text("theirs"))
    texts = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert texts == {"out.txt": "theirs", "out-2.txt": "theirs too", "out-3.txt": "ours"}


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "real.txt").write_text("old")
    link = tmp_path / "out.txt"
    link.symlink_to(tmp_path / "disk" / "real.txt")
    with pytest.raises(FileExistsError, match="exists already"):
        check_file(link, overwrite=False)
    write(link, "ours", overwrite=True)
    assert link.is_symlink()
    assert link.read_text() == "ours"
    (tmp_path / "disk" / "real.txt").unlink()  # the link leads nowhere by now
    check_file(link, overwrite=False)
    write(link, "again")
    assert link.is_symlink()
    assert link.read_text() == "again"
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["disk", "out.txt", "real.txt"]


@pytest.mark.parametrize("overwrite", [True, False])
def test_what_is_no_file_is_refused_before_the_work(tmp_path, overwrite):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(IsADirectoryError, match="folder is a folder; name a file"):
        check_file(tmp_path / "folder", overwrite=overwrite)
    with pytest.raises(FileExistsError, match="pipe is not a regular file"):
        check_file(tmp_path / "pipe", overwrite=overwrite)
    with pytest.raises(FileExistsError, match="/dev/null is not a regular file"):
        check_file("/dev/null", overwrite=overwrite)
    with pytest.raises(FileNotFoundError, match=r"the folder .*nowhere does not exist\. Make it first"):
        check_file(tmp_path / "nowhere" / "out.txt", overwrite=overwrite)


def test_a_file_that_another_process_writes_is_refused_before_the_work(tmp_path):
    with new_file(tmp_path / "out.txt", overwrite=False) as file:
        with pytest.raises(BlockingIOError, match=r"Another process is writing .*out\.txt"):
            check_file(tmp_path / "out.txt", overwrite=True)
        file.write_text("ours")
    with scratch(tmp_path / ".out.txt.unfinished", tmp_path / "out.txt", keep=True):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["out.txt"]
