"""Processes of a group end: about one in twenty of `dmpo-trl train`'s hung for ever."""

import subprocess
import sys

import pytest
import torch.distributed as dist
from support import SCRIPTS, cpu_environment
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
    launcher = [sys.executable, *["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]]
    command, *options = options
    arguments = [command, "--model", f"{given}/model", "--data", f"{given}/data", *options, str(tmp_path / "out")]
    run = subprocess.run(
        [*launcher, str(SCRIPTS / "launched_command.py"), *arguments],
        env=cpu_environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-5000:]
    assert run.stdout.count(said) == 1
