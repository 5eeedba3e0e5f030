"""Which model a cell is of: models by name, joined of parts, asked in plain text, and never mixed."""

import hashlib
import importlib
import json
from pathlib import Path

import pytest
import yaml
from support import make_model, make_tokenizer
from support.films import write_films

from dmpo_trl.data import DownloadError, cache_dir

SETTINGS = {
    "test_users": 4,
    "validation_users": 3,
    "candidates": 4,
    "positions": 3,
    "min_history": 2,
    "tokens": 300,
    "sft_epochs": 1,
    "lora_rank": 4,
    "batch_size": 4,
}


@pytest.fixture
def models(monkeypatch, tmp_path):
    """The module, with parts of a made-up file in place of Gemma's, and a folder of the test as the cache."""
    module = importlib.import_module("paper.language_models")
    monkeypatch.setenv("DMPO_TRL_CACHE", str(tmp_path / "cache"))

    class Part:
        calls = 0

        def __init__(self, number: int) -> None:
            self.path = tmp_path / f"part{number}"

        def fetch(self) -> list[Path]:
            Part.calls += 1
            self.path.write_bytes(b"ABCD"[int(self.path.name[-1]) - 1 :][:1] * 3)
            return [self.path]

    monkeypatch.setattr(module, "GEMMA_PARTS", tuple(map(Part, (1, 2, 3, 4))))
    monkeypatch.setattr(module, "GEMMA_SHA256", hashlib.sha256(b"AAABBBCCCDDD").hexdigest())
    module.Part = Part
    return module


def test_parts_are_joined_in_order_and_once(models, tmp_path):
    whole = models.gemma()
    assert whole.read_bytes() == b"AAABBBCCCDDD"
    assert [file for file in cache_dir().rglob("*") if file.is_file()] == [whole]
    assert not list(tmp_path.glob("part*"))  # they would take the room once more
    assert models.gemma() == whole
    assert models.Part.calls == 4


def test_another_process_may_join_the_parts_meanwhile(models, monkeypatch):
    joined = models.gemma()
    content = joined.read_bytes()
    joined.unlink()

    def copy(source, target):
        joined.write_bytes(content)
        raise FileNotFoundError("part 2 was removed by the other process")

    monkeypatch.setattr(models.shutil, "copyfileobj", copy)
    assert models.gemma().read_bytes() == content


def test_a_joined_file_that_was_changed_is_not_taken(models):
    models.gemma().write_bytes(b"AAAB")
    with pytest.raises(DownloadError, match=r"has the checksum .* Delete it and run again"):
        models.gemma()


def test_gemma_is_pinned_and_states_its_terms():
    parts = importlib.import_module("paper.language_models").GEMMA_PARTS
    assert [part.distribution[-1] for part in parts] == ["1", "2", "3", "4"]
    for part in parts:
        assert {len(checksum) for checksum in (part.sha256, *part.members.values())} == {64}
        assert "Gemma Terms of Use" in part.terms


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Films, a model whose tokenizer has a chat template, and one whose tokenizer has none."""
    folder = tmp_path_factory.mktemp("models")
    for name, template in (("chat-one", True), ("base-one", False)):
        make_model().save_pretrained(folder / name)
        tokenizer = make_tokenizer()
        assert tokenizer.chat_template
        if not template:
            tokenizer.chat_template = None
        tokenizer.save_pretrained(folder / name)
    rows = [(user, (user * 7 + time) % 40, 5, time) for user in range(20) for time in range(10)]
    write_films(folder / "films", rows, films=40)
    return folder


def run(paper, folder: Path, place: Path, model: str, output: str, method: str = "dmpo") -> dict:
    config = place / "config.yaml"
    cells = [{"dataset": "movielens", "users": 3, "seed": 0, "method": method}]
    config.write_text(yaml.safe_dump({"settings": SETTINGS, "cells": cells}))
    places = ["--work", str(place / "work"), "--output", str(place / output), "--model", str(folder / model)]
    paper.main(["run", str(config), "--data", f"movielens={folder / 'films'}", *places])
    return json.loads((place / output / f"movielens-3-{method}-0.json").read_text())


def test_a_model_without_a_chat_template_is_asked_in_plain_text(paper, folder, tmp_path, monkeypatch):
    from paper.users import Users

    asked, sft = [], Users.sft
    with monkeypatch.context() as patch:
        patch.setattr(Users, "sft", lambda self: asked.append(sft(self)) or asked[-1])
        cell = run(paper, folder, tmp_path, "base-one", "out")
    assert cell["model"] == "base-one"
    assert cell["prompts"] == "plain text"
    assert isinstance(asked[0][0]["prompt"], str)
    (tmp_path / "second").mkdir()
    cell = run(paper, folder, tmp_path / "second", "chat-one", "out", "zero-shot")
    assert (cell["model"], cell["prompts"]) == ("chat-one", "messages")


def test_the_authors_wording_in_plain_text(folder):
    pairs = importlib.import_module("paper.pairs")
    row = pairs.pl.DataFrame(
        {"user": ["u"], "history": [["A"]], "target": ["B"], "negatives": [["C"]], "target_first": [[False]]}
    )
    splits = pairs.PublishedSplits(None, {"sft": row, "eval": row})
    settings = importlib.import_module("paper.settings").Settings()
    for name, end in (("pairs-movies", "  <Title:C>  and  <Title:B> ."), ("titles-movies", "\nA\n")):
        users = pairs.PairUsers(pairs.PAIR_SOURCES[name].plain(), splits, settings, 1, 0)
        (question,) = users.questions()["pairs"]
        assert question["prompt"].endswith(end)
        assert question["candidates"] == (
            [" <Title:B> ,  <Title:C> ", " <Title:C> ,  <Title:B> "] if "  <" in end else ["B", "C"]
        )


def test_models_are_not_mixed(paper, folder, tmp_path):
    run(paper, folder, tmp_path, "base-one", "out", "sft")
    with pytest.raises(SystemExit, match=r"was computed with base-one, not chat-one. Give another --output"):
        run(paper, folder, tmp_path, "chat-one", "out", "sft")
    with pytest.raises(SystemExit, match=r"is of base-one, not of chat-one. Give another --work"):
        run(paper, folder, tmp_path, "chat-one", "elsewhere", "sft")
