"""``detrlab models``: the detectors and their published weights."""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """List the detectors: parameters, cost, published accuracy, where the weights come from."""

    json: bool = False
    """Print JSON instead of a table."""


def run(options: Options) -> int:
    """List; returns the exit code."""
    from detrlab.checkpoints.published import models

    rows = models()
    if options.json:
        print(json.dumps(rows))
        return 0

    from rich.console import Console

    from detrlab.compare.tables import Grid

    cells = tuple(
        (
            row["preset"],
            row["backbone"],
            f"{row['parameters'] / 1e6:.1f} M",
            str(row["gflops"] or "-"),
            f"{row['ap']:.1f}" if "ap" in row else "-",
            "-" if row["url"] is None else "here" if row["cached"] else f"{row['epochs']} ep.",
        )
        for row in rows
    )
    console = Console()
    headers = ("name", "backbone", "params", "GFLOPs", "AP", "weights")
    console.print(Grid("Detectors", headers, cells).terminal(console.width))
    console.print(
        "Parameters with COCO's 91 class rows. AP (COCO val2017) and GFLOPs as published. "
        "Weights: epochs of the published checkpoint, which --weights coco downloads; 'here' if "
        "it is on this machine. --json adds AP by size, addresses and files."
    )
    return 0
