"""Small files in the layout of the two releases; the real ones only where DMPO_TRL_SHARED_DATA points to them."""

import gzip
import html
import json
import os
import zipfile
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmpo_trl.data.readers._download import RemoteFile
from dmpo_trl.data.readers.amazon import read_amazon

SPAN = '<span class="a-size-medium a-color-secondary"'


def review(user, item, time, rating=5.0):
    """A review of 2018, with some of the fields that are not read."""
    return {
        "overall": rating,
        "verified": True,
        "reviewerID": user,
        "asin": item,
        "style": {"Gift Amount:": " 50"},
        "reviewText": 'It says "title": "A" \u2028 and\nmore.',
        "summary": "Five Stars",
        "unixReviewTime": time,
    }


def product(item, title):
    return {"category": ["Gift Cards"], "description": ["..."], "title": title, "also_buy": [], "asin": item}


REVIEWS = [
    review("u1", "i1", 100, 4.0),
    review("u1", "i2", 50),
    review("u2", "i1", 100),
    review("u2", "i3", 100),
    review("u2", "i4", 100),
    review("u3", "i5", 100, 1.0),
    review("u1", "i1", 300, 2.0),
]
METADATA = [
    product("i1", " Tom &amp;  Jerry&#39;s\nCard "),
    product("i2", SPAN),
    product("i2", "Second"),
    product("i2", "Third"),
    product("i3", SPAN),
    product("i5", "Fünf"),
    product("i9", "Nobody's"),
]


