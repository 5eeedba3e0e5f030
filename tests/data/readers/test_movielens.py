import csv
import gzip
import io
import os
import zipfile
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmpo_trl.data import tidy_title
from dmpo_trl.data.readers._download import RemoteFile
from dmpo_trl.data.readers._titles import natural_title
from dmpo_trl.data.readers.movielens import MOVIELENS, read_movielens

MOVIES = {
    "1": ("Toy Story (1995)", "Animation|Comedy"),
    "2": ("Misérables, Les (1998)", "Drama"),
    "3": ("Trap: 11'09\"01, The (2002)", ""),
    "4": ("Never Rated (1999)", "Action|War"),
}
NATURAL = ["Toy Story (1995)", "Les Misérables (1998)", "The Trap: 11'09\"01 (2002)", "Never Rated (1999)"]
RATINGS = [(7, 1, 5, 978300760), (7, 2, 3, 978300761), (8, 3, 4, 978300000), (8, 1, 1, 978300001)]
FLAGS = (
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir Horror Musical "
    "Mystery Romance Sci-Fi Thriller War Western"
)


def write_100k(folder: Path, ratings=RATINGS, encoding="latin-1") -> list[Path]:
    (folder / "u.data").write_text("".join("\t".join(map(str, row)) + "\n" for row in ratings))
    with (folder / "u.item").open("w", encoding=encoding) as file:
        for item, (title, genres) in MOVIES.items():
            flags = [str(int(genre in genres.split("|"))) for genre in FLAGS.split()]
            file.write("|".join([item, title, "01-Jan-1995", "", "http://us.imdb.com/", *flags]) + "\n")
    return [folder / "u.data", folder / "u.item"]


def write_dat(folder: Path, ratings=RATINGS, encoding="latin-1") -> list[Path]:
    (folder / "ratings.dat").write_text("".join("::".join(map(str, row)) + "\n" for row in ratings))
    lines = (f"{item}::{title}::{genres}\n" for item, (title, genres) in MOVIES.items())
    (folder / "movies.dat").write_text("".join(lines), encoding=encoding)
    return [folder / "ratings.dat", folder / "movies.dat"]


def write_10m(folder: Path, ratings=RATINGS) -> list[Path]:
    return write_dat(folder, ratings, encoding="utf-8")


def write_csv(folder: Path, ratings=RATINGS, movies=MOVIES) -> list[Path]:
    for name, header, rows in [
        ("ratings.csv", "userId,movieId,rating,timestamp", ratings),
        ("movies.csv", "movieId,title,genres", [(item, *movie) for item, movie in movies.items()]),
    ]:
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)  # "\r\n", as GroupLens writes them
            writer.writerows([header.split(","), *rows])
    return [folder / "ratings.csv", folder / "movies.csv"]


@pytest.mark.parametrize("write", [write_100k, write_dat, write_10m, write_csv])
@pytest.mark.parametrize("form", ["folder", "zip", "compressed", "single file", "movies given"])
def test_every_format_reads_the_same(tmp_path, write, form):
    folder = tmp_path / "ml"
    folder.mkdir()
    files = write(folder)
    source = folder
    if form == "zip":
        source = tmp_path / "ml.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for file in files:
                archive.write(file, f"ml/{file.name}")
    elif form == "compressed":
        for file in files:
            file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
            file.unlink()
    elif form == "single file":
        source = files[0].rename(folder / "my.ratings")
        files[0] = source
    elif form == "movies given":
        source = files[1]
    data = read_movielens(source)
    assert data.items.columns == ["item", "title", "genres"]
    assert data.items["item"].to_list() == list(MOVIES)
    assert data.items["title"].to_list() == NATURAL
    assert data.items["genres"].to_list() == [genres for _, genres in MOVIES.values()]
    rows = data.interactions.select("user", "item", "rating", "timestamp").rows()
    assert sorted(rows) == sorted((str(user), str(item), rating, time) for user, item, rating, time in RATINGS)
    assert data.read == {"interactions": 4, "items": 4}
    assert data.dropped == {}
    assert data.order == "time"
    if form == "zip":
        assert data.files == (str(source),)
    elif form != "compressed":
        assert set(data.files) == set(map(str, files))


