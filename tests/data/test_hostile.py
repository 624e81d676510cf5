"""Files of strangers: each ends as a repair with a count or as one clear error.

Never a traceback, never a byte read or written outside of the folder, never anything run.
"""

import io
import json
import os
import re
import struct
import time
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from coco_folders import annotation, image_entry, picture
from PIL import Image

from detrlab.config import DataConfig
from detrlab.data import batches, open_data
from detrlab.data.check import check
from detrlab.data.images import decode
from detrlab.errors import UserError

GOOD = 24


def document(**changes):
    """A sound COCO document of 24 images; keyword arguments replace parts of it."""
    sound = {
        "info": {"year": 2024},
        "images": [image_entry(i, f"p{i}.png", 20, 30) for i in range(GOOD)],
        "annotations": [annotation(i, i, 1, [2, 3, 10, 9]) for i in range(GOOD)],
        "categories": [{"id": 1, "name": "a"}],
    }
    return {**sound, **changes}


def sound(folder):
    for i in range(GOOD):
        path = folder / "images" / f"p{i}.png"
        path.parent.mkdir(exist_ok=True)
        picture(i, 20, 30).save(path)
    return folder


def coco(value):
    """A folder whose train.json is this text, these bytes or this document."""

    def build(folder):
        sound(folder)
        data = value if isinstance(value, bytes) else (
            value if isinstance(value, str) else json.dumps(value)
        ).encode()  # fmt: skip
        (folder / "train.json").write_bytes(data)
        return folder

    return build


def one_annotation(**changes):
    """The sound document with its first annotation changed; None deletes a key."""
    record = annotation(0, 0, 1, [2, 3, 10, 9])
    record.update(changes)
    record = {key: value for key, value in record.items() if value is not None}
    return coco(document(annotations=[record, *document()["annotations"][1:]]))


def one_image(**changes):
    entry = {**image_entry(0, "p0.png", 20, 30), **changes}
    entry = {key: value for key, value in entry.items() if value is not None}
    return coco(document(images=[entry, *document()["images"][1:]]))


def replaced(old, new):
    """The sound document with the first occurrence of a piece of its text replaced."""
    text = json.dumps(document())
    assert old in text
    return coco(text.replace(old, new, 1))


def texts_as_ids(folder):
    images = [image_entry(i if i % 2 else f"{i}", f"p{i}.png", 20, 30) for i in range(GOOD)]
    return coco(document(images=images))(folder)


def many_classes(folder):
    names = [{"id": i, "name": f"c{i}", "supercategory": "all"} for i in range(1, 20_001)]
    return coco(document(categories=names))(folder)


NAN, INF = float("nan"), float("inf")
ENTRY = r"entry is not what the format asks for \(1\)"
UNREADABLE = r"annotation file cannot be read \(1\)"
LINE_BROKEN = r"line is not 'class x y width height' \(\d+\)"
FULL = r"^$"  # opens without a word beyond the split

