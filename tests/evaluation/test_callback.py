import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from datasets import Dataset
from peft import LoraConfig
from support import SCRIPTS, cpu_environment, make_model, make_tokenizer, make_users
from transformers import EarlyStoppingCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from dmpo_trl import DMPOConfig, DMPOTrainer
from dmpo_trl.evaluation.callback import RankingCallback
from dmpo_trl.evaluation.ranking import rank_with_model
from dmpo_trl.modeling import probe

USERS = make_users(12)
# Trained to prefer the users' own targets, at a rate at which the ranking changes from step to step
ROWS = Dataset.from_list(
    [
        {
            "prompt": row["prompt"],
            "chosen": row["candidates"][row["positive"]],
            "rejected": [text for text in row["candidates"] if text != row["candidates"][row["positive"]]],
        }
        for row in USERS
    ]
)
OPTIONS = {
    "bf16": False,
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 4,
    "max_steps": 6,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "logging_steps": 1,
}
BEST = {
    "save_strategy": "steps",
    "save_steps": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_ndcg@5",
    "greater_is_better": True,
}


def make_trainer(kind, tmp_path, callbacks, peft_config=None, **options):
    model, tokenizer = make_model(), make_tokenizer()
    if kind is SFTTrainer:
        data = ROWS.select_columns(["prompt", "chosen"]).rename_column("chosen", "completion")
        args, more = SFTConfig(str(tmp_path), **OPTIONS | options), {}
    else:
        data, args = ROWS, DMPOConfig(str(tmp_path), **OPTIONS | options)
        more = {} if peft_config else {"ref_model": make_model()}
    return kind(
        model,
        args=args,
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokenizer,
        callbacks=callbacks,
        peft_config=peft_config,
        **more,
    )


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize("kind", [DMPOTrainer, SFTTrainer])
def test_the_best_checkpoint_is_the_one_that_ranks_best(tmp_path, kind):
    callback = RankingCallback(USERS, score="sum", metrics=["hr@1", "ndcg@5", "pooled_auc"])
    trainer = make_trainer(kind, tmp_path, [callback], **BEST)
    trainer.train()
    values = logged(trainer, "eval_ndcg@5")
    assert len(values) == 3
    assert len(set(values)) > 1
    assert trainer.state.best_metric == max(values)
    assert [len(logged(trainer, f"eval_{name}")) for name in ("hr@1", "pooled_auc", "loss")] == [3, 3, 3]
    # What was loaded at the end ranks as the best one did
    now = rank_with_model(trainer.model, make_tokenizer(), USERS, score="sum", name="best")
    assert now.metrics(["ndcg@5"])["ndcg@5"] == pytest.approx(max(values))
    metrics = trainer.evaluate()
    assert metrics["eval_ndcg@5"] == pytest.approx(max(values))
    assert callback.result.per_user("ndcg@5") == pytest.approx(now.per_user("ndcg@5"))


class Witness(TrainerCallback):
    """Notes the model's state at each step and where ranking leaves it."""

    def __init__(self):
        self.training, self.attention = [], []

    def on_evaluate(self, args, state, control, model, **kwargs):
        self.attention.append(model.config._attn_implementation)

    def on_step_end(self, args, state, control, model, **kwargs):
        self.training.append(model.training)


@pytest.mark.parametrize("kind", [DMPOTrainer, SFTTrainer])
def test_training_is_not_disturbed(tmp_path, kind):
    """The same losses with ranking as without it, and the same attention."""
    losses = []
    for callbacks in ([], [RankingCallback(USERS, score="mean")]):
        witness = Witness()
        trainer = make_trainer(kind, tmp_path, [*callbacks, witness])
        attention = trainer.model.config._attn_implementation
        trainer.train()
        losses.append(logged(trainer, "loss"))
        assert witness.training == [True] * 6
        assert witness.attention == [attention] * 3
    assert len(losses[0]) == 6
    assert losses[0] == losses[1]


