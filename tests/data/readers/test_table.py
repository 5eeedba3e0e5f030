import contextlib
import csv
import datetime
import gzip
import json
import os
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from dmpo_trl.data._options import OptionError
from dmpo_trl.data.readers.table import read_table

ORDERS = pl.DataFrame(
    {
        "customer": ["007", "007", "b", "b"],
        "sku": ["01", "02", "01", "03"],
        "at": [30, 10, 20, 40],
        "stars": [5.0, 1.0, 4.5, 3.0],
        "noise": [None, "x", "y", "z"],
    }
)
PRODUCTS = pl.DataFrame(
    {
        "sku": ["01", "02", "03"],
        "name": ["Pen", ' "Ink", blue ', "Émile"],
        "title": ["a", "b", "c"],
        "price": [1, 2, 3],
    }
)
COLUMNS = {"user": "customer", "item": "sku", "timestamp": "at", "rating": "stars", "title": "name"}
EXPECTED = [("007", "01", 30, 5.0), ("007", "02", 10, 1.0), ("b", "01", 20, 4.5), ("b", "03", 40, 3.0)]


def rows_of(data) -> list[tuple]:
    columns = [name for name in ("user", "item", "timestamp", "rating") if name in data.interactions.columns]
    return sorted(data.interactions.select(columns).rows())


def as_file(folder: Path, table: pl.DataFrame, suffix: str) -> Path:
    path = folder / f"{table.columns[0]}{suffix}"
    {".csv": table.write_csv, ".parquet": table.write_parquet, ".jsonl": table.write_ndjson}[suffix](path)
    return path


@pytest.mark.parametrize("form", ["polars", "lazy", "pandas", "arrow", ".csv", ".parquet", ".jsonl"])
def test_every_form_of_table_reads_the_same(tmp_path, form):
    convert = {
        "polars": lambda table: table,
        "lazy": pl.DataFrame.lazy,
        "pandas": lambda table: pd.DataFrame(table.to_dict(as_series=False)),
        "arrow": lambda table: pa.Table.from_pylist(table.to_dicts()),
    }.get(form, lambda table: as_file(tmp_path, table, form))
    orders, products = convert(ORDERS), convert(PRODUCTS)
    data = read_table(orders, products, **COLUMNS)
    assert rows_of(data) == EXPECTED
    assert data.titles() == {"01": "Pen", "02": '"Ink", blue', "03": "Émile"}
    assert data.items.columns == ["item", "title", "price"]
    assert data.read == {"interactions": 4, "items": 3}
    assert data.dropped == {}
    assert data.files == ((str(orders), str(products)) if form.startswith(".") else ())


def test_whole_numbers_and_categories_are_identifiers():
    interactions = pl.DataFrame(
        {"user": pl.Series(["u", "v"], dtype=pl.Categorical), "item": [1, 2], "timestamp": [1, 2]}
    )
    items = pl.DataFrame({"item": [1, 2], "title": pl.Series(["a", "b"], dtype=pl.Enum(["a", "b"]))})
    data = read_table(interactions, items)
    assert rows_of(data) == [("u", "1", 1), ("v", "2", 2)]
    assert data.titles() == {"1": "a", "2": "b"}


