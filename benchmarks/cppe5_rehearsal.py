"""The commands of docs/cppe5.md on an archive of CPPE-5's shape with generated pictures.

    python benchmarks/cppe5_rehearsal.py --output runs/cppe5-rehearsal --images 16 --imgsz 128

Same layout, names and numbers of images, boxes and classes; about 48 images declare another size
than their file has, and two are near duplicates. What the pictures show is generated, so the
numbers say nothing about detectors: this tries the way from the archive to the tables. ``--images``
is how many each detector trains on; without ``--imgsz`` they have the recipe's size. With
``--no-weights`` the ResNet-50 starts from nothing, for a machine that cannot download it.
"""

import argparse
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ("Coverall", "Face_Shield", "Gloves", "Goggles", "Mask")
COLOURS = ((90, 140, 220), (200, 220, 90), (60, 200, 120), (220, 120, 60), (240, 240, 250))
SPLITS = {"train": (1000, 4500), "test": (29, 198)}
"""Images and boxes; 4,698 together."""
OTHER_SIZE = 48
DUPLICATES = (1003, 1011)


def archive(folder: Path) -> Path:
    """Write ``dataset.tar.gz``."""
    draws = np.random.default_rng(5)
    path, number = folder / "dataset.tar.gz", 0
    first_duplicate: bytes = b""
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:

        def add(name: str, data: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))

        for split, (count, boxes) in SPLITS.items():
            per_image = 1 + draws.multinomial(boxes - count, np.full(count, 1 / count))
            images, annotations = [], []
            for i in range(count):
                number += 1
                width, height = int(draws.integers(500, 1100)), int(draws.integers(400, 800))
                content, drawn = picture(draws, width, height, int(per_image[i]))
                if number == DUPLICATES[0]:
                    first_duplicate = content
                add(f"images/{number}.png", first_duplicate if number == DUPLICATES[1] else content)
                swapped = number % (1029 // OTHER_SIZE) == 0
                size = (height, width) if swapped else (width, height)
                images.append(
                    {
                        "id": number,
                        "file_name": f"{number}.png",
                        "width": size[0],
                        "height": size[1],
                    }
                )
                for label, box in drawn:
                    annotations.append(
                        {
                            "id": len(annotations) + 1,
                            "image_id": number,
                            "category_id": label + 1,
                            "bbox": box,
                            "area": box[2] * box[3],
                            "iscrowd": 0,
                        }
                    )
            document = {
                "images": images,
                "annotations": annotations,
                "categories": [{"id": k, "name": name} for k, name in enumerate(CLASSES, start=1)],
            }
            add(f"annotations/{split}.json", json.dumps(document).encode())
    return path


def picture(
    draws: np.random.Generator, width: int, height: int, count: int
) -> tuple[bytes, list[tuple[int, list[int]]]]:
    """A JPEG file of coloured figures, and their classes and boxes."""
    image = Image.new("RGB", (width, height), tuple(draws.integers(30, 120, 3).tolist()))
    brush, drawn = ImageDraw.Draw(image), []
    for _ in range(count):
        label = int(draws.integers(len(CLASSES)))
        w, h = int(draws.integers(20, width // 2)), int(draws.integers(20, height // 2))
        x, y = int(draws.integers(0, width - w)), int(draws.integers(0, height - h))
        brush.ellipse((x, y, x + w, y + h), fill=COLOURS[label])
        drawn.append((label, [x, y, w, h]))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=80)
    return stream.getvalue(), drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--imgsz", type=int)
    parser.add_argument("--no-weights", action="store_true")
    parser.add_argument("--recipe", nargs="+", default=["cppe5"])
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    place = options.output.resolve()
    place.mkdir(parents=True, exist_ok=True)
    made = archive(place)
    data = made.read_bytes()
    print(
        f"{made}: {len(data):,} bytes, sha256 {hashlib.sha256(data).hexdigest()[:16]}", flush=True
    )
    cache = place / "cache"
    unpacked = cache / "cppe5" / "data"
    shutil.rmtree(cache, ignore_errors=True)
    unpacked.mkdir(parents=True)
    with tarfile.open(made) as tar:  # the published archive's checksum is not this one's
        tar.extractall(unpacked, filter="data")
    environment = {**os.environ, "DETRLAB_CACHE": str(cache), "DETRLAB_OFFLINE": "1"}
    more = ["--imgsz", str(options.imgsz)] if options.imgsz else []
    if options.no_weights:
        more += ["--weights", "none", "--set", "model.backbone_norms=trained"]
    commands = [["check", "cppe5", "--output", str(place / "check.html")]]
    for recipe in options.recipe:
        folder = ["--output", str(place / recipe)]
        budget = ["--budget", f"images={options.images}"]
        compare = ["compare", "--data", "cppe5", "--recipe", recipe, *folder, *budget, *more]
        commands += [compare, compare]  # the second time everything is finished
    for command in commands:
        clock = time.perf_counter()
        ended = subprocess.run([sys.executable, "-m", "detrlab", *command], env=environment)
        spent = time.perf_counter() - clock
        print(
            f"detrlab {' '.join(command)}: exit code {ended.returncode}, {spent:.0f} s", flush=True
        )


if __name__ == "__main__":
    main()