def write(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.fixture
def folder(tmp_path):
    # Brackets and percent signs mean something to polars
    folder = tmp_path / "gift [cards] 100%20"
    write(folder / "Gift_Cards_5.json.gz", REVIEWS)
    write(folder / "meta_Gift_Cards.json.gz", METADATA)
    return folder


def plain(reviews: list[dict], metadata: list[dict]):
    """What is to come out, in plain Python: interactions, titles, and the rows dropped by reason."""
    dropped: Counter = Counter()
    reviewed = {row["asin"] for row in reviews}
    described, canonical, by_title, given = set(), {}, {}, set()
    for row in metadata:
        item, written = row["asin"], html.unescape(row["title"] or "").strip()
        title = " ".join(written.split())
        if item not in reviewed:
            dropped["items that nobody reviewed"] += 1
            continue
        described.add(item)
        if title.startswith("<span") or "getTime" in title:
            dropped["items whose title is a fragment of HTML"] += 1
        elif not title:
            dropped["items without a title"] += 1
        elif item in canonical:
            dropped["items listed twice"] += 1
        else:
            canonical[item] = by_title.setdefault(title, item)
            alike = "whose title looks the same" if written not in given else "of the same title"
            dropped[f"items merged into another {alike}"] += canonical[item] != item
            given.add(written)
    latest: dict = {}
    for row in reviews:
        if row["asin"] not in described:
            dropped["interactions with an item without metadata"] += 1
        elif row["asin"] not in canonical:
            dropped["interactions with an item without a clean title"] += 1
        else:
            pair = row["reviewerID"], canonical[row["asin"]]
            dropped["earlier interactions of a user with the same item"] += pair in latest
            if pair not in latest or row["unixReviewTime"] >= latest[pair][0]:
                latest[pair] = row["unixReviewTime"], row["overall"]
    interactions = {(*pair, *rest) for pair, rest in latest.items()}
    return interactions, {item: title for title, item in by_title.items()}, dict(+dropped)


def assert_as_plain(data, reviews, metadata):
    interactions, titles, dropped = plain(reviews, metadata)
    columns = ["user", "item", "timestamp", "rating"]
    assert data.interactions.height == len(interactions)
    assert set(data.interactions.select(columns).rows()) == interactions
    assert data.titles() == titles
    assert data.dropped == dropped
    assert data.read == {"interactions": len(reviews), "items": len(metadata)}
    assert data.order == "time"


def test_reads_2018(folder):
    data = read_amazon(folder)
    assert data.titles() == {"i1": "Tom & Jerry's Card", "i2": "Second", "i5": "Fünf"}
    assert set(data.interactions.select("user", "item", "timestamp", "rating").rows()) == {
        ("u1", "i1", 300, 2.0),
        ("u1", "i2", 50, 5.0),
        ("u2", "i1", 100, 5.0),
        ("u3", "i5", 100, 1.0),
    }
    assert data.dropped == {
        "items that nobody reviewed": 1,
        "items whose title is a fragment of HTML": 2,
        "interactions with an item without metadata": 1,
        "interactions with an item without a clean title": 1,
        "items listed twice": 1,
        "earlier interactions of a user with the same item": 1,
    }
    assert data.read == {"interactions": 7, "items": 7}
    assert [Path(path).name for path in data.files] == ["Gift_Cards_5.json.gz", "meta_Gift_Cards.json.gz"]


def test_reads_2023(tmp_path):
    write(
        tmp_path / "All_Beauty.jsonl",
        [
            # `title` is the review's here, and `asin` a variant of the product
            {"rating": 5.0, "title": "Love it", "text": "...", "images": [], "asin": "B1-red", "parent_asin": "B1"}
            | {"user_id": "AE1", "timestamp": 1588687728923, "helpful_vote": 0, "verified_purchase": True},
            {"rating": 2.0, "title": "Hm", "text": "...", "images": [], "asin": "B1-blue", "parent_asin": "B1"}
            | {"user_id": "AE2", "timestamp": 1588615855070, "helpful_vote": 3, "verified_purchase": False},
        ],
    )
    meta = {"main_category": "All Beauty", "average_rating": 4.8, "price": None, "details": {"Brand": "Howard"}}
    write(tmp_path / "meta_All_Beauty.jsonl", [meta | {"title": "Howard LC0008 &amp; Wax", "parent_asin": "B1"}])
    data = read_amazon(tmp_path)
    assert data.titles() == {"B1": "Howard LC0008 & Wax"}
    columns = data.interactions.select("user", "item", "timestamp", "rating")
    assert set(columns.rows()) == {("AE1", "B1", 1588687728923, 5.0), ("AE2", "B1", 1588615855070, 2.0)}
    assert data.dropped == {}


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("core", ["_5", ""])
@pytest.mark.parametrize("given", ["folder", "reviews", "metadata", "archive"])
def test_files_as_published_and_unpacked(tmp_path, suffix, core, given):
    reviews = write(tmp_path / f"Gift_Cards{core}.json{suffix}", REVIEWS)
    metadata = write(tmp_path / f"meta_Gift_Cards.json{suffix}", METADATA)
    archive = tmp_path / "sub" / "all.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as file:
        for path in (reviews, metadata):
            file.write(path, f"amazon/{path.name}")
    path = {"folder": tmp_path, "reviews": reviews, "metadata": metadata, "archive": archive}[given]
    if given == "folder":
        archive.unlink()
    assert_as_plain(read_amazon(path), REVIEWS, METADATA)


def test_five_core_before_full_file(folder):
    write(folder / "Gift_Cards.json.gz", REVIEWS[1:])
    assert read_amazon(folder).read["interactions"] == 7
    assert read_amazon(folder / "Gift_Cards.json.gz").read["interactions"] == 6


def test_one_folder_may_hold_both_releases(folder):
    newer = {"user_id": "u1", "parent_asin": "i1", "rating": 3.0, "timestamp": 1588687728923}
    path = write(folder / "Gift_Cards.jsonl.gz", [newer])
    write(folder / "meta_Gift_Cards.jsonl.gz", [{"parent_asin": "i1", "title": "Newer"}])
    assert read_amazon(path).titles() == {"i1": "Newer"}
    assert_as_plain(read_amazon(folder / "Gift_Cards_5.json.gz"), REVIEWS, METADATA)


def test_category_picks(folder):
    write(folder / "Software_5.json", REVIEWS[:3])
    write(folder / "meta_Software.json", METADATA)
    with pytest.raises(ValueError, match="Several categories are there: choose one of Gift_Cards, Software"):
        read_amazon(folder)
    assert_as_plain(read_amazon(folder, category="Software"), REVIEWS[:3], METADATA)
    assert read_amazon(folder, category="Gift_Cards").read["interactions"] == 7
    with pytest.raises(ValueError, match="'Books' is not there; there are Gift_Cards, Software"):
        read_amazon(folder, category="Books")
    with pytest.raises(ValueError, match=r"Software_5\.json is not of the category 'Gift_Cards'"):
        read_amazon(folder / "Software_5.json", category="Gift_Cards")


@pytest.mark.parametrize(
    ("removed", "missing"),
    [("meta_Gift_Cards.json.gz", r"meta_Gift_Cards\.json"), ("Gift_Cards_5.json.gz", r"Gift_Cards_5\.json")],
)
@pytest.mark.parametrize("by_file", [False, True])
def test_missing_file_is_named(folder, removed, missing, by_file):
    (folder / removed).unlink()
    (other,) = folder.iterdir()
    with pytest.raises(FileNotFoundError, match=f"does not hold {missing}"):
        read_amazon(other if by_file else folder)


def test_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"does not hold X_5\.json"):
        read_amazon(tmp_path)


