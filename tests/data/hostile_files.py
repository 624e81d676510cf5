"""Broken and malicious files for every reader, and what their error or their notes say."""

import io
import json
import re
import struct
import zipfile
import zlib

import numpy as np
import pytest
from coco_folders import annotation, image_entry, picture
from PIL import Image

GOOD = 24
NAN, INF = float("nan"), float("inf")
FULL = r"^$"  # opens without a note
SPLIT = "are split off"  # opens; the only note is about the missing validation split


def document(**changes):
    """A valid COCO document of 24 images; keyword arguments replace parts of it."""
    valid = {
        "info": {"year": 2024},
        "images": [image_entry(i, f"p{i}.png", 20, 30) for i in range(GOOD)],
        "annotations": [annotation(i, i, 1, [2, 3, 10, 9]) for i in range(GOOD)],
        "categories": [{"id": 1, "name": "a"}],
    }
    return {**valid, **changes}


def write(path, value):
    path.write_bytes(value if isinstance(value, bytes) else value.encode())


def valid_images(folder):
    (folder / "images").mkdir(exist_ok=True)
    for i in range(GOOD):
        picture(i, 20, 30).save(folder / "images" / f"p{i}.png")


# Each builder makes valid data in a folder, except for the given value, and returns its path.


def coco(folder, value):
    """Text, bytes or a list: the file. A dict: parts of it. A pair: old and new piece of text."""
    valid_images(folder)
    if isinstance(value, tuple):
        assert value[0] in TEXT
        value = TEXT.replace(*value, 1)
    elif isinstance(value, dict):
        value = document(**value)
    write(folder / "train.json", value if isinstance(value, str | bytes) else json.dumps(value))
    return folder


def images(*changes, key="images"):
    """Documents of which the first entry is changed; None deletes a key."""
    first, *rest = document()[key]
    changed = [{k: v for k, v in {**first, **each}.items() if v is not None} for each in changes]
    return [{key: [entry, *rest]} for entry in changed]


def files(*names):
    return images(*({"file_name": name} for name in names))


def annotations(*changes):
    return images(*changes, key="annotations")


def boxes(*values):
    return annotations(*({"bbox": box} for box in values))


TEXT = json.dumps(document())
NAME = '"name": "a"'

# For each builder: its values by the rule, or the words, that the error or the notes contain.
COCO = {
    "is not valid JSON .*line 1 column": [
        TEXT[:500], bytes(range(256)), TEXT.encode("utf-16"), b'{"images": ["\xe9"]}', TEXT + "}",
        "[" * 100_000, '{"a":' * 100_000, "__import__('os').system('touch pwned')",
        ("[2, 3", "[" + "9" * 5000 + ", 3"), ('"p0.png"', '"\\ud800.png"'),
    ],
    "it is empty": [b"", "  \n "],
    "24 images and no annotations": [[1, 2, 3], "7", [{"image_id": 1, "bbox": [1, 2, 3, 4]}]],
    "'images' should be a list": [{"images": "none"}, {"images": {"0": {}}}],
    "'annotations' should be a list": [{"annotations": None}, {"annotations": 3}],
    "'categories' should be a list": [{"categories": "cat"}],
    "declares no categories": [{"categories": ["cat"]}, {"categories": []}, {"categories": None}],
    "has no usable images": [{"images": []}, TEXT[:-1] + ',"images": []}'],  # a key given twice
    "has no boxes": [{"annotations": []}],
    "too much would be left out": [('[{"id": 1,', '[{"id": 4611686018427387904,')],
    "record-broken": [
        {"annotations": [[1, 2], *document()["annotations"]]},
        *images({"id": None}, {"id": True}, {"width": "thirty"}, {"width": -30}, {"width": INF},
                {"width": 10**18, "height": 10**18}, {"width": 0, "height": 0}),
        *boxes(None, [1, 2, 3], "1 2 3 4", [[1], [2], [3], [4]], ["a", "b", "c", "d"],
               [1, None, 3, 4]),
        *annotations({"category_id": None}, {"category_id": "cat"}, {"category_id": 2**70}),
    ],
    "image-unknown": [
        *images({"id": [1]}, {"id": 10**30}, {"id": 0.5}), *files(5, ""),
        *annotations(*({"image_id": value} for value in (None, [0], {"a": 1}, True, NAN))),
    ],
    "file-missing": files("x" * 10**6, "p\n0.png", "\u202egnp.0p", "http://127.0.0.1/a", "images"),
    "file-unsafe": files("p0.png\0.jpg", "../../../../../etc/passwd", "/etc/passwd",
                         "C:\\Windows\\win.ini", "..\\..\\boot.ini"),
    "value-text": boxes(["2", "3", "9", "9"]),
    "box-not-finite": [
        ("[2, 3", "[1e999, 3"),
        *boxes([NAN, 2, 3, 4], [1, 2, INF, 4], [-INF, 2, 3, 4], [1e308, 2, 1e308, 4],
               [10**400, 2, 3, 4]),
    ],
    "box-off-image": boxes([1e200, 2, 1e190, 4]),
    "box-empty": boxes([1, 2, 0, 4], [9, 9, -5, -5]),
    "category-unknown": annotations({"category_id": -1}),
    "annotation-id-duplicate": annotations({"id": "x"}, {"id": -5}, {"id": [1, 2]}),
    SPLIT: [
        b"\xef\xbb\xbf" + TEXT.encode(), {"info": {"year": "2024"}},
        {"info": "made by hand", "licenses": "MIT"},
        {"images": [{**each, "id": str(each["id"])} for each in document()["images"]]},
        {"categories": [{"id": i, "name": f"c{i}", "supercategory": "a"} for i in range(20_000)]},
        *annotations({"iscrowd": "yes"}, {"area": "big"}, {"area": NAN},
                     {"segmentation": {"counts": "x", "size": [9]}}),
        *boxes([2, 3, 5e-324, 5e-324]), (NAME, '"name": "<script>[red]\\n"'),
        (NAME, f'"name": "{"x" * 10**6}"'), (NAME, f'{NAME}, "supercategory": [1]'),
    ],
}  # fmt: skip


