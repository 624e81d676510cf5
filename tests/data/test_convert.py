"""Conversion: there and back gives the same boxes, and what gets lost is named."""

import io
import json

import numpy as np
import pytest
from coco_folders import annotation, image_entry, picture, write_coco
from layouts import contents
from PIL import Image

from detrlab.config import DataConfig
from detrlab.data import batches, open_data
from detrlab.data.check import check
from detrlab.data.convert import convert, without_exif
from detrlab.data.shapes import shapes
from detrlab.data.writers import unique_names
from detrlab.errors import UserError

FORMATS = ("coco", "yolo", "voc")


@pytest.fixture
def original(tmp_path):
    """Boxes whole and fractional, a pixel thin, at the edge and over it; an empty image."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "original"
    for split, first in (("train", 1), ("val", 50)):
        images, boxes = [], []
        for i in range(first, first + 6):
            images.append(image_entry(i, f"p{i}.jpg", 97 + i, 131 + i))
            if i % 6 == 0:
                continue
            for k in range(4):
                x, y = rng.integers(0, 60, 2).tolist()
                w, h = rng.integers(3, 30, 2).tolist()
                boxes.append(annotation(10 * i + k, i, (3, 8)[k % 2], [x, y, w, h], area=w * h))
            x, y, w, h = rng.uniform(1, 30, 4).round(3).tolist()
            boxes.append(annotation(10 * i + 7, i, 3, [x, y, w, h], area=w * h))
            boxes.append(annotation(10 * i + 8, i, 8, [0, 0, 131 + i, 1], area=131 + i))
            boxes.append(annotation(10 * i + 9, i, 8, [120, -4, 30, 20], area=600))
        write_coco(folder, images=images, annotations=boxes, categories={3: "a dog", 8: "cat"},
                   name=f"annotations/instances_{split}.json", image_folder=split)  # fmt: skip
    return folder


@pytest.mark.parametrize("there", FORMATS)
@pytest.mark.parametrize("back", FORMATS)
def test_there_and_back_gives_the_same_boxes(original, tmp_path, there, back):
    first = convert(original, there, tmp_path / "there")
    convert(tmp_path / "there", back, tmp_path / "back")
    expected = open_data(original)
    assert first.images == len(expected.train) + len(expected.val)
    assert first.boxes == len(expected.train.boxes) + len(expected.val.boxes)
    for folder in ("there", "back"):
        data = open_data(tmp_path / folder)
        assert contents(data.train) == contents(expected.train)
        assert contents(data.val) == contents(expected.val)
        assert [note for note in data.notes if "beyond the edge" not in note] == []
        assert not check(tmp_path / folder, quick=True).findings.severities()["error"]
    config = DataConfig(image_size=64, max_size=96, augmentation="light", workers=0)
    assert list(batches(data.train, config, batch=2, seed=0, epoch=0, train=True))


def test_images_are_copied_byte_for_byte_and_nothing_else_is_lost(original, tmp_path):
    before = {path.name: path.read_bytes() for path in original.rglob("*.jpg")}
    for to in FORMATS:
        assert convert(original, to, tmp_path / to).changes == ()
        assert {p.name: p.read_bytes() for p in (tmp_path / to).rglob("*.jpg")} == before


def test_losses_are_named(original, tmp_path):
    path = original / "annotations" / "instances_train.json"
    document = json.loads(path.read_text())
    document["annotations"][0]["segmentation"] = [[1, 1, 5, 1, 5, 5]]
    document["annotations"][1]["iscrowd"] = 1
    document["annotations"][3]["bbox"] = [5, 5, 0, 5]
    path.write_text(json.dumps(document))
    yolo, voc, coco = (convert(original, to, tmp_path / to) for to in ("yolo", "voc", "coco"))
    common = ("1 annotations lose their segmentation", "train: box has no width or no height (1)")
    for conversion in (yolo, voc, coco):
        assert all(any(word in loss for loss in conversion.changes) for word in common)
    assert any("1 crowd or difficult regions are left out" in loss for loss in yolo.changes)
    assert len(voc.changes) == len(coco.changes) == 2
    crowd = open_data(tmp_path / "voc").train.crowd
    assert crowd.sum() == open_data(tmp_path / "coco").train.crowd.sum() == 1
    assert open_data(tmp_path / "yolo").train.crowd.sum() == 0


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("declared", ["stored", "upright"])
def test_turned_pictures_mean_the_same_afterwards(tmp_path, to, declared):
    """Whatever the copy's reader thinks of EXIF, it sees the picture the boxes were drawn on."""
    exif = Image.Exif()
    exif[0x0112] = 6
    size = (40, 60) if declared == "stored" else (60, 40)
    images = [image_entry(i, f"p{i}.jpg", *size) for i in range(1, 4)]
    boxes = [annotation(i, i, 1, [3, 4, 10, 12]) for i in range(1, 4)]
    for split in ("train", "val"):
        write_coco(tmp_path / "o", images=images, annotations=boxes, categories={1: "x"},
                   name=f"{split}.json", image_folder=split)  # fmt: skip
    for path in (tmp_path / "o").rglob("*.jpg"):
        picture(1, 40, 60).save(path, exif=exif, quality=95)
    conversion = convert(tmp_path / "o", to, tmp_path / "c")
    before, after = open_data(tmp_path / "o").train, open_data(tmp_path / "c").train
    assert after.sizes.tolist() == before.sizes.tolist() == [list(size)] * 3
    difference = (before.read(0).image.int() - after.read(0).image.int()).abs()
    assert difference.max() <= (0 if declared == "stored" else 40)
    assert difference.float().mean() < 2
    assert contents(before) == contents(after)
    assert any("upright" in loss for loss in conversion.changes) == (declared == "upright")


