"""Sliding windows: small files, and the real ones compared with plain Python."""

import ast
import csv
import gzip
import json

import pytest

from dmpo_trl.data import read_msl

TITLES = {"1": "Pen", "2": "Ink", "3": "Desk", "4": "Pen", "5": " "}
HEADER = "user_id,item_ids,timestamp\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "id2name.json").write_text(json.dumps(TITLES))
    (tmp_path / "train.csv").write_text(HEADER + '7,"[3, 2, 1]",30\n7,"[4, 3, 2]",20\n8,"[1, 9, 3]",10\n')
    (tmp_path / "test.csv").write_text(HEADER + '7,"[2, 1, 5]",40\n8,"[9, 2]",50\n')
    return tmp_path


def test_rows_stay_as_published(folder, caplog):
    data, examples = read_msl(folder)
    assert examples["train"].rows() == [
        ("7", ["3", "2"], "1", 30),
        ("7", ["1", "3"], "2", 20),  # 4 is called like 1
        ("8", ["1"], "3", 10),
    ]
    assert examples["test"].rows() == [("8", [], "2", 50)]
    # By time, whatever the order of the rows
    first, second = [("7", "3", 0), ("7", "2", 1), ("7", "1", 2)], [("8", "1", 0), ("8", "3", 1), ("8", "2", 2)]
    assert data.interactions.rows() == [*first, *second]
    assert data.dropped == {
        "entries of histories without a title": 2,
        "examples whose target has no title": 1,
        "items merged into another of the same title": 1,
    }
    assert "train: 1 items have no title: 9." in caplog.text
    assert "test: 2 items have no title: 9, 5." in caplog.text


def test_a_part_of_several_samples_must_be_chosen(folder):
    (folder / "train_10000.csv.gz").write_bytes(gzip.compress((HEADER + '7,"[3, 2]",30\n').encode()))
    with pytest.raises(ValueError, match=r"There are train\.csv, train_10000\.csv; choose with parts"):
        read_msl(folder)
    assert read_msl(folder, parts={"train": "train_10000.csv"}).examples["train"].height == 1
    assert list(read_msl(folder / "test.csv").examples) == ["test"]
    with pytest.raises(ValueError, match=r"parts names \['valid'\]"):
        read_msl(folder, parts={"valid": "test.csv"})


def test_the_fuller_file_of_names_comes_first(folder):
    (folder / "id2name4Rec.json").write_text(json.dumps(TITLES | {"9": "Lamp"}))
    assert read_msl(folder).interactions.titles()["9"] == "Lamp"
    assert "9" not in read_msl(folder, names="id2name.json").interactions.titles()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('7,"[3, x]",30', r"row 2: .* list such as \[4, 8, 15\].*'\[3, x\]'"),
        ("7,[],30", r"row 2: "),
        ('7,"[3, 2]",', r"row 2: "),
        (',"[3, 2]",30', r"row 2: "),
        ('7,"__import__(""os"")",30', r"row 2: "),
        ('7,"[3, 2]",30,9', r"line 3: there are 4 fields"),
    ],
)
def test_a_row_of_another_form_is_named(folder, row, message):
    (folder / "train.csv").write_text(HEADER + '7,"[3, 2]",30\n' + row + "\n")
    with pytest.raises(ValueError, match=rf"train\.csv, {message}"):
        read_msl(folder)


@pytest.mark.parametrize("names", ["[]", '{"1": 2}', "[" * 100_000, "{"])
def test_names_of_another_form_are_refused(folder, names):
    (folder / "id2name.json").write_text(names)
    with pytest.raises(ValueError, match=r"id2name\.json"):
        read_msl(folder)


def test_what_is_missing_is_named(folder):
    (folder / "id2name.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"does not hold id2name4Rec\.json or id2name\.json"):
        read_msl(folder)
    (folder / "id2name.json").write_text("{}")
    for path in folder.glob("*.csv"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"does not hold train\.csv or valid\.csv or test\.csv"):
        read_msl(folder)


@pytest.mark.parametrize("name", ["Office", "Clothing"])
def test_real_windows_are_what_plain_python_reads(shared, name):
    folder = shared / "amazon-msl" / name
    data, examples = read_msl(folder)
    titles = json.loads(next(folder.glob("*.json")).read_text(encoding="utf-8"))
    first = {title: item for item, title in reversed(titles.items())}
    assert data.titles() == {item: title for title, item in first.items()}
    entries = targets = 0
    pairs = set()
    for part, stem in {"train": "train", "validation": "valid", "test": "test"}.items():
        expected = []
        for path in folder.glob(f"{stem}*.csv"):
            with path.open(newline="") as file:
                for row in csv.DictReader(file):
                    *history, target = map(str, ast.literal_eval(row["item_ids"]))
                    known = [first[titles[item]] for item in history if item in titles]
                    entries += len(history) - len(known)
                    if target not in titles:
                        targets += 1
                        continue
                    expected.append((row["user_id"], known, first[titles[target]], int(row["timestamp"])))
                    pairs.update((row["user_id"], item) for item in (*known, first[titles[target]]))
        assert (part in examples) == bool(expected)
        if expected:
            assert examples[part].rows() == expected
    assert data.interactions.height == len(pairs)
    assert data.dropped.get("entries of histories without a title", 0) == entries
    assert data.dropped.get("examples whose target has no title", 0) == targets
    assert (entries, targets) == ((132, 51) if name == "Office" else (0, 0))
