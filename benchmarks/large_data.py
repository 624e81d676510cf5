"""Memory and time of large data on a small machine.

    python benchmarks/large_data.py open [--scale 1] [--out docs/results/large-data-open.json]
    python benchmarks/large_data.py evaluate [--scale 1] [--out ...]

``open``: a data set of the size of Objects365 (1.7 million images, 25 million boxes, 365 classes) is
generated in a temporary folder, then opened, opened again, and checked, each in a process of its own.
Image files are empty, because none is read. ``evaluate``: 300 detections on each of 100,000 images.
``--scale 0.05`` is a twentieth of that.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from detrlab.files import write_json

IMAGES, BOXES, CLASSES = 1_700_000, 25_000_000, 365
PER_FOLDER = 20_000
_BLOCK = 100_000

_IMAGE = (
    '{"id": %d, "license": 5, "height": %d, "width": %d, "url": "",'
    ' "file_name": "patch%d/objects365_v2_%08d.jpg"}'
)
_BOX = (
    '{"id": %d, "iscrowd": 0, "isfake": 0, "isreflected": 0, "image_id": %d, "category_id": %d,'
    ' "area": %.7f, "bbox": [%.10f, %.10f, %.10f, %.10f]}'
)


def write_annotations(path: Path, images: int, boxes: int) -> None:
    """A json as Objects365's, block by block; boxes come in no order of images, as there."""
    draw = np.random.default_rng(0)
    sides = np.array([[480, 640], [512, 768], [1536, 2048], [400, 600]])[
        draw.integers(4, size=images)
    ]
    with path.open("w") as file:
        file.write('{"categories": ')
        json.dump([{"id": k, "name": f"class {k}"} for k in range(1, CLASSES + 1)], file)
        file.write(', "images": [')
        for start in range(0, images, _BLOCK):
            rows = range(start, min(start + _BLOCK, images))
            values = ((i, *sides[i].tolist(), i // PER_FOLDER, i) for i in rows)
            file.write(", " * bool(start) + ", ".join(map(_IMAGE.__mod__, values)))
        file.write('], "annotations": [')
        for start in range(0, boxes, _BLOCK):
            count = min(_BLOCK, boxes - start)
            owners = draw.integers(images, size=count)
            extent = sides[owners, ::-1]
            size = extent * draw.uniform(0.02, 0.6, (count, 2))
            corner = (extent - size) * draw.uniform(0, 1, (count, 2))
            # Frequent and rare classes, as in real data.
            classes = 1 + (CLASSES * draw.uniform(0, 1, count) ** 3).astype(int)
            columns = (
                np.arange(start + 1, start + count + 1), owners, classes, size.prod(1), *corner.T, *size.T
            )  # fmt: skip
            values = zip(*(column.tolist() for column in columns), strict=True)
            file.write(", " * bool(start) + ", ".join(map(_BOX.__mod__, values)))
        file.write("]}")


if __name__ == "__main__":
    a = sys.argv
    write_annotations(Path(a[1]), int(a[2]), int(a[3]))
