"""The whole script on a tiny model and data that can be learnt: good films are liked, bad ones are never had."""

import contextlib
import io
import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file
from support import ROOT, blocks, follow, load_script
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dmpo_trl.evaluation import RankingResult

EXAMPLES = Path(__file__).parents[2] / "examples"
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<eos>", "<pad>", "<|system|>", "<|user|>", "<|assistant|>"]
METRICS = {"hr@1", "hr@5", "ndcg@5", "mrr", "auc"}
RANKERS = {"random", "popularity", "item_knn", "popularity, all", "item_knn, all"}
RANKERS |= {"zero_shot", "sft", "sft_more", "dmpo", "dmpo + item_knn"}
SMALL = {
    "train_users": 40,
    "validation_users": 5,
    "tuning_users": 3,
    "positions": 3,
    "sft_epochs": 2,
    "test_users": 12,
    "history_length": 4,
    "negatives": 3,
    "candidates": 10,
    "lora_rank": 8,
    "batch_size": 4,
}


@pytest.fixture(scope="module")
def quickstart():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        with load_script("examples/quickstart.py") as module:
            yield module


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    items = [f"{i}\t{'Good' if i < 30 else 'Bad'} Film {i}\t{1960 + i % 40}" for i in range(90)]
    header = "item_id:token\tmovie_title:token_seq\trelease_year:token"
    (folder / "films.item").write_text("\n".join([header, *items]) + "\n")
    rng = np.random.default_rng(0)
    likes = [(u, i, t) for u in range(60) for t, i in enumerate(rng.choice(30, size=8, replace=False))]
    rows = [f"{user}\t{item}\t5\t{time}" for user, item, time in likes]
    (folder / "films.inter").write_text(
        "\n".join(["user_id:token\titem_id:token\trating:float\ttimestamp:float", *rows])
    )
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = [
        f"{kind} Film {i} ({1960 + i % 40})\nWhich film will the viewer like next?"
        for kind in ("Good", "Bad")
        for i in range(90)
    ]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained, eos_token="<eos>", pad_token="<pad>")
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=0,
        pad_token_id=1,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def finished(quickstart, data_folder, model_folder, tmp_path_factory) -> tuple[Path, dict, str]:
    """One run of the script: its output folder, metrics.json, and what it printed."""
    output = tmp_path_factory.mktemp("output")
    options = SMALL | {"model": model_folder, "data": data_folder, "output_dir": output}
    options |= {"sft_learning_rate": 1e-2, "dmpo_learning_rate": 1e-2, "dmpo_epochs": 2, "dtype": "float32"}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        metrics = run_main(quickstart, options)
    return output, metrics, printed.getvalue()


@pytest.fixture(scope="module")
def run(finished) -> tuple[Path, dict]:
    return finished[:2]


def run_main(quickstart, options: dict) -> dict:
    quickstart.main([text for name, value in options.items() for text in (f"--{name}", str(value))])
    return json.loads((options["output_dir"] / "metrics.json").read_text())


def test_metrics_have_the_agreed_keys(run):
    _, metrics = run
    assert metrics.keys() == RANKERS | {"intervals", "differences", "seconds", "settings"}
    for ranker in RANKERS:
        assert metrics[ranker].keys() == METRICS
        for metric, (low, high) in metrics["intervals"][ranker].items():
            assert 0 <= low <= metrics[ranker][metric] <= high <= 1
    assert {"train sft", "train sft_more", "train dmpo", "rank zero_shot", "rank dmpo"} <= metrics["seconds"].keys()
    assert metrics["settings"]["beta"] > 0


def test_random_choice_is_exact(run):
    _, metrics = run
    assert metrics["random"] == pytest.approx(
        {
            "hr@1": 1 / 10,
            "hr@5": 5 / 10,
            "ndcg@5": sum(1 / np.log2(1 + rank) for rank in range(1, 6)) / 10,
            "mrr": sum(1 / rank for rank in range(1, 11)) / 10,
            "auc": 0.5,
        }
    )


def test_the_recommender_learns_what_can_be_learnt(run):
    # A good film among nine others, 60 of 82 bad: the ideal ranker has an expected AUC of about 0.87. Such a short
    # training reaches 0.64 to 0.74, by the seed and by the order in which a processor adds up
    _, metrics = run
    assert metrics["popularity"]["auc"] > 0.75
    assert metrics["dmpo"]["auc"] > 0.6
    assert metrics["dmpo"]["auc"] > metrics["zero_shot"]["auc"] + 0.1