DAY = datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([DAY, DAY + datetime.timedelta(milliseconds=1500)], [0, 1.5]),
        ([DAY.astimezone(datetime.timezone(datetime.timedelta(hours=5))), DAY], [0, 0]),
        ([DAY.replace(tzinfo=None), None], [0, None]),
        ([datetime.date(2020, 1, 2), datetime.date(2020, 1, 3)], [0, 86400]),
        (["2020-01-02T00:00:00Z", "2020-01-02T00:00:00.25Z"], [0, 0.25]),
        (["2020-01-02 00:00:00.5", "2020-01-02 00:00:00"], [0.5, 0]),
        (["2020-01-02", "3/1/2020"], [0, None]),
        (["2020-01-02T05:00:00+05:00", "yesterday"], [0, None]),
        # Both kinds in one column, whichever comes first
        (["2020-01-02T00:00:00Z", "2020-01-02T00:01:00"], [0, 60]),
        (["2020-01-02 00:00:00", "2020-01-02T00:00:01.5Z"], [0, 1.5]),
        (["2020-01-02", "2020-01-01T20:30-03:30"], [0, 0]),
        (["2020-01-02 00:00:00 UTC", "2020-01-02T02:00:00+0200"], [0, 0]),
        (["2020-01-02T02:00+02", "2020-01-02T00:00:60.5.5Z"], [0, None]),
        (["2020-01-02", "2020-13-02"], [0, None]),
    ],
)
def test_dates_become_seconds_since_1970(times, expected):
    interactions = pl.DataFrame({"user": ["u", "v"], "item": ["a", "a"], "timestamp": times})
    data = read_table(interactions, pl.DataFrame({"item": ["a"], "title": ["A"]}))
    found = dict(data.interactions.select(pl.col("user").cast(pl.String), "timestamp").iter_rows())
    assert found == {
        user: DAY.timestamp() + seconds for user, seconds in zip("uv", expected, strict=True) if seconds is not None
    }
    reason = "empty or unreadable field" if None in times else "unreadable timestamp"
    assert data.dropped == ({f"interactions with an {reason}": 1} if None in expected else {})


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (["1577923200123456789", "2"], [1577923200123456789, 2]),  # more digits than a float has
        (["1.5", "2"], [1.5, 2]),
        # One bad cell makes no floats of nanoseconds
        (["1577923200123456789", "n/a"], [1577923200123456789]),
        (["1577923200123456789", "2020-01-02", ""], [1577923200123456789]),
        (["964982703.0", "964982931.0"], [964982703, 964982931]),
        ([float("nan"), 2.0], [2]),
        ([float("inf"), 2.0, float("-inf")], [2]),
        (["inf", "2", "nan"], [2]),
    ],
)
def test_numbers_stay_as_they_are(times, expected):
    interactions = pl.DataFrame({"user": list("uvw")[: len(times)], "item": "a", "timestamp": times})
    data = read_table(interactions, pl.DataFrame({"item": ["a"], "title": ["A"]}))
    assert data.interactions["timestamp"].to_list() == expected
    assert sum(data.dropped.values()) == len(times) - len(expected)


def test_empty_fields_are_counted(tmp_path):
    path = tmp_path / "orders.csv"
    path.write_text("user,item,timestamp,rating\nu,a,1,5\n,a,1,5\nu,,1,5\nu,b,,5\nu,b,2,good\nu,c,3,5\n")
    items = pl.DataFrame({"item": ["a", "b", "c"], "title": ["A", "B", " "]})
    data = read_table(path, items, rating="rating")
    assert rows_of(data) == [("u", "a", 1, 5.0)]
    assert data.dropped == {
        "interactions with an unreadable rating": 1,
        "interactions with an empty or unreadable field": 3,
        "items without a title": 1,
        "interactions with an unknown item": 1,
    }


def test_the_interactions_may_hold_the_titles():
    interactions = pl.DataFrame(
        {
            "user": ["u", "v", "w", "u", "v", "u"],
            "item": ["a", "a", "a", "b", "c", "c"],
            "timestamp": [1, 2, 3, 4, 5, 6],
            "title": ["A", None, "A again", "B", None, " "],
        }
    )
    data = read_table(interactions)
    assert data.titles() == {"a": "A", "b": "B"}
    assert rows_of(data) == [("u", "a", 1), ("u", "b", 4), ("v", "a", 2), ("w", "a", 3)]
    assert data.dropped == {
        "further titles of the same item": 1,
        "items without a title": 1,
        "interactions with an unknown item": 2,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"user": "who"},
            r"interactions: the columns \['who'\] are missing; there are \['customer', .* they are with `user`\.$",
        ),
        ({"title": "label"}, r"items: the columns \['label'\] are missing; there are \['sku'"),
        ({"user": "stars"}, r"interactions: column 'stars' must be text or whole numbers, it has: .*make it text\."),
        ({"rating": "flag"}, "interactions: column 'flag' must hold numbers, it is Boolean"),
        ({"timestamp": "flag"}, "interactions: column 'flag' must hold numbers, dates or datetimes, it is Boolean"),
        ({"timestamp": "date"}, "interactions: column 'date' holds neither numbers nor times in ISO 8601.*'1/2/2020'"),
        ({"timestamp": "noise"}, "interactions: column 'noise' holds neither numbers nor times in ISO 8601.*'w'"),
    ],
)
def test_wrong_columns_are_named(change, message):
    orders = ORDERS.with_columns(flag=True, noise=pl.lit("w"), date=pl.lit("1/2/2020"))
    with pytest.raises(ValueError, match=message):
        read_table(orders, PRODUCTS, **{**COLUMNS, **change})


