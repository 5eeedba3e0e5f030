import errno
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dmpo_trl.data import DownloadError, RemoteFile, cache_dir
from dmpo_trl.data.readers import _download

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


def left_behind() -> list[str]:
    return sorted(path.relative_to(cache_dir()).as_posix() for path in cache_dir().rglob("*") if path.is_file())


def test_the_cache_is_outside_the_repository_unless_told(monkeypatch):
    monkeypatch.delenv("DMPO_TRL_CACHE", raising=False)
    assert cache_dir() == Path.home() / ".cache" / "dmpo-trl"


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


@pytest.mark.parametrize(
    ("number", "message"), [(errno.ENOSPC, "No room on the disk"), (errno.EACCES, "cannot be written to")]
)
def test_failures_of_the_disk_say_what_to_do(server, monkeypatch, number, message):
    def fail(*_, **__):
        raise OSError(number, "failed")

    monkeypatch.setattr(_download.os, "replace", fail)
    with pytest.raises(DownloadError, match=f"{message}.*DMPO_TRL_CACHE"):
        RemoteFile(server.url, SHA256).fetch()


def test_a_failed_download_is_an_error_of_the_system_as_others_are(server):
    """What catches OSError, as the command line does, ends with the message instead of a traceback."""
    server.status = 503
    with pytest.raises(OSError, match="503"):
        RemoteFile(server.url, None).fetch()


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
