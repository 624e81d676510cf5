"""Files of strangers: each ends as a repair with a count or as one clear error.

Never a traceback, never a byte read or written outside of the folder, never anything run.
"""

import io
import json
import os
import re
import time
import tracemalloc
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from coco_folders import annotation, image_entry, picture
from hostile_files import (
    CASES,
    FILES,
    GOOD,
    LAUGHS,
    as_bytes,
    boxed,
    coco,
    document,
    packed,
    valid_images,
    voc,
    write,
    yolo,
)
from PIL import Image

from detrlab.config import DataConfig
from detrlab.data import batches, open_data
from detrlab.data.check import check
from detrlab.data.findings import RULES
from detrlab.data.images import decode
from detrlab.errors import UserError


@pytest.mark.parametrize(("build", "value", "promised"), CASES)
def test_annotations_and_archives(tmp_path, build, value, promised):
    """One clear error that says so, or a data set with a note that says so."""
    source = build(tmp_path, value)
    before = sorted(map(str, tmp_path.rglob("*")))
    try:
        data = open_data(source)
        said = "\n".join(data.notes)
        for i in range(len(data.train)):
            sample = data.train.read(i)
            assert sample.boxes.isfinite().all()
            assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()
        json.dumps(data.val.coco_ground_truth(), allow_nan=False)
    except UserError as error:
        said = str(error)
    words = re.escape(RULES[promised].title) if promised in RULES else promised
    assert re.search(words, said), said
    assert len(said) < 2000
    with suppress(UserError):
        report = check(source)
        assert max(map(len, report.lines())) < 1000 + 90 * len(report.splits[0].per_class)
        json.dumps(report.to_dict(), allow_nan=False)
        assert promised not in RULES or report.findings.count(promised) == 1
    assert sorted(map(str, tmp_path.rglob("*"))) == before
    assert not Path("pwned").exists()


def test_aliases_cost_neither_memory_nor_text(tmp_path):
    """0.4 kB of yaml once took 1.2 GB and printed 226 MB."""
    source = yolo(tmp_path, {"yaml": LAUGHS})
    tracemalloc.start()
    with pytest.raises(UserError) as caught:
        check(source)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 << 20
    assert len(str(caught.value)) < 500


def with_image(folder, name, height=20, width=30):
    """The valid data set with one more image and a box over all of it."""
    images = [*document()["images"], image_entry(99, name, height, width)]
    boxes = [*document()["annotations"], annotation(99, 99, 1, [0, 0, width, height])]
    return coco(folder, {"images": images, "annotations": boxes})


@pytest.mark.parametrize(("name", "data", "promised"), FILES, ids=[name for name, *_ in FILES])
def test_image_files(tmp_path, name, data, promised):
    """Refused in seconds; in a data set it is left out, counted, and named by check."""
    start = time.monotonic()
    with pytest.raises(UserError, match=promised) as caught:
        decode(io.BytesIO(data), name)
    assert name in str(caught.value)
    assert time.monotonic() - start < 5
    with_image(tmp_path, name)
    (tmp_path / "images" / name).write_bytes(data)
    found = {f.rule for f in check(tmp_path).findings if f.file == f"images/{name}"}
    assert found & {"image-unreadable", "image-truncated"}
    opened = open_data(tmp_path)
    if len(opened.train) + len(opened.val) == GOOD:
        assert any(f"{RULES['image-unreadable'].title} (1)" in note for note in opened.notes)


def test_huge_image_files_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("detrlab.data.check.MAX_IMAGE_BYTES", 20_000)
    with_image(tmp_path, "large.png")
    picture(3, 20, 30).save(tmp_path / "images" / "large.png")
    with (tmp_path / "images" / "large.png").open("ab") as file:
        file.truncate(20_001)
    (finding,) = [f for f in check(tmp_path).findings if f.rule == "image-unreadable"]
    assert "holds 20,001 bytes, more than 20,000" in finding.detail


def test_there_are_enough_bad_files():
    assert len(CASES) + len(FILES) >= 160


@pytest.mark.parametrize("shape", [(1, 20_000), (20_000, 1), (1, 1)])
def test_strips_and_single_pixels_train(tmp_path, shape):
    with_image(tmp_path, "strip.png", shape[1], shape[0])
    Image.new("RGB", shape, "red").save(tmp_path / "images" / "strip.png")
    data = open_data(tmp_path).train
    stream = batches(data, DataConfig(image_size=32, max_size=48), batch=4, train=True, workers=0)
    assert all(batch.images.pixels.isfinite().all() for batch in stream)


