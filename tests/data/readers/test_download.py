import errno
import hashlib
import subprocess
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dmpo_trl.data import MOVIELENS_100K, SMOLLM2_135M_INSTRUCT, DownloadError, WheelFiles, cache_dir
from dmpo_trl.data.readers._download import RemoteFile

CONTENT = {"demo/a.txt": "A", "demo/deep/b.txt": "B", "demo/__init__.py": "raise SystemError"}


@pytest.fixture
def registry(tmp_path, monkeypatch):
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
            return WheelFiles("demo", "1.0", sha256 or digest, members)

    served = Registry()
    with zipfile.ZipFile(served.wheel, "w") as archive:
        for name, text in CONTENT.items():
            archive.writestr(name, text)
    monkeypatch.setattr("dmpo_trl.data.readers._download.subprocess.run", served.run)
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


def test_an_interrupted_extraction_is_not_taken_for_whole(registry, monkeypatch):
    files = registry.files("demo/a.txt")
    with monkeypatch.context() as patch:
        patch.setattr(
            "dmpo_trl.data.readers._download.os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            files.fetch()
    assert left_behind() == []
    assert files.fetch()[0].read_text() == "A"


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
def test_failures_of_the_disk_say_what_to_do(registry, monkeypatch, number, message):
    def fail(*_, **__):
        raise OSError(number, "failed")

    monkeypatch.setattr("dmpo_trl.data.readers._download.zipfile.ZipFile.extract", fail)
    with pytest.raises(DownloadError, match=f"{message}.*DMPO_TRL_CACHE"):
        registry.files("demo/a.txt").fetch()


def test_the_cache_is_outside_the_repository_unless_told(monkeypatch):
    monkeypatch.delenv("DMPO_TRL_CACHE", raising=False)
    assert cache_dir() == Path.home() / ".cache" / "dmpo-trl"


def test_what_the_quickstart_fetches_is_pinned_and_states_its_terms():
    for files in (MOVIELENS_100K, SMOLLM2_135M_INSTRUCT):
        assert len(files.sha256) == 64
        assert files.terms


PAYLOAD = bytes(range(256)) * 12_000  # 3 MB: the connection breaks within
SHA256 = f"sha256:{hashlib.sha256(PAYLOAD).hexdigest()}"
MD5 = f"md5:{hashlib.md5(PAYLOAD).hexdigest()}"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves one file as told, and notes the Range of every request. The cache is a folder of the test."""

    class Handler(BaseHTTPRequestHandler):
        payload = PAYLOAD
        tag = '"v1"'
        kind = "application/zip"
        ranges = True
        breaks_after: int | None = None
        status: int | None = None
        requests: list[str | None] = []  # noqa: RUF012

        def do_GET(self):
            served, asked = type(self), self.headers["Range"]
            served.requests.append(asked)
            if served.status:
                return self.send_error(served.status)
            start = 0
            if served.ranges and asked and self.headers["If-Range"] == served.tag:
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
                if start >= len(served.payload):
                    return self.send_error(416)
            self.send_response(206 if start else 200)
            if served.tag:
                self.send_header("ETag", served.tag)
            self.send_header("Content-Type", served.kind)
            self.send_header("Content-Length", str(len(served.payload) - start))
            self.end_headers()
            self.wfile.write(served.payload[start : served.breaks_after])
            return None

        def log_message(self, *_):
            pass

    Handler.requests = []
    monkeypatch.setenv("DMPO_TRL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    Handler.url = f"http://127.0.0.1:{httpd.server_port}/data/file.zip"
    yield Handler
    httpd.shutdown()
    httpd.server_close()


@pytest.mark.parametrize("checksum", [SHA256, MD5])
def test_a_remote_file_is_downloaded_once(server, checksum, caplog):
    file = RemoteFile(server.url, checksum, terms="For research only.")
    path = file.fetch()
    assert path.read_bytes() == PAYLOAD
    assert "For research only." in caplog.text
    assert file.fetch() == path
    assert server.requests == [None]
    assert left_behind() == ["127.0.0.1/data/file.zip"]


def test_an_interrupted_download_goes_on_where_it_stopped(server):
    server.breaks_after = 2_500_000
    file = RemoteFile(server.url, SHA256)
    with pytest.raises(DownloadError, match=r"ended after 2500000 of 3072000 bytes.*goes on where it stopped"):
        file.fetch()
    assert not file.path.exists()
    server.breaks_after = None
    assert file.fetch().read_bytes() == PAYLOAD
    assert server.requests == [None, "bytes=2500000-"]
    assert left_behind() == ["127.0.0.1/data/file.zip"]


@pytest.mark.parametrize("change", [{"ranges": False}, {"tag": '"v2"', "payload": PAYLOAD[::-1]}, {"tag": None}])
def test_a_download_that_cannot_be_continued_starts_anew(server, change):
    """The server knows no ranges, has another version by now, or never named one."""
    if change == {"tag": None}:
        server.tag = None
    server.breaks_after = 2_500_000
    with pytest.raises(DownloadError):
        RemoteFile(server.url, None).fetch()
    server.breaks_after = None
    for name, value in change.items():
        setattr(server, name, value)
    assert RemoteFile(server.url, None).fetch().read_bytes() == server.payload


def test_a_part_longer_than_the_file_starts_anew(server):
    file = RemoteFile(server.url, SHA256)
    file.path.parent.mkdir(parents=True)
    file.path.with_name("file.zip.part").write_bytes(PAYLOAD + b"more")
    file.path.with_name("file.zip.part.version").write_text(server.tag)
    assert file.fetch().read_bytes() == PAYLOAD


def test_a_wrong_checksum_of_a_remote_file_leaves_nothing(server):
    with pytest.raises(DownloadError, match=rf"{SHA256}, expected was sha256:0+\. .*run again"):
        RemoteFile(server.url, f"sha256:{0:064}").fetch()
    assert left_behind() == []


def test_without_a_published_checksum_the_first_download_counts(server, caplog):
    file = RemoteFile(server.url, None)
    path = file.fetch()
    assert SHA256 in caplog.text
    assert path.with_name("file.zip.sha256").read_text().split() == [SHA256.removeprefix("sha256:"), "file.zip"]
    assert file.fetch() == path
    path.unlink()
    server.payload = PAYLOAD[:-1]
    with pytest.raises(DownloadError, match=f"expected was {SHA256}"):
        file.fetch()
    assert not path.exists()


def test_a_file_changed_in_the_cache_is_refused(server):
    file = RemoteFile(server.url, MD5)
    file.fetch().write_bytes(b"changed")
    with pytest.raises(DownloadError, match="delete it and run again"):
        file.fetch()


@pytest.mark.parametrize("status", [403, 404, 503])
def test_failures_of_a_server_say_what_to_do(server, status):
    server.status = status
    with pytest.raises(DownloadError, match=rf"{status}.*Check the network.*with a browser"):
        RemoteFile(server.url, None).fetch()
    assert left_behind() == []


def test_a_web_page_is_not_the_file(server):
    server.kind, server.payload = "text/html; charset=utf-8", b"<html>Please log in</html>"
    with pytest.raises(DownloadError, match="answered with a web page"):
        RemoteFile(server.url, None).fetch()
    assert left_behind() == []


def test_no_server_says_what_to_do(server):
    with pytest.raises(DownloadError, match=r"Check the network.*with a browser"):
        RemoteFile("http://127.0.0.1:9/file.zip", None).fetch()


def test_an_address_cannot_lead_out_of_the_cache(server):
    with pytest.raises(ValueError, match="leads out"):
        RemoteFile("http://127.0.0.1/../../evil", None).fetch()


@pytest.mark.parametrize(
    ("url", "checksum", "message"),
    [("file:///etc/passwd", None, "must begin with https"), ("https://x.org/a", "sha256:12", "must be 'sha256:'")],
)
def test_slips_in_an_address_are_refused(url, checksum, message):
    with pytest.raises(ValueError, match=message):
        RemoteFile(url, checksum)
