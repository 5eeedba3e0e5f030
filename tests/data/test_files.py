import gzip
import lzma
import os
import random

import polars as pl
import pytest

from dmpo_trl.data import _files
from dmpo_trl.data._files import LINE_LIMIT, check_packed, open_binary
from dmpo_trl.data.readers.table import read_table

CUT = gzip.compress(random.Random(0).randbytes(1000), mtime=0)[:500]


@pytest.mark.parametrize(("ending", "pack"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)])
def test_files_are_unpacked_as_they_are_read(tmp_path, ending, pack):
    path = tmp_path / f"x{ending}"
    path.write_bytes(pack(b"one\ntwo\n" * 100_000))
    with open_binary(path) as file:
        assert next(file) == b"one\n"
        assert len(file.read()) == 799_996
    check_packed(path)


@pytest.mark.parametrize(
    ("ending", "data", "message"),
    [
        (".gz", gzip.compress(b"x" * 1000, mtime=0)[:-9], "Compressed file ended"),
        (
            ".gz",
            gzip.compress(random.Random(0).randbytes(1000), mtime=0)[:500] + b"\0" * 500,
            r"(invalid|CRC|Compressed|Error -3)",
        ),
        (".gz", b"<html>", "Not a gzipped file"),
        (".gz", gzip.compress(b"x", mtime=0) + b"junk", "Not a gzipped file"),
        (".xz", lzma.compress(os.urandom(1000))[:-9], "Compressed file ended"),
        (".xz", b"<html>", "Input format not supported"),
    ],
)
def test_damaged_files_are_named(tmp_path, ending, data, message):
    path = tmp_path / f"x{ending}"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"x{ending} is damaged: .*{message}.*Get it again"):
        check_packed(path)


@pytest.mark.parametrize("over", [0, 1])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_line_must_end(tmp_path, ending, over):
    path = tmp_path / f"x{ending}"
    data = b"short\n" + b"\0" * (LINE_LIMIT + over)
    path.write_bytes(gzip.compress(data, 1) if ending else data)
    with open_binary(path, lines=False) as file:
        assert len(file.read()) == len(data)
    with open_binary(path) as file:
        if over:
            with pytest.raises(ValueError, match=r"x(\.gz)?, line 2: the line does not end within 16 MiB"):
                list(file)
        else:
            assert len(list(file)) == 2


@pytest.mark.parametrize("over", [0, 1])
def test_a_file_that_unpacks_to_far_too_much_is_refused(tmp_path, monkeypatch, over):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(b"a,b\n" * 1_000_000))
    monkeypatch.setattr(_files, "RATIO_FROM", 4_000_000 - over)
    assert path.stat().st_size * _files.RATIO_LIMIT < 4_000_000
    if over:
        with pytest.raises(ValueError, match=r"x\.gz has [\d,]+ bytes and unpacks to more than 200 times as many"):
            check_packed(path)
    else:
        check_packed(path)


def test_endings_in_capitals_are_unpacked(tmp_path):
    (tmp_path / "a.json.XZ").write_bytes(lzma.compress(b"[]"))
    with open_binary(tmp_path / "a.json.XZ") as file:
        assert file.read() == b"[]"


@pytest.mark.parametrize("name", ["a.csv.GZ", "b.csv", "c.csv.gz"])
def test_gzip_is_known_by_its_bytes_too(tmp_path, name):
    text = b"user,item,timestamp\n1,2,3\n"
    (tmp_path / name).write_bytes(gzip.compress(text))
    with open_binary(tmp_path / name) as file:
        assert file.read() == text
    items = pl.DataFrame({"item": ["2"], "title": ["Alien"]})
    assert read_table(tmp_path / name, items).interactions.select("user", "item").rows() == [("1", "2")]