def test_the_columns_that_a_file_has_are_shown_though_none_is_one_of_those_named(tmp_path):
    (tmp_path / "views.csv").write_text("Kunde;Artikel;Zeit\nk1;a;1\n")
    there = r"there are \['Kunde', 'Artikel', 'Zeit'\]\. Say which they are with `user`, `item`, `timestamp`"
    with pytest.raises(ValueError, match=f"{there}\\.$"):
        read_table(tmp_path / "views.csv", PRODUCTS)
    with pytest.raises(ValueError, match=f"{there}, `title`; or name the table that has the titles with `items`\\.$"):
        read_table(tmp_path / "views.csv")
    (tmp_path / "views.csv").write_text("Kunde\nk1\n")
    with pytest.raises(ValueError, match=r"there are \['Kunde'\]\."):
        read_table(tmp_path / "views.csv", PRODUCTS)


def test_what_is_no_table_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"items must be a polars, pandas or Arrow table, .* not dict"):
        read_table(ORDERS, {"sku": "title"}, **COLUMNS)
    with pytest.raises(FileNotFoundError, match=r"interactions: .*nowhere.csv does not exist"):
        read_table(tmp_path / "nowhere.csv", PRODUCTS)
    (tmp_path / "orders.xlsx").touch()
    with pytest.raises(ValueError, match=r"orders.xlsx is not a file that can be read \(.csv, .*\.parquet\)\."):
        read_table(tmp_path / "orders.xlsx", PRODUCTS)


def test_real_ratings_read_as_plain_python_reads_them():
    root = os.environ.get("DMPO_TRL_SHARED_DATA")
    if not root:
        pytest.skip("DMPO_TRL_SHARED_DATA does not point to the folder with real data")
    folder = Path(root) / "ml-latest-small"
    data = read_table(
        folder / "ratings.csv", folder / "movies.csv", user="userId", item="movieId", rating="rating", title="title"
    )
    with (folder / "movies.csv").open(encoding="utf-8", newline="") as file:
        titles = {row["movieId"]: " ".join(row["title"].split()) for row in csv.DictReader(file)}
    first = {title: item for item, title in reversed(titles.items())}
    with (folder / "ratings.csv").open(newline="") as file:
        pairs = {(row["userId"], first[titles[row["movieId"]]]) for row in csv.DictReader(file)}
    assert data.titles() == {item: title for title, item in first.items()}
    assert set(data.interactions.select(pl.col("user", "item").cast(pl.String)).iter_rows()) == pairs


