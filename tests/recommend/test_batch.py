import polars as pl
import pytest

from dmpo_trl.recommend import Recommendation, UserHistory
from dmpo_trl.recommend.batch import write_recommendations


def last_of_the_history(batch):
    return [
        [Recommendation(item, f"title {item}", -float(rank)) for rank, item in enumerate(user.history[-2:])]
        for user in batch
    ]


def accept(user):
    pass


def test_batches_of_users_go_to_one_file_in_a_new_folder(tmp_path):
    batches = []

    def recommend(batch):
        batches.append([user.user for user in batch])
        return last_of_the_history(batch)

    users = [("a", ["1", "2", "3"]), UserHistory("b", ["4"], ["5"]), ("c", [])]
    path = tmp_path / "new" / "folder" / "all.parquet"
    assert write_recommendations(iter(users), path, 2, recommend=recommend, check=accept) == 3
    assert batches == [["a", "b"], ["c"]]
    assert list(path.parent.iterdir()) == [path]
    assert pl.read_parquet(path).rows() == [
        ("a", 1, "2", "title 2", 0.0),
        ("a", 2, "3", "title 3", -1.0),
        ("b", 1, "4", "title 4", 0.0),
    ]


def test_no_users_are_an_empty_file(tmp_path):
    path = tmp_path / "all.parquet"
    assert write_recommendations([], path, 2, recommend=last_of_the_history, check=accept) == 0
    assert pl.read_parquet(path).columns == ["user", "rank", "item", "title", "score"]


def test_a_faulty_user_is_named_before_its_batch_is_searched(tmp_path):
    def check(user):
        if "x" in user.seen:
            raise ValueError("seen: 'x' is unknown.")

    def recommend(batch):
        raise AssertionError("searched")

    users = [UserHistory("a", ["1"]), UserHistory("b", ["1"], ["x"])]
    with pytest.raises(ValueError, match=r"^user 'b': seen: 'x' is unknown"):
        write_recommendations(users, tmp_path / "all.parquet", 2, recommend=recommend, check=check)
    assert list(tmp_path.iterdir()) == []


def test_a_batch_has_at_least_one_user(tmp_path):
    with pytest.raises(ValueError, match="batch_size must be at least 1, it is 0"):
        write_recommendations([], tmp_path / "all.parquet", 0, recommend=last_of_the_history, check=accept)