def test_plain_peft_loads_both_adapters(run, model_folder):
    output, _ = run
    for stage in ("sft", "sft_more", "dmpo"):
        base = AutoModelForCausalLM.from_pretrained(model_folder)
        model = PeftModel.from_pretrained(base, output / stage)
        assert list(model.peft_config) == ["default"]
        assert PeftConfig.from_pretrained(output / stage).base_model_name_or_path == str(model_folder)
    assert not (output / "dmpo" / "ref").exists()
    sft, dmpo = (load_file(output / stage / "adapter_model.safetensors") for stage in ("sft", "dmpo"))
    assert sft.keys() == dmpo.keys()
    assert any(not torch.equal(sft[name], dmpo[name]) for name in sft)


def test_the_picture_is_drawn(run):
    output, _ = run
    assert (output / "quickstart.png").read_bytes().startswith(b"\x89PNG")


def test_what_it_prints_fits_a_terminal_and_says_what_it_means(finished):
    _, metrics, printed = finished
    table = printed[printed.index("1 is best") : printed.index("What this means")]
    assert max(map(len, table.splitlines())) <= 100
    assert re.search(r"^dmpo             0\.\d{3} \[\d\.\d{3}, \d\.\d{3}\]  \d", table, re.MULTILINE)
    for name, other in [("sft", "zero_shot"), ("dmpo", "sft_more"), ("dmpo + item_knn", "item_knn")]:
        found = metrics["differences"][f"{name} - {other}"]["ndcg@5"]
        words = f"{name} and {other} cannot be told apart"
        if found["p_value"] < 0.05:
            words = f"{name} is {'better' if found['mean'] > 0 else 'worse'} than {other}"
        assert f"- {words}: ndcg@5 {found['mean']:+.3f} [" in printed
    # How long each training takes, once
    assert len(re.findall(r"^\d+\.\d s per step, steps left: \d+, about \d+\.\d minutes$", printed, re.M)) == 3


def test_the_command_that_it_ends_with_recommends(finished):
    output, _, printed = finished
    last = printed.strip().splitlines()[-1]
    command = shlex.split(last)
    assert command[command.index("recommend") + 1 :][:2] == ["--model", str(output / "dmpo")]
    done = subprocess.run(last, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^ *\d+\. (?:Good|Bad) Film", done.stdout, re.MULTILINE)) == 10
    saved = json.loads((output / "dmpo" / "recommender.json").read_text())
    assert saved["score"] == "sum"  # as in the table


def test_sft_goes_on_for_as_many_tokens_as_the_preference_stage_computed(quickstart, run):
    output, _ = run
    computed = {name: quickstart.tokens_computed(str(output / name)) for name in ("sft", "sft_more", "dmpo")}
    # Steps are whole; SFT did ten
    assert computed["sft_more"] == pytest.approx(computed["dmpo"], abs=1.5 * computed["sft"] / 10)


def test_the_picture_shows_every_ranker_and_both_margins(quickstart, tmp_path, monkeypatch):
    entry = {"loss": 0.7, "rewards/margins": 0.3, "rewards/margins_min": -0.1, "num_tokens": 90.0, "step": 3}
    state = {"log_history": [entry, {"train_runtime": 1}], "global_step": 4}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    assert quickstart.tokens_computed(str(tmp_path)) == 120
    rankings = {
        name: RankingResult(
            name, ["u1", "u2"], [np.array([2.0, 1.0]), np.array([1.0, place / 2])], [0, 0], [["a", "b"]] * 2
        )
        for place, name in enumerate(["random", "popularity", "item_knn, all", "dmpo", "dmpo + item_knn"])
    }
    pyplot = quickstart.import_pyplot()
    monkeypatch.setattr(pyplot, "close", lambda _: None)
    quickstart.draw(rankings, str(tmp_path), tmp_path / "quickstart.png")
    left, right = pyplot.gcf().axes
    monkeypatch.undo()
    pyplot.close("all")
    names = [label.get_text() for label in left.get_yticklabels()]
    assert sorted(names) == sorted(rankings.keys() - {"random"})
    shown = {names[int(own.lines[0].get_ydata()[0])]: own.lines[0].get_xdata()[0] for own in left.containers}
    assert shown == {name: pytest.approx(rankings[name].metrics(["ndcg@5"])["ndcg@5"]) for name in names}
    # A single point is seen too
    assert [(list(line.get_ydata()), line.get_marker()) for line in right.lines[:2]] == [([0.3], "o"), ([-0.1], "o")]


def test_a_run_of_one_step_is_drawn_too(quickstart, data_folder, model_folder, tmp_path, capsys):
    options = SMALL | {"model": model_folder, "data": data_folder, "output_dir": tmp_path, "train_users": 4}
    metrics = run_main(quickstart, options | {"sft_epochs": 1, "batch_size": 20})
    about = "12 test users, 10 candidates each; the models learned from 4 users and rank\nby the sum of the tokens'"
    assert about in capsys.readouterr().out
    assert metrics["dmpo"].keys() == METRICS
    assert (tmp_path / "quickstart.png").read_bytes().startswith(b"\x89PNG")


def test_the_tutorial_asks_what_the_run_left(finished, tmp_path, monkeypatch, capsys):
    page = ROOT / "docs" / "tutorials" / "laptop.md"
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "quickstart").symlink_to(finished[0])
    monkeypatch.chdir(tmp_path)
    films = {"Contact": "Good Film 1", "Star Wars": "Good Film 2", "Independence Day (ID4)": "Good Film 3"}
    names = follow(page, films | {"make quickstart\n": "\n"})  # the run of this module stands for it
    assert names["liked"] == [*films.values()]
    assert len(names["found"]) == 5
    assert "What each item of the history adds" in capsys.readouterr().out
    table = next(block.text for block in blocks(page) if block.text.split()[0] == "ndcg@5")
    assert {line.partition("  ")[0] for line in table.splitlines()[1:]} == RANKERS


