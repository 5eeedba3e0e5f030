import codecs
import os
import threading
from types import SimpleNamespace

import polars as pl
import pytest

from dmpo_trl.cli._users import users_of_file
from dmpo_trl.recommend import UserHistory
from dmpo_trl.recommend.catalogue import Catalogue

GOOD = b'{"user": "a", "history": ["1"]}\n'
MORE = b'{"user": "b", "history": ["1"]}\n'
CATALOGUE = Catalogue(pl.DataFrame({"item": ["1", "2", "3", "50"], "title": ["Alien", "Aliens", "Babe", "Heidi"]}))


def read(path, content):
    path.write_bytes(content)
    return list(users_of_file(str(path), lambda: CATALOGUE))


def test_users_are_read_as_often_as_needed(tmp_path):
    (tmp_path / "users.jsonl").write_bytes(GOOD + b'{"user": 7, "history": [50, "2"], "seen": [3]}')
    users = users_of_file(str(tmp_path / "users.jsonl"), lambda: CATALOGUE)
    assert len(users) == 2
    for _ in range(2):
        assert list(users) == [UserHistory("a", ["1"], []), UserHistory("7", ["50", "2"], ["3"])]


@pytest.mark.parametrize(
    "content",
    [
        GOOD + MORE + b"\n",
        GOOD + b"  \t\n" + MORE,
        b"\n\n" + GOOD + MORE + b"\n\n",
        codecs.BOM_UTF8 + GOOD + MORE,
        (GOOD + MORE).replace(b"\n", b"\r\n") + b"\r\n",
    ],
)
def test_blank_lines_and_a_byte_order_mark_are_skipped(tmp_path, content):
    assert read(tmp_path / "users.jsonl", content) == [UserHistory(name, ["1"], []) for name in "ab"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "Expecting property name"),
        (b"[" * 50_000, "it is nested too deeply"),
        (b'{"user": "Am\xe9lie", "history": ["1"]}', "'utf-8' codec can't decode byte 0xe9"),
        (b'{"history": ["1"]}', "it has no 'user'"),
        (b'{"user": 1}', "it has no 'history'"),
        (b'{"user": 1, "history": "1"}', "history and seen must be lists"),
        (b'{"user": 1, "history": [], "seen": null}', "history and seen must be lists"),
        (b'{"user": null, "history": ["1"]}', "None must be text or a number"),
        (b'{"user": 1, "history": [["1"]]}', r"\['1'\] must be text or a number"),
        (b'{"user": NaN, "history": ["1"]}', "nan is not a number that names a user or an item"),
        (b'{"user": 1, "history": [1e400]}', "inf is not a number"),
        (b'{"user": 1, "history": [], "seen": [-Infinity]}', "-inf is not a number"),
        (b"5", "it is not an object"),
        (b"[1]", "it is not an object"),
    ],
)
def test_a_faulty_line_is_named_with_a_remedy(tmp_path, line, problem):
    """All lines are read before the first user is given out: the last may be the faulty one."""
    path = tmp_path / "users.jsonl"
    with pytest.raises(ValueError, match=rf"^{path}, line 4: expected .* \({problem}.*\)\. Correct the line, or take"):
        read(path, GOOD + b"\n" + MORE + line)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"user": "b", "history": ["1", "Alein"]}', "history: 'Alein' is neither .* Did you mean 'Alien'"),
        (b'{"user": "b", "history": ["1"], "seen": [51]}', "seen: '51' is neither"),
    ],
)
def test_an_item_that_the_catalogue_has_not_is_named_with_its_line(tmp_path, line, problem):
    path = tmp_path / "users.jsonl"
    with pytest.raises(ValueError, match=rf"^{path}, line 3, user 'b': {problem}"):
        read(path, GOOD + b"\n" + line)


@pytest.fixture
def pipe(tmp_path):
    """Returns a pipe that gives a content once."""
    os.mkfifo(tmp_path / "pipe")
    writers = []

    def write(content):
        writers.append(threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(content,)))
        writers[0].start()
        return str(tmp_path / "pipe")

    yield write
    writers[0].join()


def test_a_pipe_is_read_once(pipe):
    users = users_of_file(pipe(GOOD + MORE), lambda: CATALOGUE)
    assert len(users) == 2
    assert [list(users) for _ in range(2)] == [[UserHistory(name, ["1"], []) for name in "ab"]] * 2


def test_a_user_who_is_listed_twice_is_refused_with_both_lines(tmp_path, pipe):
    content = b'{"user": 7, "history": ["1"]}\n' + GOOD + b'\n{"user": "7", "history": ["2"]}\n'
    with pytest.raises(ValueError, match=r"users\.jsonl, lines 1 and 4: both are of the user '7'\. Take one out"):
        read(tmp_path / "users.jsonl", content)
    with pytest.raises(ValueError, match=r"pipe, lines 1 and 4: both are of the user '7'"):
        users_of_file(pipe(content), lambda: CATALOGUE)


def test_a_pipe_is_not_shared_by_several_processes(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "users")
    monkeypatch.setattr("dmpo_trl.cli._users.PartialState", lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(ValueError, match="users is a pipe, which only one of several processes can read: write it to"):
        users_of_file(str(tmp_path / "users"), lambda: CATALOGUE)
