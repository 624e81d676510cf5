"""The way from files to batches: opening, images per second, a training step that waits or not.

    python benchmarks/data_loading.py --photos facemask/val2017 [--only rates waiting ...]
                                      [--out docs/results/data-loading.json]

* ``opening``: a data set of COCO train2017's size, and what loader processes add. Image files are
  empty: pixels come from memory, so that only the table and the processes count.
* ``rates``: images per second of one core, by recipe and size of the photographs.
* ``waiting``: the share of the time that a training step, which sleeps, has to wait.
* ``scaled``: what libjpeg's scaled decoding would save, and what it would change.

The photographs are resized to COCO's 640 x 480, and to 4000 x 3000 (12 megapixels, with added
grain), and saved as JPEG. Everything is written to a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import detrlab
from detrlab.config import DataConfig
from detrlab.data import Loader, batches, open_data, open_whole
from detrlab.data.transforms import resize_as_pillow


def write_coco(folder: Path, images: int, boxes: int) -> int:
    """A json like instances_train2017.json without masks; returns its bytes."""
    draw = random.Random(0)
    entries = [
        {
            "license": 3,
            "file_name": f"{i:012d}.jpg",
            "coco_url": f"http://images.cocodataset.org/train2017/{i:012d}.jpg",
            "height": 480,
            "width": 640,
            "date_captured": "2013-11-14 11:18:45",
            "id": i,
        }
        for i in range(images)
    ]
    annotations = []
    for k in range(boxes):
        w, h = draw.uniform(1, 130), draw.uniform(1, 75)
        x, y = draw.uniform(0, 500), draw.uniform(0, 400)
        annotations.append(
            {
                "segmentation": [],
                "area": round(0.6 * w * h, 4),
                "iscrowd": 0,
                "image_id": draw.randrange(images),
                "bbox": [round(value, 2) for value in (x, y, w, h)],
                "category_id": draw.randrange(1, 81),
                "id": k,
            }
        )
    document = {
        "info": {},
        "licenses": [],
        "images": entries,
        "annotations": annotations,
        "categories": [{"id": k, "name": f"class {k}"} for k in range(1, 81)],
    }
    path = folder / "annotations" / "instances_train2017.json"
    path.parent.mkdir()
    path.write_text(json.dumps(document))
    (folder / "train2017").mkdir()
    for i in range(images):
        (folder / "train2017" / f"{i:012d}.jpg").touch()
    return path.stat().st_size


class GreyPictures:
    """640 x 480 grey images from memory that ask for their file's name, as real ones do."""

    def __init__(self, inner) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def name(self, i: int) -> str:
        return self.inner.name(i)

    def read(self, i: int, declared: tuple[int, int]) -> torch.Tensor:
        self.inner.name(i)
        return torch.zeros(3, *declared, dtype=torch.uint8)

    def select(self, _):
        return self


