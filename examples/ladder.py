"""Climb a part of the ladder from DETR to DINO: what did each step of the architecture buy?

python examples/ladder.py --data path/to/data --recipe laptop --models detr deformable-detr

Without --data three steps learn generated pictures for one epoch: that takes two minutes.
"""

import argparse
from pathlib import Path

from detrlab.compare import compare

STEPS = ["deformable-detr", "deformable-detr-refine", "deformable-detr-two-stage"]

if __name__ == "__main__":  # a comparison starts processes, which may import this file
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", help="by default the recipe's own")
    parser.add_argument("--recipe", default="tiny")
    parser.add_argument("--budget", default="epochs=1", help="such as minutes=20")
    parser.add_argument("--models", nargs="+", default=STEPS, help="steps of the ladder, in order")
    parser.add_argument("--output", type=Path, default=Path("runs/examples/ladder"))
    options = parser.parse_args()

    comparison = compare(
        options.models,
        recipe=options.recipe,
        data=options.data,
        budget=options.budget,
        output=options.output,
        report=print,
    )
    assert comparison.ladder is not None, "fewer than two steps have a result"
    for step in comparison.to_dict()["ladder"]:
        print("; ".join(f"{head}: {value}" for head, value in step.items()))
    for before, after, changes in comparison.steps:
        print(f"{before} -> {after}: {', '.join(changes)}")