# name -> (how it is built, what the message or one of the notes says)
FILES = {
    # json that is none, or not COCO's
    "empty.json": (coco(b""), "is empty: export the annotations again"),
    "spaces.json": (coco("  \n "), "is empty"),
    "half.json": (coco(json.dumps(document())[:500]), r"is not valid json .*line 1 column"),
    "binary.json": (coco(bytes(range(256))), "is not valid json"),
    "utf16.json": (coco(json.dumps(document()).encode("utf-16")), "is not valid json"),
    "latin1.json": (coco('{"images": ["\xe9"]}'.encode("latin-1")), "is not valid json"),
    "deep.json": (coco("[" * 100_000), "is not valid json"),
    "deep object.json": (coco('{"a":' * 100_000), "is not valid json"),
    "trailing.json": (coco(json.dumps(document()) + "}"), "is not valid json"),
    "python.json": (coco("__import__('os').system('touch pwned')"), "is not valid json"),
    "list.json": (coco([1, 2, 3]), "holds .* images and no annotations that are understood"),
    "number.json": (coco(7), "no annotations that are understood"),
    "results.json": (coco([{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]), "understood"),
    "images is text": (coco(document(images="none")), "'images' should be a list, not str"),
    "images is object": (coco(document(images={"0": {}})), "'images' should be a list, not dict"),
    "annotations is null": (coco(document(annotations=None)), "'annotations' should be a list"),
    "annotations is number": (coco(document(annotations=3)), "'annotations' should be a list"),
    "categories missing": (coco({k: v for k, v in document().items() if k != "categories"}),
                           "declares no categories: list them as"),
    "categories is text": (coco(document(categories="cat")), "'categories' should be a list"),
    "categories are names": (coco(document(categories=["cat"])), "declares no categories"),
    "no images": (coco(document(images=[])), "has no usable images"),
    "no annotations": (coco(document(annotations=[])), "has no boxes to learn from"),
    "year as text": (coco(document(info={"year": "2024"})), "split off"),
    "info as text": (coco(document(info="made by hand", licenses="MIT")), "split off"),
    "byte order mark": (coco(b"\xef\xbb\xbf" + json.dumps(document()).encode()), "split off"),
    # entries
    "image without id": (one_image(id=None), ENTRY),
    "image id is true": (one_image(id=True), ENTRY),
    "image id is a list": (one_image(id=[1]), "1 boxes of images that are not listed"),
    "image id is huge": (one_image(id=10**30), "1 boxes of images that are not listed"),
    "image id is a fraction": (one_image(id=0.5), "1 boxes of images that are not listed"),
    "image name is a number": (one_image(file_name=5), "1 boxes of images that are not listed"),
    "image name is empty": (one_image(file_name=""), "1 boxes of images that are not listed"),
    "image name with a zero byte": (one_image(file_name="p0.png\0.jpg"), "file is missing or not"),
    "image size is text": (one_image(width="thirty"), ENTRY),
    "image size is negative": (one_image(width=-30), ENTRY),
    "image size is huge": (one_image(width=10**18, height=10**18), ENTRY),
    "image size is infinite": (one_image(width=INF), ENTRY),
    "image size is zero": (one_image(width=0, height=0), ENTRY),
    "annotation is a list": (coco(document(annotations=[[1, 2], *document()["annotations"]])),
                             ENTRY),
    "annotation without box": (one_annotation(bbox=None), ENTRY),
    "annotation without image": (one_annotation(image_id=None), "images that are not listed"),
    "annotation without category": (one_annotation(category_id=None), ENTRY),
    "annotation of a list": (one_annotation(image_id=[0]), "images that are not listed"),
    "annotation of an object": (one_annotation(image_id={"a": 1}), "images that are not listed"),
    "box of three": (one_annotation(bbox=[1, 2, 3]), ENTRY),
    "box of text": (one_annotation(bbox="1 2 3 4"), ENTRY),
    "box of lists": (one_annotation(bbox=[[1], [2], [3], [4]]), ENTRY),
    "box of words": (one_annotation(bbox=["a", "b", "c", "d"]), ENTRY),
    "box of numbers as text": (one_annotation(bbox=["2", "3", "9", "9"]), "written as text"),
    "box with null": (one_annotation(bbox=[1, None, 3, 4]), ENTRY),
    "box with nan": (one_annotation(bbox=[NAN, 2, 3, 4]), "1 boxes that are NaN or infinite"),
    "box with infinity": (one_annotation(bbox=[1, 2, INF, 4]), "1 boxes that are NaN or infinite"),
    "box with -infinity": (one_annotation(bbox=[-INF, 2, 3, 4]), "1 boxes that are NaN"),
    "box that overflows": (one_annotation(bbox=[1e308, 2, 1e308, 4]), "1 boxes that are NaN"),
    "box of huge integers": (one_annotation(bbox=[10**400, 2, 3, 4]), "1 boxes that are NaN"),
    "box far away": (one_annotation(bbox=[1e200, 2, 1e190, 4]), "split off"),
    "box without area": (one_annotation(bbox=[1, 2, 0, 4]), "1 boxes without width or height"),
    "box with negative size": (one_annotation(bbox=[9, 9, -5, -5]), "1 boxes without width"),
    "category is text": (one_annotation(category_id="cat"), ENTRY),
    "category is huge": (one_annotation(category_id=2**70), ENTRY),
    "category is negative": (one_annotation(category_id=-1), "1 boxes of unknown categories"),
    "crowd is text": (one_annotation(iscrowd="yes"), "split off"),
    "area is text": (one_annotation(area="big"), "split off"),
    "area is nan": (one_annotation(area=NAN), "split off"),
    "annotation id is text": (one_annotation(id="x"), "annotation ids repeat or are missing"),
    # numbers and texts at the ends of what json can say
    "number of 5000 digits": (replaced("[2, 3", "[" + "9" * 5000 + ", 3"), "is not valid json"),
    "number beyond doubles": (replaced("[2, 3", "[1e999, 3"), "1 boxes that are NaN or infinite"),
    "smallest number": (one_annotation(bbox=[2, 3, 5e-324, 5e-324]), "split off"),
    "half of a character": (replaced('"p0.png"', '"\\ud800.png"'), "is not valid json"),
    "key given twice": (coco(json.dumps(document())[:-1] + ',"images": []}'), "no usable images"),
    "some ids text": (texts_as_ids, "split off"),
    "ids are negative": (one_annotation(id=-5), "annotation ids repeat or are missing"),
    "id is a list": (one_annotation(id=[1, 2]), "annotation ids repeat or are missing"),
    "category id is huge": (replaced('[{"id": 1,', '[{"id": 4611686018427387904,'),
                            "too much would be left out"),
    "class name of markup": (replaced('"name": "a"', '"name": "<script>[red]\\n"'), "split off"),
    "class name of a megabyte": (replaced('"name": "a"', f'"name": "{"x" * 10**6}"'), "split off"),
    "20,000 classes": (many_classes, "split off"),
    "groups are lists": (replaced('"name": "a"', '"name": "a", "supercategory": [1]'), "split off"),
    "name of a megabyte": (one_image(file_name="x" * 10**6), "file is missing or not"),
    "name with a line break": (one_image(file_name="p\n0.png"), "file is missing or not"),
    "name runs backwards": (one_image(file_name="\u202egnp.0p"), "file is missing or not"),
    "masks are nonsense": (one_annotation(segmentation={"counts": "x", "size": [9]}), "split off"),
    # names that lead away
    "name goes up": (one_image(file_name="../../../../../../etc/passwd"), "missing or not allowed"),
    "name is absolute": (one_image(file_name="/etc/passwd"), "missing or not allowed"),
    "name of windows": (one_image(file_name="C:\\Windows\\win.ini"), "missing or not allowed"),
    "name goes up in windows": (one_image(file_name="..\\..\\boot.ini"), "missing or not allowed"),
    "name is an address": (one_image(file_name="http://127.0.0.1/a.png"), "missing or not allowed"),
    "name is a folder": (one_image(file_name="images"), "missing or not allowed"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_coco_files(tmp_path, name):
    build, promised = FILES[name]
    assert_promised(build(tmp_path), promised)


def assert_promised(source, promised):
    """One clear error that says so, or a data set with a note that says so."""
    before = snapshot(source)
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
    assert re.search(promised, said), said
    assert len(said) < 2000
    with suppress(UserError):
        report = check(source)
        assert report.lines()
        json.dumps(report.to_dict(), allow_nan=False)
    assert snapshot(source) == before


def snapshot(source):
    source = Path(source)
    around = source.parent if source.is_file() else source
    return sorted(str(path) for path in around.rglob("*"))


# Images ----------------------------------------------------------------------------------------


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width, height, depth=8, colour=2):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)


def as_bytes(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8))
PNG, JPEG = as_bytes(NOISE), as_bytes(NOISE, "JPEG")
EMPTY_PNG = png_chunk(b"IDAT", zlib.compress(b"")) + png_chunk(b"IEND", b"")
PIXEL_BOMB = png_header(60_000, 60_000) + EMPTY_PNG
TEXT_BOMB = (
    png_header(10, 10)
    + png_chunk(b"zTXt", b"x\0\0" + zlib.compress(b"\0" * (80 << 20)))
    + EMPTY_PNG
)

