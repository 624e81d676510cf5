"""How long a data set of COCO train2017's size takes to open, and what loader processes add.

    python benchmarks/data_loading.py [--images 118000] [--boxes 860000] [--workers 4]
                                      [--out docs/results/data-loading.json]

Everything is generated in a temporary folder. Image files are empty: pixels come from memory,
so that only the table and the processes count.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shlex
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from detrlab.config import DataConfig
from detrlab.data import batches, open_data


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
    parser.add_argument("--images", type=int, default=118_000)
    parser.add_argument("--boxes", type=int, default=860_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--out", type=Path, help="a json file for the figures")
    options = parser.parse_args()
    figures = measure(options.images, options.boxes, options.workers)
    if options.out is not None:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")


def measure(images: int, boxes: int, workers: int) -> dict[str, object]:
    """Print and return the figures."""
    with tempfile.TemporaryDirectory() as name:
        size = write_coco(Path(name), images, boxes)
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
        "command": shlex.join(["python", "benchmarks/data_loading.py", *sys.argv[1:]]),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, load {os.getloadavg()[0]:.1f} at the end",
        "images": images,
        "boxes": boxes,
        "json_megabytes": round(size / 1e6, 1),
        "opened_seconds": round(wall, 2),
        "opened_cpu_seconds": round(cpu, 2),
        "training_table_megabytes": round(table_bytes / 1e6, 1),
        "process_private_megabytes": round(alone),
        "worker_private_megabytes": [round(mb) for mb in each],
    }


if __name__ == "__main__":
    main()
