"""What the cells of a config would cost, against tokens counted by the chat template."""

import importlib
from pathlib import Path

import pytest
import yaml
from support import make_tokenizer, save_model
from support.films import write_films

from dmpo_trl.training.cost import ModelSize

SETTINGS = {
    "test_users": 6,
    "validation_users": 4,
    "candidates": 5,
    "positions": 4,
    "min_history": 2,
    "tokens": 3000,
    "sft_epochs": 2,
    "lora_rank": 4,
}


@pytest.fixture
def folder(tmp_path):
    """A tiny model and films in RecBole's format."""
    save_model(tmp_path / "model")
    rows = [(user, (user * 7 + time) % 40, 5, time) for user in range(20) for time in range(10)]
    write_films(tmp_path / "films", rows, films=40)
    return tmp_path


def rows_of(folder: Path, capsys, *more: str, **settings) -> dict[str, dict[str, str]]:
    methods = ["counts", "zero-shot", "sft", "sft more", "dmpo", "joint"]
    cells = [{"dataset": "movielens", "users": 3, "seed": [0, 1], "method": methods}]
    (folder / "config.yaml").write_text(yaml.safe_dump({"settings": SETTINGS | settings, "cells": cells}))
    data, model = f"movielens={folder / 'films'}", str(folder / "model")
    paper = importlib.import_module("paper.__main__")
    capsys.readouterr()
    paper.main(["budget", str(folder / "config.yaml"), "--data", data, "--model", model, *more])
    head, _, *lines = [
        line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line[:1] == "|"
    ]
    return {line[0]: dict(zip(head, line, strict=True)) for line in lines}


def number(text: str) -> int:
    return int(text.replace(",", ""))


def test_tokens_are_those_of_the_rows(folder, capsys):
    from paper.settings import Settings
    from paper.sources import SOURCES
    from paper.users import Users

    row = rows_of(folder, capsys)["movielens, 3 users"]
    own, source, tokenizer = Settings(**SETTINGS), SOURCES["movielens"], make_tokenizer()
    users = Users(source, source.read(folder / "films"), own, 3, 0)

    def count(row, completions):
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]
        whole = [tokenizer.apply_chat_template(row["prompt"] + one)["input_ids"] for one in completions]
        return len(prompt) + sum(len(ids) - len(prompt) for ids in whole)

    epoch = sum(count(row, [row["completion"]]) for row in users.sft())
    test = sum(count(row, row["candidates"]) for row in users.ranking("test"))
    assert number(row["number"]) == 10  # counts cost nothing
    assert number(row["tokens of SFT"]) == 2 * (2 * epoch + 3000)  # two seeds, two epochs; SFT that goes on
    assert number(row["of stages"]) == 2 * (3000 + 3000 + 2 * epoch)  # `joint` has the tokens of both
    assert number(row["to rank"]) == pytest.approx(10 * test * (6 + 4) / 6, abs=1)  # validation users are as many


def test_more_to_rank_costs_more(folder, capsys):
    plain = rows_of(folder, capsys)["all"]
    for changes in ({"catalogue_users": 3}, {"explained_users": 3}, {"protocols": ["uniform", "popularity"]}):
        more = rows_of(folder, capsys, **changes)["all"]
        assert number(more["to rank"]) > number(plain["to rank"])
        assert more["tokens of SFT"] == plain["tokens of SFT"]


def test_hours_are_flops_by_the_rate(folder, capsys, monkeypatch):
    size = ModelSize(0, 10**15, 0, 0, 1, 1, 0, 1, adapter=0)  # so large that all but its matrices is nothing
    monkeypatch.setattr(ModelSize, "from_config", lambda *_: size)
    row = rows_of(folder, capsys, "--tflops", "1e6")["all"]
    trained, staged, ranked = (number(row[name]) for name in ("tokens of SFT", "of stages", "to rank"))
    flops = 2e15 * (3 * trained + 4 * staged + ranked)  # forward, backward twice, the reference's forward
    assert float(row["PFLOPs"].replace(",", "")) == pytest.approx(flops / 1e15, rel=1e-6)
    assert float(row["hours at 1e+06 TFLOPs a second"]) == pytest.approx(flops / 1e18 / 3600, abs=0.06)


def test_a_config_without_language_models_has_no_budget(folder):
    cells = [{"dataset": "movielens", "users": 3, "seed": 0, "method": "counts"}]
    (folder / "config.yaml").write_text(yaml.safe_dump({"settings": SETTINGS, "cells": cells}))
    paper = importlib.import_module("paper.__main__")
    with pytest.raises(SystemExit, match="no cell of a language model"):
        paper.main(["budget", str(folder / "config.yaml"), "--model", str(folder / "model")])
