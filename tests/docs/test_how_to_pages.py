"""Pages beside the tutorials, followed or their Python run, with tiny models and data."""

import doctest
import json
import shutil
import socket
import sqlite3
import zipfile
from pathlib import Path

import polars as pl
import pytest
from support import ROOT, blocks, follow, make_rows, make_trainer, make_users, save_model
from support.prepared import model_and_data

from dmpo_trl import DMPOConfig
from dmpo_trl.data import MOVIES, Prepared
from dmpo_trl.evaluation import RankingCallback
from dmpo_trl.recommend import Recommender

DOCS = ROOT / "docs"
FILMS = ["Alien (1979)", "Aliens (1986)", "Babe (1995)", "Heidi (1937)", "Star Wars (1977)"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, from which no hub is reached."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


def save_catalogue(model: str) -> list[str]:
    """Write a catalogue beside a tiny model, so that it is a recommender; return the titles."""
    titles = FILMS + [f"Film {number}" for number in range(20)]
    items = pl.DataFrame({"item": [f"i{place}" for place in range(len(titles))], "title": titles})
    Recommender.from_pretrained(save_model(Path(model)), items=items, template=MOVIES).save_catalogue(model)
    return titles


def python_of(page: Path, beginning: str) -> str:
    """The one block of Python of a page that begins so."""
    (found,) = (one.text for one in blocks(page) if one.language == "python" and one.text.startswith(beginning))
    return found


@pytest.mark.slow
def test_serving_answers_and_generates_as_it_says(folder, capsys):
    pytest.importorskip("fastapi")
    titles = save_catalogue("outputs/dmpo")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    names = follow(DOCS / "serving.md", {"8000": port})
    out = capsys.readouterr().out
    (answer,) = (json.loads(line) for line in out.splitlines() if line.startswith("{"))
    exported = names["recommender"]
    found = [one.title for one in exported.recommend(["Alien (1979)"], k=3)]
    assert [one["title"] for one in answer["recommendations"]] == found
    assert names["app"].title
    # What `generate` writes are titles of the catalogue that the user has not had
    first, second = names["inputs"].recommendations(names["output"])
    assert {one.title for one in first} <= set(titles) - {"Alien (1979)"}
    assert {one.title for one in second} <= set(titles) - {"Babe (1995)", "Heidi (1937)"}
    assert out.count("\n['") == 2  # what the page prints: a list of titles for each
    arguments = {"eos_token_id": names["titles"].end_token, "max_new_tokens": names["titles"].depth}
    inputs = {"input_ids": names["inputs"].input_ids, "attention_mask": names["inputs"].attention_mask}
    written = exported.model.generate(**inputs, logits_processor=[names["processor"]], do_sample=False, **arguments)
    generated = written[:, inputs["input_ids"].shape[1] :]
    rows = [names["titles"].rows_at(node) for node in names["processor"].nodes(generated).tolist()]
    assert [len(one) for one in rows] == [1, 1]


def movielens(file: Path) -> None:
    """An archive like ml-1m.zip: 60 users who had 12 of 60 films each."""
    titles = {1: "Toy Story (1995)", 50: "Usual Suspects, The (1995)"}
    films = "".join(f"{i}::{titles.get(i, f'Film {i} ({1940 + i})')}::Drama\n" for i in range(1, 61))
    had = [(user, 1 + (7 * user + 11 * step) % 60, step) for user in range(1, 61) for step in range(12)]
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("ml-1m/movies.dat", films)
        archive.writestr("ml-1m/ratings.dat", "".join(f"{user}::{item}::5::{time}\n" for user, item, time in had))


@pytest.mark.slow
def test_recommenders_goes_from_raw_files_to_recommendations(folder, capsys):
    save_model(folder / "tiny-model")
    movielens(folder / "ml-1m.zip")
    configs = folder / "examples" / "configs" / "movielens"
    shutil.copytree(ROOT / "examples" / "configs" / "movielens", configs)
    for file in (configs / "sft.yaml", configs / "dmpo.yaml"):
        text = file.read_text().replace("HuggingFaceTB/SmolLM2-135M-Instruct", "tiny-model")
        file.write_text(text + "use_cpu: true\nmax_steps: 2\nreport_to: none\n")
    (folder / "users.jsonl").write_text('{"user": "a", "history": ["1", "50"]}\n{"user": "b", "history": ["7"]}\n')
    connection = sqlite3.connect(":memory:")
    connection.execute("create table orders (customer, sku, bought_at)")
    connection.execute("create table products (sku, name)")
    orders = [(f"C{user}", f"P{(3 * user + step) % 40}", step) for user in range(40) for step in range(6)]
    connection.executemany("insert into orders values (?, ?, ?)", orders)
    connection.executemany("insert into products values (?, ?)", [(f"P{i}", f"Product {i}") for i in range(40)])
    alone = {
        # What is downloaded lies there already, with fewer users
        "--version 1m --download": "--path ml-1m.zip",
        " --train_users 300 --validation_users 100": "",
        "--test_users 150 ": "",
        # Several processes: tests/recommend/test_processes.py; the script: tests/examples/test_ray_recommend.py
        "accelerate launch --num_processes 4 -m dmpo_trl.cli": "dmpo-trl",
        "python examples/ray_recommend.py": "# ",
    }
    names = {"connection": connection}
    for page in ("recommenders", "preparing", "evaluation", "recommending"):
        names = follow(DOCS / f"{page}.md", alone, names)
    connection.close()
    out = capsys.readouterr().out
    assert {"popularity", "item_knn", "dmpo (sum)", "sft (sum)"} <= {
        line.partition("  ")[0] for line in out.splitlines()
    }
    assert Prepared.load("outputs/shop/data").items.height == 40
    assert f"{names['name']} ({len(names['groups'][names['name']])} users): " in out
    assert len(names["recommender"].recommend(["1"], k=10, candidates=names["candidates"])) == 10
    found = pl.read_parquet("recommendations.parquet")
    assert found["user"].n_unique() == len(names["users"])
    assert pl.read_parquet("recommendations-many.parquet")["user"].unique().sort().to_list() == ["a", "b"]
    assert (folder / "exported" / "titles.npz").exists()


def test_the_command_line_trains_recommends_and_completes(folder, capsys):
    pytest.importorskip("shtab")
    save_model(folder / "tiny-model")
    save_catalogue("with-titles")  # as training leaves it where its data are those of `dmpo-trl prepare`
    (folder / "users.jsonl").write_text('{"user": "a", "history": ["i0"]}\n{"user": "b", "history": ["i1"]}\n')
    for name in ("data", "other-data"):
        make_rows((3, 1, 2) * 8).to_json(folder / name / "train.jsonl")
    replaced = {
        '--history "Toy Story (1995)"': '--history "Alien (1979)"',
        "--model outputs/dmpo": "--model with-titles",
        "Qwen/Qwen3-0.6B": "tiny-model",
        "load_in_4bit: true": "use_cpu: true\nmax_steps: 2\nreport_to: none",
        # One process: tests/cli/test_train.py has more; the others print help, install, and are cut by the shell
        " --num_processes 2\n": "\n",
        "accelerate launch --num_processes 2": "# ",
        "dmpo-trl --help": "# ",
        "dmpo-trl train --help": "# ",
        "dmpo-trl completion --help": "# ",
        "pip install": "# ",
        " | head -3": "",
        " > ~/": " # ",
    }
    trainer = make_trainer(folder, make_rows((1, 2)))
    given = {"trainer": trainer, "RankingCallback": RankingCallback, "users": make_users(2)}
    follow(DOCS / "command-line.md", replaced, given)
    out = capsys.readouterr().out
    answers = [json.loads(line) for line in out.splitlines() if line.startswith('{"')]
    assert [answer.get("user") for answer in answers] == [None, "a", "b"]
    assert "dmpo-trl version" in out
    assert "complete -o" in out
    assert (folder / "outputs" / "dmpo" / "adapter_model.safetensors").exists()
    assert any(isinstance(one, RankingCallback) for one in trainer.callback_handler.callbacks)


def test_the_recommender_of_the_readme_recommends_from_its_catalogue(folder, capsys):
    save_model(folder / "outputs" / "quickstart" / "dmpo")
    names: dict = {}
    exec(python_of(ROOT / "README.md", "import polars"), names)
    printed = [line[9:] for line in capsys.readouterr().out.splitlines()]
    assert len(printed) == 3
    assert set(printed) <= set(names["titles"]) - {"Alien (1979)", "Star Wars (1977)"}


def test_the_losses_are_added_up_as_it_says(folder):
    names: dict = {"DMPOConfig": lambda *out, **options: DMPOConfig(*out, use_cpu=True, bf16=False, **options)}
    exec(python_of(DOCS / "losses.md", "args = DMPOConfig"), names)
    options = {name: getattr(names["args"], name) for name in ("loss_type", "loss_weights")}
    batch = make_rows((2, 3))
    losses = []
    for chosen in (options, {"loss_type": "dmpo"}, {"loss_type": "sft"}):
        trainer = make_trainer(folder, batch, **chosen)
        losses.append(trainer.compute_loss(trainer.model, trainer.data_collator(list(trainer.train_dataset))).item())
    assert losses[0] == pytest.approx(losses[1] + 0.2 * losses[2], abs=1e-5)


def test_the_reference_without_a_history_is_made_as_it_says(folder, monkeypatch):
    made = model_and_data(folder)
    (folder / "outputs").mkdir()
    for name in ("model", "data"):
        shutil.move(made / name, folder / "outputs" / {"model": "sft"}.get(name, name))
    given = {"use_cpu": True, "bf16": False, "report_to": "none", "special_tokens_in_text": False}
    monkeypatch.setattr("dmpo_trl.DMPOConfig", lambda *out, **options: DMPOConfig(*out, **given | options))
    names: dict = {}
    exec(python_of(DOCS / "losses.md", "from dmpo_trl import DMPOConfig"), names)
    assert {"ref_chosen_logps", "ref_rejected_logps"} <= set(names["trainer"].train_dataset.column_names)
    assert names["trainer"].ref_model is None


def test_the_config_of_s_dpo_is_taken():
    names: dict = {}
    exec(python_of(DOCS / "comparison.md", "from dmpo_trl import DMPOConfig"), names)
    assert (names["args"].loss_type, names["args"].beta) == (["softmax"], 1.0)


def test_titles_are_tidied_as_it_says():
    text = python_of(DOCS / "odd-data.md", ">>> from dmpo_trl.data")
    example = doctest.DocTestParser().get_doctest(text, {}, "odd-data.md", None, None)
    assert doctest.DocTestRunner().run(example) == (0, 2)
