"""Long runs: memory, open files, threads and processes must stay as they are.

    python benchmarks/long_runs.py --output docs/results/long-runs.json

Each preset of ``STAND_FOR`` trains 2,000 steps with evaluations and saved states; it has the parts
of the presets that it stands for, which differ in sizes or losses. Then come 100,000 predictions
by ``detrlab.load(...).predict`` and 100,000 by the exported file in ONNX Runtime. Every part runs
in a process of its own, on small pictures and tiny detectors. The exit code is 1 when a part
exceeds ``BOUND`` or leaves a file, a thread or a process behind.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import psutil
import torch

import detrlab
from compare_cases import write_data
from detrlab.api import Detector
from detrlab.config import DataConfig, TrainConfig
from detrlab.data import open_data
from detrlab.export import load as load_exported
from detrlab.export.exporting import Pictures, export
from detrlab.presets import PRESETS, build_network
from detrlab.training.folder import RunConfig
from detrlab.training.loop import Options, train
from detrlab.training.setup import silent
from tiny_detectors import tiny_config

STAND_FOR = {
    "detr": "detr-dc5, detr-sigmoid",
    "deformable-detr-refine": "deformable-detr and the single-scale ones",
    "deformable-detr-two-stage": "",
    "dino-4scale": "dab-, dn-, cdn- and mixed-deformable-detr, dino-5scale, -detrex, -hybrid",
    "rt-detr-v2-r18": "all rt-detr and rt-detr-v2, deim-rt-detr-v2-r18",
    "deim-d-fine-n": "all d-fine and deim-d-fine",
    "deimv2-femto": "all deimv2",
}
BOUND = 16.0
"""MiB that the resident memory may grow from the first quarter of a run to its end."""
SIZES = {"width": 64, "num_heads": 2, "ffn_width": 32, "encoder_layers": 1, "decoder_layers": 2}
ENCODER = {"encoder_width": 64, "encoder_ffn_width": 32}
IMAGE, TRAIN_IMAGES, BATCH, LIST = 32, 200, 2, 20


def resident() -> float:
    """Resident memory of this process in MiB."""
    gc.collect()
    return psutil.Process().memory_info().rss / 2**20


def held() -> dict[str, int]:
    """What this process holds."""
    process = psutil.Process()
    return {
        "files": process.num_fds() if hasattr(process, "num_fds") else process.num_handles(),
        "threads": process.num_threads(),
        "processes": len(process.children(recursive=True)),
    }


def tiny(preset: str, **changes):
    """A preset's configuration, smaller than in the tests."""
    fields = PRESETS[preset].model_fields
    extra = {name: value for name, value in ENCODER.items() if name in fields}
    levels = {"levels": 3} if preset.startswith("deformable") and "levels" in fields else {}
    return tiny_config(preset, 2, **{**SIZES, **extra, **levels, **changes})


def training(preset: str, steps: int, place: Path) -> dict[str, object]:
    """Train so many steps; returns what was measured."""
    data = open_data(write_data(place / "data", train=TRAIN_IMAGES, val=2))
    memory: list[float] = []
    before: dict[str, int] = {}
    marks = (steps // 4, steps)

    def look(report) -> None:
        if report.step + 1 in marks:
            memory.append(resident())

    def go(epochs: int, folder: Path, on_step: Callable | None) -> None:
        config = RunConfig(
            model=tiny(preset),
            train=TrainConfig(
                epochs=epochs, batch=BATCH, learning_rate=1e-4, weights="none", ema_decay=0.99
            ),
            data=DataConfig(image_size=IMAGE, max_size=IMAGE, augmentation="light", workers=1),
        )
        train(config, folder, data, Options(device="cpu", on_step=on_step))

    go(1, place / "first", None)  # what is imported and started once
    gc.collect()
    before = held()
    go(steps * BATCH // TRAIN_IMAGES, place / "run", look)
    gc.collect()
    return {"steps": steps, "memory": memory, "before": before, "after": held()}


def predicting(exported: bool, count: int, place: Path) -> dict[str, object]:
    """Predict so many pictures, ``LIST`` in a call; returns what was measured."""
    config = tiny("deimv2-femto", width=32, encoder_width=32)
    built = Detector(build_network(config, seed=0), config, ["box", "disc"])
    path = built.at_size(IMAGE).save(place / "tiny")
    detector = detrlab.load(path)
    draw = torch.Generator().manual_seed(0)
    pictures = [
        torch.randint(0, 256, (3, IMAGE, IMAGE), dtype=torch.uint8, generator=draw)
        for _ in range(LIST)
    ]
    if exported:
        certificate = export(
            detector, place, "tiny", source="tiny", form="onnx", precision="float32",
            pictures=Pictures("drawn", pictures[:2], []), data=None, say=silent,
        )  # fmt: skip
        detector = load_exported(place / certificate.file)
    memory: list[float] = []
    for done in range(0, count, LIST):
        if done == LIST * 10:
            before = held()
        if done == count // 4:
            memory.append(resident())
        detector.predict(pictures, threshold=0.0)
    memory.append(resident())
    return {"predictions": count, "memory": memory, "before": before, "after": held()}


def parts(steps: int, predictions: int) -> dict[str, Callable[[Path], dict[str, object]]]:
    """Everything that runs, by name."""
    return {
        **{name: partial(training, name, steps) for name in STAND_FOR},
        "predict": partial(predicting, False, predictions),
        "predict in ONNX Runtime": partial(predicting, True, predictions),
    }


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--predictions", type=int, default=100_000)
    parser.add_argument("--only", nargs="+", help="parts; others in the output file are kept")
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help="write the result here, as JSON")
    options = parser.parse_args()
    every = parts(options.steps, options.predictions)
    if options.part:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(every[options.part](Path(folder))))
        return 0

    def one(name: str) -> dict[str, object]:
        started = time.perf_counter()
        words = [sys.executable, *sys.argv, "--part", name]
        found = json.loads(subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout)
        first, last = found.pop("memory")
        found |= {
            "stands_for": STAND_FOR.get(name, ""),
            "mib_at_a_quarter": round(first, 1),
            "mib_at_the_end": round(last, 1),
            "seconds": round(time.perf_counter() - started),
            "kept": last - first <= BOUND
            and all(found["after"][key] <= found["before"][key] for key in found["before"]),
        }
        print(name, found, flush=True)
        return found

    results = {}
    if options.output and options.output.is_file():
        results = json.loads(options.output.read_text(encoding="utf-8"))["parts"]
    names = options.only or list(every)
    with ThreadPoolExecutor(options.at_once) as pool:
        for name, found in zip(names, pool.map(one, names), strict=True):
            results[name] = found
            if options.output:
                values = {"bound_mib": BOUND, "torch": torch.__version__, "parts": results}
                options.output.write_text(
                    json.dumps(values, separators=(",", ":")) + "\n", encoding="utf-8"
                )
    return 0 if all(each["kept"] for each in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