def test_lines_with_an_empty_field_are_counted(folder):
    without_rating = {key: value for key, value in review("u7", "i1", 7).items() if key != "overall"}
    rows = [without_rating, review("u7", None, 7), review(None, "i1", 7)]
    write(folder / "Gift_Cards_5.json.gz", REVIEWS + rows)
    data = read_amazon(folder)
    assert data.dropped["interactions with an empty or unreadable field"] == 3
    assert data.read["interactions"] == 10


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("bad", ["oops", '{"reviewerID": "u1", ', "[1]", '{"unixReviewTime": "yesterday"}'])
@pytest.mark.parametrize("before", [1, 10_000, 12_345])
def test_the_line_that_is_no_review_is_named(tmp_path, suffix, bad, before):
    write(tmp_path / "meta_Gift_Cards.json", METADATA)
    good = json.dumps(review("u1", "i1", 100)) + "\n"
    data = (good * before + bad + "\n" + good).encode()
    path = tmp_path / f"Gift_Cards_5.json{suffix}"
    path.write_bytes(gzip.compress(data, 1) if suffix else data)
    with pytest.raises(ValueError, match=rf"Gift_Cards_5\.json{suffix}, line {before + 1} cannot be read") as error:
        read_amazon(tmp_path)
    assert bad[:20] in str(error.value)


def test_damaged_gzip(folder):
    path = folder / "Gift_Cards_5.json.gz"
    rows = [review(f"u{n * 7919 % 10_007}", "i1", n) for n in range(5000)]
    whole = write(path, rows).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"Gift_Cards_5\.json\.gz is damaged: .*Get it again"):
        read_amazon(folder)


def test_other_files_are_refused(folder):
    write(folder / "Gift_Cards_5.json.gz", [{"user": "u1", "item": "i1"}])
    with pytest.raises(ValueError, match=r"does not hold Amazon reviews.*the first line has user, item"):
        read_amazon(folder)
    write(folder / "Gift_Cards_5.json.gz", [])
    with pytest.raises(ValueError, match="the first line has nothing"):
        read_amazon(folder)


def test_metadata_of_another_release_is_refused(folder):
    write(folder / "meta_Gift_Cards.json.gz", [{"parent_asin": "i1", "title": "One"}])
    with pytest.raises(ValueError, match="Reviews and metadata must be of one release"):
        read_amazon(folder)


