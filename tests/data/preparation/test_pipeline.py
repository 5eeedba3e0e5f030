import gzip
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pytest
import yaml
from support import make_model, make_tokenizer
from transformers import HfArgumentParser
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer, TrlParser

from dmpo_trl import DMPOConfig, DMPOTrainer
from dmpo_trl.data import MOVIES, PromptTemplate, leak_report, read_table
from dmpo_trl.data.preparation.pipeline import PrepareConfig, Prepared, prepare
from dmpo_trl.data.prompts import TEMPLATES

USERS, ITEMS = 40, 60


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """A folder in RecBole's format: users with 3 to 20 ratings, all at different times, and two rows to be dropped."""
    folder = tmp_path_factory.mktemp("raw") / "tiny"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = ["user_id:token\titem_id:token\trating:float\ttimestamp:float", "u0\tnowhere\t5\t1", "u0\t0\t\t2"]
    time = iter(rng.permutation(USERS * 20) + 10)
    for user in range(USERS):
        for item in rng.permutation(ITEMS)[: rng.integers(3, 20)]:
            rows.append(f"u{user}\t{item}\t{rng.integers(3, 6)}\t{next(time)}")
    (folder / "tiny.inter").write_text("\n".join(rows) + "\n", encoding="utf-8")
    items = ["item_id:token\tmovie_title:token_seq", *(f"{item}\tFilm {item}, The" for item in range(ITEMS))]
    (folder / "tiny.item").write_text("\n".join(items) + "\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negatives": 59, "candidates": 5}, r"59 negatives \(`negatives`\) are wanted, but user"),
        ({"negatives": 2, "candidates": 60}, r"59 candidates beside the target \(`candidates`\) are wanted, but user"),
    ],
)
def test_too_few_items_are_told_of_the_option_that_wants_them(raw, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        prepare(config(raw, tmp_path / "out", **options))


def title(item: str) -> str:
    return f"The Film {item}"


def liked_by(raw: Path, min_rating: float) -> dict[str, list[tuple[float, str]]]:
    """Time and item of what each user liked, from old to new, read in plain Python."""
    liked: dict[str, list[tuple[float, str]]] = {}
    for line in (raw / "tiny.inter").read_text(encoding="utf-8").splitlines()[3:]:
        user, item, rating, time = line.split("\t")
        if float(rating) >= min_rating:
            liked.setdefault(user, []).append((float(time), item))
    return {user: sorted(rows) for user, rows in liked.items()}


def had_by(raw: Path) -> dict[str, set[str]]:
    return {user: {item for _, item in rows} for user, rows in liked_by(raw, 0).items()}


def config(raw: Path, output: Path, **options) -> PrepareConfig:
    defaults = {"dataset": "recbole", "path": str(raw), "template": "movies", "candidates": 6, "negatives": 3}
    return PrepareConfig(output_dir=str(output), **defaults | options)


def texts(history: list[str], target: str) -> tuple[list, list]:
    return MOVIES.prompt([title(item) for item in history]), MOVIES.completion(title(target))


def rows_of(dataset, *columns: str) -> set[str]:
    return {json.dumps([row[column] for column in columns]) for row in dataset}


def test_users_are_divided_and_the_last_liked_item_is_the_target(raw, tmp_path):
    made = prepare(config(raw, tmp_path / "out", min_rating=4, history_length=4, validation_users=6, test_users=7))
    liked = {user: [item for _, item in rows] for user, rows in liked_by(raw, 4).items() if len(rows) > 2}
    had = had_by(raw)

    groups = {split: set(made.ranking[split]["user"]) for split in ("validation", "test")}
    assert (len(groups["validation"]), len(groups["test"])) == (6, 7)
    assert not groups["validation"] & groups["test"]
    train = set(liked) - groups["validation"] - groups["test"]
    assert made.manifest["users"] == {"all": USERS, "train": len(train), "validation": 6, "test": 7}

    for split in groups:
        for row in made.ranking[split]:
            *_, target = liked[row["user"]]
            assert row["items"][row["positive"]] == target
            assert row["history"] == liked[row["user"]][-5:-1]
            assert len(set(row["items"])) == 6
            assert set(row["items"]) & had[row["user"]] == {target}
            assert row["prompt"] == texts(row["history"], target)[0]
            assert row["candidates"] == [MOVIES.completion(title(item)) for item in row["items"]]

    expected = {json.dumps(texts(liked[user][-5:-1], liked[user][-1])) for user in train}
    assert rows_of(made.preference["train"], "prompt", "chosen") == expected
    by_user = {json.dumps([user, *texts(liked[user][-5:-1], liked[user][-1])]) for user in train}
    assert rows_of(made.preference["train"], "user", "prompt", "chosen") == by_user
    earlier = {json.dumps(texts(liked[user][-6:-2], liked[user][-2])) for user in train}
    assert rows_of(made.sft["train"], "prompt", "completion") == earlier
    validation = {json.dumps(texts(liked[user][-5:-1], liked[user][-1])) for user in groups["validation"]}
    assert rows_of(made.preference["validation"], "prompt", "chosen") == validation
    assert rows_of(made.sft["validation"], "prompt", "completion") == validation

    titles_had = {texts(liked[u][-5:-1], "")[0][1]["content"]: {title(item) for item in had[u]} for u in liked}
    for row in made.preference["train"]:
        rejected = [message["content"] for (message,) in row["rejected"]]
        assert len(set(rejected)) == 3
        assert not set(rejected) & titles_had[row["prompt"][1]["content"]]

    counts = dict(made.items.select("item", "popularity").iter_rows())
    # All that the training users had, liked or not, before and after what is shown to the model
    assert counts == {item: sum(item in had[user] for user in train) for item in map(str, range(ITEMS))}
    assert made.items["title"].to_list() == [title(item) for item in made.items["item"]]


def expected_popularity(liked, split):
    """How many users had each item up to their last training target; all ratings are liked ones."""
    counts = dict.fromkeys(map(str, range(ITEMS)), 0)
    for rows in liked.values():
        if split == "time":
            upto = sum(time < 500 for time, _ in rows)
        else:
            upto = len(rows) - 2 if len(rows) > 3 else len(rows) if len(rows) < 3 else 3
        for _, item in rows[:upto] if upto > 1 else []:
            counts[item] += 1
    return counts


@pytest.mark.parametrize("split", ["leave_one_out", "time"])
def test_the_other_splits(raw, tmp_path, split):
    cuts = {"validation_from": 500.0, "test_from": 600.0, "examples_per_user": 0} if split == "time" else {}
    made = prepare(config(raw, tmp_path / "out", split=split, min_history=1, **cuts))
    liked = liked_by(raw, 0)
    for name, place in {"validation": -2, "test": -1}.items():
        expected = {}
        for user, rows in liked.items():
            for index in range(1, len(rows)):
                time, target = rows[index]
                is_in = {"validation": 500 <= time < 600, "test": time >= 600}[name]
                if is_in if split == "time" else (len(rows) > 3 and index == len(rows) + place):
                    history = [item for _, item in rows[:index]][-10:]
                    expected[user] = json.dumps([user, history, target])  # the last one of each user
        got = [[row["user"], row["history"], row["items"][row["positive"]]] for row in made.ranking[name]]
        assert {json.dumps(row) for row in got} == set(expected.values())
        assert len(got) == len(expected)
        assert made.manifest["rows"]["preference" if name == "validation" else "ranking"][name] == len(got)
    counts = dict(made.items.select("item", "popularity").iter_rows())
    assert counts == expected_popularity(liked, split)
    chosen = made.preference["train"].num_rows
    expected_rows = (
        sum(time < 500 for rows in liked.values() for time, _ in rows[1:])
        if split == "time"
        else sum(len(rows) > 1 for rows in liked.values())
    )
    assert chosen == expected_rows
    overlap = 0
    for validation, test in zip(
        *(sorted(made.ranking[n], key=lambda r: r["user"]) for n in made.ranking), strict=False
    ):
        if validation["user"] == test["user"]:
            overlap += set(validation["items"]) == set(test["items"])
    assert overlap == 0  # a user's candidates of the two splits are drawn apart


@pytest.mark.parametrize("split", ["users", "leave_one_out"])
def test_growing_histories(raw, tmp_path, split):
    """Training prompts of a user begin alike, SFT has each longest one, and what is evaluated stays the same."""
    options = {"min_rating": 4, "split": split, "history_length": 4, "min_history": 2, "examples_per_user": 0}
    template = tmp_path / "template.yaml"
    template.write_text(yaml.safe_dump(MOVIES.to_dict() | {"conversational": False}))
    options |= {"template": str(template)}
    latest = prepare(config(raw, tmp_path / "latest", **options))
    growing = prepare(config(raw, tmp_path / "growing", **options, history="growing"))
    for part in ("test", "validation"):
        assert list(growing.ranking[part]) == list(latest.ranking[part])

    liked = liked_by(raw, 4)
    trained = {json.dumps(row["chosen"]) for row in growing.preference["train"]}
    assert trained == {json.dumps(row["chosen"]) for row in latest.preference["train"]}
    rows = list(growing.preference["train"])
    chains, chain = [], [rows[0]]
    for previous, row in itertools.pairwise(rows):
        grown = previous["prompt"] + previous["chosen"] + "\n"  # the target has joined the history
        if row["prompt"] != grown:
            chains.append(chain)
            chain = []
        chain.append(row)
    chains.append(chain)
    assert max(map(len, chains)) == 3  # histories of 2, 3 and 4 items
    assert len(rows) > 2 * len(chains)
    assert [(row["prompt"], row["completion"]) for row in growing.sft["train"]] == [
        (chain[-1]["prompt"], chain[-1]["chosen"]) for chain in chains
    ]
    known = {tuple(title(item) for _, item in own) for own in liked.values()}
    for row in rows:
        shown = [*row["prompt"].split("after these?\n")[1].splitlines(), row["chosen"]]
        assert any(list(own[i : i + len(shown)]) == shown for own in known for i in range(len(own)))


def test_the_draws_of_a_user_share_no_seed(raw, tmp_path):
    """Else a model would be tested, or chosen, on the very items that it learnt to reject."""
    had = had_by(raw)
    item_of = {title(str(item)): str(item) for item in range(ITEMS)}
    draws: dict[tuple[int, str], dict[str, set[str]]] = {}
    for seed in (0, 1):  # runs with other seeds must not share them either
        made = prepare(config(raw, tmp_path / str(seed), split="leave_one_out", seed=seed))
        for split in ("validation", "test"):
            draws[seed, f"{split} candidates"] = {
                row["user"]: set(row["items"]) - had[row["user"]] for row in made.ranking[split]
            }
        for split, place in (("train", -3), ("validation", -2)):
            of_user = {
                json.dumps(texts(items[:place][-10:], items[place])): user
                for user, rows in liked_by(raw, 0).items()
                if len(items := [item for _, item in rows]) > 4
            }
            draws[seed, f"{split} negatives"] = {
                of_user[example]: {item_of[message["content"]] for (message,) in row["rejected"]}
                for row in made.preference[split]
                if (example := json.dumps([row["prompt"], row["chosen"]])) in of_user
            }
    for (one, of_one), (other, of_other) in itertools.combinations(draws.items(), 2):
        users = of_one.keys() & of_other.keys()
        assert len(users) > 20
        shared = sum(of_one[user] <= of_other[user] or of_one[user] >= of_other[user] for user in users)
        assert shared < len(users) / 5, f"{one} and {other} are the same for {shared} users of {len(users)}"


def test_limits_on_users(raw, tmp_path):
    made = prepare(
        config(raw, tmp_path / "out", split="leave_one_out", validation_users=5, test_users=4, few_shot_users=3)
    )
    assert {split: made.ranking[split].num_rows for split in made.ranking} == {"validation": 5, "test": 4}
    assert made.preference["train"].num_rows == 3
    assert made.manifest["users"]["train"] == 3
    with pytest.raises(ValueError, match=r"leaves -\d+ to train on beside {'validation': 30, 'test': 20}"):
        prepare(config(raw, tmp_path / "other", validation_users=30, test_users=20))


def test_variants_of_the_text(raw, tmp_path):
    file = tmp_path / "template.yaml"
    file.write_text(yaml.safe_dump({"instruction": "I:", "question": "Q?", "candidates": "C:"}), encoding="utf-8")
    options = {"template": str(file), "conversational": False, "pairs": True, "sft_targets": "same"}
    made = prepare(config(raw, tmp_path / "out", **options))
    assert made.template == PromptTemplate("I:", "Q?", candidates="C:", conversational=False)
    for row in made.preference["train"]:
        history, shown = row["prompt"].removesuffix("\nQ?\n").removeprefix("I:\n").split("\nC:\n")
        assert len(history.split("\n")) >= 2
        assert sorted(shown.split("\n")) == sorted([row["chosen"], *row["rejected"]])
    assert rows_of(made.sft["train"], "prompt", "completion") == rows_of(made.preference["train"], "prompt", "chosen")
    texts_only = made.preference["train"].remove_columns("user")
    expected = [row | {"rejected": one} for row in texts_only for one in row["rejected"]]
    assert made.pairs["train"].to_list() == expected
    for row in made.ranking["test"]:
        assert "\nC:\n" + "\n".join(row["candidates"]) + "\nQ?" in row["prompt"]
    listed = prepare(config(raw, tmp_path / "listed", list_candidates=True))
    assert listed.template == MOVIES.with_candidates()


def test_negatives_in_batch(raw, tmp_path):
    options = {"negative_strategy": "in_batch", "batch_size": 16, "examples_per_user": 0, "conversational": False}
    made = prepare(config(raw, tmp_path / "out", **options))
    targets = {row["chosen"] for row in made.preference["train"]}
    assert {item for row in made.preference["train"] for item in row["rejected"]} <= targets


def test_popular_negatives(raw, tmp_path):
    """With a high power the most popular item is drawn whenever the user never had it."""
    made = prepare(config(raw, tmp_path / "out", negative_strategy="popularity", alpha=50.0, conversational=False))
    counts = {item: sum(item in items for items in had_by(raw).values()) for item in map(str, range(ITEMS))}
    order = sorted(counts, key=counts.get)
    drawn = [item for row in made.preference["train"] for item in row["rejected"]]
    assert drawn.count(title(order[-1])) > len(made.preference["train"]) / 3
    assert drawn.count(title(order[0])) == 0


def test_popular_candidates(raw, tmp_path):
    """With a high power the candidates are the most popular items of the training users that the user never had."""
    options = {"alpha": 50.0, "candidates": 3}
    made = prepare(config(raw, tmp_path / "out", candidate_strategy="popularity", **options))
    plain = prepare(config(raw, tmp_path / "plain", **options))
    counts = dict(made.items.select("item", "popularity").iter_rows())
    had = had_by(raw)

    def mean(prepared):
        rows = [row for rows in prepared.ranking.values() for row in rows]
        for row in rows:
            assert not {item for item in row["items"] if item != row["items"][row["positive"]]} & had[row["user"]]
        return np.mean([counts[i] for row in rows for i in row["items"] if i != row["items"][row["positive"]]])

    assert mean(made) > 0.9 * max(counts.values()) > mean(plain)
    assert made.preference["train"].to_list() == plain.preference["train"].to_list()  # whose negatives stay uniform


@pytest.mark.parametrize("split", ["users", "leave_one_out", "time"])
def test_interactions_are_those_of_the_training_users_before_what_is_evaluated(raw, tmp_path, split):
    prepared = prepare(config(raw, tmp_path / "out", split=split, examples_per_user=0, min_rating=4, history_length=3))
    found = prepared.interactions
    assert dict(found.group_by("item").len().iter_rows()) == {
        item: count for item, count in prepared.items.select("item", "popularity").iter_rows() if count
    }
    trained = {row["user"]: row["chosen"] for row in prepared.preference["train"]}  # the last one of each
    had = {user: [item for _, item in rows] for user, rows in liked_by(raw, 0).items()}
    for user, last in trained.items():
        items = had[user]
        if split != "users":
            target = next(place for place, item in enumerate(items) if MOVIES.completion(title(item)) == last)
            items = items[: target + 1]
        own = found.filter(user=user)
        assert sorted(own["item"]) == sorted(items)
        assert set(own.filter("shown")["item"]) <= {item for _, item in liked_by(raw, 4)[user]}
    assert set(found["user"]) == set(trained)
    shown = {title(item) for item in found.filter("shown")["item"]}
    texts = json.dumps([prepared.preference["train"]["prompt"][:], prepared.preference["train"]["chosen"][:]])
    assert all(name in texts for name in shown)


def test_datasets_loads_the_folder(raw, tmp_path):
    """Without this library, and without a network (the environment variable that the tests run with)."""
    folder = prepare(config(raw, tmp_path / "out", pairs=True)).folder
    made = Prepared.load(folder)
    assert datasets.load_dataset(str(folder))["train"].to_list() == made.preference["train"].to_list()
    for kind in ("preference", "sft", "pairs", "ranking"):
        loaded = datasets.load_dataset(str(folder), kind)
        assert {split: loaded[split].num_rows for split in loaded} == made.manifest["rows"][kind]
    pair = datasets.load_dataset(str(folder), "pairs", split="train")[0]
    assert {name: type(value) for name, value in pair.items()} == {"prompt": list, "chosen": list, "rejected": list}
    assert [message["role"] for message in pair["rejected"]] == ["assistant"]
    assert datasets.get_dataset_config_names(str(folder)) == ["preference", "sft", "ranking", "pairs"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_seed_gives_the_same_bytes(raw, tmp_path):
    first = contents(prepare(config(raw, tmp_path / "a", pairs=True)).folder)
    assert set(first) == {
        *("README.md", "manifest.json", "items.parquet", "interactions.parquet"),
        *(f"{kind}/{split}.parquet" for kind in ("preference", "sft", "pairs") for split in ("train", "validation")),
        *(f"ranking/{split}.parquet" for split in ("validation", "test")),
    }
    # In another process, which has read other things before: polars' codes and hashes may differ there
    code = (
        "import sys, polars; polars.Series(['9', 'u3', 'x']).cast(polars.Categorical)\n"
        "from dmpo_trl.data.preparation.pipeline import PrepareConfig, prepare\n"
        "from transformers import HfArgumentParser\n"
        "prepare(*HfArgumentParser(PrepareConfig).parse_args_into_dataclasses())"
    )
    arguments = f"--dataset recbole --path {raw} --template movies --candidates 6 --negatives 3 --pairs"
    command = [sys.executable, "-c", code, *arguments.split(), "--output_dir", str(tmp_path / "b")]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": "7"})
    assert contents(tmp_path / "b") == first
    other = contents(prepare(config(raw, tmp_path / "c", pairs=True, seed=1)).folder)
    assert all(other[name] != first[name] for name in first if name.endswith("parquet"))


def test_the_manifest_says_what_was_done(raw, tmp_path):
    folder = prepare(config(raw, tmp_path / "out", seed=3)).folder
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    written = contents(folder)
    assert manifest["files"] == {
        name: hashlib.sha256(data).hexdigest() for name, data in written.items() if name != "manifest.json"
    }
    assert manifest["rows"] == {
        kind: {split: pl.read_parquet(folder / kind / f"{split}.parquet").height for split in splits}
        for kind, splits in manifest["rows"].items()
    }
    assert manifest["options"]["seed"] == 3
    assert manifest["options"]["path"] == str(raw)
    lines = len((raw / "tiny.inter").read_text(encoding="utf-8").splitlines()) - 1
    assert manifest["source"]["read"] == {"interactions": lines, "items": ITEMS}
    assert sum(manifest["source"]["dropped"].values()) == 2
    assert manifest["interactions"] == lines - 2
    assert PromptTemplate.from_dict(manifest["template"]) == MOVIES
    card = written["README.md"].decode()
    assert "- 1 interactions with an unknown item" in card
    users, rows = manifest["users"], manifest["rows"]["preference"]["train"]
    assert f"{lines - 2} interactions of {users['all']} users became {rows} training examples of {rows} users." in card
    head = yaml.safe_load(card.split("---")[1])
    assert head["configs"][0]["description"].startswith("Prompt, chosen and a list of rejected completions")
    assert max(len(word) for one in head["configs"] for word in one["description"].split()) <= 13  # no checksums
    assert f"| sft | train | {manifest['rows']['sft']['train']} |" in card


def test_tables_k_core_and_trainers(tmp_path):
    """From CSV files to the first loss of each trainer, on the columns that the folder has."""
    rows = [f"{user},{(user + 3 * step) % 20},{step}" for user in range(30) for step in range(6)]
    rows += ["lonely,0,1", "lonely,1,2", "0,rare,9"]
    (tmp_path / "rows.csv").write_text("\n".join(["who,what,when", *rows]) + "\n", encoding="utf-8")
    items = ["what,name", *(f"{item},Film {item}" for item in [*range(20), "rare"])]
    (tmp_path / "items.csv").write_text("\n".join(items) + "\n", encoding="utf-8")
    columns = {"user_column": "who", "item_column": "what", "timestamp_column": "when", "title_column": "name"}
    made = prepare(
        config(
            *(tmp_path / "rows.csv", tmp_path / "out"),
            **{"dataset": "table", "items": str(tmp_path / "items.csv"), "pairs": True, "k_core_users": 3},
            **{"k_core_items": 2, "candidates": 5, **columns},
        )
    )
    assert made.manifest["source"]["dropped"] == {
        "interactions outside the k-core": 3,
        "users outside the k-core": 1,
        "items outside the k-core": 1,
    }
    assert made.items["item"].to_list() == [str(item) for item in range(20)]
    assert [file["name"] for file in made.manifest["source"]["files"]] == ["rows.csv", "items.csv"]
    make_model().save_pretrained(tmp_path / "model")
    options = {
        "output_dir": str(tmp_path / "run"),
        "use_cpu": True,
        "max_steps": 1,
        "report_to": "none",
        "bf16": False,
    }
    options |= {"per_device_train_batch_size": 2, "save_strategy": "no", "logging_steps": 1}
    for trainer_of, arguments, dataset in (
        (SFTTrainer, SFTConfig(**options), made.sft),
        (DPOTrainer, DPOConfig(**options), made.pairs),
        (DMPOTrainer, DMPOConfig(**options), made.preference),
    ):
        trainer = trainer_of(
            str(tmp_path / "model"),
            args=arguments,
            train_dataset=dataset["train"],
            eval_dataset=dataset["validation"],
            processing_class=make_tokenizer(),
        )
        assert np.isfinite(trainer.train().training_loss)


def test_damaged_folders_are_refused(raw, tmp_path):
    folder = prepare(config(raw, tmp_path / "out")).folder
    file = folder / "sft" / "train.parquet"
    good = file.read_bytes()
    file.write_bytes(good[:-1])
    with pytest.raises(ValueError, match=r"train\.parquet is not the file that was prepared"):
        Prepared.load(folder)
    file.unlink()
    with pytest.raises(ValueError, match=r"train\.parquet is missing"):
        Prepared.load(folder)
    file.write_bytes(good)
    assert Prepared.load(folder).sft["train"].num_rows
    with pytest.raises(ValueError, match="holds no pairs, only preference, sft, ranking"):
        _ = Prepared.load(folder).pairs
    with pytest.raises(FileNotFoundError, match="is not a folder of prepared data"):
        Prepared.load(raw)


def test_nothing_is_overwritten_unasked(raw, tmp_path):
    first = prepare(config(raw, tmp_path / "out"))
    chosen = first.preference["train"]["chosen"][:]
    with pytest.raises(FileExistsError, match="holds prepared data already"):
        prepare(config(raw, tmp_path / "out", seed=1))
    assert Prepared.load(tmp_path / "out").manifest == first.manifest
    second = prepare(config(raw, tmp_path / "out", seed=1, overwrite=True))
    assert Prepared.load(tmp_path / "out").manifest == second.manifest
    assert second.preference["train"]["chosen"][:] != chosen  # not from the cache of `datasets`

    (tmp_path / "mine").mkdir()
    prepare(config(raw, tmp_path / "mine"))  # empty, so free
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "manifest.json").write_text("{}", encoding="utf-8")
    for taken, message in [("notes", "was not written by dmpo-trl prepare"), ("notes/manifest.json", "is a file")]:
        with pytest.raises(FileExistsError, match=message):
            prepare(config(raw, tmp_path / taken, overwrite=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "notes", "out"]  # no scratch folder is left


def test_an_error_halfway_leaves_the_earlier_data(raw, tmp_path, monkeypatch):
    before = prepare(config(raw, tmp_path / "out"))
    # By its name in sys.modules: the package's attribute of this name is the function
    monkeypatch.setattr(sys.modules["dmpo_trl.data.preparation.pipeline"], "card", lambda manifest: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(config(raw, tmp_path / "out", seed=1, overwrite=True))
    assert Prepared.load(tmp_path / "out").manifest == before.manifest
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_may_have_any_name(raw, tmp_path):
    """`datasets` takes brackets and stars for patterns."""
    for name in ("data [v1]", "a*b", "q?x", "h#x", "per%20cent", "Filme für Amélie"):
        made = prepare(config(raw, tmp_path / name, seed=len(name)))
        titles = pl.read_parquet(made.folder / "ranking" / "test.parquet", glob=False)["user"].to_list()
        assert made.items.height == ITEMS
        assert made.ranking["test"]["user"][:] == titles
        assert made.ranking["test"].info.dataset_name == name


def test_overwriting_keeps_what_prepare_did_not_write(raw, tmp_path):
    """Notes, models and edited files beside the data are refused by their names, and nothing is lost."""
    out = prepare(config(raw, tmp_path / "out")).folder
    (out / "my_notes.txt").write_text("precious", encoding="utf-8")
    (out / "model").mkdir()
    (out / "model" / "weights").write_bytes(b"1")
    pl.DataFrame({"mine": [1]}).write_parquet(out / "sft" / "train.parquet")
    before = contents(out)
    with pytest.raises(FileExistsError, match=r"did not write, .*: model/, my_notes\.txt, sft/train\.parquet\. Move"):
        prepare(config(raw, out, overwrite=True))
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_manifest_decides_which_files_are_read(raw, tmp_path):
    """A card that points elsewhere changes nothing here, and `datasets`, which goes by it, is not asked."""
    folder = prepare(config(raw, tmp_path / "out")).folder
    rows = Prepared.load(folder).ranking["test"].to_list()
    pl.DataFrame({"evil": [1]}).write_parquet(tmp_path / "evil.parquet")
    card = folder / "README.md"
    card.write_text(card.read_text().replace("path: ranking/test.parquet", "path: ../evil.parquet"))
    assert "evil" in card.read_text()
    loaded = Prepared.load(folder)
    assert loaded.ranking["test"].to_list() == rows
    with pytest.raises(ValueError, match=r"README\.md is not the file that was prepared"):
        loaded.check_card()
    card.unlink()
    loaded = Prepared.load(folder)
    assert loaded.ranking["test"].to_list() == rows
    with pytest.raises(ValueError, match=r"README\.md is missing"):
        loaded.check_card()
    del loaded.manifest["files"]["README.md"]  # as in folders of earlier versions
    loaded.check_card()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": [], "rows": 5}, "must hold files, rows and template as they were written"),
        ({"files": None}, "must hold files, rows and template"),
        ({"rows": {"sft": 5}}, "must hold files, rows and template"),
        ({"template": "x"}, "must hold files, rows and template"),
        ({"files": {}}, "it lists no items.parquet, pairs/train.parquet"),
        ({"files": {"items.parquet": 5}}, "must hold files, rows and template"),
        ({"rows": {"../../evil": {"test": 1}}}, "it lists no ../../evil/test.parquet"),
        ({"more": {"../evil.parquet": "0"}}, "names files outside of its folder: ../evil.parquet"),
        ({"more": {"/evil.parquet": "0"}}, "names files outside of its folder: /evil.parquet"),
        ({"more": {"https://evil/x.parquet": "0"}}, "names files outside of its folder: https://evil/x.parquet"),
    ],
)
def test_damaged_manifests_are_refused(raw, tmp_path, changes, message):
    good = {"items.parquet": "0", "pairs/train.parquet": "0"}
    manifest = {"format": "dmpo-trl prepared data, version 1", "files": good, "rows": {"pairs": {"train": 1}}}
    manifest |= {"template": {}} | changes
    manifest["files"] = manifest["files"] if "files" in changes else good | manifest.pop("more", {})
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(message)):
        Prepared.load(tmp_path)
    with pytest.raises(FileExistsError, match=r"overwrite|was not written by|did not write"):
        prepare(config(raw, tmp_path))


