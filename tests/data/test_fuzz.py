"""Damaged and odd raw files: what comes of them is all of their rows, or one error that names the file."""

import csv
import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dmpo_trl.data import (
    Interactions,
    read_amazon,
    read_dmpo,
    read_lastfm,
    read_llara,
    read_minionerec,
    read_movielens,
    read_msl,
    read_recbole,
    read_sdpo,
    read_table,
)

pytestmark = pytest.mark.slow

VIEWS = 'user,item,timestamp,rating,title\nu1,i1,10,4.5,Alien\nu1,i2,20,3,"Good, the ""Bad"""\nu2,i1,30,5,Alien\n'
REVIEWS = [{"reviewerID": f"u{n}", "asin": f"i{n % 2}", "overall": 5.0, "unixReviewTime": 10 + n} for n in range(3)]
PRODUCTS = [{"asin": "i0", "title": "Tea &amp; Co"}, {"asin": "i1", "title": "It's \u2028 \\ 'so'"}]
FLAGS = "|".join("0" * 19)
SEQUENCES = [{"seq": [0, 1, 3], "len_seq": 2, "next": 2}, {"seq": [3, 3, 3], "len_seq": 1, "next": 0}]
RATED = [{"seq": [[0, 5], [3, 0]], "len_seq": 1, "next": [2, 3]}]
LISTS = [{"historyList": "Moby::Air", "itemList": ["Enigma", "Björk"], "trueSelection": "Björk"}]
RANKED = [
    {
        "instruction": "He saw:  <Title:A>  <Title:B> . Rank the likelihood of these:  <Title:C>  and  <Title:D> .",
        "input": "",
        "output": [" <Title:D> ,  <Title:C> ", " <Title:C> ,  <Title:D> "],
    }
]


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


class Source(NamedTuple):
    """Files of a format, how it is read, and the file whose rows are the interactions."""

    files: dict[str, str]
    read: Callable[[Path], Interactions]
    counted: str | None = None
    separator: str | None = None  # where a row is a line without quotes


def table(path: Path, name: str) -> Interactions:
    return read_table(path / name, rating="rating")


