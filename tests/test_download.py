"""Downloads from a local server that breaks off, sends other files and refuses."""

import hashlib
import threading

import pytest

from detrlab import download
from detrlab.download import UnreachableError, cache_folder, fetch, in_lines, is_offline
from detrlab.errors import UserError
from download_server import serving

CONTENT = bytes(range(256)) * 4000  # about a megabyte
SHA256 = hashlib.sha256(CONTENT).hexdigest()
TAG = f'"{SHA256}"'


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    for name in ("DETRLAB_OFFLINE", "DETRLAB_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    with serving() as running:
        running.files["/detr.pth"] = CONTENT
        yield running


@pytest.fixture
def target(tmp_path):
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache" / "detr.pth"


def get(server, target, *paths, **options):
    urls = [server.url + path for path in paths or ("/detr.pth",)]
    return fetch(urls, target, wait=0, **options)


def leftovers(target):
    return {each.name for each in target.parent.iterdir() if not each.name.endswith(".lock")}


def left_by_another_command(target, data, tag=""):
    target.with_name("detr.pth.part").write_bytes(data)
    target.with_name("detr.pth.part.tag").write_text(tag)


def test_the_whole_file_arrives_once(server, target):
    seen = []
    get(server, target, sha256=SHA256[:8], progress=lambda *each: seen.append(each))
    assert target.read_bytes() == CONTENT
    assert leftovers(target) == {"detr.pth"}
    assert (seen[0], seen[-1]) == ((0, len(CONTENT)), (len(CONTENT), len(CONTENT)))
    get(server, target, sha256=SHA256[:8])
    assert len(server.asked) == 1


def test_progress_in_lines(server, target):
    lines, quick = [], []
    get(server, target, progress=in_lines(lines.append, "weights", every=0))
    assert lines[0] == "downloading weights: 0 of 1 MB"
    assert lines[-1] == "downloading weights: 1 of 1 MB"
    target.unlink()
    get(server, target, progress=in_lines(quick.append, "weights"))
    assert quick == []


def test_a_broken_connection_is_resumed(server, target):
    server.break_after = 300_000
    get(server, target, sha256=SHA256)
    assert target.read_bytes() == CONTENT
    spans = [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]
    assert [span for _, span in server.asked] == spans


def test_the_next_command_resumes_too(server, target):
    left_by_another_command(target, CONTENT[:1000], TAG)
    server.break_after = 0
    with pytest.raises(UnreachableError, match=r"broke 5 times.*0\.0 MB are kept: run the same"):
        get(server, target)
    server.break_after = None
    get(server, target)
    assert target.read_bytes() == CONTENT
    assert server.asked[-1][1] == "bytes=1000-"
    assert leftovers(target) == {"detr.pth"}


@pytest.mark.parametrize(
    ("received", "tag", "server_does", "known"),
    [
        (b"another version", '"zero"', {}, ""),  # must not be appended to
        (b"no tag and no checksum", "", {"tags": False}, ""),
        (CONTENT[:500], TAG, {"ranges": False}, SHA256),
        (CONTENT + b"more than there is", "", {}, SHA256),
    ],
)
def test_what_cannot_be_resumed_starts_anew(server, target, received, tag, server_does, known):
    vars(server).update(server_does)
    left_by_another_command(target, received, tag)
    get(server, target, sha256=known)
    assert target.read_bytes() == CONTENT


def test_temporary_errors_are_waited_for(server, target):
    server.statuses = [503, 429, 500]
    get(server, target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("status", [403, 404])
def test_permanent_errors_are_told(server, target, status):
    server.statuses = [status]
    with pytest.raises(UnreachableError, match=f"detr.pth.*server answered {status}"):
        get(server, target)
    assert len(server.asked) == 1
    assert not target.exists()


def test_the_next_address_is_tried(server, target):
    get(server, target, "/gone.pth", "/detr.pth")
    assert [path for path, _ in server.asked] == ["/gone.pth", "/detr.pth"]


@pytest.mark.parametrize("has_it", [True, False])
def test_a_mirror_is_asked_first(server, target, monkeypatch, has_it):
    monkeypatch.setenv("DETRLAB_MIRROR", f"{server.url}/mirror/")
    if has_it:
        server.files["/mirror/detr.pth"] = server.files.pop("/detr.pth")
    get(server, target)
    paths = ["/mirror/detr.pth", "/detr.pth"]
    assert [path for path, _ in server.asked] == paths[: 1 if has_it else 2]
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "DETRLAB_OFFLINE"])
def test_offline_nothing_is_asked(server, target, monkeypatch, name):
    assert not is_offline()
    monkeypatch.setenv(name, "1")
    with pytest.raises(UnreachableError, match="offline"):
        get(server, target)
    assert server.asked == []
    target.write_bytes(CONTENT)
    assert get(server, target, sha256=SHA256) == target


@pytest.mark.parametrize("where", ["on the server", "in the cache"])
def test_another_file_than_published_is_deleted(server, target, where):
    other = CONTENT[:-1] + b"!"
    if where == "on the server":
        server.files["/detr.pth"] = other
    else:
        target.write_bytes(other)
    with pytest.raises(UserError, match=rf"not {SHA256[:8]}.*was deleted"):
        get(server, target, sha256=SHA256[:8])
    assert leftovers(target) == set()
    server.files["/detr.pth"] = CONTENT
    get(server, target, sha256=SHA256[:8])
    assert target.read_bytes() == CONTENT


def test_no_more_than_the_published_size_is_received(server, target, monkeypatch):
    monkeypatch.setattr(download, "_CHUNK", 1000)
    seen = []
    with pytest.raises(UnreachableError, match="more than the published 5,000 bytes"):
        get(server, target, size=5000, progress=lambda done, _: seen.append(done))
    assert max(seen) == 5000
    assert not target.with_name("detr.pth.part").exists()


def test_a_web_page_is_not_the_file(server, target):
    server.page = True
    with pytest.raises(UnreachableError, match="web page"):
        get(server, target)
    assert not target.exists()


def test_a_server_that_is_down(server, target):
    server.server_close()
    with pytest.raises(UnreachableError, match="cannot be reached"):
        get(server, target)


def test_only_http(server, tmp_path, target):
    secret = tmp_path / "secret"
    secret.write_text("x")
    with pytest.raises(UserError, match="http or https"):
        fetch([secret.as_uri()], target)
    assert server.asked == []


def test_two_at_once_download_once(server, target):
    threads = [threading.Thread(target=get, args=(server, target)) for _ in range(4)]
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
        get(server, blocked / "detr.pth")


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"DETRLAB_CACHE": "/a"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/detrlab"),
        ({"HOME": "/c"}, "/c/.cache/detrlab"),
    ],
)
def test_cache_folder_follows_the_environment(monkeypatch, environment, folder):
    for name in ("DETRLAB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_folder().as_posix() == folder