@pytest.mark.parametrize("text", ["[" * 50_000, "", "{", "[]", "5"])
def test_what_is_no_manifest_is_not_prepared_data(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(FileNotFoundError, match="is not a folder of prepared data"):
        Prepared.load(tmp_path)


@pytest.mark.parametrize("strategy", ["uniform", "popularity", "in_batch"])
def test_held_out_items_are_nowhere_in_training(raw, tmp_path, strategy):
    """Each item's title is in no prompt, answer or rejected answer, nobody had it, and it ranks among its like."""
    options = {"split": "items", "validation_items": 0.2, "test_items": 0.2, "examples_per_user": 0}
    options |= {"negative_strategy": strategy} | ({"batch_size": 32} if strategy == "in_batch" else {})
    made = prepare(config(raw, tmp_path / "out", **options))
    liked = {user: [item for _, item in rows] for user, rows in liked_by(raw, 0).items()}
    held_out = {}
    for split in ("validation", "test"):
        rows = made.ranking[split].to_list()
        held_out[split] = {item for row in rows for item in row["items"]}
        for row in rows:
            assert row["items"][row["positive"]] == liked[row["user"]][-1]
            assert len(set(row["items"])) == 6
            assert set(row["items"]) & set(liked[row["user"]]) == {liked[row["user"]][-1]}
    secret = held_out["validation"] | held_out["test"]
    assert len(held_out["validation"]) <= 12 >= len(held_out["test"])
    assert not held_out["validation"] & held_out["test"]
    text = json.dumps([made.preference["train"].to_list(), made.sft["train"].to_list()])
    shown = {item for item in map(str, range(ITEMS)) if re.search(rf"{title(item)}(?!\d)", text)}
    assert shown
    assert not shown & secret
    assert not set(made.interactions["item"]) & secret
    assert made.items.filter(pl.col("item").is_in(list(secret)))["popularity"].to_list() == [0] * len(secret)
    assert not set(made.interactions["user"]) & {row["user"] for split in made.ranking for row in made.ranking[split]}
    assert leak_report(made.preference["train"], made.ranking["test"]).findings == []
    (told,) = leak_report(made.preference["train"], made.ranking["test"])["shared targets"]
    assert told.values["share"] == 0


def test_several_ways_to_draw_candidates_ask_the_same_questions(raw, tmp_path):
    both = prepare(config(raw, tmp_path / "both", candidate_strategy=["popularity", "uniform"]))
    assert list(both.protocols) == ["popularity", "uniform"]
    assert both.manifest["rows"]["ranking_uniform"] == both.manifest["rows"]["ranking"]
    for strategy in ("popularity", "uniform"):
        alone = prepare(config(raw, tmp_path / strategy, candidate_strategy=strategy))
        assert list(alone.protocols) == [strategy]
        for split in ("validation", "test"):  # as if each had been the only one
            assert both.protocols[strategy][split].to_list() == alone.ranking[split].to_list()
        assert both.preference["train"].to_list() == alone.preference["train"].to_list()
    assert both.ranking["test"].to_list() == both.protocols["popularity"]["test"].to_list()
    same = [[row[name] for name in ("user", "history", "prompt")] for row in both.ranking["test"]]
    assert same == [[row[name] for name in ("user", "history", "prompt")] for row in both.protocols["uniform"]["test"]]
    assert "Candidates: popularity, uniform in `ranking_uniform`." in (both.folder / "README.md").read_text()
    loaded = datasets.load_dataset(str(both.folder), "ranking_uniform")
    assert loaded["test"].to_list() == both.protocols["uniform"]["test"].to_list()
    del both.manifest["options"]["candidate_strategy"]  # as in folders of earlier versions
    assert list(both.protocols) == ["uniform"]


def test_too_few_held_out_items_for_a_ranking_are_refused_by_their_option(raw, tmp_path):
    with pytest.raises(
        ValueError, match=r"test_items=0\.05 are 3 items, too few for 6 in a ranking; raise test_items"
    ):
        prepare(config(raw, tmp_path / "out", split="items", validation_items=0.2, test_items=0.05))


def test_options_from_the_command_line_and_from_yaml(tmp_path):
    arguments = ["--dataset", "movielens", "--output_dir", "o", "--min_rating", "4", "--no_conversational"]
    (parsed,) = HfArgumentParser(PrepareConfig).parse_args_into_dataclasses(arguments)
    expected = PrepareConfig(dataset="movielens", output_dir="o", min_rating=4.0, conversational=False)
    assert parsed == expected
    file = tmp_path / "prepare.yaml"
    file.write_text("dataset: movielens\noutput_dir: x\nmin_rating: 4.0\nconversational: false\n", encoding="utf-8")
    (parsed,) = TrlParser(PrepareConfig).parse_args_and_config(["--config", str(file), "--output_dir", "o"])
    assert parsed == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "netflix"}, "dataset must be one of movielens, amazon, .* it is 'netflix'"),
        ({"split": "random"}, "split must be one of users, leave_one_out, time, items, it is 'random'"),
        ({"dataset": "amazonn"}, r"it is 'amazonn'\. Did you mean amazon\?"),
        (
            {"path": pl.DataFrame()},
            r"`path` is the path of a file, not a DataFrame\. .*\(config, data=\.\.\.\)",
        ),
        ({"items": pl.DataFrame()}, r"`items` is the path of a file, .*prepare\(config, items=\.\.\.\)"),
        ({"train_users": 5, "split": "time"}, "train_users belongs to the split users; with time use few_shot_users"),
        (
            {"candidate_strategy": ["uniform", "popular"]},
            "uniform, popularity, it is 'popular'. Did you mean popularity",
        ),
        ({"candidate_strategy": []}, "candidate_strategy must be one or more, each once; it is "),
        ({"candidate_strategy": ["uniform", "uniform"]}, "candidate_strategy must be one or more, each once; it is "),
        ({"test_items": 1.0}, r"^test_items must be above 0 and below 1, it is 1\.0\.$"),
        ({"validation_items": 0.0}, r"^validation_items must be above 0 and below 1, it is 0\.0\.$"),
        (
            {"split": "items", "candidate_strategy": "popularity"},
            "nobody had a candidate; use candidate_strategy unif",
        ),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        PrepareConfig(**{"dataset": "movielens", "output_dir": "o", "path": "p"} | options)


