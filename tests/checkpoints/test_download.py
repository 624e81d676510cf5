"""Downloads against a local server that breaks off, lies and refuses."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from detrlab.checkpoints.download import UnreachableError, fetch, in_lines
from detrlab.errors import UserError

CONTENT = bytes(range(256)) * 4000  # about a megabyte
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves one file; its attributes say how badly."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.etag = '"one"'
        self.ranges = True
        self.break_after = None  # bytes, in every answer
        self.statuses = []  # answered in turn before the file is
        self.page = False
        self.asked = []  # (path, Range header)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/detr.pth"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        span = self.headers.get("Range")
        server.asked.append((self.path, span))
        if server.statuses:
            self.send_response(server.statuses.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if server.page:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(b"<html>too many downloads</html>")
            return
        start, total = 0, len(server.content)
        fresh = self.headers.get("If-Range") in (None, server.etag)
        if span and server.ranges and fresh:
            start = int(span.removeprefix("bytes=").removesuffix("-"))
            if start >= total:
                self.send_response(416)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        else:
            self.send_response(200)
        if server.etag:
            self.send_header("ETag", server.etag)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(total - start))
        self.end_headers()
        end = total if server.break_after is None else min(total, start + server.break_after)
        self.wfile.write(server.content[start:end])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    running = Server()
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "cache" / "detr.pth"


def leftovers(target):
    return {each.name for each in target.parent.iterdir() if not each.name.endswith(".lock")}


def test_the_whole_file_arrives(server, target):
    seen = []
    fetch(server.url, target, sha256=SHA256[:8], progress=lambda *each: seen.append(each), wait=0)
    assert target.read_bytes() == CONTENT
    assert leftovers(target) == {"detr.pth"}
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))


def test_progress_in_lines(server, target):
    lines = []
    fetch(server.url, target, progress=in_lines(lines.append, "weights", every=0), wait=0)
    assert lines[0] == "downloading weights: 0 of 1 MB"
    assert lines[-1] == "downloading weights: 1 of 1 MB"
    target.unlink()
    quick = []
    fetch(server.url, target, progress=in_lines(quick.append, "weights"), wait=0)
    assert quick == []


def test_what_is_there_is_not_asked_for_again(server, target):
    fetch(server.url, target, wait=0)
    fetch(server.url, target, wait=0)
    assert len(server.asked) == 1


def test_a_broken_connection_goes_on_where_it_ended(server, target):
    server.break_after = 300_000
    fetch(server.url, target, sha256=SHA256, wait=0)
    assert target.read_bytes() == CONTENT
    assert [span for _, span in server.asked] == [
        None,
        "bytes=300000-",
        "bytes=600000-",
        "bytes=900000-",
    ]


def test_the_next_command_goes_on_too(server, target):
    server.break_after = 0
    server.content = CONTENT
    target.parent.mkdir()
    part = target.with_name("detr.pth.part")
    part.write_bytes(CONTENT[:1000])
    target.with_name("detr.pth.part.tag").write_text(server.etag)
    with pytest.raises(
        UnreachableError, match=r"broke again and again.*0\.0 MB are kept: run the same"
    ):
        fetch(server.url, target, wait=0)
    assert part.read_bytes() == CONTENT[:1000]
    server.break_after = None
    fetch(server.url, target, wait=0)
    assert target.read_bytes() == CONTENT
    assert server.asked[-1][1] == "bytes=1000-"
    assert leftovers(target) == {"detr.pth"}


def test_another_version_is_not_appended(server, target):
    target.parent.mkdir()
    target.with_name("detr.pth.part").write_bytes(b"old" * 100)
    target.with_name("detr.pth.part.tag").write_text('"zero"')
    fetch(server.url, target, wait=0)
    assert target.read_bytes() == CONTENT


def test_without_a_tag_or_a_checksum_it_starts_anew(server, target):
    server.etag = ""
    target.parent.mkdir()
    target.with_name("detr.pth.part").write_bytes(b"whose?")
    fetch(server.url, target, wait=0)
    assert target.read_bytes() == CONTENT
    assert server.asked == [("/detr.pth", None)]


def test_a_server_without_ranges(server, target):
    server.ranges = False
    target.parent.mkdir()
    target.with_name("detr.pth.part").write_bytes(CONTENT[:500])
    target.with_name("detr.pth.part.tag").write_text(server.etag)
    fetch(server.url, target, sha256=SHA256, wait=0)
    assert target.read_bytes() == CONTENT


def test_more_than_there_is_starts_anew(server, target):
    target.parent.mkdir()
    target.with_name("detr.pth.part").write_bytes(CONTENT + b"more")
    fetch(server.url, target, sha256=SHA256, wait=0)
    assert target.read_bytes() == CONTENT


def test_errors_that_pass_are_waited_for(server, target):
    server.statuses = [503, 429, 500]
    fetch(server.url, target, wait=0)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("status", [403, 404])
def test_errors_that_stay_are_told(server, target, status):
    server.statuses = [status]
    with pytest.raises(UnreachableError, match=f"cannot be had: the server answered {status}"):
        fetch(server.url, target, wait=0)
    assert len(server.asked) == 1
    assert not target.exists()


def test_a_wrong_checksum_deletes_the_file(server, target):
    server.content = CONTENT[:-1] + b"!"
    with pytest.raises(UserError, match=rf"not {SHA256[:8]}.*It was deleted"):
        fetch(server.url, target, sha256=SHA256[:8], wait=0)
    assert leftovers(target) == set()
    server.content = CONTENT
    fetch(server.url, target, sha256=SHA256[:8], wait=0)
    assert target.read_bytes() == CONTENT


def test_a_web_page_is_not_the_file(server, target):
    server.page = True
    with pytest.raises(UnreachableError, match="web page instead of the file"):
        fetch(server.url, target, wait=0)
    assert not target.exists()


def test_nobody_there(server, target):
    server.server_close()
    with pytest.raises(UnreachableError, match="cannot be reached"):
        fetch(server.url, target, wait=0)


def test_only_the_web(tmp_path, target):
    secret = tmp_path / "secret"
    secret.write_text("x")
    with pytest.raises(UserError, match="no http or https address"):
        fetch(secret.as_uri(), target)


def test_two_at_once_download_once(server, target):
    threads = [
        threading.Thread(target=fetch, args=(server.url, target), kwargs={"wait": 0})
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.read_bytes() == CONTENT
    assert len(server.asked) == 1


def test_a_folder_that_cannot_be_written(server, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(UserError, match="could not be written"):
        fetch(server.url, blocked / "detr.pth", wait=0)
