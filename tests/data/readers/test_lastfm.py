"""Small files in the layout of the two releases; the real ones only where DMPO_TRL_SHARED_DATA points to them."""

import csv
import datetime
import gzip
import logging
import os
import tarfile
import unicodedata
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmpo_trl.data.readers._download import RemoteFile
from dmpo_trl.data.readers.lastfm import LASTFM, read_lastfm

LISTENS = "userid-timestamp-artid-artname-traid-traname.tsv"
MBID = "a7f7df4a-77d8-4f12-8acd-5c60c93f4de8"


@pytest.fixture
def hetrec(tmp_path):
    folder = tmp_path / "hetrec2011-lastfm-2k"
    folder.mkdir()
    plays = "userID\tartistID\tweight\r\n2\t51\t13883\r\n2\t52\t11690\r\n2\t55\t20000\r\n10\t51\t3\r\n10\t77\t8\r\n"
    (folder / "user_artists.dat").write_bytes(plays.encode())
    artists = (
        'id\tname\turl\tpictureURL\n51\t"Weird Al" Yankovic\thttp://x\thttp://y\n'
        "52\tMorcheeba\thttp://x\t\n55\t  Björk  Guðmundsdóttir \thttp://x\thttp://y\n"
    )
    (folder / "artists.dat").write_bytes(artists.encode())
    (folder / "tags.dat").write_bytes("tagID\ttagValue\r\n1\tfrançais\r\n".encode("latin-1"))
    return folder


def test_reads_hetrec(hetrec, caplog):
    with caplog.at_level(logging.INFO):
        data = read_lastfm(hetrec)
    assert data.titles() == {"51": '"Weird Al" Yankovic', "52": "Morcheeba", "55": "Björk Guðmundsdóttir"}
    assert data.interactions.select("user", "item", "timestamp", "plays").sort("user", "timestamp").rows() == [
        ("10", "51", 3, 3),
        ("2", "52", 11690, 11690),
        ("2", "51", 13883, 13883),
        ("2", "55", 20000, 20000),
    ]
    assert data.order == "plays"
    assert data.dropped == {"interactions with an unknown item": 1}
    assert data.read == {"interactions": 5, "items": 3}
    assert [Path(path).name for path in data.files] == ["user_artists.dat", "artists.dat"]
    assert "no times" in caplog.text


def test_hetrec_rows_that_are_no_counts_are_counted(hetrec):
    with (hetrec / "user_artists.dat").open("a") as file:
        file.write("11\t51\tmany\r\n11\t52\r\n11\tx\t3\r\n")
    data = read_lastfm(hetrec)
    assert data.dropped["interactions with an empty or unreadable field"] == 3
    assert data.read["interactions"] == 8