def test_options_out_of_their_range_are_named():
    common = {"dataset": "movielens", "output_dir": "o"}
    least = {"examples_per_user": 0, "seed": 0, "candidates": 2, "batch_size": 2}
    kinds = get_type_hints(PrepareConfig)
    whole = [name for name, kind in kinds.items() if kind in (int, int | None)]
    assert len(whole) == 13
    for name in whole:
        lowest = least.get(name, 1)
        assert getattr(PrepareConfig(**common, **{name: lowest}), name) == lowest
        for value in (lowest - 1, -5):
            with pytest.raises(ValueError, match=rf"^{name} must be at least {lowest}, it is {value}\.$"):
                PrepareConfig(**common, **{name: value})
    numbers = [name for name, kind in kinds.items() if kind in (float, float | None)]
    assert set(numbers) == {
        *("min_rating", "validation_from", "test_from", "alpha"),
        *("validation_items", "test_items"),
    }
    for name in numbers:
        for value in (float("nan"), float("inf")):
            with pytest.raises(ValueError, match=rf"^{name} must be a finite number, it is {value}\.$"):
                PrepareConfig(**common, **{name: value})
    with pytest.raises(ValueError, match=r"^alpha must be above 0, it is 0\.0\.$"):
        PrepareConfig(**common, alpha=0.0)