def test_groups_of_users_share_nobody_and_histories_grow(quickstart, data_folder):
    sizes = {"train_users": 20, "validation_users": 10, "tuning_users": 10, "test_users": 20}
    settings = quickstart.Settings(
        data=str(data_folder), **sizes, history_length=4, positions=3, candidates=5, ranked_history=3
    )
    films = quickstart.read_films(settings)
    assert {name: frame.height for name, frame in films.users.items()} == {
        name.removesuffix("_users"): size for name, size in sizes.items()
    }
    assert len({user for frame in films.users.values() for user in frame["user"]}) == 60
    assert set(films.examples["user"]) == set(films.users["train"]["user"])
    liked = {
        user: [str(item) for item in frame.sort("timestamp")["item"]]
        for (user,), frame in films.data.interactions.group_by("user")
    }
    for (user,), own in films.examples.group_by("user", maintain_order=True):
        everything = liked[user]
        assert own["target"].to_list() == everything[-3:]
        assert own["history"].list.len().to_list() == [2, 3, 4]
        for history, target in own.select("history", "target").rows():
            place = everything.index(target)
            assert history == everything[place - len(history) : place]
    for user, history in films.users["test"].select("user", "history").rows():
        assert history == liked[user][-4:-1]
    shown = films.shown()
    assert shown.unique().height == shown.height
    assert shown.height < films.all_interactions().height == 20 * 8
    for row in films.preference():
        assert {title["content"] for title in row["chosen"]}.isdisjoint(one[0]["content"] for one in row["rejected"])


def test_without_matplotlib_it_says_what_to_install(quickstart, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match=r"pip install '\.\[plot\]' in a clone"):
        quickstart.import_pyplot()


def test_a_model_file_that_is_not_there_is_named(quickstart, tmp_path):
    with pytest.raises(SystemExit, match=r"no model file .*none\.gguf"):
        quickstart.model_folder(str(tmp_path / "none.gguf"))


def test_data_without_ratings_count_all_as_liked(data_folder, tmp_path):
    lines = (data_folder / "films.inter").read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    kept = "\n".join("\t".join((user, item, time)) for user, item, _, time in rows)
    (tmp_path / "films.inter").write_text(kept)
    (tmp_path / "films.item").write_text((data_folder / "films.item").read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        with load_script("examples/_films.py") as films:
            sizes = {"train_users": 20, "validation_users": 5, "tuning_users": 3, "test_users": 12}
            settings = films.FilmSettings(**sizes)
            rated, unrated = (films.read_films(replace(settings, data=str(own))) for own in (data_folder, tmp_path))
    assert rated.examples["target"].to_list() == unrated.examples["target"].to_list()  # all ratings are 5
