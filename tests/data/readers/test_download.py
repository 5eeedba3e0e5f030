import errno
import gzip
import hashlib
import io
import itertools
import subprocess
import sys
import threading
import urllib.request
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from dmpo_trl.data import DownloadError, RemoteFile, cache_dir
from dmpo_trl.data.readers import _download, _transfer

PAYLOAD = bytes(range(256)) * 12_000  # 3 MB: the connection breaks within
SHA256 = f"sha256:{hashlib.sha256(PAYLOAD).hexdigest()}"
MD5 = f"md5:{hashlib.md5(PAYLOAD).hexdigest()}"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves one file as told, and notes the Range of every request. The cache is a folder of the test."""

    class Handler(BaseHTTPRequestHandler):
        payload = PAYLOAD
        tag = '"v1"'
        kind = "application/octet-stream"
        ranges = True
        answer: dict[str, str | None] = {}  # noqa: RUF012  # headers that it sends instead of the right ones
        continues: tuple[bytes, dict[str, str | None]] | None = None  # what it sends as a rest, and its headers
        step = 1 << 20
        breaks_after: int | None = None
        status: int | None = None
        success: int | None = None
        location: str | None = None
        requests: list[str | None] = []  # noqa: RUF012

        def do_GET(self):
            served, asked = type(self), self.headers["Range"]
            served.requests.append(asked)
            if served.status:
                return self.send_error(served.status)
            if served.location:
                self.send_response(302)
                self.send_header("Location", served.location)
                return self.end_headers()
            start = 0
            if served.ranges and asked and self.headers["If-Range"] == served.tag:
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
                if start >= len(served.payload):
                    return self.send_error(416)
            rest = served.payload[start:]
            partial = bool(start)
            answer = served.answer
            if asked and served.continues is not None:
                rest, answer = served.continues
                partial = True
            self.send_response(served.success or (206 if partial else 200))
            size = len(served.payload)
            headers = {
                "ETag": served.tag,
                "Content-Type": served.kind,
                "Content-Length": str(len(rest)),
                "Content-Range": f"bytes {start}-{size - 1}/{size}" if partial else None,
            }
            for name, value in (headers | answer).items():
                if value is not None:
                    self.send_header(name, value)
            self.end_headers()
            for at in range(0, len(rest[: served.breaks_after]), served.step):
                self.wfile.write(rest[: served.breaks_after][at : at + served.step])
            return None

        def log_message(self, *_):
            pass

    Handler.requests, Handler.answer = [], {}
    monkeypatch.setenv("DMPO_TRL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    Handler.url = f"http://127.0.0.1:{httpd.server_port}/data/file.dat"
    yield Handler
    httpd.shutdown()
    httpd.server_close()


def left_behind() -> list[str]:
    """All files of the cache but the locks, without the hash of the server's port."""
    names = (path.relative_to(cache_dir()) for path in cache_dir().rglob("*") if path.is_file())
    return sorted((name.parent / name.name.partition("-")[2]).as_posix() for name in names if name.suffix != ".lock")


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
    assert left_behind() == ["127.0.0.1/data/file.dat"]


def test_an_interrupted_download_goes_on_where_it_stopped(server):
    server.breaks_after = 2_500_000
    file = RemoteFile(server.url, SHA256)
    with pytest.raises(DownloadError, match=r"ended after 2500000 of 3072000 bytes.*goes on where it stopped"):
        file.fetch()
    assert not file.path.exists()
    server.breaks_after = None
    assert file.fetch().read_bytes() == PAYLOAD
    assert server.requests == [None, "bytes=2500000-"]
    assert left_behind() == ["127.0.0.1/data/file.dat"]


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


def broken(server, checksum=None):
    """A file whose download has broken off after 2,500,000 bytes."""
    server.breaks_after = 2_500_000
    file = RemoteFile(server.url, checksum)
    with pytest.raises(DownloadError, match="ended after 2500000 of 3072000"):
        file.fetch()
    server.breaks_after = None
    return file


def part_of(file):
    return file.path.with_name(f"{file.path.name}.part")


@pytest.mark.parametrize("length", [len(PAYLOAD), len(PAYLOAD) + 4])
def test_a_part_as_long_as_the_file_or_longer_starts_anew(server, length):
    file = broken(server, SHA256)
    part_of(file).write_bytes((PAYLOAD + b"more")[:length])
    assert file.fetch().read_bytes() == PAYLOAD
    assert server.requests == [None, None]


def test_a_range_that_the_server_refuses_starts_anew(server):
    """It has a shorter file under the same tag."""
    file = broken(server)
    server.payload = PAYLOAD[:2_000_000]
    assert file.fetch().read_bytes() == server.payload
    assert server.requests == [None, "bytes=2500000-", None]


