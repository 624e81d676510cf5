"""Memory and time of large data on a small machine.

    python benchmarks/large_data.py open [--scale 1] [--out docs/results/large-data.json]
    python benchmarks/large_data.py evaluate [--scale 1] [--out docs/results/large-data.json]

``open``: a data set of the size of Objects365 (1.7 million images, 25 million boxes, 365 classes)
is generated in a temporary folder, then opened, opened again, and checked, each in a process of its
own. Image files are empty, because none is read. ``evaluate``: 300 detections on each of 100,000
images.
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
import threading
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
                np.arange(start + 1, start + count + 1), owners, classes, size.prod(1),
                *corner.T, *size.T,
            )  # fmt: skip
            values = zip(*(column.tolist() for column in columns), strict=True)
            file.write(", " * bool(start) + ", ".join(map(_BOX.__mod__, values)))
        file.write("]}")


def write_data(folder: Path, images: int, boxes: int) -> Path:
    """A folder of empty image files, and their annotations beside them."""
    for i in range(images):
        if i % PER_FOLDER == 0:
            part = folder / f"patch{i // PER_FOLDER}"
            part.mkdir()
        os.close(os.open(part / f"objects365_v2_{i:08d}.jpg", os.O_CREAT))
    path = folder / "annotations.json"
    write_annotations(path, images, boxes)
    return path


def open_once(folder: str) -> dict[str, object]:
    """Open and split."""
    from detrlab.data import open_data

    data = open_data(folder)
    boxes = len(data.train.boxes) + len(data.val.boxes)
    return {"train": len(data.train), "val": len(data.val), "boxes": boxes}


def check_once(folder: str) -> dict[str, object]:
    """Check the annotations, as ``detrlab check --no-images`` does."""
    from detrlab.data.check import check

    report = check(folder, no_images=True)
    return {"rules": {rule.key: count for rule, count, _ in report.findings.by_rule()}}


def measured(step: str, argument: str, environment: dict[str, str]) -> dict[str, object]:
    """Seconds and memory of a step in a process of its own."""
    command = [sys.executable, __file__, "step", step, argument]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    if result.returncode:
        raise SystemExit(result.stderr)
    print(step, result.stdout.strip(), flush=True)
    return json.loads(result.stdout)


def step(name: str, argument: str) -> dict[str, object]:
    """Run one step here; most memory at a time, and how much of it cannot be given back.

    Pages of mapped files count as resident as long as nobody else needs the memory.
    """
    most = 0

    def watch() -> None:
        nonlocal most
        while not done.wait(0.05):
            status = Path("/proc/self/status").read_text()
            most = max(most, int(status.partition("RssAnon:")[2].split()[0]))

    done = threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    wall, cpu = time.perf_counter(), time.process_time()
    result = STEPS[name](argument)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    done.set()
    watcher.join()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_megabytes": round(peak / 1e3),
        "anonymous_megabytes": round(most / 1e3),
        **result,
    }


DETECTIONS, JUDGED = 300, 100_000


def evaluate_once(argument: str) -> dict[str, object]:
    """Collect detections as of a network (float32 corners), save them, and compute the metrics."""
    from detrlab.evaluation.coco import Evaluator

    images, path = argument.split(",", 1)
    truth, draw = judged_truth(int(images)), np.random.default_rng(1)
    evaluator = Evaluator(truth)
    starts = np.searchsorted(truth.image, np.arange(truth.num_images + 1))
    began = time.perf_counter()
    for i, image_id in enumerate(truth.image_ids):
        corners = draw.uniform(0, 400, (DETECTIONS, 4)).astype(np.float32)
        corners[:, 2:] += corners[:, :2]
        labels = draw.integers(truth.num_classes, size=DETECTIONS)
        own = slice(starts[i], starts[i + 1])
        found = truth.boxes[own] + draw.normal(0, 4, (starts[i + 1] - starts[i], 4))
        found[:, 2:] = found[:, :2] + found[:, 2:].clip(min=1)
        corners[: len(found)], labels[: len(found)] = found, truth.label[own]
        evaluator.add(image_id, corners, draw.uniform(0, 1, DETECTIONS).astype(np.float32), labels)
    added = time.perf_counter()
    ap = evaluator.metrics().ap
    scored = time.perf_counter()
    evaluator.save_predictions(path)
    saved = time.perf_counter()
    return {
        "detections": DETECTIONS * truth.num_images,
        "ap": ap,
        "collecting_seconds": round(added - began, 1),
        "metrics_seconds": round(scored - added, 1),
        "saving_seconds": round(saved - scored, 1),
        "file_megabytes": round(Path(path).stat().st_size / 1e6),
    }


def foreign_once(argument: str) -> dict[str, object]:
    """Read that file as another tool's, and compute the metrics."""
    from detrlab.evaluation.coco import Evaluator
    from detrlab.evaluation.foreign import load_predictions

    images, path = argument.split(",", 1)
    evaluator = Evaluator(judged_truth(int(images)))
    evaluator.extend(load_predictions(path, evaluator.truth).detected)
    return {"ap": evaluator.metrics().ap}


