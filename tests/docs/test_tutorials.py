"""The tutorials, followed from the first to the last line with a tiny model."""

import json
import re
import socket

import polars as pl
import pytest
from support import ROOT, blocks, follow, save_model
from support.prepared import model_and_data

from dmpo_trl.data import Prepared
from dmpo_trl.recommend import Recommender

TUTORIALS = ROOT / "docs" / "tutorials"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model in the folder where the tutorial is followed, under a name that is nowhere else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    save_model(tmp_path / "tiny-model")
    return {MODEL: "tiny-model"}


def test_from_dpo_trains_as_it_says(model, tmp_path):
    names = follow(TUTORIALS / "from-dpo.md", model)
    rows = [dict(row) for row in names["dataset"]]
    (lists,) = (
        block.text
        for block in blocks(TUTORIALS / "from-dpo.md")
        if block.text.startswith("dataset = Dataset.from_list")
    )
    written: dict = {"Dataset": names["Dataset"]}
    exec(lists, written)
    # The pairs, put together, are the rows that the page shows
    assert rows == [dict(row) for row in written["dataset"]]
    assert names["trainer"].args.loss_type == ["softmax"]
    assert names["scores"].by("sum").shape == (3,)
    for folder in ("dpo", "dmpo", "softmax", "from-yaml"):
        assert list((tmp_path / "outputs" / folder).rglob("adapter_model.safetensors")), folder


def test_own_table_ends_with_recommendations_and_can_be_evaluated(model, tmp_path, capsys):
    follow(TUTORIALS / "own-table.md", model)
    out = capsys.readouterr().out
    assert "400 interactions of 80 users" in out
    assert "No leak found." in out
    assert {"random", "popularity", "item_knn", "dmpo (sum)", "sft (sum)"} <= {
        line.partition("  ")[0] for line in out.splitlines()
    }
    data = Prepared.load("outputs/shop/data")
    assert data.items.height == 16
    found = pl.read_parquet("outputs/shop/recommendations.parquet")
    assert found.columns == ["user", "rank", "item", "title", "score"]
    assert found["user"].to_list() == ["C0"] * 3 + ["C1"] * 3
    users = [json.loads(line) for line in (tmp_path / "customers.jsonl").read_text().splitlines()]
    for user in users:
        items = set(found.filter(user=user["user"])["item"])
        assert items.isdisjoint(user["history"] + user.get("seen", []))

    names = follow(TUTORIALS / "evaluating.md", model)  # goes on in the same folders
    out = capsys.readouterr().out
    assert "No leak found." in out
    assert {"shortest", "item_knn_shown"} <= {line.partition("  ")[0] for line in out.splitlines()}
    assert {"sum.parquet", "shortest.parquet", "metrics.json"} <= {
        file.name for file in (tmp_path / "outputs" / "shop" / "evaluation").iterdir()
    }
    assert names["difference"].low <= names["difference"].mean <= names["difference"].high

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    follow(TUTORIALS / "serving.md", {"8000": port})
    out = capsys.readouterr().out.splitlines()
    health, first, second, ranked, explained = (json.loads(line) for line in out if line.startswith("{"))
    assert (health["status"], health["titles"]) == ("ok", 16)
    direct = Recommender.from_pretrained("outputs/shop/exported")
    for answer, items in (
        (first, direct.recommend(["Canvas", "Easel"], 3)),
        (second, direct.recommend(["Canvas", "Easel"], 3, exclude=["Varnish", "Acrylic paint"])),
        (ranked, direct.rank(["Canvas", "Easel"], ["Oil paint", "Trowel", "Palette knife"])),
    ):
        assert [one["title"] for one in answer["recommendations"]] == [one.title for one in items]
    assert [one["title"] for one in explained["effects"]] == ["Canvas", "Easel"]
    assert [line.split(" ")[0] for line in out[-4:-1]] == ["1", "2", "3"]
    assert out[-1].startswith("422 history: 'Canvass' is neither an item id nor a title")
    assert "'Canvas'" in out[-1]


@pytest.mark.slow
def test_one_gpu_trains_in_4_bits_and_exports(model, tmp_path):
    """With a tiny model on a CPU: nothing is said about a GPU."""
    pytest.importorskip("bitsandbytes")
    given = model_and_data(tmp_path / "given")
    smaller = {"Qwen/Qwen3-8B": "tiny-model", "outputs/shop/data": f"{given}/data", "eval_steps: 0.2": "eval_steps: 2"}
    on_a_cpu = {"bf16: true": "bf16: false\nuse_cpu: true\nmax_steps: 2", "save_steps: 0.2": "save_steps: 2"}
    dtypes = {"dtype: bfloat16": "dtype: float32", "--dtype bfloat16": "--dtype float32"}
    out = tmp_path / "outputs" / "shop"
    out.mkdir(parents=True)  # where the reader's data lie
    follow(TUTORIALS / "one-gpu.md", smaller | on_a_cpu | dtypes)
    assert (out / "qlora" / "adapter_model.safetensors").exists()
    assert (out / "exported" / "model.safetensors").exists()
    assert "ndcg@5" in (out / "qlora.html").read_text()


def test_a_tutorial_has_no_command_that_is_not_run():
    """Lines that look like commands outside the blocks that `follow` runs."""
    for page in TUTORIALS.glob("*.md"):
        for block in blocks(page):
            if block.language not in ("bash", "python", "diff"):
                assert not re.search(r"^(dmpo-trl|trl|python|pip|make) ", block.text, re.M), page


def test_a_command_that_nobody_runs_is_an_error(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```bash\nwget example.org\n```\n")
    with pytest.raises(ValueError, match=r"How to run wget example.org"):
        follow(page, {})
