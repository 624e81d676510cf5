"""A COCO data set that holds every defect at once, and where each of them is."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from coco_folders import annotation, image_entry, picture
from PIL import Image

GOOD = 40
SIZE = (60, 80)
NAN, INF = float("nan"), float("inf")

# Boxes that break a rule, each alone in its image.
BOXES = {
    "box-not-finite": ([NAN, 5, 10, 10], [5, 5, INF, 10], [5, 1e308, 10, 1e308]),
    "box-empty": ([5, 5, 0, 10], [5, 5, 10, -3]),
    "box-off-image": ([200, 5, 10, 10], [-50, -50, 10, 10], [1e300, 5, 10, 10]),
    "box-over-edge": ([70, 50, 30, 30], [-9, 5, 20, 20]),
    "box-whole-image": ([0, 0, SIZE[1], SIZE[0]],),
    "box-scale": ([0.25, 0.25, 0.5, 0.5],),
    "box-vanishes": ([20, 20, 0.1, 9],),
}
NAMES = {0: "things", 1: "cat", 2: "dog", 3: "bird", 4: "bird", 6: "ant"}


class Breaker:
    """Writes images and entries of a split, and remembers which rule each breaks.

    ``expected`` has (rule, place, value): ``check`` must find this rule broken where the place,
    such as ``image`` or ``annotation``, has this value.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images: dict[str, list[Any]] = {"train": [], "val": []}
        self.boxes: dict[str, list[Any]] = {"train": [], "val": []}
        self.expected: list[tuple[str, str, Any]] = []
        self._number = 0
        for split in self.images:
            (folder / "images" / split).mkdir(parents=True)

    def image(
        self, split: str = "train", data: bytes = b"", name: str = "", **changes: Any
    ) -> dict[str, Any]:
        """An image of its own look, or these bytes; and its entry."""
        self._number += 1
        number = self._number
        name = name or f"i{number:03d}.png"
        data = data or encoded(picture(1000 + number, *SIZE))
        (self.folder / "images" / split / name).write_bytes(data)
        entry = {**image_entry(number, name, *SIZE), **changes}
        self.images[split].append(entry)
        return entry

    def box(self, image: Any, box: Any, category: Any = 1, rule: str = "") -> dict[str, Any]:
        """An annotation of an image, given by its entry or its id, that may break a rule."""
        self._number += 1
        image_id = image["id"] if isinstance(image, dict) else image
        split = next((name for name, entries in self.images.items() if image in entries), "train")
        record = annotation(self._number, image_id, category, box)
        self.boxes[split].append(record)
        if rule:
            self.expected.append((rule, "annotation", record["id"]))
        return record

    def defect(self, rule: str, box: Any = (5, 6, 20, 22), **changes: Any) -> dict[str, Any]:
        """An image that breaks a rule by itself."""
        entry = self.image(**changes)
        self.box(entry, list(box))
        self.expected.append((rule, "image", entry["id"]))
        return entry


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def every_defect(folder: Path, outside: Path) -> Breaker:
    """The data set; ``outside`` is a folder beside it that links point to."""
    b = Breaker(folder)
    for k in range(GOOD):
        entry = b.image("val" if k % 4 == 3 else "train")
        for label in (1, 2, 3):
            b.box(entry, [3 + 4 * label, 5 + k % 20, 15 + k % 9, 14], label)
    _broken_entries(b)
    _broken_files(b, outside)
    _broken_boxes(b)
    _same_pictures(b)
    b.box(b.image(), [1, 1, 9, 9], 6)
    b.expected += [
        ("category-placeholder", "detail", "things"),
        ("category-name-duplicate", "detail", "bird"),
        ("category-mismatch", "detail", "dog"),
        ("class-missing", "detail", "ant"),
        ("class-rare", "detail", "ant"),
    ]
    for record in b.boxes["val"]:  # validation calls the dog 7
        record["category_id"] = 7 if record["category_id"] == 2 else record["category_id"]
    for split, dog in (("train", 2), ("val", 7)):
        document = {
            "info": {"year": "2024"},
            "images": b.images[split],
            "annotations": b.boxes[split],
            "categories": [
                {"id": dog if key == 2 else key, "name": name,
                 "supercategory": "things" if key else "none"}
                for key, name in NAMES.items()
            ],
        }  # fmt: skip
        (folder / f"{split}.json").write_text(json.dumps(document))
    return b