def test_templates_by_name_by_dataset_and_from_files(tmp_path):
    def template(**options) -> PromptTemplate:
        return PrepareConfig(**{"dataset": "movielens", "output_dir": "o", "path": "p"} | options).prompt_template()

    assert template() == MOVIES
    assert template(dataset="lastfm") == TEMPLATES["music"]
    assert template(dataset="amazon", template="games") == TEMPLATES["games"]
    file = tmp_path / "template.json"
    file.write_text(json.dumps(TEMPLATES["products"].plain().to_dict()), encoding="utf-8")
    assert template(template=str(file)) == TEMPLATES["products"].plain()
    assert template(dataset="recbole") == template(dataset="table") == TEMPLATES["general"]
    with pytest.raises(
        ValueError,
        match=r"films is neither a template \(movies, .*\) nor a file .* take general",
    ):
        template(template="films")
    with pytest.raises(ValueError, match=r"nor a file with one\. Did you mean movies\?$"):
        template(template="movie")
    deep = "[" * 50_000, "is nested too deeply"
    broken = ("a: [", "neither YAML nor JSON"), ("- a", "must hold the fields"), ("a: b", "has no")
    for text, message in [deep, *broken]:
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            template(template=str(file))


SEEN = [(user, place, (user + place) % 9) for user in range(9) for place in range(5)]
VIEWS = pl.DataFrame(SEEN, schema=["customer", "at", "film"], orient="row")
FILMS = pl.DataFrame({"film": range(9), "name": [f"Film {film}" for film in range(9)]})
NAMED = {"user_column": "customer", "item_column": "film", "timestamp_column": "at", "title_column": "name"}
SMALL = {"dataset": "table", "negatives": 2, "candidates": 3}


