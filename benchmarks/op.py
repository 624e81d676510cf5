"""Times of deformable attention by every backend on this machine.

    python benchmarks/op.py [--rounds 15] [--height 800 --width 1066] [--output FILE.json]

Where torch-ms-deform-attn is installed (it compiles C++ at installation; detrlab does not need
it) it is timed beside them.
"""

import argparse
import json
from pathlib import Path

import torch

from detrlab.ops import benchmark


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1066)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    before = benchmark.load()
    rows = benchmark.compare_backends(options.height, options.width, rounds=options.rounds)
    for line in benchmark.table(rows):
        print(line)
    if options.output:
        report = {
            "load_before": before,
            "image": [options.height, options.width],
            "rounds": options.rounds,
            **benchmark.to_dict(rows),
        }
        options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
