import gzip
import tarfile
import zipfile
from pathlib import Path

import polars as pl
import pytest

from dmpo_trl.data import read_recbole


def test_reads_typed_files(recbole_folder):
    data = read_recbole(recbole_folder, title_field="movie_title", year_field="release_year")
    assert data.titles() == {
        "i1": "Toy Story (1995)",
        "i2": "A Bug's Life (1998)",
        "i3": 'The Usual "Suspects (1995)',
        "i4": "unknown",
    }
    assert data.items.columns == ["item", "title", "class"]
    assert dict(data.interactions.schema) == {
        "user": pl.Categorical,
        "item": pl.Categorical,
        "timestamp": pl.Int64,
        "rating": pl.Float64,
    }
    assert data.interactions.height == 6
    assert data.interactions.filter(user="u1", item="i2").row(0) == ("u1", "i2", 200.0, 3.0)


def zipped(folder: Path) -> Path:
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for path in folder.iterdir():
            archive.write(path, f"ml/{path.name}")
    return folder.with_suffix(".zip")


def tarred(folder: Path, ending: str, mode: str) -> Path:
    path = folder.with_name(folder.name + ending)
    with tarfile.open(path, mode) as archive:
        archive.add(folder, "ml")
    return path


def packed(folder: Path) -> Path:
    for path in list(folder.iterdir()):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    return folder


@pytest.mark.parametrize(
    "source",
    [
        zipped,
        lambda folder: tarred(folder, ".tar", "w:"),
        lambda folder: tarred(folder, ".tar.gz", "w:gz"),
        lambda folder: folder / "tiny.inter",
        lambda folder: folder / "tiny.item",
        lambda folder: folder.parent,
        packed,
    ],
    ids=["zip", "tar", "tar.gz", "interactions", "items", "folder above", "packed"],
)
def test_folders_archives_and_files_give_the_same(recbole_folder, source):
    expected = read_recbole(recbole_folder, title_field="movie_title")
    path = source(recbole_folder)
    data = read_recbole(path, title_field="movie_title")
    assert data.interactions.equals(expected.interactions)
    assert data.items.equals(expected.items)
    assert all(Path(file).is_file() for file in data.files)
    assert len(data.files) == (1 if path.is_file() and path.suffix in (".zip", ".tar", ".gz") else 2)


def test_a_path_may_begin_at_home(recbole_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(recbole_folder.parent))
    assert read_recbole("~/tiny", title_field="movie_title").interactions.height == 6


def test_of_two_data_sets_the_nearer_or_the_one_named_is_read(recbole_folder):
    for name in ("other/small.inter", "other/small.item"):
        path = recbole_folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((recbole_folder / f"tiny{path.suffix}").read_bytes())
    assert read_recbole(recbole_folder, title_field="movie_title").files[0].endswith("tiny.inter")
    for path in (recbole_folder / "other").iterdir():
        path.rename(recbole_folder / path.name)
    with pytest.raises(FileNotFoundError, match=r"exactly one \.inter file.*found: small\.inter, tiny\.inter"):
        read_recbole(recbole_folder, title_field="movie_title")
    files = read_recbole(recbole_folder / "small.inter", title_field="movie_title").files
    assert [Path(file).name for file in files] == ["small.inter", "small.item"]


def test_titles_can_stay_as_filed(recbole_folder):
    data = read_recbole(recbole_folder, title_field="movie_title", natural_titles=False)
    assert data.titles()["i2"] == "Bug's Life, A"


def test_what_is_no_number_is_counted(recbole_folder):
    with (recbole_folder / "tiny.inter").open("a") as file:
        file.write("u3\ti1\tgood\t100\nu3\ti2\t5\nu3\ti3\t5\t100\n")
    data = read_recbole(recbole_folder, title_field="movie_title")
    assert data.interactions.height == 7
    assert data.dropped == {
        "interactions with an unreadable rating": 1,
        "interactions with an empty or unreadable field": 1,
    }


def test_ratings_are_optional(recbole_folder):
    (recbole_folder / "tiny.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\nu1\ti1\t1\n")
    data = read_recbole(recbole_folder, title_field="movie_title")
    assert data.interactions.columns == ["user", "item", "timestamp"]


def test_missing_file_is_named(recbole_folder):
    (recbole_folder / "tiny.item").unlink()
    with pytest.raises(FileNotFoundError, match=rf"exactly one \.item file .* in {recbole_folder}; found: none"):
        read_recbole(recbole_folder, title_field="movie_title")


def test_missing_field_is_named(recbole_folder):
    with pytest.raises(ValueError, match=r"tiny\.item: the fields \['name'\] are missing.*movie_title"):
        read_recbole(recbole_folder, title_field="name")