def test_titles_can_stay_as_filed(tmp_path):
    write_csv(tmp_path)
    assert read_movielens(tmp_path, natural_titles=False).items["title"].to_list() == [t for t, _ in MOVIES.values()]


def test_half_stars_and_columns_in_another_order(tmp_path):
    write_csv(tmp_path)
    (tmp_path / "ratings.csv").write_text('timestamp,"rating",movieId,userId\n99,0.5,1,7\n')
    row = read_movielens(tmp_path).interactions.row(0, named=True)
    assert row == {"user": "7", "item": "1", "rating": 0.5, "timestamp": 99}


TITLE = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp", "Zs"])).map(tidy_title).filter(bool)


@given(titles=st.lists(TITLE, min_size=1, unique=True))
def test_any_title_survives_a_csv(tmp_path_factory, titles):
    folder = tmp_path_factory.mktemp("ml")
    write_csv(folder, [(1, 0, 5, 1)], {str(item): (title, "Drama") for item, title in enumerate(titles)})
    assert read_movielens(folder, natural_titles=False).items["title"].to_list() == titles


@pytest.mark.parametrize(
    ("write", "bad"),
    [
        (write_100k, "9\t1\t5\n9\t1\tgood\t12\n\nx\t1\t5\t15\n"),
        (write_dat, "9::1::5\n9::1::good::12\n\n9:x:1::5::12\n"),
        (write_csv, "9,1,5\n9,1,good,12\n,,,\nx,1,5,12\n"),
    ],
)
def test_lines_that_are_no_ratings_are_counted(tmp_path, write, bad):
    ratings, _ = write(tmp_path)
    with ratings.open("a") as file:
        file.write(bad)
    data = read_movielens(tmp_path)
    assert data.interactions.height == 4
    assert data.read["interactions"] == 8
    assert data.dropped == {
        "interactions with an unreadable rating": 1,
        "interactions with an empty or unreadable field": 3,
    }


@pytest.mark.parametrize(
    ("write", "bad", "line"),
    [(write_100k, "9\t1\t5\t12\t1\n", 5), (write_dat, "9::1::5::12::1\n", 5), (write_csv, "9,1,5,12,1\n", 6)],
)
def test_a_rating_with_too_many_fields_is_named(tmp_path, write, bad, line):
    ratings, _ = write(tmp_path)
    with ratings.open("a") as file:
        file.write(bad)
    with pytest.raises(ValueError, match=rf"{ratings.name}, line {line}: a rating is .*Correct or remove it"):
        read_movielens(tmp_path)


@pytest.mark.parametrize(
    ("write", "bad"), [(write_100k, "5|No flags (1999)\n"), (write_dat, "5::Rocky::II::Drama\n"), (write_csv, "5,A\n")]
)
def test_a_movie_that_cannot_be_read_is_named(tmp_path, write, bad):
    _, movies = write(tmp_path)
    with movies.open("a") as file:
        file.write(bad)
    with pytest.raises(ValueError, match=rf"{movies.name}, line {5 + (write is write_csv)}: a movie has \d+ fields"):
        read_movielens(tmp_path)


@pytest.mark.parametrize("write", [write_100k, write_dat, write_csv])
def test_ratings_without_movies_name_the_file_with_the_titles(tmp_path, write):
    ratings, movies = write(tmp_path)
    movies.unlink()
    with pytest.raises(FileNotFoundError, match=rf"titles: they are in {movies.name} .*must lie beside it"):
        read_movielens(ratings)
    with pytest.raises(FileNotFoundError, match=rf"titles: they are in {movies.name} .*same folder or archive"):
        read_movielens(tmp_path)


def test_other_files_are_refused(tmp_path):
    write_csv(tmp_path)
    (tmp_path / "tags.csv").write_text("userId,movieId,tag,timestamp\n1,1,fun,12\n")
    with pytest.raises(ValueError, match=r"tags.csv: the columns \['rating'\] are missing; the first line names"):
        read_movielens(tmp_path / "tags.csv")
    (tmp_path / "notes.txt").write_text("hello\n")
    with pytest.raises(ValueError, match=r"notes\.txt does not hold MovieLens ratings.*'hello'"):
        read_movielens(tmp_path / "notes.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"does not hold ratings.csv or ratings.dat or u.data"):
        read_movielens(tmp_path / "empty")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Give either the path"),
        ({"path": "x", "download": True, "version": "1m"}, "Give either the path"),
        ({"path": "x", "version": "1m"}, "files of a local copy tell"),
        ({"download": True}, "one of 100k, 1m, 10m, 20m, 25m, 32m, latest-small; it is None"),
        ({"download": True, "version": "2m"}, "it is '2m'"),
    ],
)
def test_contradicting_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        read_movielens(**options)


