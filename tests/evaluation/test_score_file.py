"""Anybody's scores from a file: what they rank, and what is refused with the row."""

import polars as pl
import pytest
from datasets import Dataset

from dmpo_trl.evaluation import rank_by_file

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
    pl.DataFrame({"user": ["1"], "item": ["1"], "score": ["high"]}).write_parquet(tmp_path / "words.parquet")
    with pytest.raises(ValueError, match="`score` must hold numbers"):
        rank_by_file(USERS, tmp_path / "words.parquet", name="theirs")
