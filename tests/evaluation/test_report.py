import pytest
from peft import LoraConfig, get_peft_model
from support import make_model, make_tokenizer, make_users

from dmpo_trl.evaluation.ranking import rank_by_popularity, rank_with_model
from dmpo_trl.evaluation.report import evaluate_model, rank_beside_baselines

POPULARITY = {"0": 3, "4": 2}


@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_a_folder_is_ranked_beside_its_baselines(tmp_path, kind):
    model, tokenizer, users = make_model(), make_tokenizer(), make_users(5)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    if kind == "adapter":
        from_disk = make_model().from_pretrained(tmp_path / "model")
        adapter = LoraConfig(target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        model = get_peft_model(from_disk, adapter).eval()
        model.save_pretrained(tmp_path / "adapter")
    results = evaluate_model(str(tmp_path / kind), users, POPULARITY)
    assert list(results) == ["random", "popularity", "sum", "mean"]
    for score in ("sum", "mean"):
        expected = rank_with_model(model, tokenizer, users, score=score, name=score)
        assert results[score].name == score
        for found, own in zip(results[score].scores, expected.scores, strict=True):
            assert found == pytest.approx(own, abs=1e-5)
    assert results["popularity"].metrics() == rank_by_popularity(users, POPULARITY).metrics()
    assert results["random"].metrics(["auc"]) == {"auc": 0.5}
    results["sum"].minus(results["popularity"])  # of the same users


def test_a_batch_without_tokens_is_refused_before_the_model_is_loaded():
    with pytest.raises(ValueError, match="`tokens_per_batch` must be at least 1, got 0"):
        evaluate_model("no such model", make_users(2), POPULARITY, tokens_per_batch=0)


def test_faulty_candidates_are_refused_before_the_model_scores_any(monkeypatch):
    users = make_users(3).map(lambda row: {"items": [row["items"][0], *row["items"][:-1]]})
    monkeypatch.setattr("dmpo_trl.evaluation.report.score_candidates", lambda *_, **__: pytest.fail("scored"))
    with pytest.raises(ValueError, match="User 'u0': the candidate '0' is listed 2 times"):
        rank_beside_baselines(make_model(), make_tokenizer(), users, POPULARITY)