@pytest.mark.parametrize(
    ("answer", "continues"),
    [
        ({"ETag": '"v2"'}, PAYLOAD[::-1][2_500_000:]),  # the rest of another version
        ({"ETag": None}, PAYLOAD[::-1][2_500_000:]),
        ({"ETag": None, "Last-Modified": "Mon, 05 Oct 2026 10:00:00 GMT"}, PAYLOAD[::-1][2_500_000:]),
        ({"Content-Range": "bytes 0-3071999/3072000"}, PAYLOAD),  # another range than was asked for
        ({"Content-Range": "bytes 2500000-3071998/3072000"}, PAYLOAD[2_500_000:-1]),
        ({"Content-Range": "bytes 2500000-3072000/3072001"}, PAYLOAD[2_500_000:] + b"x"),  # of a longer file
        ({"Content-Range": "bytes 2500000-3071999/*"}, PAYLOAD[2_500_000:]),
        ({"Content-Range": "nonsense"}, PAYLOAD[2_500_000:]),
        ({"Content-Range": None}, PAYLOAD[2_500_000:]),
    ],
)
def test_only_the_rest_of_the_same_version_is_taken(server, answer, continues):
    """A proxy may know no If-Range. Without a published checksum nothing else would tell."""
    file = broken(server, SHA256)
    server.continues = (continues, answer)
    assert file.fetch().read_bytes() == PAYLOAD
    assert server.requests == [None, "bytes=2500000-", None]


@pytest.mark.parametrize("text", ["", "{", "[]", '"v1"', '{"header": "ETag"}'])
def test_a_part_whose_version_cannot_be_read_starts_anew(server, text):
    file = broken(server, SHA256)
    part_of(file).with_name(f"{part_of(file).name}.version").write_text(text)
    assert file.fetch().read_bytes() == PAYLOAD
    assert server.requests == [None, None]


def test_a_wrong_checksum_of_a_remote_file_leaves_nothing(server):
    with pytest.raises(DownloadError, match=rf"{SHA256}, expected was sha256:0+\. .*run again"):
        RemoteFile(server.url, f"sha256:{0:064}").fetch()
    assert left_behind() == []


def test_without_a_published_checksum_the_first_download_counts(server, caplog):
    file = RemoteFile(server.url, None)
    path = file.fetch()
    record = path.with_name(f"{path.name}.sha256")
    assert SHA256 in caplog.text
    assert record.read_text().split() == [SHA256.removeprefix("sha256:"), path.name]
    assert file.fetch() == path
    path.unlink()
    server.payload = PAYLOAD[:-1]
    for _ in range(2):
        with pytest.raises(DownloadError, match=f"expected was {SHA256}.*delete {record} and run again"):
            file.fetch()
        assert not path.exists()
    record.unlink()  # the remedy works
    assert file.fetch().read_bytes() == server.payload


PAGE = b"<html><body>Please log in</body></html>"
ZIP = io.BytesIO()
with zipfile.ZipFile(ZIP, "w") as archive:
    archive.writestr("ratings.csv", bytes(range(256)) * 40)
ZIP = ZIP.getvalue()
GZIP = gzip.compress(bytes(range(256)) * 40 + hashlib.sha256(b"").digest())


@pytest.mark.parametrize(
    ("name", "payload", "answer", "says"),
    [
        # Without a length, and cut short
        ("file.json.gz", GZIP[:-100], {"Content-Length": None}, "is damaged: Compressed file ended"),
        ("file.zip", ZIP[:-100], {"Content-Length": None}, "is damaged: File is not a zip file"),
        ("file.csv", PAYLOAD, {"Content-Length": None}, "has no stated length, and may be cut short"),
        # Damaged in the middle
        ("file.json.gz", GZIP[:-8] + b"\0\0\0\0" + GZIP[-4:], {}, "is damaged: CRC check failed"),
        ("file.zip", ZIP[:1000] + b"xxxx" + ZIP[1004:], {}, "its member ratings.csv has another checksum"),
        # Not the file
        ("file.csv", PAGE, {}, "is a web page"),
        ("file.csv", b"\xef\xbb\xbf\r\n<!DOCTYPE html>\n<p>", {}, "is a web page"),
        ("file.csv", b'<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml">', {}, "is a web page"),
        ("file.json.gz", PAGE, {}, "is a web page"),
        ("file.csv", PAGE, {"Content-Type": "application/xhtml+xml"}, "answered with a web page"),
        ("file.csv", b"", {}, "is empty"),
        ("file.json.gz", b"", {}, "is empty"),
        # In another form
        ("file.csv", GZIP, {"Content-Encoding": "gzip"}, "in another form, Content-Encoding: gzip"),
        ("file.json.gz", gzip.compress(GZIP), {"Content-Encoding": "gzip"}, "is compressed twice"),
        ("file.json.gz", GZIP, {"Content-Encoding": "br"}, "in another form, Content-Encoding: br"),
        # Lengths that are none
        ("file.csv", PAYLOAD, {"Content-Length": "abc"}, "states a length of 'abc'"),
        ("file.csv", PAYLOAD, {"Content-Length": "-1"}, "states a length of '-1'"),
        ("file.csv", PAYLOAD, {"Content-Length": ""}, "states a length of ''"),
    ],
)
def test_what_is_not_the_file_is_not_taken_for_it(server, name, payload, answer, says):
    file = RemoteFile(server.url.replace("file.dat", name), None)
    server.payload, server.answer = payload, answer
    with pytest.raises(DownloadError, match=f"{says}.*with a browser"):
        file.fetch()
    assert left_behind() == []
    server.payload, server.answer = {"gz": GZIP, "zip": ZIP, "csv": PAYLOAD}[name.split(".")[-1]], {}
    assert file.fetch().read_bytes() == server.payload  # nothing wrong was recorded


