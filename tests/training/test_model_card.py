"""The model card: paper, citation, data, N, the ranking, and a quick start that runs."""

import re
from pathlib import Path

import polars as pl
import pytest
from datasets import Dataset, load_dataset
from peft import LoraConfig, get_peft_model
from support import make_model, make_tokenizer, make_users

from dmpo_trl import DMPOConfig, DMPOTrainer
from dmpo_trl.data import MOVIES
from dmpo_trl.evaluation import RankingCallback
from dmpo_trl.recommend import Recommender
from dmpo_trl.training.model_card import hub_dataset, is_own_card

ROWS = [
    {"prompt": f"Watched: {title}. Next:", "chosen": " Aliens", "rejected": [" Babe", " Heidi", " The Rock"][:count]}
    for title, count in [("Alien", 1), ("The Mask", 3), ("The Matrix", 1), ("Toy Story", 2)]
]


def make_trainer(folder, dataset=None, callbacks=None, model=None, peft_config=None, **options):
    if model is None:
        model = str(folder / "base")
        make_model().save_pretrained(model)
        make_tokenizer().save_pretrained(model)
    defaults = {"bf16": False, "use_cpu": True, "report_to": "none", "disable_tqdm": True, "max_steps": 2}
    return DMPOTrainer(
        model,
        args=DMPOConfig(str(folder / "out"), per_device_train_batch_size=4, **defaults | options),
        train_dataset=Dataset.from_list(ROWS) if dataset is None else dataset,
        eval_dataset=Dataset.from_list(ROWS) if callbacks else None,
        callbacks=callbacks,
        peft_config=peft_config,
    )


def card_of(trainer):
    return (Path(trainer.args.output_dir) / "README.md").read_text()