@pytest.mark.parametrize("bf16", [False, True])
def test_the_model_is_probed_once_and_scored_by_its_head(tmp_path, bf16, monkeypatch, caplog):
    """Not anew at each evaluation; and not by what autocast makes of its logits."""
    probes = []
    own = probe._trie_obstacle
    monkeypatch.setattr(probe, "_trie_obstacle", lambda *models: probes.append(1) or own(*models))
    trainer = make_trainer(SFTTrainer, tmp_path, [RankingCallback(USERS, score="mean")], bf16=bf16)
    trainer.train()
    assert len(logged(trainer, "eval_ndcg@5")) == 3
    assert probes == [1]
    assert "Prefix sharing is off" not in caplog.text
    assert not trainer.model.scores_own_logits


def test_an_adapter_is_ranked_with_its_adapter(tmp_path):
    callback = RankingCallback(USERS, score="mean", metrics=["auc"])
    adapter = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = make_trainer(DMPOTrainer, tmp_path, [callback], peft_config=adapter)
    trainer.train()
    with_adapter, base = (
        rank_with_model(model, make_tokenizer(), USERS, score="mean", name="x")
        for model in (trainer.model, make_model())
    )
    assert [own.tolist() for own in callback.result.scores] == [own.tolist() for own in with_adapter.scores]
    assert callback.result.metrics(["auc"]) != base.metrics(["auc"])


def test_reports_get_the_figures_through_the_trainer(tmp_path):
    class Report(TrainerCallback):
        def __init__(self):
            self.logs = []

        def on_log(self, args, state, control, logs, **kwargs):
            self.logs.append(dict(logs))

    report = Report()
    trainer = make_trainer(DMPOTrainer, tmp_path, [report])
    trainer.add_callback(RankingCallback(USERS, score="mean", metrics=["ndcg@5"], trainer=trainer))
    trainer.train()
    seen = [logs["eval_ndcg@5"] for logs in report.logs if "eval_ndcg@5" in logs]
    assert len(seen) == 3
    assert logged(trainer, "eval_ndcg@5") == seen


@pytest.mark.parametrize("first", ["early stopping", "ranking"])
@pytest.mark.parametrize("kind", [DMPOTrainer, SFTTrainer])
def test_early_stopping_finds_the_metrics_in_either_order(tmp_path, kind, first):
    """Nothing is learnt at a learning rate of 0, so that the third evaluation stops the run."""
    options = BEST | {"learning_rate": 0.0, "max_steps": 12}
    early = EarlyStoppingCallback(2)
    trainer = make_trainer(kind, tmp_path, [early] if first == "early stopping" else None, **options)
    trainer.add_callback(RankingCallback(USERS, score="sum", metrics=["ndcg@5"], trainer=trainer))
    if first == "ranking":
        trainer.add_callback(early)
    others = [callback for callback in trainer.callback_handler.callbacks if not isinstance(callback, RankingCallback)]
    trainer.train()
    assert trainer.state.global_step == 6
    assert trainer.callback_handler.callbacks[1:] == others  # whose order stays


def test_no_users_is_an_error():
    with pytest.raises(ValueError, match="no users to rank"):
        RankingCallback(USERS.select([]), score="sum")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "median"}, "'sum' or 'mean', not 'median'"),
        ({"score": "sum", "tokens_per_batch": 0}, "`tokens_per_batch` must be at least 1"),
        ({"score": "sum", "metrics": ["hr@1", "map@5"]}, r"Unknown metric 'map@5'.*map@k is mrr@k"),
    ],
)
def test_faulty_options_are_refused_before_training(options, message):
    with pytest.raises(ValueError, match=message):
        RankingCallback(USERS, **options)


HISTORY = [
    {"step": 5, "loss": 2.0},
    {"step": 5, "eval_loss": 1.5, "eval_hr@1": 0.5, "eval_pooled_auc": 0.75},
    {"step": 1500, "eval_hr@1": 0.25, "eval_pooled_auc": 0.625},  # logged through the trainer: without the loss
    {"step": 2000, "eval_loss": 1.0},  # an evaluation before the callback was added
]


def card_section(best_step, history=HISTORY, users=USERS, score="mean"):
    callback = RankingCallback(users, score=score, metrics=["hr@1", "pooled_auc"])
    return callback.card_section(history, best_step, "eval_hr@1")