@pytest.mark.parametrize("form", ["polars", "pandas", "arrow", "titles inside", "interactions", "items alone"])
def test_what_is_in_memory_is_prepared_as_from_files(tmp_path, form):
    VIEWS.write_csv(tmp_path / "views.csv")
    FILMS.write_csv(tmp_path / "films.csv")
    paths = {"path": str(tmp_path / "views.csv"), "items": str(tmp_path / "films.csv")}
    expected = prepare(PrepareConfig(output_dir=str(tmp_path / "files"), **SMALL, **NAMED, **paths))
    convert = {"pandas": lambda table: pd.DataFrame(table.to_dict(as_series=False)), "arrow": pl.DataFrame.to_arrow}
    data, items = map(convert.get(form, lambda table: table), (VIEWS, FILMS))
    config = PrepareConfig(output_dir=str(tmp_path / "memory"), **SMALL, **NAMED)
    if form == "titles inside":
        data, items = VIEWS.join(FILMS, on="film", maintain_order="left"), None
    elif form == "interactions":
        data = read_table(VIEWS, FILMS, user="customer", item="film", timestamp="at", title="name")
        items, config = None, PrepareConfig(output_dir=str(tmp_path / "memory"), **SMALL)
    elif form == "items alone":
        config, data = PrepareConfig(output_dir=str(tmp_path / "memory"), path=paths["path"], **SMALL, **NAMED), None
    found = prepare(config, data=data, items=items)
    names = {name for name in expected.manifest["files"] if name.endswith(".parquet")}
    if form == "titles inside":
        names.discard("items.parquet")  # in the order of the views
    assert {n: found.manifest["files"][n] for n in names} == {n: expected.manifest["files"][n] for n in names}
    assert len(names) > 5
    assert Prepared.load(found.folder).manifest == found.manifest


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({}, {}, r"^dataset table needs `path`, the raw data\.$"),
        ({"dataset": "recbole"}, {}, r"^dataset recbole needs `path`"),
        ({"dataset": "amazon"}, {"data": VIEWS}, r"^A table is prepared with dataset='table', not 'amazon'\.$"),
        ({"dataset": "amazon"}, {"items": FILMS}, r"^A table is prepared with dataset='table', not 'amazon'\.$"),
        ({"path": "x.csv"}, {"data": VIEWS}, r"^Give either data, or what to read in the options `path` and"),
        ({"dataset": "movielens", "download": True}, {"data": VIEWS}, r"^Give either data, or what to read"),
        ({}, {"data": VIEWS, "items": FILMS}, r"the columns \['user', .* with `user_column`, `item_column`, `timest"),
        (
            NAMED,
            {"data": VIEWS},
            r"^interactions: the columns \['name'\] are missing; .* `title_column`; or .* `items`\.$",
        ),
    ],
)
def test_a_source_that_cannot_be_is_refused(tmp_path, options, arguments, message):
    config = PrepareConfig(**{**SMALL, "output_dir": str(tmp_path / "out"), **options})
    with pytest.raises(ValueError, match=message):
        prepare(config, **arguments)
    assert not (tmp_path / "out").exists()


