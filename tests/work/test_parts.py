"""Parts of a run: what an interrupted run computed is taken, and nothing of another run."""

import logging
from copy import deepcopy

import numpy as np
import polars as pl
import pytest
import torch
from support import make_model, make_tokenizer
from support.users import TITLES, make_users

from dmpo_trl.evaluation import ResultParts, generate_items, score_candidates
from dmpo_trl.work import describe_scoring, parts


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "USERS_PER_PART", 3)


@pytest.fixture(scope="module")
def model():
    return make_model()


def over(folder, values, users=None, made_of="m1"):
    """What a run over 8 users returns, and the rows that it computed."""
    computed = []

    def compute(rows):
        computed.extend(rows)
        return [values[row] for row in rows]

    kept = ResultParts(folder)
    results = kept.over(
        compute,
        users or make_users(8),
        made_of={"model": made_of},
        to_frame=lambda own: pl.DataFrame({"value": own}),
        from_frame=lambda frame: frame["value"].to_list(),
    )
    return results, computed, kept.unused()


def test_a_run_goes_on_behind_the_parts_of_an_interrupted_one(tmp_path, caplog):
    values = np.random.default_rng(0).normal(size=8).tolist()
    assert over(tmp_path, values) == (values, list(range(8)), 0)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3
    files[1].unlink()
    caplog.set_level(logging.INFO, "dmpo_trl")
    results, computed, _ = over(tmp_path, values)
    assert results == values
    assert 0 < len(computed) <= 3
    assert f"{8 - len(computed)} of 8 users were done by an interrupted run ({tmp_path})." in caplog.text
    assert over(tmp_path, [0.0] * 8) == (values, [], 0)


def test_nothing_of_another_model_or_of_other_users_is_taken(tmp_path):
    over(tmp_path, [1.0] * 8)
    assert over(tmp_path, [2.0] * 8, made_of="m2") == ([2.0] * 8, list(range(8)), 3)
    others = make_users(8).map(lambda row: {"candidates": row["candidates"][::-1]})
    assert over(tmp_path, [3.0] * 8, users=others)[0] == [3.0] * 8
    assert over(tmp_path, [4.0] * 8)[0] == [1.0] * 8
    results, computed, _ = over(tmp_path, [5.0] * 8, users=make_users(7))
    assert (results, computed) == ([1.0] * 6 + [5.0], [6])


def test_a_damaged_part_is_computed_again(tmp_path, caplog):
    over(tmp_path, [1.0] * 8)
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:-9])
    assert over(tmp_path, [2.0] * 8)[:2] == ([2.0] * 8, list(range(8)))
    assert "is damaged; its users are computed again" in caplog.text


def test_without_a_folder_all_is_computed():
    assert over(None, [1.0] * 8) == ([1.0] * 8, list(range(8)), 0)


def test_scores_from_parts_are_those_that_were_computed(model, tmp_path, monkeypatch):
    arguments = (model, make_tokenizer(), make_users(8))
    first = score_candidates(*arguments, parts=ResultParts(tmp_path))
    monkeypatch.setattr("dmpo_trl.evaluation.ranking.stream_scores", lambda *_, **__: pytest.fail("scored again"))
    again = score_candidates(*arguments, parts=ResultParts(tmp_path))
    for one, other in zip(first, again, strict=True):
        assert one.logps.tobytes() == other.logps.tobytes()
        assert one.lengths.tolist() == other.lengths.tolist()
        assert one.by("mean").dtype == other.by("mean").dtype == float
    monkeypatch.undo()
    for one, other in zip(first, score_candidates(*arguments), strict=True):
        assert one.logps == pytest.approx(other.logps, abs=1e-4)


def test_generated_texts_from_parts_are_those_that_were_generated(model, tmp_path, monkeypatch):
    arguments = (model, make_tokenizer(), make_users(8), TITLES)
    first = generate_items(*arguments, name="one", parts=ResultParts(tmp_path))
    assert first.outputs == generate_items(*arguments, name="one").outputs
    monkeypatch.setattr(
        "dmpo_trl.evaluation.generation.generate_greedily", lambda *_, **__: pytest.fail("generated again")
    )
    assert generate_items(*arguments, name="one", parts=ResultParts(tmp_path)).outputs == first.outputs


def test_scoring_does_not_change_what_the_parts_are_named_by(model):
    fresh, tokenizer = deepcopy(model), make_tokenizer()
    before = describe_scoring(fresh, tokenizer, tokens_per_batch=64)
    score_candidates(fresh, tokenizer, make_users(3))
    assert describe_scoring(fresh, tokenizer, tokens_per_batch=64) == before
    assert describe_scoring(fresh, tokenizer, tokens_per_batch=32) != before
    tokenizer.chat_template = "{{ messages }}"
    assert describe_scoring(fresh, tokenizer, tokens_per_batch=64) != before
    with torch.no_grad():
        fresh.lm_head.weight[0, 0] += 1
    assert describe_scoring(fresh, make_tokenizer(), tokens_per_batch=64) != before