ROWS = "user,item,timestamp,title,note\nu1,i1,1,A,n\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.parquet", b"junk", r"x\.parquet cannot be read: .*Parquet file"),
        ("x.parquet", b"", r"x\.parquet cannot be read: "),
        ("x.csv", b"", r"x\.csv is empty: its first line must name the columns\.$"),
        (
            "x.csv",
            (ROWS + "u1,i2,2,B,n,x\n").encode(),
            r"x\.csv, line 3: there are 6 fields, the header names 5: 'u1,i2",
        ),
        (  # the last column is not needed
            "x.csv",
            (ROWS + 'u2,i1,1,"A,\nnew line",n\nu1,i2,2,Good, the Bad,n\nu2,i1,3,A,n\n').encode(),
            r"x\.csv, line 5: there are 6 fields, the header names 5: 'u1,i2,2,Good, the Bad,n'\. Put .* quotes",
        ),
        ("x.csv", (ROWS + "u1,i2,2,Caf\u00e9,n\n").encode("latin-1"), r"x\.csv, line 3: the text is not UTF-8"),
        ("x.jsonl", b"", r"x\.jsonl cannot be read: "),
        ("x.jsonl", b'{"user": 1}\n\n{"user":\n', r"x\.jsonl, line 3 is not JSON in UTF-8: Expecting value"),
        ("x.jsonl", b"{'user': 1}\n", r"x\.jsonl, line 1 is not JSON in UTF-8: Expecting property name"),
        ("x.jsonl", b'\xef\xbb\xbf{"user": 1}\n{"user"', r"x\.jsonl, line 2 is not JSON in UTF-8: "),
        ("x.jsonl", b"[" * 50_000 + b"\n", r"x\.jsonl, line 1 (nests too deeply|is not JSON)"),
        ("x.csv", (ROWS + 'u1,"i2,2,B,n\nu2,i1,3,A,n\n').encode(), r"x\.csv, line 3: the fields cannot be told apart"),
        ("x.csv", ROWS.encode("utf-16")[:-1], r"x\.csv, line \d: the text is not utf-16"),
        ("x.csv.gz", gzip.compress(ROWS.encode(), mtime=0)[:-9], r"x\.csv\.gz is damaged: Compressed file ended"),
        ("x.csv.gz", b"junk", r"x\.csv\.gz is damaged: Not a gzipped file"),
        ("x.jsonl.gz", gzip.compress(b"{}\n", mtime=0)[:-9] + b"\0" * 9, r"x\.jsonl\.gz is damaged: CRC check failed"),
    ],
)
@pytest.mark.parametrize("which", ["interactions", "items"])
def test_a_table_that_cannot_be_read_is_named(tmp_path, which, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    tables = (path, None) if which == "interactions" else (ORDERS, path)
    columns = {} if which == "interactions" else {**COLUMNS, "item": "item", "title": "title"}
    orders = ORDERS.rename({"sku": "item"})
    with pytest.raises(ValueError, match=f"(?s)^{which}: .*{message}"):
        read_table(orders if tables[0] is ORDERS else path, tables[1], **columns)


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".jsonl"])
def test_a_damaged_table_is_read_or_refused(tmp_path, ending):
    whole = as_file(tmp_path, ORDERS, ending).read_bytes()
    path = tmp_path / f"damaged{ending}"
    for cut in range(0, len(whole), max(len(whole) // 100, 1)):
        for damaged in (whole[:cut], whole[:cut] + b"\xff" + whole[cut + 1 :]):
            path.write_bytes(damaged)
            with contextlib.suppress(ValueError):
                read_table(path, PRODUCTS, **COLUMNS)


def test_a_table_without_columns_is_refused():
    with pytest.raises(ValueError, match=r"^interactions: the table has no columns\.$"):
        read_table(pl.DataFrame())
    with pytest.raises(ValueError, match=r"^items: the table has no columns\.$"):
        read_table(ORDERS, pl.DataFrame(), **COLUMNS)
    with pytest.raises(ValueError, match=r"^interactions: the table cannot be read: "):
        read_table(ORDERS.lazy().select("nothing"))


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_brackets_in_a_path_are_no_pattern(tmp_path, ending):
    folder = tmp_path / "data [1]*"
    folder.mkdir()
    paths = [folder / f"{name}.{ending}" for name in ("orders", "products")]
    for table, path in zip((ORDERS, PRODUCTS), paths, strict=True):
        {"csv": table.write_csv, "parquet": table.write_parquet, "jsonl": table.write_ndjson}[ending](path)
    assert read_table(*paths, **COLUMNS).interactions.height == ORDERS.height


SHOP = "user;item;timestamp;title\nu1;i1;1;Café\nu1;i2;2;"
SHOP_ROWS = [("u1", "i1", 1), ("u1", "i2", 2)]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252", "latin-1"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|", "::"])
@pytest.mark.parametrize("name", ["x.csv", "x.txt.gz"])
def test_text_is_read_whatever_separates_encodes_and_ends_its_lines(tmp_path, ending, encoding, separator, name):
    text = (SHOP + '"Good, the ""Bad"""' * (separator != "::") + "Ugly" * (separator == "::") + "\n").replace(
        ";", separator
    )
    data = text.replace("\n", ending).encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    named = encoding if encoding in ("cp1252", "latin-1") else None
    data = read_table(tmp_path / name, encoding=named)
    assert rows_of(data) == SHOP_ROWS
    assert data.titles() == {"i1": "Café", "i2": "Ugly" if separator == "::" else 'Good, the "Bad"'}
    assert data.dropped == {}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz"])
def test_json_lines_are_read_in_any_encoding(tmp_path, name, encoding):
    data = '{"user": 1, "item": "a", "timestamp": 2, "title": "Café", "more": [{"x": 1}]}\n\n'.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    data = read_table(tmp_path / name, encoding=encoding if encoding == "cp1252" else None)
    assert (rows_of(data), data.titles()) == ([("1", "a", 2)], {"a": "Café"})