def test_text_tables_and_other_fields_reach_the_readers(tmp_path):
    text = VIEWS.join(FILMS, on="film").with_columns(name=pl.format("Café {}", "name")).write_csv(separator=";")
    (tmp_path / "views.txt.gz").write_bytes(gzip.compress(text.encode("cp1252")))
    source = {"path": str(tmp_path / "views.txt.gz"), **NAMED}
    with pytest.raises(ValueError, match=r"line 2: the text is not UTF-8\. .* with `encoding`"):
        prepare(PrepareConfig(output_dir=str(tmp_path / "out"), **SMALL, **source))
    written = {"encoding": "cp1252", "separator": ";"}
    prepared = prepare(PrepareConfig(output_dir=str(tmp_path / "out"), **SMALL, **source, **written))
    assert "Café Film 0" in prepared.items["title"].to_list()

    inter = "u:token\ti:token\tn:float\n" + "".join(f"{user}\t{film}\t{place}\n" for user, place, film in SEEN)
    (tmp_path / "x.inter").write_text(inter)
    (tmp_path / "x.item").write_text("i:token\tt:token_seq\n" + "".join(f"{n}\tFilm {n}\n" for n in range(9)))
    fields = {"user_field": "u", "item_field": "i", "timestamp_field": "n", "title_field": "t", "order": "plays"}
    options = {**SMALL, "dataset": "recbole", "path": str(tmp_path), **fields}
    prepared = prepare(PrepareConfig(output_dir=str(tmp_path / "out2"), **options))
    assert prepared.manifest["source"]["order"] == "plays"
    assert prepared.manifest["rows"]["preference"] == {"train": 7, "validation": 1}