SOURCES = {
    "csv": Source({"views.csv": VIEWS}, lambda path: table(path, "views.csv"), "views.csv"),
    "jsonl": Source(
        {"views.jsonl": lines([{"user": 1, "item": "a", "timestamp": 3, "rating": 2.5, "title": "A"}] * 2)},
        lambda path: table(path, "views.jsonl"),
        "views.jsonl",
        "",
    ),
    "ml-latest": Source(
        {
            "ratings.csv": "userId,movieId,rating,timestamp\n1,7,4.5,964982703\n1,8,3,964982704\n2,7,1,964982705\n",
            "movies.csv": 'movieId,title,genres\n7,"Net, The (1995)",Thriller\n8,Babe (1995),Family|Drama\n',
        },
        read_movielens,
        "ratings.csv",
    ),
    "ml-1m": Source(
        {
            "ratings.dat": "1::7::4::964982703\n1::8::3::964982704\n",
            "movies.dat": "7::Net, The (1995)::Thriller\n8::Babe::Drama\n",
        },
        read_movielens,
        "ratings.dat",
        "::",
    ),
    "ml-100k": Source(
        {"u.data": "1\t7\t4\t964982703\n1\t8\t3\t964982704\n", "u.item": f"7|Net|1||x|{FLAGS}\n8|Babe|2||y|{FLAGS}\n"},
        read_movielens,
        "u.data",
        "\t",
    ),
    "lastfm": Source(
        {"user_artists.dat": "userID\tartistID\tweight\n2\t51\t13883\n", "artists.dat": "id\tname\n51\tDuran Duran\n"},
        read_lastfm,
        "user_artists.dat",
        "\t",
    ),
    "recbole": Source(
        {
            "x.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\nu1\ti1\t5\t100\nu2\ti1\t3\t200\n",
            "x.item": "item_id:token\tname:token_seq\ni1\tBug's Life, A\n",
        },
        lambda path: read_recbole(path, title_field="name"),
        "x.inter",
        "\t",
    ),
    "amazon 2014": Source(
        {"reviews_X_5.json": lines(REVIEWS), "meta_X.json": "".join(f"{row!r}\n" for row in PRODUCTS)}, read_amazon
    ),
    "amazon 2018": Source({"X_5.json": lines(REVIEWS), "meta_X.json": lines(PRODUCTS)}, read_amazon),
    "llara": Source(
        {"Test_data.jsonl": lines(SEQUENCES), "id2name.txt": "0::Moby\n1::Air :: x\n2::Enigma\n"},
        lambda path: read_llara(path).interactions,
    ),
    "llara with ratings": Source(
        {"Test_data.jsonl": lines(RATED), "u.item": "".join(f"{n}|F{n}|1||x|{FLAGS}\n" for n in (1, 2, 3))},
        lambda path: read_llara(path).interactions,
    ),
    "sdpo": Source({"test.json": json.dumps(LISTS)}, lambda path: read_sdpo(path).interactions),
    "dmpo": Source({"rec_X_dpo_ranking_1.json": json.dumps(RANKED)}, lambda path: read_dmpo(path, "X").interactions),
    "minionerec": Source(
        {
            "test/X_5.csv": "user_id,history_item_title,item_title,history_item_id,item_id\n"
            'A1,"[\'Pen\', ""Ink\'s""]",Desk,"[0, 1]",2\nA2,[\'Desk\'],Pen,[2],0\n',
            "info/X_5.txt": "<a_1>\tPen\t0\n<a_2>\tInk's\t1\n<a_3>\tDesk\t2\n",
        },
        lambda path: read_minionerec(path).interactions,
    ),
    "msl": Source(
        {
            "test.csv": 'user_id,item_ids,timestamp\n7,"[1, 9, 3, 2]",14\n8,"[3, 1]",15\n',
            "id2name.json": '{"1": "Pen", "2": "Ink", "3": "Desk"}',
        },
        lambda path: read_msl(path).interactions,
    ),
}

ODD = [
    *(
        b'"',
        b"\\",
        b'\\"',
        b"'",
        b",",
        b";",
        b"\t",
        b"|",
        b"::",
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
        b"\0",
        b"\xff",
        b"\x80",
    ),
    *(b"\xef\xbb\xbf", b"\xff\xfe", b"\xe2\x80\xa8", b"[", b"]", b"{", b"}", b"[[", b"null", b"None", b"true", b"nan"),
    *(b"inf", b"-", b"1e400", b"0.5", b"99999999999999999999", b"-1", b"2024-03-01", b"2024-03-01 12:00:00 UTC", b" "),
    *(b"__import__('os')", b"\xc3\xa9", b"\xed\xa0\x80", b"[" * 2000, b"x" * 140_000),
]
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["insert", "replace", "delete", "repeat", "cut"]),
        st.floats(0, 1),
        st.integers(1, 30),
        st.sampled_from(ODD) | st.binary(max_size=8) | st.text(max_size=8).map(lambda text: text.encode("utf-8")),
    ),
    max_size=4,
)


def changed(data: bytes, changes) -> bytes:
    for kind, where, length, odd in changes:
        start = int(where * len(data))
        part = {"insert": b"", "repeat": data[start : start + length] * 2}.get(kind, b"")
        kept = {"insert": start, "replace": start + len(odd), "cut": len(data)}.get(kind, start + length)
        data = data[:start] + (odd if kind in ("insert", "replace") else part) + data[kept:]
    return data