def test_book_crossing_is_read_as_it_was_published(tmp_path):
    (tmp_path / "BX-Book-Ratings.csv").write_bytes(
        b'"User-ID";"ISBN";"Book-Rating"\r\n"276725";"034545104X";"0"\r\n"276726";"0155061224";"5"\r\n'
    )
    (tmp_path / "BX-Books.csv").write_bytes(
        b'"ISBN";"Book-Title";"Book-Author"\r\n'
        b'"034545104X";"Die Mei\xdfner; Eins &amp; \\"Zwei\\";\\"Drei\\"";"M. B. Rose"\r\n'
        b'"0155061224";"Rites of Passage\\\\";"Judith Rae"\r\n'
    )
    columns = {"user": "User-ID", "item": "ISBN", "timestamp": "Book-Rating", "title": "Book-Title"}
    paths = tmp_path / "BX-Book-Ratings.csv", tmp_path / "BX-Books.csv"
    with pytest.raises(ValueError, match=r"^items: .*BX-Books\.csv, line 2: the text is not UTF-8\. .* `encoding`"):
        read_table(*paths, **columns)
    data = read_table(*paths, **columns, encoding="latin-1")
    assert data.titles() == {
        "034545104X": 'Die Meißner; Eins &amp; "Zwei";"Drei"',
        "0155061224": "Rites of Passage\\",
    }
    assert rows_of(data) == [("276725", "034545104X", 0), ("276726", "0155061224", 5)]


def test_a_backslash_before_a_quote_can_be_just_that(tmp_path):
    (tmp_path / "x.csv").write_text('user,item,timestamp,title\nu,a,1,"C:\\"\nu,b,2,"D, ""E"""\n')
    assert read_table(tmp_path / "x.csv").titles() == {"a": "C:\\", "b": 'D, "E"'}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoding": "klingon"}, r"^interactions: .*there is no encoding 'klingon'\. `encoding` is one that Python"),
        ({"separator": '"'}, r"^interactions: `separator` cannot be '\"'; it is a character such as ; or tab\.$"),
        ({"separator": ""}, r"^interactions: `separator` cannot be ''"),
        ({"separator": "\u00e9"}, r"^interactions: /[^:]*x\.csv: the columns \['user', .*Say .* `user`, `item`"),
        (
            {"encoding": "idna"},
            r"^interactions: /[^:]*x\.csv: the text is not idna .*or name its encoding with `encod",
        ),
        ({"encoding": "undefined"}, r"^interactions: /[^:]*x\.csv: the text is not undefined"),
        ({"encoding": "utf-32"}, r"^interactions: /[^:]*x\.csv: the text is not utf-32 .*Save the file as UTF-8"),
        ({"encoding": "hex"}, r"^interactions: /[^:]*x\.csv: 'hex' is no encoding of text\. Save"),
        ({"encoding": "x\0y"}, r"^interactions: /[^:]*x\.csv: there is no encoding"),
        ({"encoding": "\ud800"}, r"^interactions: /[^:]*x\.csv: there is no encoding"),
        (
            {"separator": ";"},
            r"^interactions: /[^:]*x\.csv: the columns \['user', .*Say .* `user`, `item`",
        ),
    ],
)
def test_options_of_text_are_checked(tmp_path, options, message):
    (tmp_path / "x.csv").write_text(ROWS)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "x.csv", **options)


@pytest.mark.parametrize("encoding", ["hex", "undefined", "utf-32", "x\0y"])
def test_encodings_of_json_lines_are_checked(tmp_path, encoding):
    (tmp_path / "x.jsonl").write_text('{"user": 1, "item": 2, "timestamp": 3, "title": "A"}\n')
    with pytest.raises(ValueError, match=r"^interactions: /[^:]*x\.jsonl: .*encoding"):
        read_table(tmp_path / "x.jsonl", encoding=encoding)


@pytest.mark.parametrize("separator", ["\u00e9", "\u2028", "\x1f"])
def test_any_character_can_separate(tmp_path, separator):
    rows = [["user", "item", "timestamp", "title"], ["1", "2", "3", "Alien"]]
    (tmp_path / "x.csv").write_text("".join(separator.join(row) + "\n" for row in rows), encoding="utf-8")
    assert read_table(tmp_path / "x.csv", separator=separator).titles() == {"2": "Alien"}


@pytest.mark.parametrize("separator", ["tab", "\\t", "\t"])
def test_a_shell_can_name_the_tab(tmp_path, separator):
    (tmp_path / "x.csv").write_text(ROWS.replace(",", "\t"))
    assert read_table(tmp_path / "x.csv", separator=separator).titles() == {"i1": "A"}


def test_what_cannot_be_read_is_named_and_counted(caplog):
    times = ["2020-01-02", "2020-01-03", "1577923200", "yesterday", ""]
    orders = pl.DataFrame({"user": list("uvwxy"), "item": "a", "timestamp": times, "stars": ["5", "x", "3", "2", "1"]})
    data = read_table(orders, pl.DataFrame({"item": ["a"], "title": ["A"]}), rating="stars")
    assert data.read == {"interactions": 5, "items": 1}
    assert data.dropped == {
        "interactions with an unreadable timestamp": 2,
        "interactions with an unreadable rating": 1,
        "interactions with an empty or unreadable field": 1,
    }
    assert "2 of 5 rows have a timestamp that cannot be read, for example '1577923200' in row 3" in caplog.text
    assert "1 of 5 rows have a rating that cannot be read, for example 'x' in row 2" in caplog.text
    assert "Most of the 5 interactions read cannot be used, 1 are left" in caplog.text


