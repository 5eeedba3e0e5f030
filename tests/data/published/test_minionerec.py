"""MiniOneRec's CSV: small files, and the real ones compared with plain Python."""

import ast
import csv
import gzip
import tarfile
import zipfile

import polars as pl
import pytest

from dmpo_trl.data import read_minionerec

NAME = "Office_Products_5_2016-10-2018-11"
INFO = "<a_1><b_1>\tPen\t0\n<a_1><b_2>\tInk, 2\" Jar\t1\n<a_2><b_1>\tDad's Desk\t2\n<a_2><b_2>\tPen\t3\n"
TITLES = ["Pen", 'Ink, 2" Jar', "Dad's Desk", "Pen"]
HEADER = ["user_id", "history_item_title", "item_title", "history_item_id", "item_id", "history_item_sid", "item_sid"]


def write(path, *rows):
    """Write rows of user, history and target as Python's csv does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for user, history, target in rows:
            writer.writerow([user, [TITLES[item] for item in history], TITLES[target], history, target, [], ""])


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "Amazon"
    (folder / "info").mkdir(parents=True)
    (folder / "info" / f"{NAME}.txt").write_text(INFO, encoding="utf-8")
    write(folder / "train" / f"{NAME}.csv", ("A7", [0, 1], 2), ("A7", [0, 1, 2], 1), ("A8", [3], 1))
    write(folder / "test" / f"{NAME}.csv", ("A7", [1, 1], 3))
    return folder


def test_a_name_is_its_own_though_another_begins_with_it(folder):
    short = NAME.removesuffix("_2016-10-2018-11")
    (folder / "info" / f"{short}.txt").write_text(INFO, encoding="utf-8")
    write(folder / "test" / f"{short}.csv", ("A9", [0], 1))
    assert read_minionerec(folder, category=short).examples["test"].rows() == [("A9", ["0"], "1")]
    assert read_minionerec(folder, category=NAME).examples["test"]["user"].to_list() == ["A7"]
    with pytest.raises(ValueError, match="choose one with `category`"):
        read_minionerec(folder)


def test_rows_stay_as_published(folder):
    data, examples = read_minionerec(folder)
    assert list(examples) == ["train", "test"]
    assert examples["train"].columns == ["user", "history", "target"]
    assert examples["train"].rows() == [
        ("A7", ["0", "1"], "2"),
        ("A7", ["0", "1", "2"], "1"),
        ("A8", ["0"], "1"),  # 3 is called like 0
    ]
    assert examples["test"].rows() == [("A7", ["1", "1"], "0")]
    assert data.items.rows() == [
        ("0", "Pen", "<a_1><b_1>"),
        ("1", 'Ink, 2" Jar', "<a_1><b_2>"),
        ("2", "Dad's Desk", "<a_2><b_1>"),
    ]
    assert data.items.columns == ["item", "title", "sid"]
    # The latest of repeated ones stays
    assert data.interactions.rows() == [("A7", "2", 0), ("A7", "1", 1), ("A7", "0", 2), ("A8", "0", 0), ("A8", "1", 1)]
    assert data.order == "position"


@pytest.mark.parametrize("ending", ["zip", "tar.gz"])
def test_archives_and_packed_files_are_read(folder, tmp_path, ending):
    expected = read_minionerec(folder).examples
    for path in list(folder.rglob("*.csv")):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    packed = tmp_path / f"all.{ending}"
    if ending == "zip":
        with zipfile.ZipFile(packed, "w") as archive:
            for path in folder.rglob("*.*"):
                archive.write(path, path.relative_to(tmp_path))
    else:
        with tarfile.open(packed, "w:gz") as archive:
            archive.add(folder, "data")
    found = read_minionerec(packed)
    assert found.interactions.files == (str(packed),)
    for part, rows in expected.items():
        assert found.examples[part].equals(rows)


def test_a_category_of_several_must_be_chosen(folder):
    (folder / "info" / "Office_5_2016.txt").write_text(INFO)
    write(folder / "valid" / "Office_5_2016.csv", ("A1", [0], 1))
    with pytest.raises(ValueError, match=rf"There are Office_5_2016, {NAME}; choose one with `category`"):
        read_minionerec(folder)
    with pytest.raises(ValueError, match="not 'Books'"):
        read_minionerec(folder, category="Books")
    with pytest.raises(ValueError, match="not 'Office'"):
        read_minionerec(folder, category="Office")
    assert list(read_minionerec(folder, category="Office_5").examples) == ["validation"]
    assert list(read_minionerec(folder, category="Office_Products").examples) == ["train", "test"]
    assert list(read_minionerec(folder, category=NAME).examples) == ["train", "test"]


def row(**changes):
    good = dict(zip(HEADER, ["A7", "['Pen']", "Dad's Desk", "[0]", "2", "[]", ""], strict=True))
    return list((good | changes).values())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row(user_id=""), "row 2: user_id must not be empty"),
        (row(item_id="x"), "row 2: .* item_id must be a whole number .*'x'"),
        (row(history_item_id="[0, y]"), r"row 2: .* a list such as \[4, 8, 15\]; .*'\[0, y\]'"),
        (row(history_item_id="__import__('os')"), "row 2: "),
        (row(history_item_title="__import__('os').system('x')"), "row 2: history_item_title must be a list of texts"),
        (row(history_item_title="['Pen'"), r"row 2: history_item_title .* it is \"\['Pen'\""),
        (row(history_item_title="[1]"), "row 2: history_item_title"),
        (row(history_item_title="('Pen',)"), "row 2: history_item_title"),
        (row(history_item_title="[" * 5000), "row 2: history_item_title"),
        (row(history_item_title="['" + "x" * 70_000 + "']"), "row 2: history_item_title"),
        (row(history_item_title=""), "row 2: history_item_title"),
        (row(history_item_title="['Pen', 'Pen']"), "row 2: the history has 1 numbers and 2 titles"),
        (row(item_id="9"), "row 2: item 9 is not in the list of items"),
        (row(item_title="Lamp"), "row 2: item 2 is called 'Lamp', and \"Dad's Desk\" in info"),
        (row(item_title=""), "row 2: item 2 is called ''"),
        (row(history_item_title="['Ink']"), "row 2: item 0 is called 'Ink', and 'Pen' in info"),
        ([*row(), "more"], "line 3: there are 8 fields"),
    ],
)
def test_a_row_of_another_form_is_named(folder, bad, message):
    file = folder / "train" / f"{NAME}.csv"
    write(file, ("A7", [0, 1], 2))
    with file.open("a", newline="") as rows:
        csv.writer(rows).writerow(bad)
    with pytest.raises(ValueError, match=rf"{NAME}\.csv, {message}"):
        read_minionerec(folder)


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ("<a_1>\tPen\n", "line 1: expected semantic id, title and item number"),
        ("<a_1>\tPen\tx\n", "line 1: expected"),
        ("<a_1>\tPen\t0\n<a_1>\t \t1\n", "line 2: expected"),
        ("<a_1>\tPen\t0\n<a_1>\tInk\t00\n", "item 0 is listed more than once"),
        ("\n", "is empty"),
    ],
)
def test_a_list_of_items_of_another_form_is_named(folder, info, message):
    (folder / "info" / f"{NAME}.txt").write_text(info)
    with pytest.raises(ValueError, match=rf"{NAME}\.txt[,:]? {message}"):
        read_minionerec(folder)


def test_what_is_not_utf_8_is_named(folder):
    (folder / "info" / f"{NAME}.txt").write_bytes(INFO.encode() + b"<a>\tCaf\xe9\t4\n")
    with pytest.raises(ValueError, match=r"line 5: the text is not UTF-8"):
        read_minionerec(folder)


def test_what_is_missing_is_named(folder):
    for path in folder.rglob("*.csv"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"does not hold train/{NAME}\.csv or valid/{NAME}\.csv or test/"):
        read_minionerec(folder)
    (folder / "info" / f"{NAME}.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"does not hold info/NAME\.txt"):
        read_minionerec(folder)


@pytest.mark.parametrize("category", ["Office_Products", "Industrial_and_Scientific"])
def test_real_files_are_what_plain_python_reads(shared, category):
    folder = shared / "amazon2018-minionerec"
    data, examples = read_minionerec(folder, category=category)
    titles, first, sids = {}, {}, {}
    with next((folder / "info").glob(f"{category}*")).open(encoding="utf-8", newline="") as file:
        for line in file:
            sid, title, item = line.rstrip("\n").split("\t")
            titles[item] = title
            if title not in first:
                first[title], sids[item] = item, sid
    assert data.titles() == {item: title for title, item in first.items()}
    assert dict(data.items.select("item", "sid").iter_rows()) == sids
    pairs, count = set(), 0
    for part, stem in {"train": "train", "validation": "valid", "test": "test"}.items():
        expected = []
        for path in (folder / stem).glob(f"{category}*"):
            with path.open(newline="", encoding="utf-8") as file:
                for own in csv.DictReader(file):
                    assert ast.literal_eval(own["history_item_title"]) == [
                        titles[str(item)] for item in ast.literal_eval(own["history_item_id"])
                    ]
                    history = [first[titles[str(item)]] for item in ast.literal_eval(own["history_item_id"])]
                    expected.append((own["user_id"], history, first[titles[own["item_id"]]]))
                    pairs.update((own["user_id"], item) for item in [*history, expected[-1][2]])
        assert (part in examples) == bool(expected)
        count += len(expected)
        if expected:
            assert examples[part].rows() == expected
    assert count == {"Office_Products": 9_732, "Industrial_and_Scientific": 4_533}[category]
    assert set(data.interactions.select(pl.col("user", "item").cast(pl.String)).iter_rows()) == pairs
    assert data.interactions.height == len(pairs)
