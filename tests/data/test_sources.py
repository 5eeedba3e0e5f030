import gzip
import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from dmpo_trl.data._sources import open_source

CONTENT = {"ml/ratings.csv": b"r", "ml/README.txt": b"x", "ml/deep/movies.csv": b"m", "ml/deep/ratings.csv": b"deeper"}


def as_folder(path: Path, content: dict[str, bytes]) -> Path:
    for name, data in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def as_zip(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("ml")
        for name, data in content.items():
            archive.writestr(name, data)
    return path.with_suffix(".zip")


def as_tar(path: Path, content: dict[str, bytes]) -> Path:
    with tarfile.open(path.with_suffix(".tgz"), "w:gz") as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path.with_suffix(".tgz")


@pytest.mark.parametrize("make", [as_folder, as_zip, as_tar])
def test_files_are_found_by_their_base_names(tmp_path, make):
    source = make(tmp_path / "source", CONTENT)
    with open_source(source) as files:
        assert files.names == ["README.txt", "ratings.csv", "movies.csv", "ratings.csv"]
        assert files.need("ratings.csv").read_bytes() == b"r"  # the least deep
        assert files.find("none.csv", "movies.csv").read_bytes() == b"m"
        assert files.find("none.csv") is None
        assert files.need("movies.csv") == files.find("movies.csv")
        assert files.given is None
        if make is as_folder:
            assert files.used == (str(source / "ml/ratings.csv"), str(source / "ml/deep/movies.csv"))
        else:
            assert files.used == (str(source),)


@pytest.mark.parametrize("make", [as_zip, as_tar])
def test_only_what_is_asked_for_is_extracted_and_removed_at_the_end(tmp_path, monkeypatch, make):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    with open_source(make(tmp_path / "source", CONTENT)) as files:
        assert [path for path in scratch.rglob("*") if path.is_file()] == []
        path = files.need("movies.csv")
        assert [path for path in scratch.rglob("*") if path.is_file()] == [path]
    assert list(scratch.iterdir()) == []


def test_compressed_files_are_found_too(tmp_path):
    folder = as_folder(tmp_path / "source", {"meta.json.gz": gzip.compress(b"{}")})
    with open_source(folder) as files:
        assert files.need("meta.json").name == "meta.json.gz"


def test_a_single_file_brings_the_files_beside_it(tmp_path):
    folder = as_folder(tmp_path / "source", {**CONTENT, "ml/ratings.csv.gz": b"z"})
    with open_source(folder / "ml" / "ratings.csv.gz") as files:
        assert files.given == folder / "ml" / "ratings.csv.gz"
        assert files.need("ratings.csv") == files.given  # it was given, so it goes before its sibling
        assert files.need("README.txt").read_bytes() == b"x"
        assert files.find("movies.csv") is None  # deeper


def test_a_packed_file_brings_the_packed_files_of_its_name(tmp_path):
    content = dict.fromkeys(("x.inter.gz", "x.item.gz", "y.inter.gz", "y.item.gz"), b"")
    folder = as_folder(tmp_path / "source", content)
    with open_source(folder / "x.inter.gz") as files:
        assert files.ending(".item") == ["x.item"]
        assert files.need("x.item") == folder / "x.item.gz"


def test_what_is_missing_is_named(tmp_path):
    folder = as_folder(tmp_path, {f"file{number:02}": b"" for number in range(25)})
    with open_source(folder) as files, pytest.raises(FileNotFoundError) as error:
        files.need("a.csv", "b.csv")
    message = str(error.value)
    assert message.startswith(f"{tmp_path} does not hold a.csv or b.csv. It holds file00, file01, ")
    assert message.endswith("file19 and 5 more.")
    with (
        pytest.raises(FileNotFoundError, match=r"nowhere does not exist\. Give a folder, an archive"),
        open_source(tmp_path / "nowhere"),
    ):
        pass


def test_two_files_of_a_name_are_not_guessed_between(tmp_path):
    folder = as_folder(tmp_path, {"ml-1m/ratings.dat": b"1", "ml-10m/ratings.dat": b"10"})
    with open_source(folder) as files, pytest.raises(ValueError, match=r"ml-10m/ratings.dat and ml-1m/ratings.dat"):
        files.find("ratings.dat")


@pytest.mark.parametrize("make", [as_zip, as_tar])
@pytest.mark.parametrize("member", ["../../evil.csv", "/evil.csv", "..\\..\\evil.csv", "ml/../../../evil.csv"])
def test_no_path_leads_out_of_the_temporary_folder(tmp_path, monkeypatch, make, member):
    scratch = tmp_path / "a" / "b" / "scratch"
    scratch.mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    source = make(tmp_path / "source", {member: b"evil"})
    before = {path for path in tmp_path.rglob("*") if scratch not in path.parents}
    with open_source(source) as files:
        path = files.need("evil.csv")
        assert path.resolve().is_relative_to(scratch.resolve())
        assert path.read_bytes() == b"evil"
        assert {path for path in tmp_path.rglob("*") if scratch not in path.parents} == before
    assert not Path("/evil.csv").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_no_files(tmp_path, kind):
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    with tarfile.open(tmp_path / "source.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("ratings.csv")
        info.type, info.linkname = kind, str(secret)
        archive.addfile(info)
    with open_source(tmp_path / "source.tar.gz") as files:
        assert files.find("ratings.csv") is None


def test_links_in_a_zip_are_no_files(tmp_path):
    info = zipfile.ZipInfo("ratings.csv")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "source.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with open_source(tmp_path / "source.zip") as files:
        assert files.find("ratings.csv") is None


@pytest.mark.parametrize("make", [as_zip, as_tar])
@pytest.mark.parametrize("damage", ["cut", "no archive"])
def test_a_damaged_archive_is_named(tmp_path, make, damage):
    source = make(tmp_path / "source", {"ratings.csv": os.urandom(100_000)})
    source.write_bytes(source.read_bytes()[:50_000] if damage == "cut" else b"<html>Not found</html>")
    with (
        pytest.raises(ValueError, match=r"cannot be read as an archive.*Delete it and get it again"),
        open_source(source) as files,
    ):
        files.need("ratings.csv")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_member_is_named(tmp_path, method):
    source = tmp_path / "source.zip"
    with zipfile.ZipFile(source, "w", method) as archive:
        archive.writestr("ratings.csv", os.urandom(1000))
    data = bytearray(source.read_bytes())
    middle = data.find(b"ratings.csv") + 500
    data[middle] ^= 0xFF
    source.write_bytes(data)
    with open_source(source) as files, pytest.raises(ValueError, match="cannot be read as an archive"):
        files.need("ratings.csv")


def test_a_zip_with_a_member_without_a_name_is_named(tmp_path):
    # `zipfile` reads its index and fails with an IndexError at the name
    with zipfile.ZipFile(tmp_path / "source.zip", "w") as archive:
        archive.writestr("ratings.csv", b"user,item")
        archive.infolist()[0].filename = ""  # the index is written at the end
    with (
        pytest.raises(ValueError, match=r"source\.zip cannot be read as an archive.*Delete it and get it again"),
        open_source(tmp_path / "source.zip"),
    ):
        pass


def test_pipes_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "ratings.csv")
    (tmp_path / "movies.csv").write_text("m")
    for source in (tmp_path, tmp_path / "movies.csv"):
        with open_source(source) as files, pytest.raises(ValueError, match=r"ratings\.csv is a pipe or a device"):
            files.need("ratings.csv")
    with pytest.raises(ValueError, match=r"ratings\.csv is a pipe or a device"), open_source(tmp_path / "ratings.csv"):
        pass


def test_an_archive_without_its_beginning_is_named(tmp_path):
    source = as_zip(tmp_path / "source", {"ratings.csv": b"r" * 1000})
    source.write_bytes(source.read_bytes()[100:])
    message = r"source\.zip cannot be read as an archive"
    with pytest.raises(ValueError, match=message), open_source(source) as files:
        files.need("ratings.csv")
