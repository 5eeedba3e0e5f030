"""The comparison of stages after SFT on a tiny model: every cell is written once, and the report reads them."""

import json
import shutil

import numpy as np
import pytest
from support import load_script, make_model, make_tokenizer

METHODS = ["counts", "zero-shot", "sft", "sft more", "dmpo boundary", "sampled softmax 3"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learning")
    make_model().save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    raw = folder / "tiny"
    raw.mkdir()
    generator = np.random.default_rng(0)
    rows = [
        f"{user}\t{item}\t{generator.integers(3, 6)}\t{time}"
        for user in range(30)
        for time, item in enumerate(generator.permutation(60)[:20])
    ]
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
    (raw / "tiny.inter").write_text("\n".join([header, *rows]) + "\n")
    items = ["item_id:token\tmovie_title:token_seq", *(f"{item}\tFilm {item}" for item in range(60))]
    (raw / "tiny.item").write_text("\n".join(items) + "\n")
    return folder


def run(folders, *methods):
    sizes = {"users": 3, "test_users": 5, "validation_users": 4, "candidates": 5, "tokens": 400, "sft_epochs": 1}
    options = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
    places = {"data": "tiny", "model": "model", "work": "work", "output": "out"}
    options += [part for name, path in places.items() for part in (f"--{name}", str(folders / path))]
    with load_script("benchmarks/learning.py") as learning:
        learning.main(["--dataset", "movielens", "--seeds", "1", *options, "--methods", *methods])


def test_cells_are_written_once_and_reported(folders, capsys):
    run(folders, *METHODS)
    files = sorted((folders / "out").iterdir())
    assert [file.name for file in files] == sorted(f"movielens-3-{name.replace(' ', '-')}-0.json" for name in METHODS)
    cells = {file.name.split("-", 2)[2][:-7]: json.loads(file.read_text()) for file in files}
    for name in ("sft-more", "dmpo-boundary", "sampled-softmax-3"):
        assert cells[name]["training"]["tokens"] == 400
        assert cells[name]["training"]["log"]
        assert len(cells[name]["test sum"]["ranks"]) == 5
    assert cells["counts"]["random"]["auc"] == 0.5
    written = [file.stat().st_mtime_ns for file in files]
    capsys.readouterr()
    run(folders, *METHODS)
    assert [file.stat().st_mtime_ns for file in files] == written

    with load_script("benchmarks/learning_report.py") as learning_report:
        learning_report.main(["--cells", str(folders / "out")])
    out = capsys.readouterr().out
    assert "movielens, 3 training users" in out
    for ranker in ("random", "item knn", "sft more", "dmpo boundary, mean per token", "sampled softmax 3 + item knn"):
        assert f"| {ranker} | 1 |" in out


def test_a_stage_without_sft_says_what_is_missing(folders, tmp_path):
    shutil.copytree(folders / "model", tmp_path / "model")
    shutil.copytree(folders / "tiny", tmp_path / "tiny")
    with pytest.raises(SystemExit, match="run the method sft first"):
        run(tmp_path, "dmpo")