def test_exif_is_cut_out_without_touching_pixels():
    exif = Image.Exif()
    exif[0x0112] = 8
    stream = io.BytesIO()
    picture(1, 40, 60).save(stream, "JPEG", exif=exif, comment=b"kept")
    stripped = without_exif(stream.getvalue())
    with Image.open(io.BytesIO(stripped)) as image, Image.open(stream) as original:
        assert not image.getexif()
        assert image.info["comment"] == b"kept"
        assert (np.array(image) == np.array(original)).all()
    assert without_exif(stripped) == stripped
    assert without_exif(b"\xff\xd8") == b"\xff\xd8"


def test_generated_set_as_files(tmp_path, monkeypatch):
    monkeypatch.setattr("detrlab.data.convert.shapes", lambda style: shapes(12, 4, style))
    for to in FORMATS:
        convert("shapes", to, tmp_path / to)
        data = open_data(tmp_path / to)
        train, val = shapes(train=12, val=4)
        assert contents(data.train) == contents(train)
        assert contents(data.val) == contents(val)
        assert (data.train.read(3).image == train.read(3).image).all()
        found = set(data.train.classes)
        assert found == set(train.classes) or to == "voc"  # voc knows only classes with boxes


def test_names_become_different():
    names = unique_names(["a/x.jpg", "b/x.jpg", "c/X.png", "y.jpg", "d/x-2.jpg", 'q<>:"?.gif', ""])
    assert names == ["x.jpg", "x-2.jpg", "X-3.png", "y.jpg", "x-2-2.jpg", "q_____.gif", "_"]


def test_mistakes(original, tmp_path):
    with pytest.raises(UserError, match="unknown format 'yolov8', did you mean 'yolo'"):
        convert(original, "yolov8", tmp_path / "x")
    with pytest.raises(UserError, match="inside of the original"):
        convert(original, "yolo", original / "x")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "a").touch()
    with pytest.raises(UserError, match="exists already"):
        convert(original, "yolo", tmp_path / "taken")


def test_failure_leaves_nothing_behind(original, tmp_path):
    """The copy appears whole or not at all."""

    def stop(done, _):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(original, "yolo", tmp_path / "copy", progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["original"]


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize(("name", "back"), [("facemask", "coco"), ("bccd", "voc")])
def test_real_sets_survive_yolo(shared_data, tmp_path, name, back):
    source = shared_data / name
    convert(source, "yolo", tmp_path / "yolo")
    convert(tmp_path / "yolo", back, tmp_path / "back")
    expected = open_data(source)
    config = DataConfig(image_size=64, max_size=96, augmentation="light", workers=0)
    for folder in ("yolo", "back"):
        data = open_data(tmp_path / folder)
        assert not data.notes
        assert data.train.classes == expected.train.classes
        for split in ("train", "val", "test"):
            ours, theirs = getattr(data, split), getattr(expected, split)
            assert (ours is None) == (theirs is None)
            if ours is not None:
                assert contents(ours) == contents(theirs)
        stream = batches(data.train, config, batch=8, seed=0, epoch=0, train=True)
        assert len(next(stream).targets) == 8
