"""A COCO data set that holds every defect at once, and where each of them is."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from coco_folders import annotation, image_entry, picture
from PIL import Image

GOOD = 40
SIZE = (60, 80)


class Breaker:
    """Writes images and entries of a split, and remembers which rule each breaks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images: dict[str, list[Any]] = {"train": [], "val": []}
        self.boxes: dict[str, list[Any]] = {"train": [], "val": []}
        self.expected: list[tuple[str, str, Any]] = []
        self._number = 0
        for split in self.images:
            (folder / "images" / split).mkdir(parents=True)

    def image(
        self, split: str = "train", data: Any = None, name: str | None = None, **changes: Any
    ) -> dict[str, Any]:
        """An image of its own look, or the given picture or bytes; and its entry."""
        self._number += 1
        number = self._number
        name = name or f"i{number:03d}.png"
        path = self.folder / "images" / split / name
        if isinstance(data, bytes):
            path.write_bytes(data)
        elif data is not None:
            data.save(path)
        else:
            picture(1000 + number, *SIZE).save(path)
        entry = {**image_entry(number, name, *SIZE), **changes}
        self.images[split].append(entry)
        return entry

    def box(self, image: Any, box: Any, category: Any = 1, **more: Any) -> dict[str, Any]:
        """An annotation of an image, given by its entry or its id."""
        self._number += 1
        image_id = image["id"] if isinstance(image, dict) else image
        split = next((name for name, entries in self.images.items() if image in entries), "train")
        record = annotation(self._number, image_id, category, box, **more)
        self.boxes[split].append(record)
        return record

    def expect(self, rule: str, place: str, value: Any) -> None:
        """``check`` must find this rule broken there: ``image`` or ``annotation`` by id."""
        self.expected.append((rule, place, value))

    def defect(self, rule: str, box: Any = (5, 6, 20, 22), **changes: Any) -> dict[str, Any]:
        """An image that breaks a rule by itself."""
        entry = self.image(**changes)
        self.box(entry, list(box))
        self.expect(rule, "image", entry["id"])
        return entry


def every_defect(folder: Path, outside: Path) -> Breaker:
    """The data set; ``outside`` is a folder beside it that links point to."""
    b = Breaker(folder)
    for k in range(GOOD):
        split = "val" if k % 4 == 3 else "train"
        entry = b.image(split)
        for label in (1, 2, 3):
            b.box(entry, [3 + 4 * label, 5 + k % 20, 15 + k % 9, 14], label)
    _broken_entries(b)
    _broken_files(b, outside)
    _broken_boxes(b)
    _same_pictures(b)
    categories = [
        {"id": 0, "name": "things", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "things"},
        {"id": 2, "name": "dog", "supercategory": "things"},
        {"id": 3, "name": "bird", "supercategory": "things"},
        {"id": 4, "name": "bird", "supercategory": "things"},
        {"id": 6, "name": "ant", "supercategory": "things"},
    ]
    ant = b.image()
    b.box(ant, [1, 1, 9, 9], 6)
    b.expected += [
        ("category-placeholder", "detail", "things"),
        ("category-name-duplicate", "detail", "bird"),
        ("category-mismatch", "detail", "dog"),
        ("class-missing", "detail", "ant"),
        ("class-rare", "detail", "ant"),
    ]
    other = [dict(category) for category in categories]
    other[2]["id"] = 7  # validation calls the dog 7
    for record in b.boxes["val"]:
        record["category_id"] = 7 if record["category_id"] == 2 else record["category_id"]
    for split, words in (("train", categories), ("val", other)):
        document = {
            "info": {"year": "2024"},
            "images": b.images[split],
            "annotations": b.boxes[split],
            "categories": words,
        }
        (folder / f"{split}.json").write_text(json.dumps(document))
    return b


def _broken_entries(b: Breaker) -> None:
    entry = b.image()
    for box in (None, [1, 2, 3], "1 2 3 4", {"x": 1}, [1, 2, None, 4]):
        record = b.box(entry, box)
        b.expect("record-broken", "annotation", record["id"])
    record = b.box(entry, ["5", "6", "20", 22])
    b.expect("value-text", "annotation", record["id"])
    record = b.box(entry, [30, 6, 20, 22], "2")
    b.expect("value-text", "annotation", record["id"])
    record = b.box(99_999, [1, 1, 9, 9])
    b.expect("image-unknown", "annotation", record["id"])
    record = b.box(entry, [9, 9, 30, 30], 77)
    b.expect("category-unknown", "annotation", record["id"])
    first, again = b.box(entry, [10, 30, 11, 12]), b.box(entry, [12, 20, 11, 12])
    again["id"] = first["id"]
    b.expect("annotation-id-duplicate", "annotation", first["id"])

    one, two = b.image(), b.image()
    two["id"] = one["id"]
    b.box(one, [1, 1, 20, 20])
    b.expect("image-id-duplicate", "image", one["id"])
    entry = b.image()
    b.box(entry, [1, 1, 20, 20])
    b.images["train"].append(dict(entry))
    b.expect("image-repeated", "image", entry["id"])
    entry = b.image()
    entry["id"] = "a7"
    b.box(entry, [1, 1, 20, 20])
    b.expect("image-id-text", "image", "a7")
    b.images["train"].append("not an entry")
    b.images["train"].append({"id": 800_000, "height": 5, "width": 5})
    b.expect("record-broken", "image", 800_000)


