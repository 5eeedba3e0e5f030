"""The examples on raw files of the published formats and a tiny model, and their configs for the command line."""

import gzip
import json
import re
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from support import load_script, make_model, make_tokenizer
from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, SFTConfig, TrlParser

from dmpo_trl import DMPOConfig
from dmpo_trl.cli._train_options import TrainArguments
from dmpo_trl.data import PrepareConfig, Prepared

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def had(user):
    """Five of thirty items, in the order in which the user had them."""
    return [(7 * user + 3 * step) % 30 for step in range(5)]


def movielens(folder):
    (folder / "movies.dat").write_text("".join(f"{i}::Film {i} (19{60 + i})::Drama\n" for i in range(30)))
    ratings = (f"{u}::{item}::5::{t}\n" for u in range(1, 25) for t, item in enumerate(had(u)))
    (folder / "ratings.dat").write_text("".join(ratings))


def amazon(folder):
    with gzip.open(folder / "Toys_5.json.gz", "wt") as file:
        for user in range(1, 25):
            for time, item in enumerate(had(user)):
                row = {"reviewerID": f"U{user}", "asin": f"A{item}", "overall": 5.0, "unixReviewTime": time}
                file.write(json.dumps(row) + "\n")
    with gzip.open(folder / "meta_Toys.json.gz", "wt") as file:
        file.writelines(json.dumps({"asin": f"A{item}", "title": f"Toy &amp; {item}"}) + "\n" for item in range(30))


def lastfm(folder):
    artists = "".join(f"{item}\tArtist {item}\thttp://last.fm/{item}\t\n" for item in range(30))
    (folder / "artists.dat").write_text("id\tname\turl\tpictureURL\n" + artists)
    plays = (f"{user}\t{item}\t{10 + plays}\r\n" for user in range(1, 25) for plays, item in enumerate(had(user)))
    (folder / "user_artists.dat").write_text("userID\tartistID\tweight\r\n" + "".join(plays), newline="")


@pytest.mark.parametrize(
    ("write", "sizes", "models"),
    [
        (movielens, ["--train_users", "8", "--validation_users", "2"], ["zero-shot", "SFT", "DMPO"]),
        (amazon, ["--few_shot_users", "8", "--validation_users", "2"], ["zero-shot", "SFT", "DMPO"]),
        (lastfm, ["--train_users", "8", "--validation_users", "2"], ["zero-shot", "SFT", "S-DPO", "DMPO"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_from_raw_files_to_the_table(write, sizes, models, model, tmp_path, monkeypatch):
    raw = tmp_path / "raw"
    raw.mkdir()
    write(raw)
    out = tmp_path / "out"
    paths = ["--path", str(raw), "--output_dir", str(out / "data"), "--results", str(out), "--model", model]
    small = ["--test_users", "5", "--candidates", "5", "--negatives", "2", "--lora_rank", "2"]
    small += ["--catalogue_users", "3"]
    monkeypatch.setattr(sys, "argv", ["example", *paths, *sizes, *small])
    monkeypatch.syspath_prepend(str(EXAMPLES))
    with load_script(f"examples/{write.__name__}.py") as script:
        script.main()
    titles: list[str] = []
    tables: list[list[str]] = []
    lines = (out / "table.md").read_text().splitlines()
    for line in lines:
        if line.startswith("| "):
            tables[-1].append(line.split("|")[1].strip())
        elif line:
            titles.append(line)
            tables.append([])
    by = "ranked by the sum of the tokens' log-probs; what the model says without a history "
    by += "is taken out with a weight of "
    kinds, weights = zip(*(title.split(by) for title in titles), strict=True)
    assert kinds == (
        "3 test users, the whole catalogue, ",
        "5 test users, candidates drawn uniformly, ",
        "5 test users, candidates drawn by popularity, ",
    )
    assert len(set(weights)) == 1
    assert re.fullmatch(", ".join(rf"[\d.]+ \({name}\)" for name in models), weights[0])
    for rows in tables:
        assert rows[1:] == ["---", "random", "popularity", *models, *rows[-len(models) :]]
        assert rows[-1] == "DMPO - popularity"
    assert Prepared.load(out / "data").preference["train"].num_rows == 8
    # As where the configs of the same name write, and none in another's
    adapters = ["sft", *(["softmax"] if "S-DPO" in models else []), "dmpo"]
    found = {str(file.parent.relative_to(out)) for file in out.rglob("adapter_config.json")}
    assert found == set(adapters)


@pytest.mark.parametrize("name", ["movielens", "amazon", "lastfm"])
def test_configs_are_understood_and_fit_together(name):
    def read(stage, *types):
        return TrlParser(types).parse_args_and_config(["--config", str(EXAMPLES / "configs" / name / f"{stage}.yaml")])

    (prepare,) = read("prepare", PrepareConfig)
    sft_data, sft, *_ = read("sft", ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig)
    data, dmpo, model, *_ = read(
        "dmpo", ScriptArguments, DMPOConfig, ModelConfig, DatasetMixtureConfig, TrainArguments
    )
    assert prepare.dataset == name
    assert sft_data.dataset_name == data.dataset_name == prepare.output_dir
    assert model.model_name_or_path == sft.output_dir != dmpo.output_dir


def test_the_config_for_a_gpu_has_what_matters_there():
    """Half-precision weights, layers computed once, no reference in the step, and batches laid out meanwhile."""
    configs = EXAMPLES / "configs" / "movielens"
    types = (ScriptArguments, DMPOConfig, ModelConfig, DatasetMixtureConfig, TrainArguments)
    # Read on a CPU, which has no bf16 training: as the command line does, without it
    (data, args, model, *_) = TrlParser(types).parse_args_and_config(
        ["--config", str(configs / "dmpo_gpu.yaml"), "--use_cpu", "True"]
    )
    assert model.dtype == "bfloat16"
    assert args.bf16
    assert not args.gradient_checkpointing
    assert args.precompute_ref_log_probs
    assert args.dataloader_num_workers == 2
    (prepare,) = TrlParser((PrepareConfig,)).parse_args_and_config(["--config", str(configs / "prepare.yaml")])
    assert data.dataset_name == prepare.output_dir


@pytest.mark.parametrize("name", ["movielens", "amazon", "lastfm", "quickstart"])
def test_examples_are_short(name):
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) <= 120


def test_sft_without_padding_takes_the_same_steps(model, tmp_path, monkeypatch):
    row = {"prompt": [{"role": "user", "content": "Film"}], "completion": [{"role": "assistant", "content": "Film 1"}]}
    rows = [row | {"prompt": [{"role": "user", "content": "Film " * length}]} for length in (3, 40, 7, 22, 9, 30)]
    monkeypatch.syspath_prepend(str(EXAMPLES))
    found = []
    padded = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
    with load_script("examples/stages.py") as stages:
        for name, options in (("one by one", {}), ("padded", padded)):
            settings = stages.Training(model, str(tmp_path), train_batch_size=4, sft_learning_rate=1e-2, lora_rank=2)
            folder = stages.train_sft(Dataset.from_list(rows), settings, name=name, seed=0, logging_steps=1, **options)
            found.append([(entry["loss"], entry["grad_norm"], entry["num_tokens"]) for entry in stages.logged(folder)])
    assert found[0] == [pytest.approx(step) for step in found[1]]
