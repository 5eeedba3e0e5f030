from dataclasses import asdict, replace

import numpy as np
import polars as pl
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from dmpo_trl.evaluation.metrics import METRICS
from dmpo_trl.evaluation.result import RankingResult

USERS = st.lists(
    st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=6).flatmap(
        lambda own: st.tuples(st.just(own), st.integers(0, len(own) - 1))
    ),
    min_size=1,
    max_size=5,
)


def make_result(users) -> RankingResult:
    scores, positives = [np.array(own) for own, _ in users], [positive for _, positive in users]
    items = [[f"item {place}" for place in range(len(own))] for own in scores]
    return RankingResult("a model", [f"u{i}" for i in range(len(users))], scores, positives, items)


@settings(deadline=None, max_examples=30)
@given(users=USERS)
def test_a_file_holds_the_whole_result(tmp_path_factory, users):
    result = make_result(users)
    path = tmp_path_factory.mktemp("results") / "new" / "result.parquet"
    result.to_parquet(path)
    read = RankingResult.from_parquet(path)
    assert (read.name, read.users, read.positives, read.items) == (
        result.name,
        result.users,
        result.positives,
        result.items,
    )
    assert [own.tolist() for own in read.scores] == [own.tolist() for own in result.scores]
    frame = pl.read_parquet(path)  # and any dataframe library reads every user's metrics
    for metric in METRICS:
        assert frame[metric].to_list() == result.per_user(metric).tolist()


def test_a_path_is_no_pattern(tmp_path):
    result = RankingResult("model", ["u1"], [np.array([1.0, 2.0])], [0], [["a", "b"]])
    result.to_parquet(tmp_path / "run [1]" / "model.parquet")
    assert RankingResult.from_parquet(tmp_path / "run [1]" / "model.parquet").users == ["u1"]


def test_other_files_are_refused(tmp_path):
    pl.DataFrame({"user": ["u"], "scores": [[1.0]]}).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=r"no column \['items', 'positive', 'ranker'\]"):
        RankingResult.from_parquet(tmp_path / "other.parquet")
    make_result([([1.0, 2.0], 0)] * 2).to_parquet(tmp_path / "result.parquet")
    two = pl.read_parquet(tmp_path / "result.parquet").with_columns(ranker=pl.Series(["b", "a"]))
    two.write_parquet(tmp_path / "two.parquet")
    with pytest.raises(ValueError, match=r"holds 2 rankers instead of one: \['a', 'b'\]"):
        RankingResult.from_parquet(tmp_path / "two.parquet")


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("positive", [None, 0], r"result\.parquet, row 0: a value is missing"),
        ("user", ["u", None], "row 1: a value is missing"),
        ("items", [["a", "b"], ["a", None]], "row 1: a value is missing"),
        ("scores", [[1.0, 2.0], [None, 1.0]], "row 1: a value is missing"),
        ("scores", [[1.0, 2.0], None], "row 1: a value is missing"),
        ("items", [[1, 2], [1, 2]], r"ranking: its column 'items' has List\(Int64\) instead of List\(String\)"),
        ("positive", ["a", "b"], "its column 'positive' has String instead of Int64"),
    ],
)
def test_a_file_of_something_else_is_named(tmp_path, column, values, message):
    make_result([([1.0, 2.0], 0)] * 2).to_parquet(tmp_path / "result.parquet")
    changed = pl.read_parquet(tmp_path / "result.parquet").with_columns(pl.Series(column, values))
    changed.write_parquet(tmp_path / "result.parquet")
    with pytest.raises(ValueError, match=message):
        RankingResult.from_parquet(tmp_path / "result.parquet")


def test_what_is_no_parquet_file_is_named(tmp_path):
    (tmp_path / "result.parquet").write_text("user,items")
    with pytest.raises(ValueError, match=r"result\.parquet is not a Parquet file"):
        RankingResult.from_parquet(tmp_path / "result.parquet")
    with pytest.raises(ValueError, match=r"none\.parquet is not a file. Name the Parquet file with the ranking"):
        RankingResult.from_parquet(tmp_path / "none.parquet")


def test_whole_numbers_are_scores_too(tmp_path):
    result = replace(make_result([([1.0, 2.0], 0)]), scores=[np.array([1, 2])])
    result.to_parquet(tmp_path / "result.parquet")
    assert RankingResult.from_parquet(tmp_path / "result.parquet").scores[0].tolist() == [1, 2]


@pytest.mark.parametrize("items", [[1, 2], ["a", None]])
def test_candidates_of_a_dataset_are_texts(items):
    users = Dataset.from_list([{"user": "u", "items": items, "positive": 0}])
    with pytest.raises(ValueError, match="Row 0: the candidates must be identifiers as text"):
        RankingResult.of("model", users, [np.array([1.0, 2.0])])


def test_pooled_auc_stands_among_the_metrics():
    # Within each user the positive wins; between users the scores are worlds apart
    result = make_result([([2.0, 1.0], 0), ([12.0, 11.0], 0)])
    assert result.metrics(["auc", "pooled_auc"]) == {"auc": 1, "pooled_auc": 0.75}
    intervals = result.intervals(["auc", "pooled_auc"])
    assert (intervals["auc"].mean, intervals["pooled_auc"].mean) == (1, 0.75)
    assert (intervals["pooled_auc"].low, intervals["pooled_auc"].high) == (0.75, 1)  # both users, or one twice


def test_ranks_are_computed_once():
    result = make_result([([2.0, 1.0], 0), ([1.0, 3.0], 0)])
    assert result.ranks is result.ranks
    assert replace(result, positives=[0, 1]).ranks.better.tolist() == [0, 0]  # not those of the original
    assert "ranks" not in asdict(result)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [np.array([1.0, 2.0]), np.array([np.nan, 2.0])]}, "User 'u1': the score of candidate 0 is NaN"),
        ({"scores": [np.array([1.0, 2.0])]}, r"one entry in each field; there are \{'users': 2, 'scores': 1,"),
        ({"items": [["a", "b"], ["a", "b", "c"]]}, "User 'u1': there are 2 scores, but 3 items"),
        ({"positives": [0, 2]}, "User 'u1': `positive` is 2"),
        ({"items": [["a", "b"], ["b", "b"]]}, "User 'u1': the candidate 'b' is listed 2 times"),
        ({"users": [], "scores": [], "positives": [], "items": []}, "no users to rank"),
    ],
)
def test_there_is_no_result_without_an_order(change, message):
    with pytest.raises(ValueError, match=message):
        replace(make_result([([1.0, 2.0], 0)] * 2), **change)


def test_candidates_are_compared_one_user_at_a_time():
    result = make_result([([2.0, 1.0], 0), ([1.0, 3.0], 0)])
    questions = result._questions()
    assert iter(questions) is questions  # not a list of every user's set of the whole catalogue
    assert list(questions) == [("item 0", {"item 0", "item 1"})] * 2