def analyse_once(argument: str) -> dict[str, object]:
    """Read that file, and do the further analysis of ``detrlab eval``."""
    from detrlab.evaluation.analysis import analyse
    from detrlab.evaluation.foreign import load_predictions

    images, path = argument.split(",", 1)
    truth = judged_truth(int(images))
    return {"tide": analyse(truth, load_predictions(path, truth).detected).tide.cost}


def judged_truth(images: int):
    """Annotations of images of 640 x 480 with seven objects each, of 80 classes."""
    from detrlab.evaluation.records import GroundTruth

    draw, objects = np.random.default_rng(0), 7 * images
    size = draw.uniform(8, 200, (objects, 2))
    boxes = np.concatenate([draw.uniform(0, 400, (objects, 2)), size], axis=1)
    return GroundTruth(
        image_ids=tuple(range(images)),
        classes=tuple(f"class {k}" for k in range(80)),
        category_ids=tuple(range(1, 81)),
        image=np.repeat(np.arange(images), 7),
        label=draw.integers(80, size=objects),
        boxes=boxes,
        area=size.prod(1),
        crowd=np.zeros(objects, dtype=bool),
        sizes=np.tile([480, 640], (images, 1)),
        file_names=("",) * images,
    )


STEPS: dict[str, Callable[[str], dict[str, object]]] = {
    "open": open_once, "check": check_once, "evaluate": evaluate_once, "foreign": foreign_once,
    "analyse": analyse_once,
}  # fmt: skip


def evaluating(scale: float) -> dict[str, object]:
    """Evaluate, then evaluate the saved file."""
    images = int(JUDGED * scale)
    with tempfile.TemporaryDirectory() as name:
        argument = f"{images},{name}/predictions.json"
        return {
            "images": images,
            "evaluated": measured("evaluate", argument, {}),
            "read_from_a_file": measured("foreign", argument, {}),
            "analysed": measured("analyse", argument, {}),
        }


def opening(scale: float) -> dict[str, object]:
    """Generate a data set, open it twice, and check it."""
    images, boxes = int(IMAGES * scale), int(BOXES * scale)
    with tempfile.TemporaryDirectory() as name:
        folder, cache = Path(name, "data"), Path(name, "cache")
        folder.mkdir()
        size = write_data(folder, images, boxes).stat().st_size
        print(f"{images:,} images, {boxes:,} boxes, {size / 1e9:.2f} GB of json", flush=True)
        environment = {"DETRLAB_CACHE": str(cache)}
        steps = {
            "opened": measured("open", str(folder), environment),
            "opened_again": measured("open", str(folder), environment),
            "checked": measured("check", str(folder), environment),
        }
        kept = sum(path.stat().st_size for path in cache.rglob("*.columns"))
    return {
        "images": images,
        "boxes": boxes,
        "json_megabytes": round(size / 1e6),
        "cache_megabytes": round(kept / 1e6),
        **steps,
    }


def main() -> None:
    if sys.argv[1:2] == ["step"]:
        print(json.dumps(step(*sys.argv[2:])))
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["open", "evaluate"])
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--out", type=Path, help="a json file, whose other part is kept")
    options = parser.parse_args()
    figures = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    load = os.getloadavg()[0]
    figures[options.what] = {
        "command": shlex.join(["python", "benchmarks/large_data.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, load {load:.1f} before",
        **(opening if options.what == "open" else evaluating)(options.scale),
    }
    if options.out is not None:
        write_json(options.out, figures)


if __name__ == "__main__":
    main()