# YOLO ------------------------------------------------------------------------------------------

YAML = "train: images/train\nval: images/val\nnames: [a, b]\n"
LINE = "0 0.5 0.5 0.25 0.25\n"


def laughs(width, depth):
    """Nested aliases: width to the power of depth elements from a few lines."""
    return "".join(
        f"x{i}: &x{i} [{', '.join([f'*x{i - 1}' if i else 'x'] * width)}]\n" for i in range(depth)
    )


def yolo(folder, value):
    """A pair: old and new piece of the yaml. Otherwise a dict with the yaml or the first label."""
    if isinstance(value, tuple):
        value = {"yaml": YAML.replace(*value)}
    for split, count in (("train", GOOD), ("val", 2)):
        for where in ("images", "labels"):
            (folder / where / split).mkdir(parents=True)
        for i in range(count):
            picture(i, 20, 30).save(folder / "images" / split / f"p{i}.png")
            (folder / "labels" / split / f"p{i}.txt").write_text(LINE)
    write(folder / "data.yaml", value.get("yaml", YAML))
    write(folder / "labels" / "train" / "p0.txt", value.get("label", LINE))
    return folder


def yamls(*values):
    return [{"yaml": value} for value in values]


def labels(*values):
    return [{"label": value} for value in values]


def named(*values):
    return [("[a, b]", value) for value in values]


LAUGHS = laughs(9, 8) + YAML.replace("images/train", "*x7")
YOLO = {
    "is not valid YAML": yamls(
        "names: [a\ntrain: {", "!!python/object/apply:os.system ['touch pwned']", b"\0\1\2\xff",
        "a: " + "[" * 1500,
    ),
    "aliases such as .x0? are not supported": yamls(
        laughs(10, 9) + YAML, LAUGHS, "x: &x [*x]\n" + YAML.replace("[a, b]", "*x")
    ),
    FULL: [
        *yamls("path: ../../..\n" + YAML, "path: /etc\n" + YAML), *named("[no, null, 1.10]"),
    ],
    "several categories": named("[a, a]"),
    "names should be a list": named("7", "[]"),
    "names has an entry": named("{x: a}", "[[a], b]"),
    "no images at train: .*write the folder relative": [
        ("images/train", value)
        for value in ("data.yaml", "true", "../../../../etc", "/etc", "5", "nothing",
                      "[" * 200 + "]" * 200, "[" + "x," * 50_000 + "]")
    ],
    "file-broken": labels(bytes(range(256))),
    "line-broken": labels(
        "zero one two three four", "0.5 0.5 0.5 0.1 0.1", "0", "0 0.5\0 0.5 0.1 0.1",
        "1e300 0.5 0.5 0.2 0.2", "0 .5 .5 .2 .2 .9",
    ),
    "box-not-finite": labels(
        "0 nan nan nan nan", "0 0.5 0.5 inf 0.1", "0 1e308 1e308 1e308 1e308",
        "0 nan .5 .2 .2 .9 .1",
    ),
    "category-unknown": labels("99999999999 0.5 0.5 0.1 0.1", "-3 0.5 0.5 0.1 0.1"),
    "box-empty": labels("0 0.5 0.5 -0.1 0.1", "0 " + "0.5 " * 100_000),
}  # fmt: skip


