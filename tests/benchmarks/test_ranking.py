"""The benchmark of ranking on a tiny model: that it runs, counts tokens rightly and stops where a side is wrong."""

import dataclasses

import pytest
from support import load_script, make_tokenizer, make_users, save_model

from dmpo_trl.evaluation.ranking import score_candidates


@pytest.fixture
def ranking(monkeypatch, tmp_path):
    save_model(tmp_path)
    with load_script("benchmarks/ranking.py") as module:
        monkeypatch.setattr(module, "make_users", lambda settings: make_users(settings.users))
        module.arguments = ["--model", str(tmp_path), "--users", "3", "--candidates", "4", "--rounds", "2"]
        yield module


def test_the_sides_agree_and_tokens_are_counted(ranking, capsys):
    ranking.main(ranking.arguments)
    printed = capsys.readouterr().out
    users, tokenizer = ranking.make_users(ranking.Settings(users=3)), make_tokenizer()
    prompts = [len(tokenizer(row["prompt"])["input_ids"]) for row in users]
    wholes = [
        len(tokenizer(row["prompt"] + title + "</s>")["input_ids"]) for row in users for title in row["candidates"]
    ]
    titles = sum(wholes) - sum(n * len(row["candidates"]) for n, row in zip(prompts, users, strict=True))
    assert ranking.count_tokens(tokenizer, users) == (sum(prompts), titles)
    assert "identical orders of the candidates" in printed
    assert printed.count("| separate |") == printed.count("| together |") == 1


@pytest.mark.parametrize(("factor", "message"), [(1.1, "scores differ by"), (float("nan"), "scores differ by nan")])
def test_a_side_that_computes_something_else_stops_the_run(ranking, monkeypatch, factor, message):
    def wrong(*args):
        return [dataclasses.replace(own, logps=own.logps * factor) for own in score_candidates(*args)]

    monkeypatch.setattr(ranking, "score_candidates", wrong)
    with pytest.raises(SystemExit, match=message):
        ranking.main(ranking.arguments)


def test_another_order_stops_the_run(ranking, monkeypatch):
    """Even where it is within the tolerance of a score."""
    monkeypatch.setattr(ranking, "TOLERANCE", 1e9)

    def wrong(*args):
        return [dataclasses.replace(own, logps=own.logps[::-1]) for own in score_candidates(*args)]

    monkeypatch.setattr(ranking, "score_candidates", wrong)
    with pytest.raises(SystemExit, match="rank differently by the sum"):
        ranking.main(ranking.arguments)
