"""The same small data set in every layout that people have, and what it should mean."""

import json

import yaml
from coco_folders import annotation, image_entry, picture, write_coco

CATEGORIES = {1: "cat", 5: "dog"}


def entries(first, count):
    """Images and boxes of one split, every value different."""
    images = [image_entry(i, f"p{i:03d}.png", 30 + i, 40 + i) for i in range(first, first + count)]
    boxes = [
        annotation(10 * i + k, i, (1, 5)[k], [k + 1, 2 * k, 10 + i % 7, 9.5 + k])
        for i in range(first, first + count)
        for k in range(2)
    ]
    return images, boxes


def contents(table):
    """What a table says, by file stem: boxes with class names."""
    return {
        table.file(i).rsplit("/", 1)[-1].rsplit(".", 1)[0]: sorted(
            (table.classes[table.labels[row]], *table.boxes[row].tolist())
            for row in range(table.starts[i], table.starts[i + 1])
        )
        for i in range(len(table))
    }


def expected(first, count):
    _, boxes = entries(first, count)
    found = {f"p{i:03d}": [] for i in range(first, first + count)}
    for box in boxes:
        found[f"p{box['image_id']:03d}"].append(
            (CATEGORIES[box["category_id"]], *map(float, box["bbox"]))
        )
    return {key: sorted(value) for key, value in found.items()}


def coco(folder, layout="official"):
    """A data set in one of the usual layouts of COCO's JSON."""
    for split, first, count, name, where in (
        ("train", 1, 6, *LAYOUTS[layout][:2]),
        ("val", 11, 3, *LAYOUTS[layout][2:]),
    ):
        write_entries(folder, first, count, name.format(split), where.format(split))
    return folder


def write_entries(folder, first, count, name, where):
    images, boxes = entries(first, count)
    parts = {"images": images, "annotations": boxes, "categories": CATEGORIES}
    write_coco(folder, name=name, image_folder=where, **parts)


def rewritten(path, change):
    """Change a JSON document in its file."""
    value = json.loads(path.read_text())
    path.write_text(json.dumps(change(value) or value))


# The annotation file and the image folder of training, and those of validation.
LAYOUTS = {
    "official": ("annotations/instances_{}2017.json", "{}2017") * 2,
    "custom names": ("annotations/custom_{}.json", "{}2017") * 2,
    "one image folder": ("annotations/{}.json", "images") * 2,
    "test for val": ("annotations/train.json", "images", "annotations/test.json", "images"),
    "roboflow": ("train/_annotations.coco.json", "train", "valid/_annotations.coco.json", "valid"),
    "images by split": ("labels/{}.json", "images/{}") * 2,
    "beside the images": ("{}/annotations.json", "{}/images") * 2,
    "fiftyone": ("train/labels.json", "train/data", "validation/labels.json", "validation/data"),
    "deeper": ("my data/v2/annotations/instances_{}.json", "my data/v2/images/{}") * 2,
}


def yolo(folder, description, images="images/{}", labels="labels/{}"):
    for split, first, count in (("train", 1, 6), ("val", 11, 3)):
        entries_of, boxes = entries(first, count)
        for where in (images, labels):
            (folder / where.format(split)).mkdir(parents=True, exist_ok=True)
        for i, entry in enumerate(entries_of):
            height, width, name = entry["height"], entry["width"], entry["file_name"]
            picture(i, height, width).save(folder / images.format(split) / name)
            rows = [
                (box["category_id"] // 5, x + w / 2, y + h / 2, w, h)
                for box in boxes
                for x, y, w, h in [box["bbox"]]
                if box["image_id"] == entry["id"]
            ]
            lines = [f"{k} {x / width} {y / height} {w / width} {h / height}\n"
                     for k, x, y, w, h in rows]  # fmt: skip
            (folder / labels.format(split) / name.replace(".png", ".txt")).write_text(
                "".join(lines)
            )
    if description is not None:
        (folder / "data.yaml").write_text(yaml.safe_dump(description))
    return folder


PLAIN = {"train": "images/train", "val": "images/val", "names": ["cat", "dog"]}
YAMLS = {
    "plain": PLAIN,
    "names as a mapping": {**PLAIN, "names": {0: "cat", 1: "dog"}},
    "with path": {"path": ".", **PLAIN},
    "roboflow's dots": {**PLAIN, "train": "../images/train", "val": "../images/val", "nc": 2},
    "another machine": {"path": "/data/sets/pets", **PLAIN},
    "absolute": {**PLAIN, "train": "/data/pets/images/train", "val": "D:\\pets\\images\\val"},
    "lists": {**PLAIN, "train": ["images/train"], "val": ["images/val"]},
    "valid": {"train": "images/train", "valid": "images/val", "names": ["cat", "dog"]},
}


def voc_xml(name, height, width, boxes):
    objects = "".join(
        f"<object><name>{label}</name><difficult>{int(hard)}</difficult><bndbox><xmin>{x0}</xmin>"
        f"<ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox>"
        "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax>"
        "</bndbox></part></object>"
        for label, (x0, y0, x1, y1), hard in boxes
    )
    return (
        f"<annotation><filename>{name}</filename><size><width>{width}</width>"
        f"<height>{height}</height><depth>3</depth></size>{objects}</annotation>"
    )


def voc(folder, lists=None):
    for where in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / where).mkdir(parents=True, exist_ok=True)
    for i in range(8):
        boxes = [("cat", (1, 1, 20, 15 + i), False), ("dog", (5, 6, 30, 30), i == 2)]
        page = voc_xml(f"v{i}.jpg", 40, 50, boxes)
        (folder / "Annotations" / f"v{i}.xml").write_text(page)
        picture(i, 40, 50).save(folder / "JPEGImages" / f"v{i}.jpg")
    for split, stems in (lists or {}).items():
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems))
    return folder
