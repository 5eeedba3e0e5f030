"""Processes of a group end: about one in twenty of `dmpo-trl train`'s hung for ever."""

import subprocess
import sys

import pytest
import torch.distributed as dist
from support import SCRIPTS
from support.launch import two_processes
from support.prepared import model_and_data

from dmpo_trl.cli import main


def test_the_last_holder_of_a_process_group_releases_the_gil():
    command = [sys.executable, str(SCRIPTS / "process_group_end.py")]
    assert subprocess.check_output(command, text=True, timeout=120) == "the end\n"


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A model, and prepared data."""
    return model_and_data(tmp_path_factory.mktemp("given"))


def test_a_command_ends_the_process_group_after_its_models(given, monkeypatch):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    main(["evaluate", "--model", f"{given}/model", "--data", f"{given}/data"])
    assert not dist.is_initialized()


def test_a_command_without_a_process_group_begins_none():
    main(["completion", "bash"])
    assert not dist.is_initialized()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["evaluate", "--generate", "--output_dir"], "Written to"),
        (["recommend", "--split", "test", "--k", "2", "--num_beams", "3", "--output"], "Recommendations for 4 users"),
    ],
)
def test_a_command_in_two_processes_shares_the_users_and_ends(given, tmp_path, options, said):
    command, *options = options
    arguments = [command, "--model", f"{given}/model", "--data", f"{given}/data", *options]
    printed = two_processes("launched_command.py", *arguments, tmp_path / "out")
    assert printed.count(said) == 1
