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
        "timestamp": pl.Float64,
        "rating": pl.Float64,
    }
    assert data.interactions.height == 6
    assert data.interactions.filter(user="u1", item="i2").row(0) == ("u1", "i2", 200.0, 3.0)


def test_titles_can_stay_as_filed(recbole_folder):
    data = read_recbole(recbole_folder, title_field="movie_title", natural_titles=False)
    assert data.titles()["i2"] == "Bug's Life, A"


def test_what_is_no_number_is_counted(recbole_folder):
    with (recbole_folder / "tiny.inter").open("a") as file:
        file.write("u3\ti1\tgood\t100\nu3\ti2\t5\nu3\ti3\t5\t100\n")
    data = read_recbole(recbole_folder, title_field="movie_title")
    assert data.interactions.height == 7
    assert data.dropped == {"interactions with an empty field": 2}


def test_ratings_are_optional(recbole_folder):
    (recbole_folder / "tiny.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\nu1\ti1\t1\n")
    data = read_recbole(recbole_folder, title_field="movie_title")
    assert data.interactions.columns == ["user", "item", "timestamp"]


def test_missing_file_is_named(recbole_folder):
    (recbole_folder / "tiny.item").unlink()
    with pytest.raises(FileNotFoundError, match=r"exactly one \.item file.*found: none"):
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
    with pytest.raises(ValueError, match="not a tab-separated file in UTF-8"):
        read_recbole(recbole_folder, title_field="movie_title")


def test_rows_with_too_many_fields_are_refused(recbole_folder):
    with (recbole_folder / "tiny.inter").open("a") as file:
        file.write("u3\ti1\t5\t100\tmore\n")
    with pytest.raises(ValueError, match="not a tab-separated file"):
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
