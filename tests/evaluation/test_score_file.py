"""Anybody's scores from a file: what they rank, and what is refused with the row."""

from datetime import date

import numpy as np
import polars as pl
import pytest
from datasets import Dataset

from dmpo_trl.evaluation import RankingResult, fuse, rank_by_file
from dmpo_trl.evaluation.score_file import read_scores, scores_of

USERS = Dataset.from_list(
    [
        {"user": "1", "items": ["10", "11", "12"], "positive": 1},
        {"user": "2", "items": ["12", "10"], "positive": 0},
    ]
)


def write(folder, rows):
    pl.DataFrame(rows, schema=["user", "item", "score"], orient="row", strict=False).write_parquet(
        folder / "s.parquet"
    )
    return folder / "s.parquet"


def test_identifiers_of_any_type_rank_by_their_scores(tmp_path):
    rows = [(1, 10, 0.1), (1, 11, 0.5), (1, 12, -3.0), (2, 10, 7.0), (2, 12, 1.0), (3, 10, 0.0)]
    result = rank_by_file(USERS, write(tmp_path, rows), name="theirs")
    assert [own.tolist() for own in result.scores] == [[0.1, 0.5, -3.0], [1.0, 7.0]]
    assert result.per_user("hr@1").tolist() == [1.0, 0.0]


def test_candidates_without_a_score_rank_last_and_are_counted(tmp_path, caplog):
    result = rank_by_file(USERS, write(tmp_path, [(1, 11, -5.0), (2, 10, 1.0)]), name="theirs")
    assert result.per_user("hr@1").tolist() == [1.0, 0.0]
    assert result.scores[0][0] == result.scores[0][2] < -5
    assert "3 of 5 candidates have no score" in caplog.text


@pytest.mark.parametrize("unit", [1e-9, 1e-3, 7.0, 1e3, 1e18])
@pytest.mark.parametrize("scores", [[3, 1, 2], [-3, -1, -2], [0, 0, 0], [5, 5, 5]])
def test_the_unit_of_the_scores_changes_no_fusion(tmp_path, unit, scores):
    users = Dataset.from_list([{"user": "1", "items": ["10", "11", "12", "13"], "positive": 0}])
    model = RankingResult("model", ["1"], [np.array([0.0, 2.0, 1.0, -1.0])], [0], [["10", "11", "12", "13"]])

    def fused(unit):
        rows = [(1, item, score * unit) for item, score in zip((10, 11, 12), scores, strict=True)]
        return fuse(model, rank_by_file(users, write(tmp_path, rows), name="theirs"), 1.0).scores[0]

    assert fused(unit).tolist() == pytest.approx(fused(1.0).tolist())
    assert fused(unit)[3] == fused(unit).min()


def test_candidates_without_a_score_are_as_far_below_the_lowest_as_that_is_below_the_highest():
    assert scores_of({"a": -2.0, "b": 1.0, "c": 0.0}, ["b", "d", "a"]).tolist() == [1.0, -5.0, -2.0]
    assert scores_of({"a": -2.0}, ["a", "d"]).tolist() == [-2.0, -4.0]
    assert scores_of({"a": 0.0}, ["a", "d"]).tolist() == [0.0, -1.0]


def test_a_path_is_no_pattern(tmp_path):
    folder = tmp_path / "run [1]"
    folder.mkdir()
    result = rank_by_file(USERS, write(folder, [(1, 11, 0.5), (2, 10, 7.0)]), name="theirs")
    assert result.per_user("hr@1").tolist() == [1.0, 0.0]


@pytest.mark.parametrize("score", [-1e300, -1e16, 1e17])
def test_candidates_without_a_score_rank_behind_those_of_any_size(tmp_path, score):
    result = rank_by_file(USERS, write(tmp_path, [(1, 11, score), (2, 12, score)]), name="theirs")
    assert result.per_user("hr@1").tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(1, 10, 0.1), (2, 10, None)], "row 1: the score is None"),
        ([(1, 10, 0.1), (None, 10, 1.0)], r"s\.parquet, row 1: the user is None\. Fill it in, or take the row out"),
        ([(1, 10, 0.1), (2, 10, 1.0), (2, None, 9.0)], "row 2: the item is None"),
        ([(1, 10, float("nan")), (2, 10, 1.0)], "row 0: the score is nan"),
        ([(1, 10, 0.1), (2, 10, 1.0), (1, 10, 0.2)], "user '1' and item '10' are listed more than once"),
        ([(1, 10, 0.1)], "1 of the 2 users to rank have no score of a candidate, for example '2'"),
        # Items numbered by another program: all candidates would tie
        ([(1, 0, 0.1), (1, 1, 0.3), (2, 10, 0.2)], "have no score of a candidate, for example '1'"),
    ],
)
def test_scores_that_rank_nothing_are_refused(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        rank_by_file(USERS, write(tmp_path, rows), name="theirs")


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.parquet is not a file"):
        rank_by_file(USERS, tmp_path / "nothing.parquet", name="theirs")
    (tmp_path / "text.parquet").write_text("user,item,score")
    with pytest.raises(ValueError, match="is not a Parquet file"):
        rank_by_file(USERS, tmp_path / "text.parquet", name="theirs")
    pl.DataFrame({"user": ["1"]}).write_parquet(tmp_path / "few.parquet")
    with pytest.raises(ValueError, match=r"has no column \['item', 'score'\]"):
        rank_by_file(USERS, tmp_path / "few.parquet", name="theirs")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": ["high", "low"]}, "the column `score` must hold numbers, it has String"),
        ({"score": [date(2020, 1, 1)] * 2}, "the column `score` must hold numbers, it has Date"),
        ({"score": [True, False]}, "the column `score` must hold numbers, it has Boolean"),
        ({"user": [["1"], ["2"]]}, r"the column `user` must hold texts or numbers, it has List\(String\)"),
        ({"item": [b"1", b"2"]}, "the column `item` must hold texts or numbers, it has Binary"),
        ({"score": [1, -(2**60) - 1]}, r"row 1: the score is -1152921504606846977, and a float cannot tell"),
    ],
)
def test_a_column_of_another_kind_is_named(tmp_path, change, message):
    rows = {"user": ["1", "2"], "item": ["10", "10"], "score": [0.5, 1.0]}
    pl.DataFrame(rows | change).write_parquet(tmp_path / "s.parquet")
    with pytest.raises(ValueError, match=message):
        read_scores(tmp_path / "s.parquet")


@pytest.mark.parametrize("kind", [pl.Int8, pl.UInt64, pl.Float32, pl.Decimal(10, 2)])
def test_numbers_of_any_kind_are_scores(tmp_path, kind):
    rows = {"user": ["1", "2"], "item": pl.Series(["10", "11"], dtype=pl.Categorical), "score": [5, 3]}
    pl.DataFrame(rows, schema_overrides={"score": kind}).write_parquet(tmp_path / "s.parquet")
    assert read_scores(tmp_path / "s.parquet") == {"1": {"10": 5.0}, "2": {"11": 3.0}}


def test_a_file_without_rows_scores_nobody(tmp_path):
    pl.DataFrame({"user": [], "item": [], "score": []}).write_parquet(tmp_path / "s.parquet")
    assert read_scores(tmp_path / "s.parquet") == {}
