"""Inference and training step of detectors, beside transformers' where asked.

python benchmarks/step.py --models deformable-detr detr --side 640 --against transformers
"""

import argparse
import json
from pathlib import Path

from detrlab.benchmark.report import benchmark, lines
from detrlab.presets import model_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["deformable-detr"])
    parser.add_argument("--side", type=int, default=640)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--against", choices=["transformers"])
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    reports = []
    for name in options.models:
        report = benchmark(
            model_config(name, 91),
            height=options.side,
            width=options.side,
            batch=options.batch,
            rounds=options.rounds,
            against=options.against,
            with_memory=not options.no_memory,
        )
        for line in lines(report):
            print(line, flush=True)
        reports.append(report)
        if options.output:
            options.output.write_text(json.dumps(reports, indent=1) + "\n")


if __name__ == "__main__":
    main()