def test_hetrec_missing_or_foreign_files(hetrec):
    (hetrec / "artists.dat").rename(hetrec / "other.dat")
    with pytest.raises(FileNotFoundError, match=r"does not hold artists\.dat"):
        read_lastfm(hetrec)
    (hetrec / "artists.dat").write_text("id\tartist\n51\tX\n")
    with pytest.raises(ValueError, match=r"artists\.dat: the columns \['name'\] are missing"):
        read_lastfm(hetrec)
    (hetrec / "artists.dat").write_bytes("id\tname\n51\tBjörk\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"artists\.dat, line 2: the text is not UTF-8\. Save the file as UTF-8\.$"):
        read_lastfm(hetrec)
    (hetrec / "user_artists.dat").unlink()
    with pytest.raises(FileNotFoundError, match=rf"does not hold user_artists\.dat or {LISTENS}"):
        read_lastfm(hetrec)


def line(user="user_000001", time="2009-05-04T13:54:10Z", mbid=MBID, artist="坂本龍一", track="Composition 0919"):
    return "\t".join([user, time, mbid, artist, "", track]) + "\n"


def write_listens(folder: Path, lines: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LISTENS
    path.write_text("".join(lines), encoding="utf-8", newline="")
    return path


def seconds(time: str) -> int:
    return int(datetime.datetime.fromisoformat(time).timestamp())


def test_reads_1k(tmp_path):
    # Brackets mean something to polars
    folder = tmp_path / "lastfm [1K]"
    lines = [
        line(time="2009-05-04T23:08:57Z"),
        line(track='Mc2 "(Live)'),
        line(artist="Ryuichi Sakamoto", user="user_000002"),
        line(mbid="", artist='"Weird Al', track="a\ttab"),
        line(mbid="", artist='"Weird Al', time="2010-01-01T00:00:00Z"),
        line(time="yesterday"),
        line(mbid="", artist=""),
    ]
    path = write_listens(folder, lines)
    data = read_lastfm(folder)
    assert data.titles() == {MBID: "坂本龍一", '"Weird Al': '"Weird Al'}
    assert set(data.interactions.select("user", "item", "timestamp").rows()) == {
        ("user_000001", MBID, 1241478537),
        ("user_000001", '"Weird Al', 1262304000),
        ("user_000002", MBID, 1241445250),
    }
    assert data.order == "time"
    assert data.dropped == {
        "interactions with an empty or unreadable field": 2,
        "earlier interactions of a user with the same item": 2,
        "items listed twice": 1,
    }
    assert data.read == {"interactions": 7, "items": 3}
    assert data.files == (str(path),)


times = st.integers(0, 50).map(lambda second: f"2009-05-04T13:54:{second:02}Z")


@given(
    st.lists(
        st.builds(
            line,
            user=st.sampled_from(["u1", "u2", ""]),
            time=times | st.just("?"),
            mbid=st.sampled_from(["", "m1", "m2"]),
            artist=st.sampled_from(["", "A", "B", "C", " A "]),
        )
    )
)
def test_any_listens_are_read_as_plain_python_reads_them(tmp_path_factory, lines):
    lines = [*lines, line("u3", artist="Z")]  # something must be left
    folder = tmp_path_factory.mktemp("lastfm")
    write_listens(folder, lines)
    latest, spellings = {}, Counter()
    for user, time, mbid, artist, *_ in (text.split("\t") for text in lines):
        artist = artist.strip()
        if user and (mbid or artist) and time != "?":
            spellings[mbid or artist, artist] += 1
            pair = user, mbid or artist
            latest[pair] = max(latest.get(pair, 0), seconds(time))
    ranked = sorted((pair for pair in spellings if pair[1]), key=lambda pair: (-spellings[pair], *pair))
    canonical, by_title = {}, {}
    for item, title in ranked:
        if item not in canonical:
            canonical[item] = by_title.setdefault(title, item)
    expected: dict = {}
    for (user, item), time in latest.items():
        if item in canonical:
            pair = user, canonical[item]
            expected[pair] = max(expected.get(pair, 0), time)

    data = read_lastfm(folder)
    assert {(user, item): time for user, item, time in data.interactions.rows()} == expected
    assert data.interactions.height == len(expected)
    assert data.titles() == {item: title for title, item in by_title.items()}
    assert data.read["interactions"] == len(lines)
    lost = [count for reason, count in data.dropped.items() if "interactions" in reason]
    assert sum(lost) + data.interactions.height == len(lines)


def test_other_encodings_are_refused(tmp_path):
    (tmp_path / LISTENS).write_bytes(line(artist="Björk").encode("latin-1"))
    with pytest.raises(ValueError, match="is not a tab-separated table in UTF-8"):
        read_lastfm(tmp_path)


def test_archives_and_single_files(hetrec, tmp_path):
    archive = tmp_path / "hetrec2011-lastfm-2k.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in hetrec.iterdir():
            file.write(path, path.name)
    expected = read_lastfm(hetrec)
    for path in (archive, hetrec / "user_artists.dat", hetrec / "artists.dat"):
        data = read_lastfm(path)
        assert data.interactions.equals(expected.interactions)
        assert data.items.equals(expected.items)

    listens = write_listens(tmp_path / "lastfm-dataset-1K", [line(), line(artist="Other", mbid="", user="u2")])
    expected = read_lastfm(listens.parent)
    with tarfile.open(tmp_path / "lastfm-dataset-1K.tar.gz", "w:gz") as tar:
        tar.add(listens, f"lastfm-dataset-1K/{LISTENS}")
    packed = tmp_path / "packed" / f"{LISTENS}.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(listens.read_bytes()))
    for path in (tmp_path / "lastfm-dataset-1K.tar.gz", listens, packed):
        assert read_lastfm(path).interactions.equals(expected.interactions)


def test_download(hetrec, monkeypatch):
    fetched = []
    monkeypatch.setattr(RemoteFile, "fetch", lambda remote: fetched.append(remote) or hetrec)
    assert read_lastfm(version="hetrec-2k", download=True).order == "plays"
    assert fetched == [LASTFM["hetrec-2k"]]


def test_arguments(hetrec):
    with pytest.raises(ValueError, match="Give either the path"):
        read_lastfm()
    with pytest.raises(ValueError, match="Give either the path"):
        read_lastfm(hetrec, download=True)
    with pytest.raises(ValueError, match="one of hetrec-2k, 1k; it is None"):
        read_lastfm(download=True)
    with pytest.raises(ValueError, match="version only says what to download"):
        read_lastfm(hetrec, version="1k")


def test_real_hetrec():
    root = os.environ.get("DMPO_TRL_SHARED_DATA")
    if not root:
        pytest.skip("DMPO_TRL_SHARED_DATA does not point to the folder with real data")
    folder = Path(root) / "lastfm-hetrec2011"

    def rows(name: str) -> list[dict]:
        with (folder / name).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))

    artists, plays = rows("artists.dat"), rows("user_artists.dat")
    by_title: dict = {}
    titles = {row["id"]: unicodedata.normalize("NFC", " ".join(row["name"].split())) for row in artists}
    canonical = {item: by_title.setdefault(title, item) for item, title in titles.items()}
    expected: dict = {}
    for row in plays:
        pair = row["userID"], canonical[row["artistID"]]
        expected[pair] = max(expected.get(pair, 0), int(row["weight"]))

    data = read_lastfm(folder)
    assert data.read == {"interactions": len(plays), "items": len(artists)}
    assert data.titles() == {item: title for title, item in by_title.items()}
    assert data.interactions.height == len(expected)
    columns = data.interactions.select("user", "item", "timestamp", "plays")
    assert set(columns.rows()) == {(*pair, count, count) for pair, count in expected.items()}
    assert sum(data.dropped.values()) == len(plays) - len(expected) + len(artists) - len(by_title)
    favourite: Counter = Counter()
    for (user, _), count in expected.items():
        favourite[user] = max(favourite[user], count)
    last = {user: count for user, _, count, _ in columns.rows()}  # the rows run from the least to the most played
    assert last == dict(favourite)


def test_white_space_in_hetrecs_names_is_tidied_and_counted(tmp_path):
    (tmp_path / "user_artists.dat").write_text("userID\tartistID\tweight\n2\t51\t3\n2\t52\t4\n")
    (tmp_path / "artists.dat").write_text("id\tname\n51\tDuran  Duran\n52\t \n")
    data = read_lastfm(tmp_path)
    assert data.titles() == {"51": "Duran Duran"}
    assert data.changed == {"white space": 1}
    assert data.dropped == {"items without a title": 1, "interactions with an unknown item": 1}
