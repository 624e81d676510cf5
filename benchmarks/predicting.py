"""Images a second of ``detrlab predict`` on a folder, beside the bare network; and its memory.

The network alone sees the same images, already resized. Both take turns, so that other programs
on the machine disturb both alike. The folder holds copies of the given photographs, one in a
hundred of them damaged.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import tempfile
import threading
import time
from pathlib import Path

import psutil
import torch

from detrlab import files
from detrlab.api import load
from detrlab.benchmark.cost import provenance
from detrlab.cli import main as detrlab
from detrlab.images import as_pixels

WAYS = {"lists": ("coco", "csv"), "lists and pictures": ("pictures", "coco", "csv")}


def copies(photos: list[Path], folder: Path, count: int) -> None:
    for i in range(count):
        data = photos[i % len(photos)].read_bytes()
        damaged = data[: len(data) // 2] if i % 100 == 50 else data
        (folder / f"{i:05d}{photos[i % len(photos)].suffix}").write_bytes(damaged)


def bare(detector, batches) -> float:
    with torch.inference_mode():
        begun = time.perf_counter()
        for batch in batches:
            detector.network(batch)
        return len(batches) / (time.perf_counter() - begun)


def of_folder(folder: Path, output: Path, arguments: list[str]) -> float:
    """The rate that the command itself prints."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(io.StringIO()):
        assert detrlab(["predict", str(folder), "--output", str(output), *arguments]) == 0
    return float(told.getvalue().splitlines()[-1].split(" images a second")[0].split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, help="a folder of photographs")
    parser.add_argument("--model", default="deimv2-femto")
    parser.add_argument("--images", type=int, default=200, help="in the folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    photos = sorted(p for p in options.photos.glob("*") if p.suffix in (".jpg", ".png"))
    detector = load(options.model, device=options.device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "photos"
        folder.mkdir()
        copies(photos, folder, options.images)
        batches = [detector.prepare(as_pixels(photo)) for photo in photos[: options.images]]
        common = ["--model", options.model, "--device", options.device]
        memory, stop = [], threading.Event()

        def watch() -> None:
            while not stop.wait(0.5):
                memory.append(psutil.Process().memory_info().rss / 2**20)

        bare(detector, batches[:5])
        threading.Thread(target=watch, daemon=True).start()
        rates: dict[str, list[float]] = {"network alone": [], **{way: [] for way in WAYS}}
        for number in range(options.rounds):
            rates["network alone"].append(bare(detector, batches))
            for way, kinds in WAYS.items():
                output = Path(name) / f"{way}-{number}"
                rates[way].append(of_folder(folder, output, [*common, "--save", *kinds]))
        stop.set()
    alone = rates["network alone"]
    shares = {
        way: statistics.median(a / b for a, b in zip(rates[way], alone, strict=True))
        for way in WAYS
    }
    part = max(1, len(memory) // 5)
    files.write_json(
        options.out,
        {
            "images_a_second": {way: [round(r, 2) for r in each] for way, each in rates.items()},
            "share_of_network_alone": {way: round(share, 3) for way, share in shares.items()},
            "memory_mib": [round(max(memory[i : i + part])) for i in range(0, len(memory), part)],
            "provenance": provenance(),
        },
    )


if __name__ == "__main__":
    main()