def test_half_of_the_rows_may_go_without_a_warning(caplog):
    orders = pl.DataFrame({"user": ["u", "v"], "item": "a", "timestamp": ["1", "x"]})
    read_table(orders, pl.DataFrame({"item": ["a"], "title": ["A"]}))
    assert "Most of" not in caplog.text


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.parquet"])
def test_only_files_are_opened(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=rf"^interactions: .*{name} is a pipe or a device; give a regular file\.$"):
        read_table(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=rf"^interactions: .*{name} is a folder; give a file\.$"):
        read_table(tmp_path / name)


def test_an_error_speaks_in_the_callers_names():
    with pytest.raises(OptionError) as caught:
        read_table(ORDERS)
    assert "with `user`, `item`, `timestamp`, `title`; or" in str(caught.value)
    assert "with --user_column, --item_column," in str(caught.value.spelled("--{}_column".format))


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".jsonl"])
def test_a_file_without_the_columns_is_named_once(tmp_path, ending):
    path = as_file(tmp_path, ORDERS, ending)
    with pytest.raises(ValueError, match=rf"^interactions: {path}: the columns \['user', .*'title'\] are missing"):
        read_table(path)
    with pytest.raises(ValueError, match=rf"^items: {path}: the columns \['nothing'\] are missing; there are"):
        read_table(ORDERS, path, **COLUMNS | {"title": "nothing"})


def test_endings_in_capitals_are_the_same(tmp_path):
    rows = pl.DataFrame({"user": ["1"], "item": ["2"], "timestamp": [3], "title": ["Alien"]})
    rows.write_parquet(tmp_path / "a.PARQUET")
    rows.write_csv(tmp_path / "a.CSV")
    read = [read_table(tmp_path / name).items.rows() for name in ("a.PARQUET", "a.CSV")]
    assert read == [[("2", "Alien")]] * 2


@pytest.mark.parametrize("where", ["interactions", "items"])
def test_titles_that_are_lists_are_named(tmp_path, where):
    row = {"user": "1", "item": "2", "timestamp": 3, "title": ["Alien"]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    items = tmp_path / "a.jsonl" if where == "items" else None
    with pytest.raises(ValueError, match=rf"{where}: .*a\.jsonl: column 'title' must hold texts, it holds List"):
        read_table(tmp_path / "a.jsonl", items)


@pytest.mark.parametrize("text", ["nan", "inf", "-", ""])
def test_a_time_that_is_none_leaves_the_others_their_digits(text):
    now = 1704067200000000000
    rows = pl.DataFrame({"user": ["1", "1", "2"], "item": ["2", "3", "3"], "title": ["A", "B", "B"]}).with_columns(
        timestamp=pl.Series([str(now + 1), str(now), text])
    )
    data = read_table(rows)
    assert data.interactions["item"].to_list() == ["3", "2"]
    assert data.interactions["timestamp"].n_unique() == 2


def test_columns_of_mixed_types_are_named():
    rows = pd.DataFrame({"user": ["a", 1], "item": ["x", "x"], "timestamp": [1, 2]})
    with pytest.raises(ValueError, match=r"^interactions: the table cannot be read: .*column user.*one type"):
        read_table(rows, pl.DataFrame({"item": ["x"], "title": ["Alien"]}))


def test_titles_that_are_whole_numbers_stay_whole():
    rows = pl.DataFrame({"user": ["a"] * 3, "item": ["x", "y", "z"], "timestamp": [1, 2, 3]})
    films = pl.DataFrame({"item": ["x", "y", "z"], "title": [1984.0, 300.5, float("nan")]})
    assert read_table(rows, films).titles() == {"x": "1984", "y": "300.5"}


def test_a_number_that_json_does_not_have_is_named_with_its_line(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"user": "a", "item": "x", "timestamp": 1}\n{"user": "a", "item": "y", "timestamp": NaN}\n')
    with pytest.raises(ValueError, match=r"rows.jsonl, line 2 is not JSON.*NaN is none of its numbers; write null"):
        read_table(file, pl.DataFrame({"item": ["x"], "title": ["Alien"]}))
