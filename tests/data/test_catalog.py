"""Downloads: checked, resumed, unpacked safely; against a server of our own."""

import hashlib
import io
import json
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from coco_folders import annotation, image_entry, picture

from detrlab.data import catalog, open_data
from detrlab.data.catalog import Entry, cache_folder, fetch
from detrlab.errors import UserError


def small_cppe5():
    """An archive of CPPE-5's shape: jpegs called .png, integer boxes, a train and a test json."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:

        def add(name, data):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))

        number = 0
        for split, count in (("train", 6), ("test", 3)):
            images, boxes = [], []
            for _ in range(count):
                number += 1
                image = io.BytesIO()
                picture(number, 30, 40).save(image, "JPEG")
                add(f"images/{number}.png", image.getvalue())
                images.append(image_entry(number, f"{number}.png", 30, 40))
                boxes.append(annotation(number, number, 1 + number % 5, [3, 4, 10, 12]))
            names = ("Coverall", "Face_Shield", "Gloves", "Goggles", "Mask")
            categories = [{"id": k, "name": name} for k, name in enumerate(names, start=1)]
            document = {"images": images, "annotations": boxes, "categories": categories}
            add(f"annotations/{split}.json", json.dumps(document).encode())
    return stream.getvalue()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.requests.append((self.path, self.headers.get("Range")))
        data = server.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        start = 0
        wanted = self.headers.get("Range")
        if wanted and server.ranges:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        stop = len(data) if server.cut is None else min(len(data), start + server.cut)
        self.wfile.write(data[start:stop])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.files, server.requests, server.ranges, server.cut = {}, [], True, None
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def entry_for(server, data, *paths, **changes):
    base = f"http://127.0.0.1:{server.server_address[1]}"
    values = {
        "name": "cppe5",
        "urls": tuple(base + path for path in paths or ("/dataset.tar.gz",)),
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "unpacked": 1 << 24,
        "terms": "",
    }
    return Entry(**{**values, **changes})


def test_cppe5_by_name(server, tmp_path, monkeypatch):
    data = small_cppe5()
    server.files["/dataset.tar.gz"] = data
    monkeypatch.setattr(catalog, "CPPE5", entry_for(server, data))
    monkeypatch.setenv("DETRLAB_CACHE", str(tmp_path))
    seen = []
    opened = open_data("cppe5", progress=lambda done, total: seen.append((done, total)))
    assert (len(opened.train), len(opened.val)) == (6, 3)
    assert opened.train.category_ids == (1, 2, 3, 4, 5)
    assert opened.train.read(0).image.shape == (3, 30, 40)
    assert seen[-1] == (len(data), len(data))
    assert len(open_data("cppe5").train) == 6
    assert len(server.requests) == 1  # the second time it is there


def test_the_published_archive_is_pinned():
    assert catalog.CPPE5.size == 238_482_705
    assert catalog.CPPE5.sha256.startswith("1151086e59fcb878")
    assert catalog.CPPE5.urls[0].startswith("https://github.com/Rishit-dagli/CPPE-Dataset/")


def test_interrupted_download_goes_on_where_it_stopped(server, tmp_path):
    data = small_cppe5()
    server.files["/dataset.tar.gz"] = data
    server.cut = len(data) // 2
    with pytest.raises(UserError, match=r"cannot be downloaded.*[Tt]ry again.*sha256"):
        fetch(entry_for(server, data), cache=tmp_path)
    server.cut = None
    folder = fetch(entry_for(server, data), cache=tmp_path)
    assert server.requests[-1][1] == f"bytes={len(data) // 2}-"
    assert (folder / "annotations" / "train.json").is_file()
    assert [path.name for path in (tmp_path / "cppe5").iterdir()] == ["data"]


def test_server_that_cannot_resume_starts_over(server, tmp_path):
    data = small_cppe5()
    server.files["/dataset.tar.gz"] = data
    server.cut = 1000
    with pytest.raises(UserError):
        fetch(entry_for(server, data), cache=tmp_path)
    server.cut, server.ranges = None, False
    assert fetch(entry_for(server, data), cache=tmp_path).is_dir()


def test_wrong_file_is_refused_and_not_kept(server, tmp_path):
    data = small_cppe5()
    server.files["/dataset.tar.gz"] = b"x" * len(data)
    with pytest.raises(UserError, match="not the published"):
        fetch(entry_for(server, data), cache=tmp_path)
    server.files["/dataset.tar.gz"] = data
    assert fetch(entry_for(server, data), cache=tmp_path).is_dir()


def test_longer_file_than_published_is_cut_off(server, tmp_path):
    data = small_cppe5()
    server.files["/dataset.tar.gz"] = data + b"x" * (5 << 20)
    with pytest.raises(UserError, match="not the published"):
        fetch(entry_for(server, data), cache=tmp_path)


def test_next_address_is_tried(server, tmp_path):
    data = small_cppe5()
    server.files["/mirror.tar.gz"] = data
    entry = entry_for(server, data, "/gone.tar.gz", "/mirror.tar.gz")
    assert fetch(entry, cache=tmp_path).is_dir()
    assert [path for path, _ in server.requests] == ["/gone.tar.gz", "/mirror.tar.gz"]


def test_no_network_says_what_to_do(tmp_path):
    entry = Entry("cppe5", ("http://127.0.0.1:9/x.tar.gz",), 10, "ab", 100, "")
    with pytest.raises(UserError, match=r"by hand: .*x\.tar\.gz \(sha256 ab\)"):
        fetch(entry, cache=tmp_path)


def test_file_put_there_by_hand_is_taken(server, tmp_path):
    data = small_cppe5()
    entry = entry_for(server, data)
    (tmp_path / "cppe5").mkdir()
    (tmp_path / "cppe5" / "dataset.tar.gz").write_bytes(data)
    assert fetch(entry, cache=tmp_path).is_dir()
    assert server.requests == []


def hostile_tar(kind):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        member = tarfile.TarInfo("good.txt")
        tar.addfile(member)
        if kind == "parent":
            member = tarfile.TarInfo("../evil.txt")
        elif kind == "absolute":
            member = tarfile.TarInfo("/tmp/evil.txt")
        elif kind == "symlink":
            member = tarfile.TarInfo("link")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc"
        elif kind == "hardlink":
            member = tarfile.TarInfo("link")
            member.type, member.linkname = tarfile.LNKTYPE, "/etc/passwd"
        elif kind == "device":
            member = tarfile.TarInfo("null")
            member.type = tarfile.CHRTYPE
        elif kind == "fifo":
            member = tarfile.TarInfo("pipe")
            member.type = tarfile.FIFOTYPE
        elif kind == "bomb":
            member = tarfile.TarInfo("zeros")
            member.size = 1 << 25
            tar.addfile(member, io.BytesIO(b"\0" * member.size))
        if kind != "bomb":
            tar.addfile(member)
    return stream.getvalue()


@pytest.mark.parametrize(
    "kind", ["parent", "absolute", "symlink", "hardlink", "device", "fifo", "bomb"]
)
def test_archives_that_try_to_escape_leave_nothing(server, tmp_path, kind):
    data = hostile_tar(kind)
    server.files["/dataset.tar.gz"] = data
    home = tmp_path / "cache"
    with pytest.raises(UserError, match="was not unpacked"):
        fetch(entry_for(server, data), cache=home)
    assert not (home / "cppe5" / "data").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert [path.name for path in (home / "cppe5").iterdir()] == ["dataset.tar.gz"]


def test_broken_archive_is_one_clear_error(server, tmp_path):
    data = small_cppe5()[:-2000]
    server.files["/dataset.tar.gz"] = data
    with pytest.raises(UserError, match="cannot be unpacked"):
        fetch(entry_for(server, data), cache=tmp_path)


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("DETRLAB_CACHE", str(tmp_path / "a"))
    assert cache_folder() == tmp_path / "a"
    monkeypatch.delenv("DETRLAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_folder() == tmp_path / "b" / "detrlab"