@pytest.mark.parametrize(
    "line",
    [
        b"<html>",
        b"{'asin': __import__('os').name}",
        b"{'asin': 'i1'",
        b"[" * 100_000,
        b"-" * 100_000 + b"1",
        b"a" + b".a" * 100_000,
        b"{'asin': '" + b"x" * (1 << 20) + b"'}",
        b"{'asin': '\xff'}",
        b"{'asin': '\0'}",
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_metadata_that_is_neither_json_nor_a_literal_is_refused(folder, line, place):
    path = folder / "meta_Gift_Cards.json.gz"
    path.write_bytes(gzip.compress(b"{'asin': 'i1', 'title': 'One'}\n" * place + line + b"\n"))
    message = rf"meta_Gift_Cards\.json\.gz, line {place + 1} is not JSON, and not a Python dictionary as in 2014"
    with pytest.raises(ValueError, match=message):
        read_amazon(folder)


def test_half_of_a_character_is_refused(folder):
    path = folder / "meta_Gift_Cards.json.gz"
    path.write_bytes(gzip.compress(b"{'asin': 'i1', 'title': '\\ud83d'}\n"))
    with pytest.raises(ValueError, match=r"meta_Gift_Cards\.json\.gz, line 1 holds half of a character"):
        read_amazon(folder)


@pytest.mark.parametrize("line", ["['asin']", "5", "'asin'", "null", "None", "[1]"])
def test_a_line_that_is_no_object_is_refused(folder, line):
    (folder / "meta_Gift_Cards.json.gz").write_bytes(gzip.compress(f"{line}\n".encode()))
    with pytest.raises(ValueError, match=r"line 1 is not an object with fields"):
        read_amazon(folder)


@pytest.mark.parametrize("names", [("reviews_Toys_5", "meta_Toys"), ("reviews_Toys", "meta_Toys")])
@pytest.mark.parametrize("given", ["folder", "reviews", "metadata", "category"])
def test_the_release_of_2014_is_read(tmp_path, names, given):
    reviews = write(tmp_path / f"{names[0]}.json.gz", REVIEWS)
    literals = "\n".join(repr(row | {"price": 1.5, "related": {"x": ["y"]}, "salesRank": None}) for row in METADATA)
    metadata = tmp_path / f"{names[1]}.json.gz"
    metadata.write_bytes(gzip.compress(literals.encode()))
    source = {"reviews": reviews, "metadata": metadata}.get(given, tmp_path)
    if given == "category":
        write(tmp_path / "meta_Other.json.gz", METADATA)
        write(tmp_path / "reviews_Other.json.gz", REVIEWS)
    data = read_amazon(source, category="Toys" if given == "category" else None)
    write(tmp_path / "new" / "Toys_5.json.gz", REVIEWS)
    write(tmp_path / "new" / "meta_Toys.json.gz", METADATA)
    expected = read_amazon(tmp_path / "new")
    assert data.interactions.equals(expected.interactions)
    assert data.items.equals(expected.items)
    assert (data.read, data.dropped) == (expected.read, expected.dropped)


def test_literals_keep_what_json_has_not(folder):
    lines = [
        rb"{'asin': 'i1', 'title': 'A \d \x41 \'quoted\''}",
        b"{'asin': 'i2', 'title': None}",
        "{'asin': 'i3', 'title': u'Fünf'}".encode(),
        b"",
        b"{'asin': 'i5'}",
    ]
    (folder / "meta_Gift_Cards.json.gz").write_bytes(gzip.compress(b"\n".join(lines)))
    assert read_amazon(folder).titles() == {"i1": "A \\d A 'quoted'", "i3": "Fünf"}


@pytest.mark.parametrize(
    ("title", "kept"),
    [
        (SPAN, None),
        ("&lt;span class=", None),
        ("\n <!-- x", None),
        ("var aPageStart = (new Date()).getTime();", None),
        ('Card <img src="x">', None),
        ("I <3 New York", "I <3 New York"),
        ("3 < 5 > 4", "3 < 5 > 4"),
        ("Brand <New> Thing", "Brand <New> Thing"),
        ("Pok\u00e9mon\u00a0&nbsp;Cards", "Pok\u00e9mon Cards"),
        ("  ", None),
        (None, None),
    ],
)
def test_what_is_a_title(folder, title, kept):
    write(folder / "meta_Gift_Cards.json.gz", [product("i1", title), product("i5", "Five")])
    assert read_amazon(folder).titles().get("i1") == kept


titles = st.sampled_from([SPAN, "", None, "One", "One &amp; Two", " One  &amp;\tTwo", "getTime()", "Drei"])
items = st.sampled_from([f"i{number}" for number in range(8)])


@given(
    st.lists(st.builds(review, st.sampled_from("abc"), items, st.integers(0, 9), st.sampled_from([1.0, 5.0]))),
    st.lists(st.builds(product, items, titles), min_size=1),
)
def test_any_files_are_read_as_plain_python_reads_them(tmp_path_factory, reviews, metadata):
    # Something must be left
    reviews, metadata = [*reviews, review("z", "z", 1)], [*metadata, product("z", "Zett")]
    folder = tmp_path_factory.mktemp("amazon")
    write(folder / "X.json", reviews)
    write(folder / "meta_X.json", metadata)
    assert_as_plain(read_amazon(folder), reviews, metadata)


@pytest.mark.parametrize(
    ("release", "addresses"),
    [
        (
            "2018",
            ["amazon_v2/metaFiles2/meta_Gift_Cards.json.gz", "amazon_v2/categoryFilesSmall/Gift_Cards_5.json.gz"],
        ),
        (
            "2023",
            [
                "amazon_2023/raw/meta_categories/meta_Gift_Cards.jsonl.gz",
                "amazon_2023/raw/review_categories/Gift_Cards.jsonl.gz",
            ],
        ),
    ],
)
def test_download(folder, monkeypatch, release, addresses):
    fetched = []

    def fetch(remote):
        fetched.append(remote.url)
        return folder / ("meta_Gift_Cards.json.gz" if "meta" in remote.url else "Gift_Cards_5.json.gz")

    monkeypatch.setattr(RemoteFile, "fetch", fetch)
    data = read_amazon(category="Gift_Cards", release=release, download=True)
    assert_as_plain(data, REVIEWS, METADATA)
    assert fetched == [f"https://mcauleylab.ucsd.edu/public_datasets/data/{address}" for address in addresses]
    assert len(data.files) == 2


def test_arguments(folder):
    with pytest.raises(ValueError, match="Give either the path"):
        read_amazon()
    with pytest.raises(ValueError, match="Give either the path"):
        read_amazon(folder, download=True)
    with pytest.raises(ValueError, match=r"category must be named.*it is None"):
        read_amazon(download=True)
    with pytest.raises(ValueError, match=r"category must be named.*'\.\./Books'"):
        read_amazon(download=True, category="../Books")
    with pytest.raises(ValueError, match="release must be one of 2018, 2023; it is '2014'"):
        read_amazon(download=True, category="Books", release="2014")


@pytest.mark.parametrize("name", ["gift-cards", "magazine-subscriptions"])
def test_real_files(name):
    root = os.environ.get("DMPO_TRL_SHARED_DATA")
    if not root:
        pytest.skip("DMPO_TRL_SHARED_DATA does not point to the folder with real data")
    folder = Path(root) / f"amazon2018-{name}"
    (reviews,), (metadata,) = folder.glob("*_5.json.gz"), folder.glob("meta_*.json.gz")
    rows = [list(map(json.loads, gzip.decompress(path.read_bytes()).splitlines())) for path in (reviews, metadata)]
    data = read_amazon(folder)
    assert_as_plain(data, *rows)
    assert data.interactions.schema["timestamp"] == pl.Int64
    assert set(data.files) == {str(reviews), str(metadata)}


def test_white_space_in_titles_is_tidied_and_counted(tmp_path):
    review = {"reviewerID": "A1", "asin": "B7", "overall": 5.0, "unixReviewTime": 1400000000}
    (tmp_path / "Games_5.json").write_text(json.dumps(review))
    (tmp_path / "meta_Games.json").write_text(json.dumps({"asin": "B7", "title": "Chess\n &amp;  Go"}))
    data = read_amazon(tmp_path)
    assert data.titles() == {"B7": "Chess & Go"}
    assert data.changed == {"white space": 1}
