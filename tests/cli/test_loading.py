"""The commands that answer with a recommender put it on this process's device."""

import socket
from types import SimpleNamespace

import pytest
import torch
from support.prepared import model_and_data

from dmpo_trl.cli import _loading, main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return model_and_data(tmp_path_factory.mktemp("loading"))


def test_the_model_is_put_on_the_device(folder, monkeypatch):
    monkeypatch.setattr(_loading, "PartialState", lambda: SimpleNamespace(device=torch.device("meta")))
    recommender = _loading.load_recommender(f"{folder}/model", {"dtype": "bfloat16"}, data=f"{folder}/data")
    assert (recommender.model.device.type, recommender.model.dtype) == ("meta", torch.bfloat16)


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (["recommend", "--history", "1"], None),
        (["explain", "--history", "1"], None),
        (["serve", "--port", "0"], "uvicorn"),
        (["demo"], "gradio"),
    ],
    ids=["recommend", "explain", "serve", "demo"],
)
def test_every_command_that_answers_does_so(folder, monkeypatch, command, extra):
    if extra is not None:
        pytest.importorskip(extra)

    def load(path, loading, **parts):
        raise ValueError(f"loaded {path}")

    monkeypatch.setattr(_loading, "load_recommender", load)
    monkeypatch.setattr("dmpo_trl.cli.serve.listen", lambda host, port: socket.create_server(("127.0.0.1", 0)))
    with pytest.raises(SystemExit, match=f"loaded {folder}/model"):
        main([*command, "--model", f"{folder}/model", "--data", f"{folder}/data"])
