import errno
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys

import pytest

from dmpo_trl.writing import Kind, check_folder, folders, is_unfinished, new_folder

FORK = multiprocessing.get_context("fork")
NOTES = Kind("notes, version 1", command="note", holds="notes")


def write(path, files, *, overwrite=False, during=lambda: None):
    check_folder(path, NOTES, overwrite=overwrite)
    with new_folder(path, NOTES, overwrite=overwrite) as folder:
        for name, text in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
        during()


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def notes(folder):
    found = contents(folder)
    assert json.loads(found.pop("manifest.json"))["files"] == checksums_of(found, folder)
    return found


def checksums_of(names, folder):
    return {name: folders.sha256(folder / name) for name in names}


OLD, NEW = {"a": "1", "old/b": "2", "both/c": "3"}, {"a": "4", "new/b": "5", "both/c": "6"}


def mounted(monkeypatch, path):
    monkeypatch.setattr(os.path, "ismount", lambda name: os.fspath(name) == str(path))


def busy(monkeypatch, path):
    """A mount that `ismount` does not see, and any folder where the system cannot exchange two."""
    rename = os.rename

    def refuse(source, target):
        if os.fspath(target) == str(path):
            raise OSError(errno.EBUSY, "Device or resource busy")
        rename(source, target)

    def fail(one, other):
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(os, "rename", refuse)
    monkeypatch.setattr(folders, "_exchange", fail)


def inside(monkeypatch, path):
    path.mkdir(exist_ok=True)
    monkeypatch.chdir(path)


def usual(monkeypatch, path):
    pass


@pytest.mark.parametrize("place", [usual, mounted, busy, inside])
def test_folders_are_made_and_replaced_wherever_they_are(tmp_path, monkeypatch, place):
    out = tmp_path / "out"
    if place is not usual:
        out.mkdir()
    if place is mounted:
        (out / "lost+found").mkdir()
    place(monkeypatch, out)
    before = os.stat(out).st_ino if out.exists() else None
    write(out, OLD)
    assert notes(out) == OLD
    with pytest.raises(FileExistsError, match="out holds notes already; choose another folder, or set `overwrite`"):
        write(out, NEW)
    write(out, NEW, overwrite=True)
    assert notes(out) == NEW
    assert not (out / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    if before is not None:
        assert os.stat(out).st_ino == before  # a shell that stands in it stands in a living folder
    check_folder(out, NOTES, overwrite=True)


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "real")  # leads nowhere yet
    write(tmp_path / "out", OLD)
    write(tmp_path / "out", NEW, overwrite=True)
    assert (tmp_path / "out").is_symlink()
    assert notes(tmp_path / "disk" / "real") == NEW
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["real"]


@pytest.mark.parametrize("place", [usual, inside])
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("mine.txt", "mine.txt"),
        ("model/weights", "model/"),
        ("both/mine", "both/mine"),
        ("a", "a"),
        ("empty/", "empty/"),
        (".unfinished/x", ".unfinished/"),
        ("lost+found/x", "lost+found/"),
        ("both/.unfinished/", "both/.unfinished/"),
    ],
)
def test_what_is_not_ours_is_named_and_kept(tmp_path, monkeypatch, place, name, shown):
    out = tmp_path / "out"
    write(out, OLD)
    place(monkeypatch, out)
    if name.endswith("/"):
        (out / name).mkdir()
    else:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine")
    before = contents(out)
    message = rf"out holds what dmpo-trl note did not write, .* since: {re.escape(shown)}\. Move it away"
    with pytest.raises(FileExistsError, match=message):
        write(out, NEW, overwrite=True)
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_many_names_are_counted(tmp_path):
    write(tmp_path / "out", OLD)
    for number in range(7):
        (tmp_path / "out" / f"x{number}").write_text("mine")
    with pytest.raises(FileExistsError, match=r"since: x0, x1, x2, x3, x4 and 2 more\."):
        check_folder(tmp_path / "out", NOTES, overwrite=True)


@pytest.mark.parametrize("place", [usual, mounted])
@pytest.mark.parametrize("earlier", [True, False])
def test_what_appears_during_the_work_is_kept_and_the_result_lies_beside_it(tmp_path, monkeypatch, place, earlier):
    out = tmp_path / "out"
    out.mkdir()
    place(monkeypatch, out)
    if earlier:
        write(out, OLD)
    before = contents(out)
    with pytest.raises(FileExistsError, match=rf"new since the work began, and the result is in {out}-2\."):
        write(out, NEW, overwrite=True, during=lambda: (out / "mine").write_text("mine"))
    assert contents(out) == before | {"mine": "mine"}
    assert notes(tmp_path / "out-2") == NEW
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out-2"]


def test_a_file_or_a_folder_of_others_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "manifest.json").write_text('{"format": "other"}')
    with pytest.raises(FileExistsError, match="file is a file; name a folder"):
        check_folder(tmp_path / "file", NOTES, overwrite=True)
    with pytest.raises(FileExistsError, match="theirs is not empty and was not written by dmpo-trl note"):
        check_folder(tmp_path / "theirs", NOTES, overwrite=True)
    with pytest.raises(NotADirectoryError, match=r"out cannot be written: .*file is a file"):
        check_folder(tmp_path / "file" / "deep" / "out", NOTES, overwrite=True)


def test_a_manifest_that_leads_elsewhere_is_not_followed(tmp_path):
    (tmp_path / "victim").write_text("mine")
    write(tmp_path / "out", OLD)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    manifest["files"]["../victim"] = folders.sha256(tmp_path / "victim")
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(FileExistsError, match="was not written by"):
        write(tmp_path / "out", NEW, overwrite=True)
    assert (tmp_path / "victim").read_text() == "mine"


STEPS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")


def replace_until_killed(root, place, last, count):
    """Replace the old folder by the new one, but die before the `last` change to the disk."""

    def hook(event, arguments):
        if event == "ctypes.call_function" or (event in STEPS and str(root) in str(arguments)):
            count.value += 1
            if count.value == last:
                os.kill(os.getpid(), signal.SIGKILL)

    if place is mounted:
        os.path.ismount = lambda name: os.fspath(name) == str(root / "out")
    sys.addaudithook(hook)
    write(root / "out", NEW, overwrite=True)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("place", [usual, mounted])
def test_a_kill_at_any_step_leaves_old_or_new_and_the_next_run_goes_through(tmp_path, monkeypatch, place):
    """Before each change that the program makes to the disk, the one that exchanges two folders among them."""
    out = tmp_path / "out"
    last, states = 0, set()
    while True:
        last += 1
        shutil.rmtree(out, ignore_errors=True)
        write(out, OLD)
        count = FORK.Value("i", 0)
        process = FORK.Process(target=replace_until_killed, args=(tmp_path, place, last, count))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        if is_unfinished(out, NOTES):
            states.add("unfinished")
            overwrite = False  # nothing whole is lost
        else:
            kept = {name: text for name, text in contents(out).items() if name in {*OLD, *NEW}}
            assert kept in (OLD, NEW)
            assert notes_listed(out) == kept
            states.add("old" if kept == OLD else "new")
            overwrite = True
        place(monkeypatch, out)
        write(out, NEW, overwrite=overwrite)
        monkeypatch.undo()
        assert notes(out) == NEW
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert last > 20
    assert count.value == last - 1
    assert states == {"old", "new"} | ({"unfinished"} if place is mounted else set())


def notes_listed(folder):
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    assert checksums_of(listed, folder) == listed
    return {name: (folder / name).read_text() for name in listed}