def run_quick_start(card, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert "Recommender.from_pretrained" in code
    exec(compile(code, "quick start", "exec"), {})
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("conversational", [False, True])
def test_the_quick_start_runs_on_the_trained_folder(tmp_path, capsys, conversational, lora):
    rows = ROWS
    if conversational:
        rows = [
            {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "chosen": [{"role": "assistant", "content": row["chosen"]}],
                "rejected": [[{"role": "assistant", "content": title}] for title in row["rejected"]],
            }
            for row in ROWS
        ]
    trainer = make_trainer(
        tmp_path, Dataset.from_list(rows), peft_config=LoraConfig(task_type="CAUSAL_LM") if lora else None
    )
    trainer.train()
    trainer.save_model()
    card = card_of(trainer)
    assert f"conversational={conversational}," in card
    capsys.readouterr()
    printed = run_quick_start(card, capsys)
    assert {line.split("  ")[-1] for line in printed} == {"Aliens (1986)", "Babe (1995)"}
    scores = [float(line.split()[0]) for line in printed]
    assert scores == sorted(scores, reverse=True)


def test_the_quick_start_needs_no_data_where_the_catalogue_is_saved(tmp_path, capsys):
    trainer = make_trainer(tmp_path, max_steps=1)
    items = pl.DataFrame({"item": ["7", "8", "9"], "title": ['Say "Hi"', "It's {Heidi}", "Babe"]})
    Recommender(trainer.model, trainer.processing_class, items, MOVIES, score="mean").save_catalogue(tmp_path / "out")
    trainer.train()
    trainer.save_model()
    card = card_of(trainer)
    assert "polars" not in card
    capsys.readouterr()
    titles = {line.split("  ")[-1] for line in run_quick_start(card, capsys)}
    assert titles == {"It's {Heidi}", "Babe"}


def test_the_card_has_paper_citation_data_and_n(tmp_path):
    (tmp_path / "films").mkdir()
    Dataset.from_list(ROWS).to_parquet(tmp_path / "films" / "train.parquet")
    trainer = make_trainer(tmp_path, load_dataset(str(tmp_path / "films"), split="train"), loss_type=["dmpo", "sft"])
    trainer.create_model_card("ours")
    card = card_of(trainer)
    assert "https://huggingface.co/papers/2405.16127" in card
    assert "@article{bai2024dmpo" in card
    assert "- Dataset: `films`, 4 examples.\n" in card
    assert "- Negatives per example (N): 1 to 3, 1.75 on average.\n" in card
    assert "`dmpo` + `sft`, beta = 0.1" in card
    assert "fine-tuned version of `base`" in card
    assert "time machine" not in card  # the question of TRL's chat
    assert "## Ranking" not in card
    headings = re.findall(r"^## .*$", card, re.MULTILINE)
    assert headings == ["## Quick start", "## Training data", "## Training procedure", "## Citations"]


def test_the_card_of_a_stream_has_the_mean_n_of_what_was_trained_on(tmp_path):
    trainer = make_trainer(tmp_path, Dataset.from_list(ROWS).to_iterable_dataset(), logging_steps=1, max_steps=1)
    trainer.train()
    trainer.create_model_card("ours")
    assert ", a stream.\n- Negatives per example (N): 1.75 on average.\n" in card_of(trainer)


def test_the_card_has_the_ranking_at_the_best_and_at_the_last_step(tmp_path):
    callback = RankingCallback(make_users(6), score="mean", metrics=["hr@1", "ndcg@5"])
    options = {
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "eval_steps": 1,
        "save_steps": 1,
        "max_steps": 4,
        "learning_rate": 5e-2,
        "metric_for_best_model": "eval_ndcg@5",
        "greater_is_better": True,
    }
    trainer = make_trainer(tmp_path, callbacks=[callback], **options)
    trainer.train()
    table = [line for line in card_of(trainer).splitlines() if line.startswith("| ")]
    logged = {entry["step"]: entry for entry in trainer.state.log_history if "eval_ndcg@5" in entry}
    best = max(logged, key=lambda step: (logged[step]["eval_ndcg@5"], -step))
    assert best != 4, "the test needs a best step that is not the last"
    rows = [(f"best, step {best}", logged[best]), ("last, step 4", logged[4])]
    expected = [f"| {name} | {entry['eval_hr@1']:.3f} | {entry['eval_ndcg@5']:.3f} |" for name, entry in rows]
    assert table == ["|  | hr@1 | ndcg@5 |", "| --- | --- | --- |", *expected]
    assert "6 users were ranked during training" in card_of(trainer)


def test_a_card_without_trls_heading_gets_the_sections_at_its_end(tmp_path, monkeypatch):
    def write(self, *_):
        (Path(self.args.output_dir)).mkdir(exist_ok=True)
        (Path(self.args.output_dir) / "README.md").write_text("# Another template\n")

    monkeypatch.setattr("trl.DPOTrainer.create_model_card", write)
    trainer = make_trainer(tmp_path)
    trainer.create_model_card("ours")
    assert re.findall(r"^#+ .*$", card_of(trainer), re.MULTILINE)[:2] == ["# Another template", "## Quick start"]


@pytest.mark.parametrize("before", ["", None])
def test_the_card_that_peft_leaves_is_replaced(tmp_path, before):
    model = get_peft_model(make_model(), LoraConfig(task_type="CAUSAL_LM"))
    if before is not None:
        (tmp_path / "README.md").write_text(before)
    assert is_own_card(tmp_path / "README.md")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").stat().st_size > 50
    assert is_own_card(tmp_path / "README.md")
    (tmp_path / "README.md").write_text("# My project\n")
    assert not is_own_card(tmp_path / "README.md")
    model.save_pretrained(tmp_path)  # peft adds its lines to it
    assert not is_own_card(tmp_path / "README.md")


def test_a_readme_of_others_stays_as_it_is(tmp_path, caplog):
    trainer = make_trainer(tmp_path)
    path = Path(trainer.args.output_dir) / "README.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text("# My project\n")
    trainer.create_model_card("ours")
    assert path.read_text() == "# My project\n"
    assert "README.md was not written by training and stays as it is; the model gets no card" in caplog.text
    path.write_text("")
    trainer.create_model_card("ours")
    trainer.create_model_card("ours")  # over its own
    assert "## Training data" in path.read_text()


def test_a_dataset_of_the_hub_is_named_and_linked(tmp_path):
    folder = tmp_path / "cache" / "some-org___films" / "default"
    folder.mkdir(parents=True)
    Dataset.from_list(ROWS).save_to_disk(folder)
    downloaded = Dataset.load_from_disk(folder)
    assert hub_dataset(downloaded) == "some-org/films"
    assert hub_dataset(Dataset.from_list(ROWS)) is None
    trainer = make_trainer(tmp_path, downloaded)
    trainer.create_model_card("ours")
    card = card_of(trainer)
    assert "datasets: some-org/films" in card
    assert "- Dataset: [some-org/films](https://huggingface.co/datasets/some-org/films), 4 examples." in card