def test_the_card_has_the_best_step_and_the_last():
    assert card_section(5) == (
        "## Ranking\n\n"
        "12 users were ranked during training among 3 to 7 candidates, by log-prob (mean per token). The best step is "
        "that of `eval_hr@1`.\n\n"
        "|  | hr@1 | pooled_auc |\n| --- | --- | --- |\n"
        "| best, step 5 | 0.500 | 0.750 |\n| last, step 1,500 | 0.250 | 0.625 |"
    )


@pytest.mark.parametrize("best_step", [None, 1500, 7])
def test_the_card_has_the_last_step_alone_without_another_best_one(best_step):
    text = card_section(best_step, users=USERS.select([0]), score="sum")
    assert "1 user was ranked during training among 3 candidates, by log-prob (sum).\n" in text
    assert text.endswith("| --- | --- | --- |\n| last, step 1,500 | 0.250 | 0.625 |")


def test_the_card_says_nothing_where_nothing_was_ranked():
    assert card_section(5, history=[]) == card_section(5, history=HISTORY[:1]) == ""


@pytest.mark.parametrize(
    ("own", "trainers", "tie"), [(None, None, True), (None, False, False), (False, None, False), (True, False, True)]
)
def test_special_tokens_are_taken_as_in_training(own, trainers, tie):
    """Titles that differ in the text of the end-of-sequence token are two where it is text."""
    user = {"user": "u1", "items": ["1", "2"], "positive": 0, "prompt": "Next:", "candidates": ["Babe", "Babe</s>"]}
    callback = RankingCallback(Dataset.from_list([user]), score="sum", special_tokens_in_text=own)
    args = SimpleNamespace(special_tokens_in_text=trainers, disable_tqdm=True)
    state = SimpleNamespace(log_history=[{}])
    callback.on_evaluate(args, state, None, metrics={}, model=make_model(), processing_class=make_tokenizer())
    first, second = callback.result.scores[0]
    assert (first == second) == tie


def test_trackers_get_what_is_ranked(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    callback = RankingCallback(USERS, score="sum", metrics=["hr@1", "ndcg@5"])
    trainer = make_trainer(DMPOTrainer, tmp_path / "out", [callback], report_to="tensorboard")
    callback.trainer = trainer
    trainer.train()
    (folder,) = {file.parent for file in tmp_path.rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(folder)).Reload()
    for name in ("hr@1", "ndcg@5"):
        seen = [(event.step, event.value) for event in events.Scalars(f"eval/{name}")]
        assert [step for step, _ in seen] == [2, 4, 6]
        assert [value for _, value in seen] == pytest.approx(logged(trainer, f"eval_{name}"))
    assert len(events.Scalars("train/rewards/margins_min")) == 6


@pytest.mark.slow
def test_trackio_gets_what_is_ranked(tmp_path):
    """A run in a process of its own, with trackio's files in a folder of its own; nothing is sent anywhere."""
    pytest.importorskip("trackio")
    environment = cpu_environment() | {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "tracked_training.py"), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    for name in ("hr@1", "ndcg@5"):
        seen = [entry[f"eval/{name}"] for entry in found["tracked"] if f"eval/{name}" in entry]
        ranked = [entry[f"eval_{name}"] for entry in found["logged"] if f"eval_{name}" in entry]
        assert len(seen) == 2
        assert seen == pytest.approx(ranked)
    assert sum("train/rewards/margins_min" in entry for entry in found["tracked"]) == 4


def test_a_processor_of_text_and_images_ranks_by_its_tokenizer():
    """What a trainer of a model of text and images has as its `processing_class`."""
    model, tokenizer = make_model(), make_tokenizer()
    state, figures = SimpleNamespace(log_history=[{}]), []
    for processing_class in (tokenizer, SimpleNamespace(tokenizer=tokenizer)):
        callback = RankingCallback(USERS, score="sum")
        args = SimpleNamespace(disable_tqdm=True)
        callback.on_evaluate(args, state, None, metrics={}, model=model, processing_class=processing_class)
        figures.append(callback.result.metrics())
    assert figures[0] == figures[1]