def _broken_files(b: Breaker, outside: Path) -> None:
    train = b.folder / "images" / "train"
    entry = b.image()
    (train / entry["file_name"]).unlink()
    b.box(entry, [1, 1, 20, 20])
    b.expect("file-missing", "detail", entry["file_name"])
    b.images["train"].append(image_entry(800_001, "../../../../etc/passwd", *SIZE))
    b.expect("file-unsafe", "detail", "../../../../etc/passwd")
    outside.mkdir()
    picture(5, *SIZE).save(outside / "private.png")
    os.symlink(outside / "private.png", train / "link.png")
    b.images["train"].append(image_entry(800_002, "link.png", *SIZE))
    b.expect("file-link", "detail", "link.png")
    entry = b.image()
    b.box(entry, [1, 1, 20, 20])
    b.images["train"].append({**entry, "id": 800_003})
    b.box(800_003, [30, 20, 20, 20])
    b.expect("file-shared", "image", 800_003)
    picture(6, *SIZE).save(train / "unlisted.png")
    b.expect("file-unlisted", "file", "images/train/unlisted.png")

    b.defect("image-unreadable", data=b"this is no image at all")
    noise = np.random.default_rng(1).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    entry = b.defect("image-truncated", data=Image.fromarray(noise))
    path = train / entry["file_name"]
    path.write_bytes(path.read_bytes()[:4000])
    jpeg = train / "tmp.jpg"
    picture(7, *SIZE).save(jpeg)
    data = jpeg.read_bytes()
    jpeg.unlink()
    b.defect("image-mislabelled", data=data, name="jpeg_called.png")
    b.defect("image-size", width=SIZE[1] + 8, height=SIZE[0] + 8)
    entry = b.defect("image-size", width=2 * SIZE[1], height=2 * SIZE[0], box=(100, 70, 50, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = train / "turned.jpg"
    picture(8, *SIZE).save(turned, exif=exif)
    b.defect("image-orientation", data=turned.read_bytes(), name="turned.jpg")
    b.defect("image-cmyk", data=picture(9, *SIZE).convert("CMYK"), name="cmyk.jpg")
    deep = np.random.default_rng(2).integers(0, 65536, (6, 8)).repeat(10, 0).repeat(10, 1)
    b.defect("image-16bit", data=Image.fromarray(deep.astype(np.uint16)))
    b.defect("image-alpha", data=picture(10, *SIZE).convert("RGBA"))
    gif = train / "moving.gif"
    picture(11, *SIZE).save(gif, save_all=True, append_images=[picture(12, *SIZE)])
    b.defect("image-animated", data=gif.read_bytes(), name="moving.gif")


def _broken_boxes(b: Breaker) -> None:
    nan, inf = float("nan"), float("inf")
    for rule, box in (
        ("box-not-finite", [nan, 5, 10, 10]),
        ("box-not-finite", [5, 5, inf, 10]),
        ("box-not-finite", [5, 1e308, 10, 1e308]),
        ("box-empty", [5, 5, 0, 10]),
        ("box-empty", [5, 5, 10, -3]),
        ("box-off-image", [200, 5, 10, 10]),
        ("box-off-image", [-50, -50, 10, 10]),
        ("box-off-image", [1e300, 5, 10, 10]),
        ("box-over-edge", [70, 50, 30, 30]),
        ("box-over-edge", [-9, 5, 20, 20]),
        ("box-whole-image", [0, 0, SIZE[1], SIZE[0]]),
        ("box-scale", [0.25, 0.25, 0.5, 0.5]),
        ("box-vanishes", [20, 20, 0.1, 9]),
    ):
        entry = b.image()
        record = b.box(entry, box)
        b.expect(rule, "annotation", record["id"])
    entry = b.image()
    b.box(entry, [5, 5, 20, 20], 1)
    twice = b.box(entry, [5, 5, 20, 20], 1)
    b.expect("box-duplicate", "annotation", twice["id"])
    entry = b.image()
    b.box(entry, [5, 5, 20, 20], 1)
    b.box(entry, [5, 5, 20, 20], 2)
    b.expect("box-two-classes", "image", entry["id"])
    entry = b.image()
    for k in range(120):
        b.box(entry, [k % 12 * 6, k // 12 * 6, 5, 5 + k / 200], 1 + k % 3)
    b.expect("too-many-objects", "image", entry["id"])


def _same_pictures(b: Breaker) -> None:
    for k, (rule, split) in enumerate((("duplicate", "train"), ("leak", "val"))):
        original = picture(500 + k, *SIZE)
        entry = b.image(data=original)
        path = b.folder / "images" / "train" / entry["file_name"]
        copy = b.image(split, data=path.read_bytes())
        again = b.image(data=original.resize((SIZE[1] * 2, SIZE[0] * 2)), name=f"near{k}.jpg",
                        width=SIZE[1] * 2, height=SIZE[0] * 2)  # fmt: skip
        for each in (entry, copy, again):
            b.box(each, [5, 5, 20, 20])
        b.expect(f"{rule}-exact", "image", copy["id"] if rule == "duplicate" else entry["id"])
        if rule == "duplicate":
            b.expect("duplicate-near", "image", again["id"])
        else:
            b.expect("leak-near", "image", again["id"])