def _broken_entries(b: Breaker) -> None:
    entry = b.image()
    for box in (None, [1, 2, 3], "1 2 3 4", {"x": 1}, [1, 2, None, 4]):
        b.box(entry, box, rule="record-broken")
    b.box(entry, ["5", "6", "20", 22], rule="value-text")
    b.box(entry, [30, 6, 20, 22], "2", rule="value-text")
    b.box(99_999, [1, 1, 9, 9], rule="image-unknown")
    b.box(entry, [9, 9, 30, 30], 77, rule="category-unknown")
    first = b.box(entry, [10, 30, 11, 12], rule="annotation-id-duplicate")
    b.box(entry, [12, 20, 11, 12])["id"] = first["id"]
    one = b.defect("image-id-duplicate")
    b.image(id=one["id"])
    entry = b.defect("image-repeated")
    b.images["train"].append(dict(entry))
    b.defect("image-id-text", id="a7")
    b.images["train"] += ["not an entry", {"id": 800_000, "height": 5, "width": 5}]
    b.expected.append(("record-broken", "image", 800_000))


def _broken_files(b: Breaker, outside: Path) -> None:
    train = b.folder / "images" / "train"
    entry = b.image()
    (train / entry["file_name"]).unlink()
    b.box(entry, [1, 1, 20, 20])
    outside.mkdir()
    (outside / "private.png").write_bytes(encoded(picture(5, *SIZE)))
    (train / "link.png").symlink_to(outside / "private.png")
    for k, (rule, name) in enumerate((("file-missing", entry["file_name"]),
                                      ("file-unsafe", "../../../../etc/passwd"),
                                      ("file-link", "link.png"))):  # fmt: skip
        if k:
            b.images["train"].append(image_entry(800_000 + k, name, *SIZE))
        b.expected.append((rule, "detail", name))
    entry = b.image()
    b.box(entry, [1, 1, 20, 20])
    b.images["train"].append({**entry, "id": 800_003})
    b.box(800_003, [30, 20, 20, 20])
    b.expected.append(("file-shared", "image", 800_003))
    (train / "unlisted.png").write_bytes(encoded(picture(6, *SIZE)))
    b.expected.append(("file-unlisted", "file", "images/train/unlisted.png"))

    rng = np.random.default_rng(1)
    noise = Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
    deep = rng.integers(0, 65536, (6, 8)).repeat(10, 0).repeat(10, 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    gif = encoded(picture(11, *SIZE), "GIF", save_all=True, append_images=[picture(12, *SIZE)])
    double = {"width": 2 * SIZE[1], "height": 2 * SIZE[0]}
    b.defect("image-unreadable", data=b"this is no image at all")
    b.defect("image-truncated", data=encoded(noise)[:4000])
    b.defect("image-mislabelled", data=encoded(picture(7, *SIZE), "JPEG"), name="jpeg_called.png")
    b.defect("image-size", width=SIZE[1] + 8, height=SIZE[0] + 8)
    b.defect("image-size", box=(100, 70, 50, 40), **double)
    turned = encoded(picture(8, *SIZE), "JPEG", exif=exif)
    b.defect("image-orientation", data=turned, name="turned.jpg")
    cmyk = encoded(picture(9, *SIZE).convert("CMYK"), "JPEG")
    b.defect("image-cmyk", data=cmyk, name="cmyk.jpg")
    b.defect("image-16bit", data=encoded(Image.fromarray(deep.astype(np.uint16))))
    b.defect("image-alpha", data=encoded(picture(10, *SIZE).convert("RGBA")))
    b.defect("image-animated", data=gif, name="moving.gif")


def _broken_boxes(b: Breaker) -> None:
    for rule, boxes in BOXES.items():
        for box in boxes:
            b.box(b.image(), box, rule=rule)
    entry = b.image()
    b.box(entry, [5, 5, 20, 20], 1)
    b.box(entry, [5, 5, 20, 20], 1, rule="box-duplicate")
    b.box(b.defect("box-two-classes", box=(5, 5, 20, 20)), [5, 5, 20, 20], 2)
    entry = b.defect("too-many-objects", box=(0, 0, 5, 5))
    for k in range(1, 120):
        b.box(entry, [k % 12 * 6, k // 12 * 6, 5, 5 + k / 200], 1 + k % 3)


def _same_pictures(b: Breaker) -> None:
    large = (2 * SIZE[1], 2 * SIZE[0])
    for k, (rule, split) in enumerate((("duplicate", "train"), ("leak", "val"))):
        original = picture(500 + k, *SIZE)
        entry = b.image(data=encoded(original))
        copy = b.image(split, data=encoded(original))
        again = b.image(data=encoded(original.resize(large), "JPEG"), name=f"near{k}.jpg",
                        width=large[0], height=large[1])  # fmt: skip
        for each in (entry, copy, again):
            b.box(each, [5, 5, 20, 20])
        same = copy if rule == "duplicate" else entry
        b.expected += [
            (f"{rule}-exact", "image", same["id"]),
            (f"{rule}-near", "image", again["id"]),
        ]
