import importlib.metadata
import os
import platform
import subprocess

import pytest
import torch

from dmpo_trl.cli import env, main


def printed(capsys):
    main(["env"])
    return dict(line[2:].split(": ", 1) for line in capsys.readouterr().out.splitlines() if line.startswith("- "))


def test_env_prints_what_a_bug_report_needs(capsys):
    found = printed(capsys)
    for name, package in [
        ("TRL", "trl"),
        ("Transformers", "transformers"),
        ("PyTorch", "torch"),
        ("PEFT", "peft"),
        ("Accelerate", "accelerate"),
        ("Datasets", "datasets"),
        ("polars", "polars"),
    ]:
        assert found[f"{name} version"].startswith(importlib.metadata.version(package)), name
    assert found["dmpo-trl version"].startswith(importlib.metadata.version("dmpo-trl"))
    assert found["Python version"] == platform.python_version()
    assert f"{os.cpu_count()} cores" in found["CPU"]
    assert found.keys() >= {"Platform", "Triton version", "PyTorch built for CUDA", "accelerator(s)"}
    assert sum(name.startswith("GPU ") for name in found) == torch.cuda.device_count()


def test_the_commit_is_that_of_the_packages_own_checkout(tmp_path, monkeypatch):
    """An environment inside somebody's repository says nothing of that repository."""

    def git(*arguments):
        identity = ["-c", "user.name=x", "-c", "user.email=x@x"]
        done = subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init")
    checkout, installed = (tmp_path / folder / "dmpo_trl" / "cli" for folder in ("src", ".venv/lib/site-packages"))
    for folder in (checkout, installed):
        folder.mkdir(parents=True)
        (folder / "env.py").write_text("")
    git("add", "src")
    git("commit", "-m", "first")
    monkeypatch.setattr(env, "__file__", str(installed / "env.py"))
    assert env._commit() == ""
    monkeypatch.setattr(env, "__file__", str(checkout / "env.py"))
    assert env._commit() == f"+{git('rev-parse', '--short', 'HEAD')}"
    (checkout / "env.py").write_text("changed")
    assert env._commit().endswith("-dirty")


def test_what_is_not_there_is_said_to_be_missing():
    assert env._version("no-such-package-of-ours") == "not installed"


def test_env_takes_no_options(capsys):
    with pytest.raises(SystemExit):
        main(["env", "--verbose"])
    assert "there is no option --verbose" in capsys.readouterr().err