def count_of_rows(source: Source, data: bytes) -> tuple[int, int] | None:
    """Return the least and the most rows that plain Python counts; None where it cannot read them either."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    if "\r" in text.replace("\r\n", "") or "\0" in text:
        return None
    if source.separator is not None:
        rows = text.split("\n")[: None if not text.endswith("\n") else -1]
        header = 1 if source.counted not in ("u.data", "ratings.dat", "views.jsonl") else 0
        filled = [row for row in rows if row.strip()]
        return len(filled) - header, len(rows) - header
    if '"' in text.replace('""', "").replace(
        '"Good, the "Bad"', ""
    ):  # what begins or ends a text is a matter of taste
        return None
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error:
        return None
    return len([row for row in rows if row]) - 1, len(rows) - 1


def check(source: Source, folder: Path, files: dict[str, bytes], named: Sequence[str] = ()) -> None:
    for path in list(folder.rglob("*")):
        if path.is_file():
            path.unlink()
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    try:
        found = source.read(folder)
    except (ValueError, OSError) as error:
        found = error
    if isinstance(found, Exception):
        message = str(found)
        assert str(folder) in message or any(name in message for name in (*files, *named)), message
        assert not isinstance(found, UnicodeDecodeError | json.JSONDecodeError)
        assert len(message) < 3000, message[:3000]
        return
    of_interactions = sum(n for reason, n in found.dropped.items() if "interactions" in reason.split(" ")[:2])
    assert found.interactions.height + of_interactions == found.read["interactions"], found.dropped
    of_items = sum(n for reason, n in found.dropped.items() if reason.startswith("items"))
    if source.counted:
        assert found.items.height + of_items == found.read["items"], found.dropped
        counts = count_of_rows(source, files[source.counted]) if source.counted in files else None
        if counts:
            assert counts[0] <= found.read["interactions"] <= counts[1]


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_not_changed_is_read(tmp_path, name):
    source = SOURCES[name]
    files = {file: text.encode("utf-8") for file, text in source.files.items()}
    check(source, tmp_path, files)
    assert source.read(tmp_path).interactions.height > 0


@pytest.mark.parametrize("name", SOURCES)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_files_are_read_or_named(tmp_path, name, data):
    source = SOURCES[name]
    files = {file: text.encode("utf-8") for file, text in source.files.items()}
    file = data.draw(st.sampled_from(sorted(files)))
    files[file] = changed(files[file], data.draw(CHANGES))
    check(source, tmp_path, files)


@pytest.mark.parametrize("name", SOURCES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), content=st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode("utf-16")))
def test_other_content_is_read_or_named(tmp_path, name, data, content):
    source = SOURCES[name]
    files = {file: text.encode("utf-8") for file, text in source.files.items()}
    files[data.draw(st.sampled_from(sorted(files)))] = content
    check(source, tmp_path, files)


@pytest.mark.parametrize("name", [name for name in SOURCES if name not in ("sdpo", "dmpo")])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), changes=CHANGES)
@example(data=None, changes=[])
def test_changed_packed_files_are_read_or_named(tmp_path, name, data, changes):
    source = SOURCES[name]
    if name in ("csv", "jsonl"):
        source = source._replace(read=lambda path: table(path, f"views.{name}.gz"))
    files = {f"{file}.gz": gzip.compress(text.encode("utf-8")) for file, text in source.files.items()}
    if data is not None:
        file = data.draw(st.sampled_from(sorted(files)))
        files[file] = changed(files[file], changes)
    check(source._replace(counted=None), tmp_path, files)


@pytest.mark.parametrize("ending", ["zip", "tar", "tgz"])
@pytest.mark.parametrize("name", ["ml-latest", "recbole"])
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=CHANGES)
@example(changes=[])
def test_changed_archives_are_read_or_named(tmp_path, name, ending, changes):
    source = SOURCES[name]
    files = {file: text.encode("utf-8") for file, text in source.files.items()}
    packed = io.BytesIO()
    if ending == "zip":
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for file, data in files.items():
                archive.writestr(file, data)
    else:
        with tarfile.open(fileobj=packed, mode="w" if ending == "tar" else "w:gz") as tar:
            for file, data in files.items():
                info = tarfile.TarInfo(file)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    archived = f"x.{ending}"
    source = source._replace(read=lambda path: SOURCES[name].read(path / archived), counted=None)
    check(source, tmp_path, {archived: changed(packed.getvalue(), changes)}, named=list(files))