def private_megabytes(pid: int) -> float:
    """Memory that only this process has (Linux)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=Path, required=True, help="a folder of photographs")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, help="a json file, whose other parts are kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    figures["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = {each: folder / each for each in SIZES}
        for each, path in sizes.items():
            write_photos(options.photos, path, *SIZES[each])
        for part in options.only:
            load = f"{os.getloadavg()[0]:.1f}"
            figures[part] = {"load_before": load, **PARTS[part](sizes)}
            print(part, json.dumps(figures[part], indent=1), flush=True)
            if options.out is not None:
                options.out.write_text(json.dumps(figures, indent=1) + "\n")


# Photographs -----------------------------------------------------------------------------------

SIZES = {"640x480": (640, 480, 60), "4000x3000": (4000, 3000, 6)}
"""Width, height, and how many."""

RECIPES = {
    "detr, 800 to 1333 px": DataConfig(),
    "mild, 416 px": DataConfig(image_size=416, max_size=693, augmentation="mild"),
    "mild, 416 px, scaled_decoding": DataConfig(
        image_size=416, max_size=693, augmentation="mild", scaled_decoding=True
    ),
    "dense, 640 px square": DataConfig(image_size=640, resize="square", augmentation="dense"),
}


def write_photos(source: Path, folder: Path, width: int, height: int, count: int) -> None:
    """Photographs of one size, with three boxes each, as COCO."""
    files = sorted(path for path in source.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    entries, boxes = [], []
    grain = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    for i in range(count):
        with Image.open(files[i % len(files)]) as photo:
            larger = photo.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        if width > 1000:  # grain, which a picture that was made larger lacks
            values = np.asarray(larger) + grain.normal(0, 6, (height, width, 1))
            larger = Image.fromarray(values.clip(0, 255).astype(np.uint8))
        larger.save(folder / "images" / f"{i}.jpg", quality=90)
        entries.append({"id": i, "file_name": f"{i}.jpg", "height": height, "width": width})
        for k in range(3):
            box = [width * (0.1 + 0.2 * k), height * 0.2, width * 0.3, height * 0.4]
            boxes.append({"id": 3 * i + k + 1, "image_id": i, "category_id": 1, "bbox": box})
    document = {"images": entries, "annotations": boxes, "categories": [{"id": 1, "name": "a"}]}
    (folder / "annotations.json").write_text(json.dumps(document))


def rates(sizes: dict[str, Path]) -> dict[str, object]:
    """Images per second of one core, from file to normalised batch, by recipe and file size."""
    found: dict[str, dict[str, float]] = {}
    for title, config in RECIPES.items():
        found[title] = {}
        for size, folder in sizes.items():
            table = open_whole(folder).train
            batch, seconds = 4, []
            for epoch in range(6 if size == "640x480" else 3):
                stream = batches(
                    table, config, batch=batch, train=True, workers=0, seed=0, epoch=epoch
                )
                start = time.process_time()
                read = sum(len(each.targets) for each in stream)
                seconds.append((time.process_time() - start) / read)
            found[title][size] = round(1 / min(seconds), 1)
    return {"images_per_second_of_one_core": found}


def waiting(sizes: dict[str, Path]) -> dict[str, object]:
    """The share of the time that a step waits for its batch of eight, by workers.

    A step takes twice as long as reading its batch in this process takes now, or 100 ms, and the
    least share of three rounds counts: so the figures are about reading ahead, as far as possible
    whatever else runs on the machine. The photographs are repeated: an epoch has 30 batches.
    """
    table = open_whole(sizes["640x480"]).train
    table = table.select(np.tile(np.arange(len(table)), 4))
    config, batch = RECIPES["mild, 416 px"], 8
    start = time.perf_counter()
    read = sum(1 for _ in batches(table, config, batch=batch, train=True, workers=0))
    reading = (time.perf_counter() - start) / read
    step = max(0.1, 2 * reading)
    found: dict[str, float] = {}
    for _ in range(3):
        for workers in (0, 1, 2):
            loader = Loader(table, config, batch=batch, train=True, workers=workers)
            share = round(waiting_share(loader, step, epochs=2), 3)
            found[str(workers)] = min(share, found.get(str(workers), 1.0))
    return {
        "batch": batch,
        "reading_seconds": round(reading, 3),
        "step_seconds": round(step, 3),
        "share_waiting_by_workers": found,
    }


def waiting_share(loader: Loader, step: float, epochs: int) -> float:
    """How much of the time a training step that sleeps waits; the first epoch starts workers."""
    waited, begun = 0.0, 0.0
    for epoch in range(epochs):
        if epoch == 1:
            waited, begun = 0.0, time.perf_counter()
        stream = loader.epoch(epoch)
        while True:
            asked = time.perf_counter()
            if next(stream, None) is None:
                break
            waited += time.perf_counter() - asked
            time.sleep(step)
    return waited / (time.perf_counter() - begun)


def scaled(sizes: dict[str, Path]) -> dict[str, object]:
    """Decoding at an eighth to a half, not below the size that is needed, beside whole decoding."""
    found: dict[str, object] = {}
    detector = detrlab.load("deimv2-femto")
    side = 416
    for size, folder in sizes.items():
        for title, wanted in (("800 x 1066", (800, 1066)), (f"{side} x {side}", (side, side))):
            rows = [compared(path, wanted) for path in sorted((folder / "images").iterdir())[:24]]
            found[f"{size} to {title}"] = {
                key: round(float(np.mean([row[key] for row in rows])), 3) for key in rows[0]
            }
        moved = [scores_moved(detector, path, side) for path in (folder / "images").iterdir()]
        found[f"{size}: scores of the packaged detector move by at most"] = round(max(moved), 3)
    return found


def compared(path: Path, wanted: tuple[int, int]) -> dict[str, float]:
    """Milliseconds with and without scaled decoding, and grey levels of difference."""
    times, pictures = [], []
    for part in (False, True):
        start = time.process_time()
        pictures.append(resize_as_pillow(decoded(path, wanted if part else None), *wanted))
        times.append(1e3 * (time.process_time() - start))
    difference = (pictures[0].int() - pictures[1].int()).abs()
    return {
        "whole_ms": times[0],
        "scaled_ms": times[1],
        "mean_difference": float(difference.float().mean()),
        "largest_difference": float(difference.max()),
        "share_above_one_level": float((difference > 1).float().mean()),
    }


def decoded(path: Path, wanted: tuple[int, int] | None) -> torch.Tensor:
    with Image.open(path) as image:
        if wanted is not None:
            image.draft("RGB", (wanted[1], wanted[0]))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def scores_moved(detector: detrlab.Detector, path: Path, side: int) -> float:
    """By how much the score of an object (at least 0.3) moves at most."""
    whole, part = (
        detector.predict(resize_as_pillow(decoded(path, size), side, side), threshold=None)
        for size in (None, (side, side))
    )
    moved = [0.0]
    for box, label, score in zip(whole.boxes, whole.labels, whole.scores, strict=True):
        if score >= 0.3:
            same = part.labels == label
            nearest = (part.boxes[same] - box).abs().amax(1).argmin()
            moved.append(abs(float(part.scores[same][nearest] - score)))
    return max(moved)


# Opening ---------------------------------------------------------------------------------------


def opening(_sizes: dict[str, Path]) -> dict[str, object]:
    """As ``measure``, of COCO train2017's size."""
    return measure(118_000, 860_000, 4)


