"""Data sets by name: downloaded, verified, unpacked safely; from a local server."""

import hashlib
import io
import json
import tarfile

import pytest
from coco_folders import annotation, image_entry, picture

from detrlab.data import datasets, open_data
from detrlab.data.datasets import Published, downloaded
from detrlab.errors import UserError
from download_server import serving


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


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DETRLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    return tmp_path / "cache"


@pytest.fixture
def server(cache):  # noqa: ARG001
    with serving() as running:
        yield running


def published(server, data, **changes):
    server.files["/dataset.tar.gz"] = data
    values = {
        "name": "cppe5",
        "urls": (f"{server.url}/dataset.tar.gz",),
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "unpacked": 1 << 24,
        "terms": "",
    }
    return Published(**{**values, **changes})


def test_cppe5_by_name(server, cache, monkeypatch):
    data = small_cppe5()
    monkeypatch.setattr(datasets, "CPPE5", published(server, data))
    seen = []
    opened = open_data("cppe5", progress=lambda done, total: seen.append((done, total)))
    assert (len(opened.train), len(opened.val)) == (6, 3)
    assert opened.train.category_ids == (1, 2, 3, 4, 5)
    assert opened.train.read(0).image.shape == (3, 30, 40)
    assert seen[-1] == (len(data), len(data))
    names = {path.name for path in (cache / "cppe5").iterdir()}
    assert names == {"data", ".dataset.tar.gz.lock"}
    assert len(open_data("cppe5").train) == 6
    assert len(server.asked) == 1  # the second time it is there


def test_the_published_archive_is_pinned():
    assert datasets.CPPE5.size == 238_482_705
    assert datasets.CPPE5.sha256.startswith("1151086e59fcb878")
    assert datasets.CPPE5.urls[0].startswith("https://github.com/Rishit-dagli/CPPE-Dataset/")


def test_a_download_that_fails_is_continued_or_done_by_hand(server, cache):
    data = small_cppe5()
    entry = published(server, data)
    place = cache / "cppe5" / "dataset.tar.gz"
    server.page = True
    with pytest.raises(UserError, match=rf"cannot be downloaded.*{place} \(sha256 {entry.sha256}"):
        downloaded(entry, wait=0)
    place.write_bytes(data)
    assert (downloaded(entry, wait=0) / "annotations" / "train.json").is_file()
    assert len(server.asked) == 1


def test_another_file_is_refused_and_not_kept(server):
    data = small_cppe5()
    entry = published(server, data)
    server.files["/dataset.tar.gz"] = b"x" * len(data)
    with pytest.raises(UserError, match="not the published"):
        downloaded(entry, wait=0)
    server.files["/dataset.tar.gz"] = data
    assert downloaded(entry, wait=0).is_dir()


HOSTILE = {  # name, type, link
    "parent": ("../evil.txt", tarfile.REGTYPE, ""),
    "absolute": ("/tmp/evil.txt", tarfile.REGTYPE, ""),
    "symlink": ("link", tarfile.SYMTYPE, "/etc"),
    "hardlink": ("link", tarfile.LNKTYPE, "/etc/passwd"),
    "device": ("null", tarfile.CHRTYPE, ""),
    "fifo": ("pipe", tarfile.FIFOTYPE, ""),
    "bomb": ("zeros", tarfile.REGTYPE, ""),
}


def hostile_tar(kind):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("good.txt"))
        name, type_, link = HOSTILE[kind]
        member = tarfile.TarInfo(name)
        member.type, member.linkname = type_, link
        member.size = 1 << 25 if kind == "bomb" else 0
        tar.addfile(member, io.BytesIO(bytes(member.size)))
    return stream.getvalue()


@pytest.mark.parametrize("kind", HOSTILE)
def test_archives_that_try_to_escape_leave_nothing(server, cache, tmp_path, kind):
    entry = published(server, hostile_tar(kind))
    with pytest.raises(UserError, match="was not unpacked"):
        downloaded(entry, wait=0)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    names = {path.name for path in (cache / "cppe5").iterdir()}
    assert names == {"dataset.tar.gz", ".dataset.tar.gz.lock"}


def test_a_damaged_archive_is_one_clear_error(server):
    with pytest.raises(UserError, match="cannot be unpacked"):
        downloaded(published(server, small_cppe5()[:-2000]), wait=0)