# VOC -------------------------------------------------------------------------------------------


def page(inner):
    size = "<size><width>30</width><height>20</height></size>"
    return f"<annotation>{size}<object>{inner}</object></annotation>"


def boxed(x0=2, y0=3, x1=12, y1=11, name="<name>a</name>"):
    corners = f"<xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
    return page(f"{name}<bndbox>{corners}</bndbox>")


def voc(folder, data):
    for where in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / where).mkdir(parents=True)
    stems = [f"p{i}" for i in range(GOOD + 2)]
    for i, stem in enumerate(stems):
        picture(i, 20, 30).save(folder / "JPEGImages" / f"{stem}.jpg")
        (folder / "Annotations" / f"{stem}.xml").write_text(boxed())
    (folder / "ImageSets" / "Main" / "train.txt").write_text("\n".join(stems[:GOOD]))
    (folder / "ImageSets" / "Main" / "val.txt").write_text("\n".join(stems[GOOD:]))
    write(folder / "Annotations" / "p0.xml", data)
    return folder


ENTITIES = "".join(
    f'<!ENTITY {b} "{("&" + a + ";") * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
BILLION = f'<!DOCTYPE x [<!ENTITY a "lol">{ENTITIES}]><annotation>&i;</annotation>'
OUTSIDE = (
    '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    "<annotation><filename>&x;</filename></annotation>"
)
INCLUDES = (
    "<annotation xmlns:xi='http://www.w3.org/2001/XInclude'>"
    "<xi:include href='/etc/passwd' parse='text'/></annotation>"
)

VOC = {
    "file-broken": [
        "<annotation><object>", "", bytes(range(256)), BILLION, BILLION.encode("utf-16"), OUTSIDE,
        "<a>" * 50_000 + "</a>" * 50_000, "<html></html>",
        "<!DOCTYPE a [<!ENTITY x 'y'>]>".encode("utf-16"),
    ],
    "record-broken": [
        boxed(name=""), page("<name>a</name>"), boxed("left", "top"), boxed("1,5"),
        boxed("9" * 400),
    ],
    "box-not-finite": [boxed("nan", "nan"), boxed("NaN"), boxed(1, 1, "inf", 9)],
    "box-empty": [boxed(12, 11, 2, 3), boxed(5, 5, 5, 5)],
    "box-off-image": [boxed(500, 500, 600, 600)],
    FULL: [
        '<?xml version="1.0" encoding="bogus"?><annotation/>', INCLUDES,
        "<annotation>" + "<a>" * 300_000 + "</a>" * 300_000 + "</annotation>",
        "<annotation><size><width>wide</width></size></annotation>",
        "<annotation><size><width>inf</width></size></annotation>",
        "<annotation><filename>../../etc/passwd</filename></annotation>",
    ],
}  # fmt: skip


# Archives --------------------------------------------------------------------------------------


def packed(folder, extra=lambda _: None):
    """A zip of the valid folder with something added."""
    inner = folder / "inner"
    inner.mkdir()
    coco(inner, {})
    with zipfile.ZipFile(folder / "data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(path for path in inner.rglob("*") if path.is_file()):
            archive.write(path, path.relative_to(inner))
        extra(archive)
    return folder / "data.zip"


def damaged(folder, change):
    """The zip with its bytes changed."""
    path = packed(folder)
    path.write_bytes(change(path.read_bytes()))
    return path


def adding(name, data=b"x", mode=0, method=zipfile.ZIP_DEFLATED):
    def add(archive):
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        archive.writestr(info, data, method)

    return add


def twice(archive):
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("train.json", "{}")


def encrypted(data):
    """Set the flag in the local header and in the list of every member."""
    data = bytearray(data)
    for signature, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        for match in re.finditer(re.escape(signature), data):
            data[match.start() + at] |= 1
    return bytes(data)


def claims(name, packed_size=None, offset=None):
    """The list of the zip claims another packed size or place for one of its files."""

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

    return change


def in_a_zip(data):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("inner.zip", data)
    return stream.getvalue()


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, extra=b"", depth=8):
    """A PNG of this size without pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0))
    end = png_chunk(b"IDAT", zlib.compress(b"")) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + extra + end


def as_bytes(image, kind="PNG"):
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8))
PNG, JPEG = as_bytes(NOISE), as_bytes(NOISE, "JPEG")

ADDED = {
    "24 images and no annotations": [twice],
    "unusual way": [adding("val.json", "{}", method=zipfile.ZIP_LZMA)],
    "looks like an archive bomb": [adding("val.json", b" " * (64 << 20))],
    SPLIT: [
        adding("../../evil.png"), adding("/tmp/evil.png"),
        adding("images/p99.png", "/etc/passwd", mode=0o120777),
    ],
}  # fmt: skip
DAMAGED = {
    "train.json is damaged": [claims("train.json", packed_size=2**62)],
    "image-unreadable": [
        claims("images/p0.png", packed_size=2**62), claims("images/p0.png", offset=0x7FFFFFF0),
    ],
    SPLIT: [lambda data: JPEG + data],
    "is not a readable zip file": [lambda _: b"no zip", lambda _: b"", lambda d: d[: len(d) // 2]],
    "is encrypted": [encrypted],
    "is empty": [lambda _: b"PK\5\6" + bytes(18)],
    "no data set of a supported format": [in_a_zip],
}  # fmt: skip

GROUPS = {coco: COCO, yolo: YOLO, voc: VOC, packed: ADDED, damaged: DAMAGED}
CASES = [
    pytest.param(build, value, said, id=f"{build.__name__}-{said[:30]}-{k}")
    for build, groups in GROUPS.items()
    for said, values in groups.items()
    for k, value in enumerate(values)
]


# Images ----------------------------------------------------------------------------------------

PIXELS = "more than the 178,956,970"
TEXT_BOMB = png_chunk(b"zTXt", b"x\0\0" + zlib.compress(b"\0" * (80 << 20)))
BMP_BOMB = struct.pack("<IHHIIiiHH", 70, 0, 0, 54, 40, 60000, 60000, 1, 24)
GIF_BOMB = b"\xff\xff\xff\xff\0\0\0" + b",\0\0\0\0\xff\xff\xff\xff\0\x08\0;"

IMAGES = {
    "not an image of a known format": {
        "empty.png": b"", "text.jpg": b"hello, this is text", "zeros.png": bytes(5000),
        "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n(x) run\n",
        "page.jpg": b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>",
        "archive.jpg": b"PK\3\4" + bytes(100), "program.jpg": b"\x7fELF" + bytes(100),
    },
    "cannot be read as an image": {
        "half.png": PNG[: len(PNG) // 2], "half.jpg": JPEG[: len(JPEG) // 2],
        "no pixels.png": png(10, 10), "text bomb.png": png(10, 10, TEXT_BOMB),
    },
    PIXELS: {
        "pixel bomb.png": png(60_000, 60_000), "large bomb.png": png(15_000, 15_000),
        "bmp bomb.bmp": b"BM" + BMP_BOMB + bytes(40), "netpbm bomb.ppm": b"P6 60000 60000 255\n",
    },
    f"{PIXELS}|cannot be read as an image|not an image": {
        "header only.png": PNG[:40], "header only.jpg": JPEG[:200],
        "signature only.png": b"\x89PNG\r\n\x1a\n", "signature only.jpg": b"\xff\xd8\xff\xe0",
        "zero wide.png": png(0, 10), "bad depth.png": png(10, 10, depth=3),
        "widest.png": png(2**31 - 1, 2**31 - 1), "gif bomb.gif": b"GIF89a" + GIF_BOMB,
        "bad gif.gif": b"GIF89a" + bytes(20), "bad bmp.bmp": b"BM" + bytes(60),
        "bad webp.webp": b"RIFF\x24\0\0\0WEBPVP8 " + bytes(30),
        "bad tiff.tif": b"II*\0\x08\0\0\0\xff\xff" + bytes(100),
        "tiff loop.tif": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
        "netpbm words.ppm": b"P6 ten ten 255\n",
    },
}  # fmt: skip
FILES = [(*file, said) for said, files in IMAGES.items() for file in files.items()]
