"""The real files as other programs write them: the same rows and titles as from the files themselves."""

import gzip
import html
import json

import pandas as pd
import polars as pl
import pytest

from dmpo_trl.data import read_amazon, read_movielens, read_recbole, read_table


def same(found, expected):
    columns = ["user", "item", "rating", "timestamp"]
    assert found.titles() == expected.titles()
    rows = [
        data.interactions.select(columns).cast({"user": pl.String, "item": pl.String}) for data in (found, expected)
    ]
    assert rows[0].equals(rows[1])
    assert (found.read, found.dropped) == (expected.read, expected.dropped)


@pytest.mark.parametrize("times", ["floats", "dates"])
def test_movielens_that_pandas_wrote_again(shared, tmp_path, times):
    folder = shared / "ml-latest-small"
    ratings = pd.read_csv(folder / "ratings.csv")
    stamps = ratings["timestamp"]
    ratings["timestamp"] = stamps.astype(float) if times == "floats" else pd.to_datetime(stamps, unit="s")
    ratings.to_csv(tmp_path / "ratings.csv")
    (tmp_path / "movies.csv").write_bytes((folder / "movies.csv").read_bytes())
    same(read_movielens(tmp_path), read_movielens(folder))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "latin-1"])
def test_movielens_as_tables_of_other_programs(shared, tmp_path, encoding):
    folder = shared / "ml-100k"
    expected = read_movielens(folder, natural_titles=False)
    lines = (folder / "u.item").read_text(encoding="latin-1").splitlines()
    films = [line.split("|")[:2] for line in lines]
    text = "movie;name\r\n" + "".join('{};"{}"\r\n'.format(item, title.replace('"', '""')) for item, title in films)
    (tmp_path / "films.csv.gz").write_bytes(gzip.compress(text.encode(encoding)))
    header = "user\tmovie\tstars\tat\n"
    (tmp_path / "views.tsv").write_text(header + (folder / "u.data").read_text())
    found = read_table(
        tmp_path / "views.tsv",
        tmp_path / "films.csv.gz",
        item="movie",
        rating="stars",
        timestamp="at",
        title="name",
        encoding="latin-1" if encoding == "latin-1" else None,
    )
    same(found, expected)


def test_movielens_1m_is_a_table_too(shared):
    films = (shared / "ml-1m" / "movies.dat").read_text(encoding="latin-1").splitlines()
    table = pl.DataFrame([film.split("::")[:2] for film in films], schema=["item", "title"], orient="row")
    expected = read_movielens(shared / "ml-1m" / "sample_movielens_rating.dat", natural_titles=False)
    rows = (shared / "ml-1m" / "sample_movielens_rating.dat").read_text().splitlines()
    views = pl.DataFrame(
        [row.split("::") for row in rows], schema=["user", "item", "rating", "timestamp"], orient="row"
    )
    same(read_table(views, table, rating="rating"), expected)


def test_recbole_in_parts(shared, tmp_path):
    header, *lines = (shared / "ml-100k-recbole" / "ml-100k.inter").read_text().splitlines(keepends=True)
    for part, chosen in {"train": lines[:80_000], "valid": lines[80_000:90_000], "test": lines[90_000:]}.items():
        text = header.replace("item_id", "product_id") + "".join(chosen)
        (tmp_path / f"ml-100k.{part}.inter").write_text(text)
    item = (shared / "ml-100k-recbole" / "ml-100k.item").read_text(encoding="utf-8")
    (tmp_path / "ml-100k.item").write_text(item.replace("item_id", "product_id", 1), encoding="utf-8")
    names = {"title_field": "movie_title", "year_field": "release_year"}
    same(
        read_recbole(tmp_path, item_field="product_id", **names),
        read_recbole(shared / "ml-100k-recbole", **names),
    )


def test_amazon_in_the_layout_of_2014(shared, tmp_path):
    folder = shared / "amazon2018-gift-cards"
    (tmp_path / "reviews_Gift_Cards_5.json.gz").write_bytes((folder / "Gift_Cards_5.json.gz").read_bytes())
    with gzip.open(folder / "meta_Gift_Cards.json.gz", "rt", encoding="utf-8") as file:
        products = [json.loads(line) for line in file]
    literals = "".join(f"{row!r}\n" for row in products).encode("utf-8")
    (tmp_path / "meta_Gift_Cards.json.gz").write_bytes(gzip.compress(literals, 1))
    found = read_amazon(tmp_path)
    same(found, read_amazon(folder))
    titles = {row["asin"]: " ".join(html.unescape(row["title"]).split()) for row in products}
    assert all(titles[item] == title for item, title in found.titles().items())