def measure(images: int, boxes: int, workers: int) -> dict[str, object]:
    """Print and return the figures."""
    with tempfile.TemporaryDirectory() as place:
        os.environ["DETRLAB_CACHE"] = str(Path(place, "cache"))
        name = Path(place, "data")
        name.mkdir()
        size = write_coco(name, images, boxes)
        print(f"{images:,} images, {boxes:,} boxes, {size / 1e6:.0f} MB of json")
        wall, cpu = time.perf_counter(), time.process_time()
        data = open_data(name)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(f"opened in {wall:.1f} s ({cpu:.1f} s of one core)")
        columns = (data.train.boxes, data.train.labels, data.train.areas, data.train.image_ids,
                   data.train.sizes, data.train.starts, data.train.annotation_ids)  # fmt: skip
        table_bytes = sum(column.nbytes for column in columns)
        print(f"training table: {table_bytes / 1e6:.0f} MB")
        table = replace(data.train, pictures=GreyPictures(data.train.pictures))
        alone = private_megabytes(os.getpid())
        print(f"this process: {alone:.0f} MB")
        config = DataConfig(image_size=128, max_size=213, augmentation="none")
        stream = batches(table, config, batch=16, train=True, workers=workers)
        for _ in range(400):
            next(stream)
        children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
        each = [private_megabytes(int(pid)) for pid in children]
        print(f"{len(each)} workers after 6,400 images: {', '.join(f'{mb:.0f}' for mb in each)} MB")
    return {
        "images": images,
        "boxes": boxes,
        "json_megabytes": round(size / 1e6, 1),
        "opened_seconds": round(wall, 2),
        "opened_cpu_seconds": round(cpu, 2),
        "training_table_megabytes": round(table_bytes / 1e6, 1),
        "process_private_megabytes": round(alone),
        "worker_private_megabytes": [round(mb) for mb in each],
    }


PARTS = {"opening": opening, "rates": rates, "waiting": waiting, "scaled": scaled}


if __name__ == "__main__":
    main()
