"""The report of an evaluation, without one."""

import json
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from datasets import Dataset

from dmpo_trl.cli._evaluation import EvaluationReport, default_metrics
from dmpo_trl.cli._groups import Division, GroupTable, divide
from dmpo_trl.evaluation import Interval, RankingResult, text_table


@pytest.mark.parametrize(
    ("candidates", "metrics"),
    [
        (2, ["hr@1", "mrr", "auc"]),
        (5, ["hr@1", "mrr", "auc"]),
        (6, ["hr@1", "hr@5", "ndcg@5", "mrr", "auc"]),
        (10, ["hr@1", "hr@5", "ndcg@5", "mrr", "auc"]),
        (11, ["hr@1", "hr@5", "hr@10", "ndcg@5", "ndcg@10", "mrr", "auc"]),
    ],
)
def test_metrics_are_those_that_not_every_ranking_gets_right(candidates, metrics):
    assert default_metrics(candidates) == metrics


def test_a_figure_that_is_no_number_is_null_in_json():
    """The popularity lift is one where what the users chose has no popularity."""
    ranking = {"model": {"auc": Interval(0.5, 0.4, 0.6)}}
    report = EvaluationReport({"top_k": 5}, "About.", ranking, {}, {"model": {"popularity_lift@5": float("nan")}}, {})
    files = report.files()
    found = json.loads(files["metrics.json"], parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found["first"] == {"model": {"popularity_lift@5": None}}
    assert found["ranking"]["model"]["auc"] == {"mean": 0.5, "low": 0.4, "high": 0.6}
    assert files.keys() == {"table.md", "metrics.json", "metrics.csv"}
    assert "Differences" not in report.text()


def test_groups_are_one_metric_in_print_and_all_of_them_in_files():
    figure = Interval(0.5, 0.4, 0.6)
    ranking = {"model": {"auc": figure, "ndcg@5": figure}}
    division = Division("by age", {"young": np.arange(12), "old": np.array([12])})
    table = GroupTable(division, {"young": {"model": {"users": 12, "auc": Interval(0.3, 0.2, 0.4), "ndcg@5": figure}}})
    alone = GroupTable(Division("by place", {}, "all 13 users are here."), {})
    report = EvaluationReport({"top_k": 5}, "About.", ranking, {}, {}, {}, {"by_age": table, "by_place": alone})
    text = report.text()
    assert "ndcg@5 by age, and the number of users:\n\n       young (12)\nmodel  0.500 [0.400, 0.600]\n" in text
    assert "Not shown: old, with a single user, who gives no interval." in text
    assert text.index("About.") < text.index("by age") < text.index("Results by place: all 13 users are here.")
    files = report.files()
    assert "| model | 0.500 [0.400, 0.600] |" in files["table.md"]
    found = json.loads(files["metrics.json"])
    assert found["by_age"]["young"]["model"]["users"] == 12
    assert found["by_age"]["young"]["model"]["auc"] == {"mean": 0.3, "low": 0.2, "high": 0.4}
    assert found["by_place"] == {}
    assert found["notes"]["by_place"] == ["all 13 users are here."]
    frame = pl.read_csv(files["metrics.csv"].encode())
    assert frame.filter(table="by_age", group="young", name="model", metric="users")["mean"].to_list() == [12]
    assert frame.filter(table="ranking")["group"].to_list() == [None, None]


def test_a_gain_is_paired_within_each_group_of_two_or_more():
    users, items = [f"u{n}" for n in range(5)], [["a", "b"]] * 5
    scores = {"model": [1, 1, 0, 1, 1], "counts": [0, 1, 1, 1, 0]}  # of the target, against 0.5
    results = {
        name: RankingResult(name, users, [np.array([score, 0.5]) for score in own], [0] * 5, items)
        for name, own in scores.items()
    }
    division = Division("by age", {"young": np.array([0, 1]), "old": np.array([2, 3]), "one": np.array([4])})
    table = GroupTable.of(division, results, ["hr@1", "auc"], ("model", "counts"))
    (gains,) = table.gains.values()
    assert {group: gain.mean for group, gain in gains.items()} == {"young": 0.5, "old": -0.5}
    assert "model - counts" in "\n".join(table.parts(text_table))
    report = EvaluationReport({"top_k": 5}, "About.", {}, {}, {}, {}, {"by_age": table})
    found = json.loads(report.files()["metrics.json"])["gains"]["by_age"]["model - counts"]
    assert found["old"]["mean"] == -0.5
    assert found["old"].keys() == {"mean", "low", "high", "p_value"}
    assert GroupTable.of(division, results, ["pooled_auc"], ("model", "counts")).gains == {}


def prepared(targets, interactions):
    """What `divide` reads of a prepared folder, and users who had more and more items before."""
    rows = [
        {"user": f"u{n}", "items": [target, "x"], "positive": 0, "history": [], "seen": ["y"] * n}
        for n, target in enumerate(targets)
    ]
    folder = SimpleNamespace(
        has_interactions=interactions is not None,
        interactions=interactions,
        popularity=lambda: {"a": 9, "b": 5, "c": 0},
    )
    return folder, Dataset.from_list(rows)


def test_what_is_cold_is_what_no_training_example_shows():
    known = pl.DataFrame({"user": ["u", "u"], "item": ["a", "b"], "shown": [True, False]})
    found = divide(*prepared("aabbbbcc", known))
    assert found["by_target"].sizes == {"known": 2, "cold": 6}
    assert found["by_history"].sizes == {"0 to 4": 5, "5 to 9": 3}
    assert found["by_popularity"].sizes == {"had by 0 to 5": 6, "had by 9": 2}
    assert [division.notes for division in found.values()] == [[], [], []]


@pytest.mark.parametrize(
    ("targets", "interactions", "said"),
    [
        ("aa", pl.DataFrame({"user": ["u"], "item": ["a"], "shown": [True]}), "all 2 targets are known."),
        ("bc", pl.DataFrame({"user": ["u"], "item": ["a"], "shown": [True]}), "all 2 targets are cold."),
        ("bc", None, "not known, because an earlier version prepared the data. Prepare them again."),
    ],
)
def test_where_there_are_no_groups_words_say_why(targets, interactions, said):
    folder, users = prepared(targets, interactions)
    found = divide(folder, users)
    scores = RankingResult("r", ["u0", "u1"], [np.array([1.0, 0.0])] * 2, [0, 0], [["a", "x"]] * 2)
    tables = {name: GroupTable.of(division, {"r": scores}, ["auc"]) for name, division in found.items()}
    assert tables["by_target"].figures == tables["by_history"].figures == {}
    assert tables["by_target"].parts(str) == [
        f"Results by target, in a training example (known) or in none (cold): {said}"
    ]
    (history,) = tables["by_history"].parts(str)
    assert history.endswith("before the target: all 2 users had 0 to 4 items.")