IMAGES = {
    "empty.png": (b"", "not an image of a known format"),
    "text.jpg": (b"hello, this is text", "not an image of a known format"),
    "zeros.png": (bytes(5000), "not an image of a known format"),
    "half.png": (PNG[: len(PNG) // 2], "cannot be read as an image"),
    "half.jpg": (JPEG[: len(JPEG) // 2], "cannot be read as an image"),
    "header only.png": (PNG[:40], "cannot be read as an image|not an image"),
    "header only.jpg": (JPEG[:200], "cannot be read as an image|not an image"),
    "signature only.png": (b"\x89PNG\r\n\x1a\n", "cannot be read|not an image"),
    "signature only.jpg": (b"\xff\xd8\xff\xe0", "cannot be read|not an image"),
    "no pixels.png": (png_header(10, 10) + EMPTY_PNG, "cannot be read as an image"),
    "zero wide.png": (png_header(0, 10) + EMPTY_PNG, "cannot be read|not an image"),
    "pixel bomb.png": (PIXEL_BOMB, "more than the 178,956,970"),
    "large bomb.png": (png_header(15_000, 15_000) + EMPTY_PNG, "more than the 178,956,970"),
    "widest.png": (png_header(2**31 - 1, 2**31 - 1) + EMPTY_PNG, "more than the|cannot be read"),
    "text bomb.png": (TEXT_BOMB, "cannot be read as an image"),
    "bad depth.png": (png_header(10, 10, depth=3) + EMPTY_PNG, "cannot be read|not an image"),
    "bad gif.gif": (b"GIF89a" + bytes(20), "cannot be read|not an image"),
    "gif bomb.gif": (b"GIF89a\xff\xff\xff\xff\0\0\0" + b",\0\0\0\0\xff\xff\xff\xff\0\x08\0;",
                     "more than the|cannot be read"),
    "bad webp.webp": (b"RIFF\x24\0\0\0WEBPVP8 " + bytes(30), "cannot be read|not an image"),
    "bad bmp.bmp": (b"BM" + bytes(60), "cannot be read|not an image"),
    "bmp bomb.bmp": (b"BM" + struct.pack("<IHHIIiiHH", 70, 0, 0, 54, 40, 60000, 60000, 1, 24)
                     + bytes(40), "more than the 178,956,970"),
    "bad tiff.tif": (b"II*\0\x08\0\0\0\xff\xff" + bytes(100), "cannot be read|not an image"),
    "tiff loop.tif": (b"II*\0\x08\0\0\0\0\0\x08\0\0\0", "cannot be read|not an image"),
    "postscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n(x) run\n", "not an image"),
    "page.jpg": (b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>", "not an image"),
    "archive.jpg": (b"PK\3\4" + bytes(100), "not an image of a known format"),
    "program.jpg": (b"\x7fELF" + bytes(100), "not an image of a known format"),
    "netpbm bomb.ppm": (b"P6 60000 60000 255\n", "more than the 178,956,970"),
    "netpbm words.ppm": (b"P6 ten ten 255\n", "cannot be read|not an image"),
}  # fmt: skip


@pytest.mark.parametrize("name", IMAGES)
def test_image_files(tmp_path, name):
    data, promised = IMAGES[name]
    start = time.monotonic()
    with pytest.raises(UserError, match=promised) as caught:
        decode(io.BytesIO(data), name)
    assert name in str(caught.value)
    assert time.monotonic() - start < 5
    # In a data set of sound images, it is left out, counted, and named by check.
    sound(tmp_path)
    entries = [*document()["images"], image_entry(99, name, 20, 30)]
    (tmp_path / "images" / name).write_bytes(data)
    (tmp_path / "train.json").write_text(json.dumps(document(images=entries)))
    report = check(tmp_path)
    found = [f for f in report.findings if f.file == f"images/{name}"]
    assert {f.rule for f in found} & {"image-unreadable", "image-truncated"}
    opened = open_data(tmp_path)
    if len(opened.train) + len(opened.val) == GOOD:
        assert any("left out 1 images that cannot be read" in note for note in opened.notes)


def test_there_are_enough_bad_files():
    assert len(FILES) + len(IMAGES) + len(YOLO) + len(VOC) + len(ZIPS) >= 160


@pytest.mark.parametrize("shape", [(1, 20_000), (20_000, 1), (1, 1)])
def test_strips_and_single_pixels_train(tmp_path, shape):
    sound(tmp_path)
    Image.new("RGB", shape, "red").save(tmp_path / "images" / "strip.png")
    entry = image_entry(99, "strip.png", shape[1], shape[0])
    box = annotation(99, 99, 1, [0, 0, *shape])
    changed = document(
        images=[*document()["images"], entry], annotations=[*document()["annotations"], box]
    )
    coco(changed)(tmp_path)
    data = open_data(tmp_path).train
    stream = batches(data, DataConfig(image_size=32, max_size=48), batch=4, train=True, workers=0)
    assert all(batch.images.pixels.isfinite().all() for batch in stream)


@pytest.mark.parametrize("mode", ["LAB", "F", "I", "1", "LA", "P"])
def test_odd_pixels_become_rgb(mode):
    image = picture(1, 20, 30)
    if mode == "F":
        image = Image.fromarray(np.full((20, 30), NAN, dtype=np.float32))
    elif mode == "LAB":
        image = Image.new("LAB", (30, 20))
    else:
        image = image.convert("L").convert(mode) if mode in ("I", "LA") else image.convert(mode)
    stream = io.BytesIO(as_bytes(image, "TIFF" if mode in ("LAB", "F", "I") else "PNG"))
    assert decode(stream, "odd").shape == (3, 20, 30)


def test_megabytes_of_text_stay_out_of_the_lines(tmp_path):
    x = document(categories=[{"id": 1, "name": "y" * 10**6}])
    x["images"][0]["file_name"] = "x" * 10**6
    report = check(coco(x)(tmp_path))
    assert report.findings.count("file-missing") == 1
    assert max(map(len, report.lines())) < 1000


# YOLO ------------------------------------------------------------------------------------------

YAML = "train: images/train\nval: images/val\nnames: [a, b]\n"
LINE = "0 0.5 0.5 0.25 0.25\n"
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(9)
)

YOLO = {
    "names are words of yaml": (YAML.replace("[a, b]", "[no, null, 1.10]"), LINE, FULL),
    "names repeat": (YAML.replace("[a, b]", "[a, a]"), LINE, "several categories have one name"),
    "names hold themselves": ("x: &x [*x]\n" + YAML.replace("[a, b]", "*x"), LINE, "names has an"),
    "train is itself": (YAML.replace("images/train", "data.yaml"), LINE, "no images at train"),
    "train is true": (YAML.replace("images/train", "true"), LINE, "no images at train"),
    "class beyond integers": (YAML, "1e300 0.5 0.5 0.2 0.2\n", LINE_BROKEN),
    "polygon of nan": (YAML, "0 nan .5 .2 .2 .9 .1\n", "NaN or infinite"),
    "sixth column": (YAML, "0 .5 .5 .2 .2 .9\n", LINE_BROKEN),
    "yaml is broken": ("names: [a\ntrain: {", LINE, "is not valid yaml"),
    "yaml runs code": ("!!python/object/apply:os.system ['touch pwned']", LINE, "not valid yaml"),
    "yaml is binary": (b"\0\1\2\xff", LINE, "is not valid yaml"),
    "yaml of laughs": (LAUGHS + YAML, LINE, FULL),
    "yaml is deep": ("a: " + "[" * 1500, LINE, "is not valid yaml"),
    "names is a number": (YAML.replace("[a, b]", "7"), LINE, "names should be a list"),
    "names is empty": (YAML.replace("[a, b]", "[]"), LINE, "names should be a list"),
    "names by word": (YAML.replace("[a, b]", "{x: a}"), LINE, "names has an entry 'x'"),
    "names hold lists": (YAML.replace("[a, b]", "[[a], b]"), LINE, "names has an entry"),
    "train goes up": ("train: ../../../../etc\nnames: [a]\n", LINE, "no images at train"),
    "train is absolute": ("train: /etc\nval: images/val\nnames: [a]\n", LINE, "no images at"),
    "train is a number": ("train: 5\nnames: [a]\n", LINE, "no images at train: 5"),
    "train is nowhere": ("train: nothing\nnames: [a]\n", LINE, "write the folder relative"),
    "path goes up": ("path: ../../..\n" + YAML, LINE, FULL),
    "path is absolute": ("path: /etc\n" + YAML, LINE, FULL),
    "label is binary": (YAML, bytes(range(256)), UNREADABLE),
    "label of words": (YAML, "zero one two three four\n", LINE_BROKEN),
    "label of nan": (YAML, "0 nan nan nan nan\n", "NaN or infinite"),
    "label of infinity": (YAML, "0 0.5 0.5 inf 0.1\n", "NaN or infinite"),
    "label of huge numbers": (YAML, "0 1e308 1e308 1e308 1e308\n", "NaN or infinite"),
    "label with half a class": (YAML, "0.5 0.5 0.5 0.1 0.1\n", LINE_BROKEN),
    "label of class 99999999999": (YAML, "99999999999 0.5 0.5 0.1 0.1\n", "unknown categories"),
    "label of class -3": (YAML, "-3 0.5 0.5 0.1 0.1\n", "unknown categories"),
    "label of negative size": (YAML, "0 0.5 0.5 -0.1 0.1\n", "without width or height"),
    "label with one number": (YAML, "0\n", LINE_BROKEN),
    "label with a long line": (YAML, "0 " + "0.5 " * 100_000 + "\n", "without width or height"),
    "label with zero bytes": (YAML, "0 0.5\0 0.5 0.1 0.1\n", LINE_BROKEN),
}  # fmt: skip


@pytest.mark.parametrize("name", YOLO)
def test_yolo_files(tmp_path, name):
    description, label, promised = YOLO[name]
    for split, count in (("train", GOOD), ("val", 2)):
        for where in ("images", "labels"):
            (tmp_path / where / split).mkdir(parents=True)
        for i in range(count):
            picture(i, 20, 30).save(tmp_path / "images" / split / f"p{i}.png")
            (tmp_path / "labels" / split / f"p{i}.txt").write_text(LINE)
    write(tmp_path / "data.yaml", description)
    write(tmp_path / "labels" / "train" / "p0.txt", label)
    assert_promised(tmp_path, promised)
    assert not Path("pwned").exists()


def write(path, value):
    path.write_bytes(value if isinstance(value, bytes) else value.encode())


# VOC -------------------------------------------------------------------------------------------


def page(inner):
    size = "<size><width>30</width><height>20</height></size>"
    return f"<annotation>{size}<object>{inner}</object></annotation>"


def bndbox(x0=2, y0=3, x1=12, y1=11):
    return f"<bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox>"


ENTITIES = "".join(
    f'<!ENTITY {b} "{("&" + a + ";") * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
BILLION = f'<!DOCTYPE x [<!ENTITY a "lol">{ENTITIES}]><annotation>&i;</annotation>'
OUTSIDE = (
    '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    "<annotation><filename>&x;</filename></annotation>"
)

VOC = {
    "xml is cut": ("<annotation><object>", UNREADABLE),
    "xml is empty": ("", UNREADABLE),
    "xml is binary": (bytes(range(256)), UNREADABLE),
    "xml of laughs": (BILLION, UNREADABLE),
    "xml of laughs in utf-16": (BILLION.encode("utf-16"), UNREADABLE),
    "xml reads files": (OUTSIDE, UNREADABLE),
    "xml is deep": ("<a>" * 50_000 + "</a>" * 50_000, UNREADABLE),
    "xml of another kind": ("<html></html>", UNREADABLE),
    "xml in a strange encoding": ('<?xml version="1.0" encoding="bogus"?><annotation/>', FULL),
    "object without name": (page(bndbox()), ENTRY),
    "object without box": (page("<name>a</name>"), ENTRY),
    "box of words": (page("<name>a</name>" + bndbox("left", "top")), ENTRY),
    "box of nan": (page("<name>a</name>" + bndbox("nan", "nan")), "NaN or infinite"),
    "box of infinity": (page("<name>a</name>" + bndbox(1, 1, "inf", 9)), "NaN or infinite"),
    "box upside down": (page("<name>a</name>" + bndbox(12, 11, 2, 3)), "without width or height"),
    "box without area": (page("<name>a</name>" + bndbox(5, 5, 5, 5)), "without width or height"),
    "deep elements": ("<annotation>" + "<a>" * 300_000 + "</a>" * 300_000 + "</annotation>", FULL),
    "decimal comma": (page("<name>a</name>" + bndbox("1,5")), ENTRY),
    "not a number": (page("<name>a</name>" + bndbox("NaN")), "NaN or infinite"),
    "entities in other bytes": ("<!DOCTYPE a [<!ENTITY x 'y'>]>".encode("utf-16"), UNREADABLE),
    "includes": ("<annotation xmlns:xi='http://www.w3.org/2001/XInclude'>"
                 "<xi:include href='/etc/passwd' parse='text'/></annotation>", FULL),
    "box far outside": (page("<name>a</name>" + bndbox(500, 500, 600, 600)), "1 boxes lie outside"),
    "huge numbers": (page("<name>a</name>" + bndbox("9" * 400)), ENTRY),
    "size of words": ("<annotation><size><width>wide</width></size></annotation>", FULL),
    "name goes up": ("<annotation><filename>../../etc/passwd</filename></annotation>", FULL),
}  # fmt: skip


@pytest.mark.parametrize("name", VOC)
def test_voc_files(tmp_path, name):
    data, promised = VOC[name]
    for where in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / where).mkdir(parents=True)
    for i in range(GOOD + 2):
        picture(i, 20, 30).save(tmp_path / "JPEGImages" / f"p{i}.jpg")
        (tmp_path / "Annotations" / f"p{i}.xml").write_text(page("<name>a</name>" + bndbox()))
    stems = [f"p{i}" for i in range(GOOD + 2)]
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("\n".join(stems[:GOOD]))
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("\n".join(stems[GOOD:]))
    write(tmp_path / "Annotations" / "p0.xml", data)
    assert_promised(tmp_path, promised)


# Archives and folders --------------------------------------------------------------------------


def members(folder):
    coco(document())(folder)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(str(path.relative_to(folder)), path.read_bytes()) for path in paths]


def packed(extra):
    def build(folder):
        inner = folder / "inner"
        inner.mkdir()
        path = folder / "data.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members(inner):
                archive.writestr(name, data)
            extra(archive)
        return path

    return build


def link_entry(archive):
    info = zipfile.ZipInfo("images/p99.png")
    info.external_attr = 0o120777 << 16
    archive.writestr(info, "/etc/passwd")


def damaged(change):
    def build(folder):
        path = packed(lambda _: None)(folder)
        path.write_bytes(change(path.read_bytes()))
        return path

    return build


def bomb(archive):
    archive.writestr("val.json", b" " * (64 << 20))


def encrypted(data):
    """Set the flag in the local header and in the list of every member."""
    data = bytearray(data)
    for signature, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        position = data.find(signature)
        while position >= 0:
            data[position + at] |= 1
            position = data.find(signature, position + 4)
    return bytes(data)


def claims(name, packed_size=None, offset=None):
    """A zip whose list claims another packed size or place for one of its files."""

    def change(data):
        data = bytearray(data)
        at = data.find(b"PK\1\2")
        while data[at + 46 : at + 46 + len(name)] != name.encode():
            at = data.find(b"PK\1\2", at + 4)
        if offset is not None:
            struct.pack_into("<I", data, at + 42, offset)
        if packed_size is not None:  # in the extra field that large archives have
            struct.pack_into("<I", data, at + 20, 0xFFFFFFFF)
            extra = struct.pack("<HHQ", 1, 8, packed_size)
            struct.pack_into("<H", data, at + 30, len(extra))
            data[at + 46 + len(name) : at + 46 + len(name)] = extra
            end = data.rfind(b"PK\5\6")
            (listed,) = struct.unpack_from("<I", data, end + 12)
            struct.pack_into("<I", data, end + 12, listed + len(extra))
        return bytes(data)

    return damaged(change)


def twice(archive):
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("train.json", "{}")


ZIPS = {
    "zip claims exabytes": (claims("train.json", packed_size=2**62),
                            "train.json is damaged in its archive"),
    "zip claims an image of exabytes": (claims("images/p0.png", packed_size=2**62),
                                        "left out 1 images that cannot be read"),
    "zip claims a place beyond its end": (claims("images/p0.png", offset=0x7FFFFFF0),
                                          "left out 1 images that cannot be read"),
    "zip behind a picture": (damaged(lambda data: JPEG + data), "split off"),
    "zip with a file twice": (packed(twice), "no annotations that are understood"),
    "zip of other packing": (packed(lambda a: a.writestr("val.json", "{}", zipfile.ZIP_LZMA)),
                             "is packed in an unusual way"),
    "zip is text": (damaged(lambda _: b"no zip"), "is not a readable zip file"),
    "zip is empty": (damaged(lambda _: b""), "is not a readable zip file"),
    "zip is cut": (damaged(lambda data: data[: len(data) // 2]), "is not a readable zip file"),
    "zip is encrypted": (damaged(encrypted), "is encrypted: pack the data without a password"),
    "zip with a climbing name": (packed(lambda a: a.writestr("../../evil.png", b"x")), "split off"),
    "zip with an absolute name": (packed(lambda a: a.writestr("/tmp/evil.png", b"x")), "split off"),
    "zip with a link": (packed(link_entry), "split off"),
    "zip bomb": (packed(bomb), "looks like an archive bomb"),
    "zip without data": (damaged(lambda _: b"PK\5\6" + bytes(18)), "is empty"),
    "zip in a zip": (damaged(lambda data: _zip_of("inner.zip", data)), "no data set that is under"),
}  # fmt: skip


def _zip_of(name, data):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, data)
    return stream.getvalue()


@pytest.mark.parametrize("name", ZIPS)
def test_archives(tmp_path, name):
    build, promised = ZIPS[name]
    assert_promised(build(tmp_path), promised)


def test_damaged_member_is_named_when_it_is_read(tmp_path):
    path = packed(lambda _: None)(tmp_path)
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("images/p3.png")
    data = bytearray(path.read_bytes())
    start = entry.header_offset + 30 + len("images/p3.png") + 200
    data[start : start + 50] = bytes(50)
    path.write_bytes(bytes(data))
    report = check(path)
    assert any(f.file == "images/p3.png" and "damaged" in f.detail for f in report.findings)


@pytest.mark.parametrize("name", ["link.png", "linked/secret.png"])
def test_links_that_leave_the_folder_are_not_followed(tmp_path, monkeypatch, name):
    outside = tmp_path / "outside"
    outside.mkdir()
    picture(1, 20, 30).save(outside / "secret.png")
    folder = tmp_path / "data"
    folder.mkdir()
    coco(document(images=[*document()["images"], image_entry(98, name, 20, 30)]))(folder)
    os.symlink(outside / "secret.png", folder / "images" / "link.png")
    os.symlink(outside, folder / "images" / "linked")
    data = open_data(folder)
    assert any("left out 1 images whose file is missing or not allowed" in n for n in data.notes)
    assert check(folder).findings.count("file-link") == 1
    monkeypatch.setenv("DETRLAB_LINKS", "follow")
    data = open_data(folder)
    assert len(data.train) + len(data.val) == GOOD + 1


def test_links_inside_of_the_folder_are_fine(tmp_path):
    coco(document())(tmp_path)
    (tmp_path / "images").rename(tmp_path / "pixels")
    os.symlink(tmp_path / "pixels", tmp_path / "images")
    os.symlink(tmp_path, tmp_path / "pixels" / "loop")
    data = open_data(tmp_path)
    assert len(data.train) + len(data.val) == GOOD


def test_linked_root_is_fine(tmp_path):
    (tmp_path / "real").mkdir()
    coco(document())(tmp_path / "real")
    os.symlink(tmp_path / "real", tmp_path / "data")
    data = open_data(tmp_path / "data")
    assert len(data.train) + len(data.val) == GOOD


def test_pipes_and_devices_are_not_opened(tmp_path):
    coco(document(images=[*document()["images"], image_entry(99, "pipe.png", 20, 30)]))(tmp_path)
    os.mkfifo(tmp_path / "images" / "pipe.png")
    os.mkfifo(tmp_path / "val.json")
    data = open_data(tmp_path)
    assert any("missing or not allowed" in note for note in data.notes)


@pytest.mark.parametrize("name", ["data.tar.gz", "data.rar", "photo.jpg", "model.pt", "data"])
def test_other_files_are_refused_with_advice(tmp_path, name):
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(UserError, match="not a kind of file that holds a data set: "):
        open_data(tmp_path / name)


def test_empty_folder_and_folder_of_images(tmp_path):
    with pytest.raises(UserError, match="is empty"):
        open_data(tmp_path)
    sound(tmp_path)
    with pytest.raises(UserError, match="holds 24 images and no annotations"):
        open_data(tmp_path)


def test_unlistable_folder(tmp_path):
    missing = tmp_path / "gone"
    with pytest.raises(UserError, match="no data at"):
        open_data(missing)


@pytest.mark.slow
def test_a_million_boxes_in_one_image(tmp_path):
    sound(tmp_path)
    boxes = ",".join(
        f'{{"id":{i},"image_id":0,"category_id":1,"bbox":[{i % 20},{i % 10},5,5]}}'
        for i in range(1_000_000)
    )
    text = json.dumps(document(annotations=[])).replace(
        '"annotations": []', f'"annotations": [{boxes}]'
    )
    (tmp_path / "train.json").write_text(text)
    (tmp_path / "val.json").write_text(json.dumps(document()))
    data = open_data(tmp_path)
    assert len(data.train.boxes) == 1_000_000
    assert len(data.train.read(0).boxes) == 1_000_000
    report = check(tmp_path, quick=True)
    assert report.findings.count("too-many-objects") == 1
    assert report.findings.count("box-duplicate") > 900_000
