"""Which errors end a command with a message, which keep their traceback, and how messages name options."""

import gzip
import io
import json
import logging
import lzma
import pickle
import sys
import warnings
import zipfile
import zlib

import polars as pl
import pyarrow as pa
import pytest
import torch
import yaml
from datasets.exceptions import DatasetGenerationError
from jinja2 import TemplateError
from safetensors.torch import load

from dmpo_trl.cli import main
from dmpo_trl.cli._errors import as_flags, message_of


def polars():
    pl.read_csv(io.BytesIO(b""))


def cut_gzip():
    gzip.decompress(gzip.compress(b"x" * 1000)[:-20])


def refused_pickle():
    raise pickle.UnpicklingError("Weights only load failed. (1) Re-running with `weights_only=False` will likely work")


def caused():
    raise DatasetGenerationError("while generating") from ValueError("row 3 of x.jsonl")


def deep_yaml():
    yaml.safe_load("[" * 50_000)


def raise_(error):
    def fail():
        raise error

    return fail


@pytest.mark.parametrize(
    ("fail", "message"),
    [
        (polars, "empty"),
        (lambda: pl.DataFrame({"a": [1]}).select(pl.col("b")), "b"),
        (lambda: load(b"junk"), "header"),
        (cut_gzip, "A compressed file is damaged or cut short"),
        (lambda: lzma.decompress(b"junk"), "A compressed file is damaged"),
        (lambda: zlib.decompress(b"junk"), "A compressed file is damaged"),
        (lambda: zipfile.ZipFile(io.BytesIO(b"junk")), "A compressed file is damaged"),
        (refused_pickle, "a pickle that holds more than data"),
        (lambda: json.loads("[" * 50_000), "nested too deeply"),
        (deep_yaml, "nested too deeply"),
        (lambda: torch.nn.Linear(2, 2).load_state_dict({"weight": torch.zeros(3, 3)}), "loading state_dict"),
        (raise_(MemoryError("179 GiB")), "Memory ran out: 179 GiB."),
        (raise_(torch.OutOfMemoryError("of 80 GiB")), "Memory ran out: of 80 GiB."),
        (
            raise_(OSError(28, "No space left on device", "data/x.parquet")),
            "No space left on device: 'data/x.parquet'",
        ),
        (raise_(TemplateError("roles must alternate")), "chat template refuses .* roles must alternate"),
        (lambda: pa.array([1, "a"]), "a"),
        (caused, r"while generating \(row 3 of x\.jsonl\)"),
        (raise_(ValueError()), "ValueError"),
    ],
)
def test_what_a_user_can_cause_ends_in_a_message(fail, message, monkeypatch):
    monkeypatch.setattr("dmpo_trl.cli.leaks.run", lambda arguments: fail())
    with pytest.raises(SystemExit, match=f"(?s)^dmpo-trl leaks: .*{message}") as stop:
        main(["leaks", "--train", "data"])
    assert "weights_only" not in stop.value.code


def recursion():
    recursion()


@pytest.mark.parametrize(
    ("fail", "kind"),
    [
        (lambda: {}["key"], KeyError),
        (lambda: [][0], IndexError),
        (lambda: None.x, AttributeError),
        (lambda: 1 / 0, ZeroDivisionError),
        (lambda: len(3), TypeError),
        (recursion, RecursionError),
        (raise_(RuntimeError("a bug")), RuntimeError),
        (raise_(AssertionError()), AssertionError),
    ],
)
def test_a_mistake_in_the_program_keeps_its_traceback(fail, kind, monkeypatch):
    monkeypatch.setattr("dmpo_trl.cli.leaks.run", lambda arguments: fail())
    with pytest.raises(kind):
        main(["leaks", "--train", "data"])


def test_a_command_whose_packages_cannot_be_imported_ends_in_a_message(monkeypatch):
    monkeypatch.setitem(sys.modules, "dmpo_trl.cli.leaks", None)  # as where a package below it is broken
    with pytest.raises(SystemExit, match=r"^dmpo-trl leaks: import of dmpo_trl\.cli\.leaks halted"):
        main(["leaks", "--train", "data"])


def test_verbose_shows_the_traceback_of_a_message_too(monkeypatch):
    monkeypatch.setattr("dmpo_trl.cli.leaks.run", lambda arguments: polars())
    with pytest.raises(pl.exceptions.NoDataError):
        main(["--verbose", "leaks", "--train", "data"])


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("Set `overwrite`, or k=3.", "Set --overwrite, or k=3."),
        ("k_core must be at least 1, it is 0.", "--k_core must be at least 1, it is 0."),
        ("Set --k_core to 3.", "Set --k_core to 3."),
        ("Give `k_core=3` or overwrite=True.", "Give --k_core 3 or --overwrite."),
        ("Give overwrite=False.", "Give --overwrite False."),
        ("k must be at least 1, it is 0.", "--k must be at least 1, it is 0."),
        ("overwrite the file", "overwrite the file"),
        ("`other_thing` and other_thing", "`other_thing` and other_thing"),
        ("in /data/k_core/x, k_core.yaml and 'k_core'", "in /data/k_core/x, k_core.yaml and 'k_core'"),
        ("Raise k_core.", "Raise --k_core."),
        ("f(k_core=3) and k_core()", "f(k_core=3) and k_core()"),
    ],
)
def test_options_are_named_as_flags_and_nothing_else_is(message, shown):
    assert as_flags(message, ["overwrite", "k_core", "k"]) == shown


def test_a_message_for_python_speaks_in_flags_on_the_command_line(tmp_path):
    assert (
        message_of(ValueError("Set `max_length` to at most 41."), ["max_length"]) == "Set --max_length to at most 41."
    )
    arguments = ["--dataset", "movielens", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="--k_core_users must be at least 1, it is 0"):
        main(["prepare", *arguments, "--path", "x", "--k_core_users", "0"])
    with pytest.raises(SystemExit, match="or --download with a version"):
        main(["prepare", *arguments])


def test_what_libraries_warn_of_and_a_user_cannot_change_is_left_out_and_nothing_else_is(monkeypatch, caplog):
    kernels = logging.getLogger("bitsandbytes.backends.cpu.ops")

    def run(arguments):
        warnings.warn("`gradient_checkpointing` is deprecated and will be removed in v6.", FutureWarning, stacklevel=1)
        warnings.warn("'pin_memory' argument is set as true but no accelerator is found", UserWarning, stacklevel=1)
        warnings.warn("something else", FutureWarning, stacklevel=1)
        kernels.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "no kernels")
        kernels.warning("something else")

    monkeypatch.setattr("dmpo_trl.cli.leaks.run", run)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        main(["leaks", "--train", "data"])
    assert [str(one.message) for one in shown] == ["something else"]
    assert caplog.messages == ["something else"]
    kernels.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "no kernels")
    assert len(caplog.messages) == 2  # outside of the command nothing is filtered
