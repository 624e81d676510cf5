"""How long ``detrlab predict`` of one picture takes from a cold shell, beside ``import torch``.

    python benchmarks/start.py photo.jpg --output docs/results/start.json

Processes start one after the other, in turn. The forward pass is timed in a process that has
loaded the detector before; importing is counted by package, each module without those it imports.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from detrlab import files

PACKAGES = 12
"""So many packages are named; the others are counted together."""

FORWARD = """
import sys, time, torch, detrlab
detector = detrlab.load("deimv2-femto")
images = detector.prepare(detrlab.api.as_pixels(sys.argv[1]))
detector.predict(sys.argv[1])
taken = []
with torch.inference_mode():
    for _ in range(20):
        start = time.perf_counter(), time.process_time()
        detector.network(images)
        taken.append((time.perf_counter() - start[0], time.process_time() - start[1]))
print(sorted(t for t, _ in taken)[10], sorted(t for _, t in taken)[10])
"""


def seconds(command: list[str]) -> dict[str, float]:
    """Of one process: elapsed, and of the processor."""
    before, start = os.times(), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    elapsed, after = time.perf_counter() - start, os.times()
    used = after.children_user + after.children_system
    return {
        "elapsed": elapsed,
        "processor": used - before.children_user - before.children_system,
    }


def imports(command: list[str]) -> dict[str, float]:
    """Seconds that each package's own modules take to import, the slowest first."""
    told = subprocess.run(
        [command[0], "-X", "importtime", *command[1:]], capture_output=True, text=True, check=True
    ).stderr
    found: dict[str, float] = {}
    for own, name in re.findall(r"^import time:\s*(\d+) \|\s*\d+ \|\s*(\S+)$", told, re.MULTILINE):
        package = name.split(".")[0]
        package = "Python's own" if package.strip("_") in sys.stdlib_module_names else package
        found[package] = found.get(package, 0.0) + int(own) / 1e6
    ordered = sorted(found.items(), key=lambda pair: -pair[1])
    rest = sum(value for _, value in ordered[PACKAGES:])
    return {**dict(ordered[:PACKAGES]), "others": rest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else everything is compiled anew each time
    with tempfile.TemporaryDirectory() as folder:
        predict = ["-m", "detrlab", "predict", str(options.photo), "--output", f"{folder}/out"]
        commands = {
            "python -c 'import torch'": ["-c", "import torch"],
            "detrlab predict photo.jpg": predict,
            "detrlab --help": ["-m", "detrlab", "--help"],
        }
        commands = {name: [sys.executable, *words] for name, words in commands.items()}
        taken: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
        for number in range(options.rounds + 1):
            for name, command in commands.items():
                row = seconds(command)
                if number:  # the first fills the caches
                    taken[name].append(row)
        by_package = imports(commands["detrlab predict photo.jpg"])
    told = subprocess.run(
        [sys.executable, "-c", FORWARD, str(options.photo)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    from detrlab.benchmark.cost import provenance

    torch_alone, whole, _ = taken.values()
    report: dict[str, Any] = {
        **provenance(),
        "rounds": options.rounds,
        "forward_s": {"elapsed": float(told[-2]), "processor": float(told[-1])},
        "seconds": {
            name: {kind: [round(row[kind], 3) for row in rows] for kind in ("elapsed", "processor")}
            for name, rows in taken.items()
        },
        "times_import_torch": {
            kind: statistics.median(
                (a[kind] - float(own)) / b[kind] for a, b in zip(whole, torch_alone, strict=True)
            )
            for kind, own in zip(("elapsed", "processor"), told[-2:], strict=True)
        },
        "import_seconds": by_package,
    }
    files.write_json(options.output, report)
    print(json.dumps({k: report[k] for k in ("times_import_torch", "forward_s")}, indent=1))


if __name__ == "__main__":
    main()
