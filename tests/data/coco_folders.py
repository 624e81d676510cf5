"""Small COCO folders for tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def image_entry(image_id: Any, name: str, height: int, width: int) -> dict[str, Any]:
    return {"id": image_id, "file_name": name, "height": height, "width": width}


def annotation(number: Any, image_id: Any, category: Any, box: Any, **more: Any) -> dict[str, Any]:
    record = {"id": number, "image_id": image_id, "category_id": category, "bbox": box}
    if isinstance(box, list) and len(box) == 4 and "area" not in more:
        more["area"] = 1.0
    return {**record, "iscrowd": 0, **more}


def picture(seed: int, height: int, width: int) -> Image.Image:
    """A picture that differs from every other seed's."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def write_coco(
    folder: Path,
    *,
    images: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    categories: dict[int, str],
    name: str = "annotations.json",
    image_folder: str = "images",
    seed: int = 0,
) -> None:
    """The json and a picture of the declared size for every image."""
    where = folder / image_folder
    where.mkdir(parents=True, exist_ok=True)
    for i, entry in enumerate(images, start=seed):
        picture(i, entry["height"], entry["width"]).save(where / entry["file_name"])
    document = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": key, "name": value} for key, value in categories.items()],
    }
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(document))


def one_box_each(folder: Path, boxes: list[Any], first: int = 0, **parts: Any) -> Path:
    """A set with an image of 60 x 80 pixels for each box, by default all of class a."""
    images = [image_entry(first + i, f"p{first + i}.png", 60, 80) for i in range(len(boxes))]
    records = [annotation(i, first + i, 1, box) for i, box in enumerate(boxes)]
    defaults = {"annotations": records, "categories": {1: "a"}, "name": "train.json"}
    write_coco(folder, seed=first, **{"images": images, **defaults, **parts})
    return folder