@pytest.mark.parametrize("mode", ["LAB", "F", "I", "1", "LA", "P"])
def test_odd_pixels_become_rgb(mode):
    image = picture(1, 20, 30)
    if mode == "F":
        image = Image.fromarray(np.full((20, 30), np.nan, dtype=np.float32))
    elif mode == "LAB":
        image = Image.new("LAB", (30, 20))
    else:
        image = image.convert("L").convert(mode) if mode in ("I", "LA") else image.convert(mode)
    stream = io.BytesIO(as_bytes(image, "TIFF" if mode in ("LAB", "F", "I") else "PNG"))
    assert decode(stream, "odd").shape == (3, 20, 30)


def test_damaged_member_is_named_when_it_is_read(tmp_path):
    path = packed(tmp_path)
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("images/p3.png").header_offset + 230
    data = bytearray(path.read_bytes())
    data[start : start + 50] = bytes(50)
    path.write_bytes(bytes(data))
    report = check(path)
    assert any(f.file == "images/p3.png" and "damaged" in f.detail for f in report.findings)


# Links and other files -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["link.png", "linked/secret.png"])
def test_links_that_leave_the_folder_are_not_followed(tmp_path, monkeypatch, name):
    folder, outside = tmp_path / "data", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    picture(1, 20, 30).save(outside / "secret.png")
    with_image(folder, name)
    (folder / "images" / "link.png").symlink_to(outside / "secret.png")
    (folder / "images" / "linked").symlink_to(outside)
    notes = open_data(folder).notes
    assert any("2 links" in n and "DETRLAB_LINKS=follow" in n for n in notes)
    assert any(RULES["file-link"].title in n for n in notes)
    assert check(folder).findings.count("file-link") == 1
    monkeypatch.setenv("DETRLAB_LINKS", "follow")
    data = open_data(folder)
    assert len(data.train) + len(data.val) == GOOD + 1


@pytest.mark.parametrize(
    ("build", "value", "images"),
    [(coco, {}, "images"), (yolo, {}, "images"), (voc, boxed(), "JPEGImages")],
    ids=["coco", "yolo", "voc"],
)
def test_linked_images_are_named_and_followed_on_demand(
    tmp_path, monkeypatch, build, value, images
):
    """Clusters keep images in one place and link them; the advice is not to delete the entries.

    The folder is called coco, which is not a folder of annotations inside of another data set.
    """
    folder = tmp_path / "coco"
    folder.mkdir()
    build(folder, value)
    (folder / images).rename(tmp_path / "elsewhere")
    (folder / images).symlink_to(tmp_path / "elsewhere")
    write(tmp_path / "train.json", "{}")
    with pytest.raises(UserError, match=rf"1 links .*{images}.*DETRLAB_LINKS=follow"):
        open_data(folder)
    if build != yolo:
        report = check(folder)
        assert report.findings.count("file-missing") == 0
        assert report.findings.count("file-link") >= GOOD
        assert "DETRLAB_LINKS=follow" in "\n".join(report.notes)
    monkeypatch.setenv("DETRLAB_LINKS", "follow")
    assert len(open_data(folder).train) > 0


def test_links_inside_of_the_folder_and_a_linked_root_are_followed(tmp_path):
    (tmp_path / "real").mkdir()
    coco(tmp_path / "real", {})
    (tmp_path / "real" / "images").rename(tmp_path / "real" / "pixels")
    (tmp_path / "real" / "images").symlink_to(tmp_path / "real" / "pixels")
    (tmp_path / "real" / "pixels" / "loop").symlink_to(tmp_path / "real")
    (tmp_path / "data").symlink_to(tmp_path / "real")
    for folder in ("real", "data"):
        data = open_data(tmp_path / folder)
        assert len(data.train) + len(data.val) == GOOD


def test_pipes_and_devices_are_not_opened(tmp_path):
    with_image(tmp_path, "pipe.png")
    os.mkfifo(tmp_path / "images" / "pipe.png")
    os.mkfifo(tmp_path / "val.json")
    assert any(RULES["file-missing"].title in note for note in open_data(tmp_path).notes)


@pytest.mark.parametrize("name", ["data.tar.gz", "data.rar", "photo.jpg", "model.pt", "data"])
def test_other_files_are_refused_with_advice(tmp_path, name):
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(UserError, match="not a kind of file that holds a data set: "):
        open_data(tmp_path / name)


@pytest.mark.slow
def test_a_million_boxes_in_one_image(tmp_path):
    valid_images(tmp_path)
    boxes = ",".join(
        f'{{"id":{i},"image_id":0,"category_id":1,"bbox":[{i % 20},{i % 10},5,5]}}'
        for i in range(1_000_000)
    )
    text = json.dumps(document(annotations=[]))
    text = text.replace('"annotations": []', f'"annotations": [{boxes}]')
    (tmp_path / "train.json").write_text(text)
    (tmp_path / "val.json").write_text(json.dumps(document()))
    data = open_data(tmp_path)
    assert len(data.train.boxes) == len(data.train.read(0).boxes) == 1_000_000
    report = check(tmp_path, quick=True)
    assert report.findings.count("too-many-objects") == 1
    assert report.findings.count("box-duplicate") > 900_000