def test_a_version_is_downloaded_from_its_publisher(tmp_path, monkeypatch):
    asked = []

    def fetch(self):
        asked.append(self.url)
        write_csv(tmp_path)
        return tmp_path

    monkeypatch.setattr(RemoteFile, "fetch", fetch)
    assert read_movielens(version="25m", download=True).interactions.height == 4
    assert asked == ["https://files.grouplens.org/datasets/movielens/ml-25m.zip"]
    assert all(file.checksum and "commercial use" in file.terms for file in MOVIELENS.values())


REAL = {
    "ml-100k": ("u.data", "u.item", "latin-1"),
    "ml-1m": ("sample_movielens_rating.dat", "movies.dat", "latin-1"),
    "ml-latest-small": ("ratings.csv", "movies.csv", "utf-8"),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files_read_as_plain_python_reads_them(name):
    root = os.environ.get("DMPO_TRL_SHARED_DATA")
    if not root:
        pytest.skip("DMPO_TRL_SHARED_DATA does not point to the folder with real data")
    ratings_file, movies_file, encoding = REAL[name]
    folder = Path(root) / name

    def rows(file):
        text = (folder / file).read_bytes().decode(encoding)
        if file.endswith(".csv"):
            return list(csv.reader(io.StringIO(text)))[1:]
        separator = {"u.data": "\t", "u.item": "|"}.get(file, "::")
        return [line.split(separator) for line in text.split("\n") if line]

    data = read_movielens(folder / ratings_file if name == "ml-1m" else folder)

    # The first item of each title stands for all of it; the latest rating of a user and title counts.
    titles, first = {}, {}
    for item, title, *_ in rows(movies_file):
        titles[item] = natural_title(" ".join(title.split()))
        first.setdefault(titles[item], item)
    latest = {}
    for user, item, rating, time in rows(ratings_file):
        pair = user, first[titles[item]]
        if pair not in latest or int(time) >= latest[pair][1]:
            latest[pair] = float(rating), int(time)
    assert data.read == {"interactions": len(rows(ratings_file)), "items": len(titles)}
    assert data.titles() == {item: title for title, item in first.items()}
    read = data.interactions.with_columns(pl.col("user", "item").cast(pl.String))
    assert {
        (user, item): (rating, time)
        for user, item, rating, time in read.select("user", "item", "rating", "timestamp").iter_rows()
    } == latest
    assert Counter(data.dropped) == Counter(
        {
            "items merged into another of the same title": len(titles) - len(first),
            "earlier interactions of a user with the same item": len(rows(ratings_file)) - len(latest),
        }
    )


@pytest.mark.parametrize("write", [write_100k, write_dat, write_csv])
def test_brackets_in_a_path_are_no_pattern(tmp_path, write):
    folder = tmp_path / "ml [1]*"
    folder.mkdir()
    write(folder)
    write(tmp_path)
    assert read_movielens(folder).interactions.height == read_movielens(tmp_path).interactions.height


@pytest.mark.parametrize(
    "lines",
    [
        ["7,1,5.0,978300760.0", "7,2,3.0,978300761.0", "8,3,4.0,978300000.0", "8,1,1.0,978300001.0"],
        ["7.0,1,5.0,2000-12-31 22:12:40", "7.0,2,3,2000-12-31T22:12:41Z", "8.0,3,4,2000-12-31", "8,1,1,978300001"],
        ['"7","1","5","978300760"', '"7","2"," 3 ","978300761.0"', "8,3,4,978300000", "8,1,1, 978300001 "],
    ],
)
def test_what_another_program_wrote_anew_is_read(tmp_path, lines):
    write_csv(tmp_path)
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + "\n".join(lines) + "\n")
    data = read_movielens(tmp_path)
    times = [978300760, 978300761, 978220800 if lines[2].endswith("-31") else 978300000, 978300001]
    expected = [(str(u), str(i), float(r), time) for (u, i, r, _), time in zip(RATINGS, times, strict=True)]
    assert sorted(data.interactions.select("user", "item", "rating", "timestamp").rows()) == sorted(expected)
    assert data.dropped == {}
    assert data.interactions.schema["timestamp"] == pl.Int64