REAL = {
    "ml-100k": ({"dataset": "movielens", "min_rating": 4.0, "split": "users"}, ("u.data", "\t", 0)),
    "ml-latest-small": ({"dataset": "movielens", "min_rating": 4.0, "split": "time"}, ("ratings.csv", ",", 1)),
    "lastfm-hetrec2011": ({"dataset": "lastfm", "split": "leave_one_out"}, ("user_artists.dat", "\t", 1)),
    "amazon2018-gift-cards": ({"dataset": "amazon", "split": "time"}, ("Gift_Cards_5.json.gz", None, 0)),
    "ml-100k-recbole": ({"dataset": "recbole", "template": "movies"}, ("ml-100k.inter", "\t", 1)),
}


def read_plainly(file: Path, separator: str | None, head: int) -> list[tuple[str, str]]:
    """User and item of each line."""
    if separator is None:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            return [(row["reviewerID"], row["asin"]) for row in map(json.loads, lines)]
    lines = file.read_text(encoding="utf-8").splitlines()[head:]
    return [tuple(line.split(separator)[:2]) for line in lines]


@pytest.mark.parametrize("name", REAL)
def test_real_files(name, tmp_path):
    """Of what was published: no negative that the user had, every target and history is something the user had."""
    if not os.environ.get("DMPO_TRL_SHARED_DATA"):
        pytest.skip("DMPO_TRL_SHARED_DATA does not point to the folder with real data")
    folder = Path(os.environ["DMPO_TRL_SHARED_DATA"]) / name
    options, (file, *form) = REAL[name]
    made = prepare(PrepareConfig(path=str(folder), output_dir=str(tmp_path / "out"), **options))
    lines = read_plainly(folder / file, *form)
    had: dict[str, set[str]] = {}
    for user, item in lines:
        had.setdefault(user, set()).add(item)
    assert made.manifest["source"]["read"]["interactions"] == len(lines)
    assert made.manifest["users"]["all"] == len(had)
    title_of = dict(made.items.select("item", "title").iter_rows())
    for split in ("validation", "test"):
        rows = made.ranking[split].to_list()
        assert len(rows) == made.manifest["rows"]["ranking"][split] > 50
        for row in rows:
            target = row["items"].pop(row["positive"])
            assert len(set(row["items"])) == 19
            assert not set(row["items"]) & had[row["user"]]
            own = {target, *row["history"]}
            # Of items with the same title one is in the catalogue, and what a user had goes by its identifier
            assert len(own - had[row["user"]]) <= len(had[row["user"]] - set(title_of))
            assert row["candidates"][row["positive"]][0]["content"] == title_of[target]
    if options.get("split") == "users":
        assert not set(made.ranking["validation"]["user"]) & set(made.ranking["test"]["user"])
    assert len(made.preference["train"][0]["rejected"]) == 7
    assert Prepared.load(tmp_path / "out").manifest == made.manifest


@pytest.mark.parametrize(("step", "tied"), [(0, True), (1, False)])
def test_users_whose_last_items_have_one_time_are_counted(tmp_path, caplog, step, tied):
    rows = [(user, place, place * step, (user + place) % 9) for user in range(9) for place in range(5)]
    views = pl.DataFrame(rows, schema=["user", "place", "timestamp", "item"], orient="row")
    films = pl.DataFrame({"item": range(9), "title": [f"Film {film}" for film in range(9)]})
    prepare(PrepareConfig(dataset="table", output_dir=str(tmp_path / "out"), negatives=2, candidates=3), views, films)
    says = "100.0% of the users had their last item at the same time as the one before it"
    assert (says in caplog.text) is tied
