"""A small run of the data benchmark, and what stops one."""

import subprocess
import sys

import polars as pl
import pytest
from support import load_script

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and peak memory in Linux's unit")


@pytest.fixture(scope="module")
def bench():
    with load_script("benchmarks/data.py") as module:
        yield module


@pytest.fixture(scope="module")
def made(bench, tmp_path_factory):
    """Both sides' files of both sources, made in this process."""
    folder = tmp_path_factory.mktemp("made")
    for source, write in (("movielens", bench.write_movielens), ("amazon", bench.write_amazon)):
        (folder / source).mkdir()
        write(folder / source, 3000)
        for side, run in (("pandas", bench.run_pandas), ("ours", bench.run_ours)):
            (folder / f"{source}-{side}").mkdir()
            run(source, folder / source, folder / f"{source}-{side}", 3)
    return folder


def sides(folder, source):
    return {side: folder / f"{source}-{side}" for side in ("pandas", "ours")}


@pytest.mark.parametrize("source", ["movielens", "amazon"])
def test_both_sides_make_the_same(bench, made, source):
    rows = pl.read_parquet(made / f"{source}-ours" / "preference.parquet")
    assert bench.check(source, made / source, sides(made, source), 3) == rows.height > 10
    assert all(len(rejected) == 3 for rejected in rows["rejected"])
    assert "&amp;" not in "".join(rows["prompt"])


def test_raw_files_are_as_large_as_asked(made):
    ratings = pl.read_csv(made / "movielens" / "ratings.csv")
    assert ratings.columns == ["userId", "movieId", "rating", "timestamp"]
    assert ratings.height == ratings.select("userId", "movieId").n_unique() == 3000
    reviews = pl.read_ndjson(made / "amazon" / "Made_Up_5.json.gz")
    assert reviews.height == 3000 > reviews.select("reviewerID", "asin").n_unique()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": pl.col("target").reverse()}, "different examples of movielens"),
        ({"negatives": pl.concat_list("target", pl.col("negatives").list.tail(2))}, "items that their user had"),
        ({"negatives": pl.concat_list([pl.col("negatives").list.first()] * 3)}, "repeated negatives"),
    ],
)
def test_a_side_that_makes_something_else_stops_the_run(bench, made, tmp_path, change, message):
    pl.read_parquet(made / "movielens-ours" / "examples.parquet").with_columns(**change).write_parquet(
        tmp_path / "examples.parquet"
    )
    with pytest.raises(SystemExit, match=message):
        bench.check("movielens", made / "movielens", sides(made, "movielens") | {"ours": tmp_path}, 3)


def test_another_text_stops_the_run(bench, made, tmp_path):
    for name in ("examples", "preference"):
        pl.read_parquet(made / "movielens-ours" / f"{name}.parquet").write_parquet(tmp_path / f"{name}.parquet")
    pl.read_parquet(tmp_path / "preference.parquet").with_columns(chosen=pl.lit("Alien")).write_parquet(
        tmp_path / "preference.parquet"
    )
    with pytest.raises(SystemExit, match="different text"):
        bench.check("movielens", made / "movielens", sides(made, "movielens") | {"ours": tmp_path}, 3)


def test_the_report_names_both_sides(bench, tmp_path, assert_can_be_appended):
    # As a script, because the fresh processes import it by its name
    arguments = ["--folder", str(tmp_path), "--ratings", "3000", "--reviews", "0", "--output", str(tmp_path)]
    done = subprocess.run([sys.executable, bench.__file__, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert_can_be_appended(tmp_path / "data.csv", "data.csv")
    rows = pl.read_csv(tmp_path / "data.csv")
    assert rows["side"].to_list() == ["pandas", "ours"]
    assert (rows["peak_gb"] > 0).all()
    assert done.stdout.count("| movielens |") == 2