def test_numbers_of_movies_may_have_been_written_as_floats(tmp_path):
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n10.0,Babe (1995),Comedy\n11.0,Heidi,Drama\n")
    (tmp_path / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n1.0,10.0,4.0,964982703.0\n2,11,5,964982704\n"
    )
    interactions = read_movielens(tmp_path)
    assert interactions.items["item"].to_list() == ["10", "11"]
    assert interactions.interactions["item"].to_list() == ["10", "11"]


def test_an_index_of_pandas_does_no_harm(tmp_path):
    write_csv(tmp_path)
    (tmp_path / "ratings.csv").write_text(
        ",userId,movieId,rating,timestamp\n0,7,1,5.0,978300760\n1,7,2,3.0,978300761\n"
    )
    assert read_movielens(tmp_path).interactions.height == 2


def test_unreadable_ratings_and_times_are_named(tmp_path, caplog):
    write_csv(tmp_path)
    rows = ["7,1,5.0,978300760", "7,2,good,978300761", "8,3,4.0,soon", "8,1,,978300001", "8,2,inf,978300001"]
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + "\n".join(rows) + "\n")
    data = read_movielens(tmp_path)
    assert data.read["interactions"] == 5
    assert data.interactions.height == 1
    assert data.dropped == {
        "interactions with an unreadable timestamp": 1,
        "interactions with an unreadable rating": 1,
        "interactions with an empty or unreadable field": 1,
        "interactions with a time or rating that is not a finite number": 1,
    }
    assert "1 of 5 rows have a timestamp that cannot be read, for example 'soon' in row 3" in caplog.text


def test_a_pipe_is_not_waited_for(tmp_path):
    write_csv(tmp_path)
    (tmp_path / "ratings.csv").unlink()
    os.mkfifo(tmp_path / "ratings.csv")
    with pytest.raises(ValueError, match=r"ratings\.csv is a pipe or a device; give a regular file"):
        read_movielens(tmp_path)


@pytest.mark.parametrize("name", ["ratings.csv", "movies.csv"])
def test_a_damaged_or_endless_file_is_named(tmp_path, name):
    write_csv(tmp_path)
    path = tmp_path / name
    whole = gzip.compress(path.read_bytes())
    path.unlink()
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=rf"{name}\.gz is damaged: Compressed file ended"):
        read_movielens(tmp_path)
    packed.write_bytes(gzip.compress(b"userId,movieId,rating,timestamp\n" + b"\0" * (17 << 20), 1))
    with pytest.raises(ValueError, match=rf"{name}\.gz, line 2: the line does not end within 16 MiB"):
        read_movielens(tmp_path)


@pytest.mark.parametrize("last", ['1,7,4.5,"', '1,7,4.5,"\n1,8,3,964982704\n', '"'])
def test_a_quote_that_does_not_end_is_named(tmp_path, last):
    write_csv(tmp_path)
    (tmp_path / "ratings.csv").write_text(f"userId,movieId,rating,timestamp\n1,2,4,964982703\n{last}")
    with pytest.raises(ValueError, match=r"ratings\.csv, line 3: "):
        read_movielens(tmp_path)


def test_packed_ratings_with_a_byte_too_many_are_read_or_named(tmp_path):
    """Python reads some that polars does not, and polars then raises an OSError without the path."""
    flags = "|".join("0" * 19)
    (tmp_path / "u.item").write_text(f"1|One (1990)|01-Jan-1990||x|{flags}\n2|Two (1991)|01-Jan-1991||x|{flags}\n")
    whole = gzip.compress(b"1\t1\t5\t100\n1\t2\t3\t200\n", mtime=0)
    messages = []
    for place in range(10, len(whole)):
        (tmp_path / "u.data.gz").write_bytes(whole[:place] + whole[place : place + 1] + whole[place:])
        try:
            assert read_movielens(tmp_path).interactions.height == 2
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 10
    assert all("u.data.gz" in message for message in messages)