def test_untyped_header_is_refused(recbole_folder):
    (recbole_folder / "tiny.inter").write_text("user_id\titem_id\ttimestamp\nu1\ti1\t1\n")
    with pytest.raises(ValueError, match="the header has no type"):
        read_recbole(recbole_folder, title_field="movie_title")


def test_other_encodings_are_refused(recbole_folder):
    (recbole_folder / "tiny.item").write_bytes("item_id:token\tmovie_title:token_seq\ni1\tLéon\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"tiny\.item, line 2: the text is not UTF-8\. Save the file as UTF-8\.$"):
        read_recbole(recbole_folder, title_field="movie_title")


def test_rows_with_too_many_fields_are_refused(recbole_folder):
    with (recbole_folder / "tiny.inter").open("a") as file:
        file.write("u3\ti1\t5\t100\tmore\n")
    with pytest.raises(
        ValueError, match=r"tiny\.inter, line 8: there are 5 fields, the header names 4: .*\. Correct or remove it\.$"
    ):
        read_recbole(recbole_folder, title_field="movie_title")


def test_real_movielens_100k(real_recbole_folder):
    data = read_recbole(real_recbole_folder, title_field="movie_title", year_field="release_year")
    assert data.dropped == {
        "items merged into another of the same title": 18,
        "earlier interactions of a user with the same item": 307,
    }
    assert data.interactions.height == 100_000 - 307
    assert data.interactions["user"].n_unique() == 943
    titles = data.titles()
    assert len(titles) == 1682 - 18
    assert titles["1"] == "Toy Story (1995)"
    assert titles["12"] == "The Usual Suspects (1995)"
    assert titles["543"] == "Les Misérables (1995)"


STEAM = "user_id:token\tproduct_id:token\tplay_hours:float\ttimestamp:float\n7\ta\t0.5\t1.5e9\n7\tb\tx\t2\n"
STEAM_ITEMS = "app_name:token_seq\tproduct_id:token\nHalf-Life\ta\nPortal\tb\n"


def test_fields_can_have_other_names(tmp_path):
    (tmp_path / "steam.inter").write_text(STEAM)
    (tmp_path / "steam.item").write_text(STEAM_ITEMS)
    message = r"steam\.inter: the fields \['item_id'\] are missing; it has .*Say which they are with `item_field`\.$"
    with pytest.raises(ValueError, match=message):
        read_recbole(tmp_path, title_field="app_name")
    data = read_recbole(tmp_path, title_field="app_name", item_field="product_id")
    assert data.titles() == {"a": "Half-Life", "b": "Portal"}
    assert "rating" not in data.interactions.columns
    data = read_recbole(tmp_path, title_field="app_name", item_field="product_id", rating_field="play_hours")
    assert data.interactions.select("item", "rating").rows() == [("a", 0.5)]
    assert data.dropped == {"interactions with an unreadable rating": 1}


def test_plays_can_stand_for_times(tmp_path):
    (tmp_path / "x.inter").write_text("user_id:token\tartist_id:token\tweight:float\n2\t51\t13883\n2\t52\t11690\n")
    (tmp_path / "x.item").write_text("artist_id:token\tname:token_seq\n51\tDuran Duran\n52\tMorcheeba\n")
    names = {"title_field": "name", "item_field": "artist_id", "timestamp_field": "weight", "order": "plays"}
    data = read_recbole(tmp_path, **names)
    assert (data.order, data.interactions["item"].to_list()) == ("plays", ["52", "51"])
    with pytest.raises(ValueError, match=r"the fields \['timestamp'\] are missing; .* with `timestamp_field`"):
        read_recbole(tmp_path, title_field="name", item_field="artist_id")


@pytest.mark.parametrize("given", ["folder", "tiny.train.inter", "tiny.item"])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_benchmark_files_in_parts_are_put_together(recbole_folder, given, ending):
    whole = read_recbole(recbole_folder, title_field="movie_title")
    header, *lines = (recbole_folder / "tiny.inter").read_text().splitlines(keepends=True)
    (recbole_folder / "tiny.inter").unlink()
    for number, part in enumerate(("train", "valid", "test")):
        text = (header + "".join(lines[2 * number : 2 * number + 2])).encode()
        path = recbole_folder / f"tiny.{part}.inter{ending}"
        path.write_bytes(gzip.compress(text) if ending else text)
    name = given + ending if given.endswith(".inter") else given
    data = read_recbole(recbole_folder if given == "folder" else recbole_folder / name, title_field="movie_title")
    assert data.interactions.equals(whole.interactions)
    assert data.titles() == whole.titles()
    assert len(data.files) == 4
