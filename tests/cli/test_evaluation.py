"""The report of an evaluation, without one."""

import json

import pytest

from dmpo_trl.cli._evaluation import EvaluationReport, default_metrics
from dmpo_trl.evaluation import Interval


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