@pytest.mark.parametrize(
    ("name", "payload", "answer"),
    [
        ("file.json.gz", GZIP, {"Content-Length": None}),
        ("file.json.gz", GZIP, {"Content-Encoding": "x-gzip"}),  # what some call the file's own compression
        ("file.json.gz", GZIP, {"Content-Encoding": "identity"}),
        ("file.zip", ZIP, {"Content-Length": None}),
    ],
)
def test_a_whole_file_is_taken_whatever_is_said_about_it(server, name, payload, answer):
    server.payload, server.answer = payload, answer
    assert RemoteFile(server.url.replace("file.dat", name), None).fetch().read_bytes() == payload


@pytest.mark.parametrize("status", [201, 203, 204, 206])
def test_a_success_of_another_kind_is_not_the_file(server, status):
    server.success = status
    with pytest.raises(DownloadError, match=f"answered with status {status}"):
        RemoteFile(server.url, None).fetch()
    assert left_behind() == []


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
        RemoteFile("http://127.0.0.1:9/file.dat", None).fetch()


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


def test_two_addresses_are_two_files(server):
    urls = [server.url, f"{server.url}?x=1", f"{server.url}?x=2", "http://127.0.0.1/data/file.dat"]
    paths = {RemoteFile(url, None).path for url in urls}
    assert len(paths) == 4
    assert {path.suffix for path in paths} == {".dat"}


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/data/file.dat", "file:///etc/passwd", "data:,x", "gopher://x"])
def test_redirects_out_of_the_web_are_not_followed(server, target):
    server.location = target
    with pytest.raises(DownloadError, match=r"only http and https are followed|not allowed"):
        RemoteFile(server.url, None).fetch()


@pytest.mark.parametrize(
    ("start", "target", "followed"),
    [
        ("http://a.org/x", "http://b.org/x", True),
        ("http://a.org/x", "https://b.org/x", True),
        ("https://a.org/x", "https://b.org/x", True),
        ("https://a.org/x", "http://a.org/x", False),
    ],
)
def test_an_encrypted_connection_stays_one(start, target, followed):
    def redirect():
        return _transfer._Redirects().redirect_request(urllib.request.Request(start), None, 302, "", {}, target)

    if followed:
        assert redirect().full_url == target
        return
    with pytest.raises(ConnectionError, match="only https are followed"):
        redirect()


@pytest.fixture
def clock(monkeypatch):
    """The seconds that it shows are set by hand."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(_transfer, "monotonic", lambda: now.seconds)
    return now


def test_a_server_that_all_but_stands_still_is_given_up(clock):
    pace = _transfer._Pace()
    pace.check(10_239)
    clock.seconds = 59.9
    pace.check(0)
    clock.seconds = 60
    pace.check(1)  # just enough
    clock.seconds = 119.9
    pace.check(10_239)  # each minute counts for itself
    clock.seconds = 120
    with pytest.raises(TimeoutError, match="less than 10,240 bytes came in 60 seconds"):
        pace.check(0)


def test_a_download_that_all_but_stands_still_is_given_up(server, monkeypatch):
    minutes = itertools.count(step=60)
    monkeypatch.setattr(_transfer, "monotonic", lambda: next(minutes))
    monkeypatch.setattr(_transfer, "_BLOCK", 100)
    with pytest.raises(DownloadError, match=r"less than 10,240 bytes came in 60 seconds.*goes on where it stopped"):
        RemoteFile(server.url, None).fetch()


def test_of_several_processes_one_downloads(server):
    """What `accelerate launch` starts: each asks for the file."""
    script = "import sys; from dmpo_trl.data import RemoteFile; print(RemoteFile(sys.argv[1], None).fetch())"
    server.step = 100_000
    command = [sys.executable, "-c", script, server.url]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    paths = {process.communicate(timeout=120)[0].strip() for process in processes}
    assert paths == {str(RemoteFile(server.url, None).path)}
    assert Path(paths.pop()).read_bytes() == PAYLOAD
    assert server.requests == [None]


def test_a_chunked_answer_that_breaks_off_is_not_taken(server):
    """It says where it ends, without a length."""
    server.protocol_version, server.step = "HTTP/1.1", 1 << 30
    server.answer = {"Content-Length": None, "Transfer-Encoding": "chunked", "Connection": "close"}
    server.payload = b"4\r\nabcd\r\n5\r\nef"
    with pytest.raises(DownloadError, match="IncompleteRead"):
        RemoteFile(server.url, None).fetch()
    server.payload = b"4\r\nabcd\r\n5\r\nefghi\r\n0\r\n\r\n"
    assert RemoteFile(server.url, None).fetch().read_bytes() == b"abcdefghi"
