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

    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("name", "backbone"):
        table.add_column(name, no_wrap=True)
    for name in ("params", "GFLOPs", "AP", "weights"):
        table.add_column(name, justify="right", no_wrap=True)

    for row in rows:
        weights = "-" if row["url"] is None else "here" if row["cached"] else f"{row['epochs']} ep."
        table.add_row(
            row["preset"],
            row["backbone"],
            f"{row['parameters'] / 1e6:.1f} M",
            str(row["gflops"] or "-"),
            f"{row['ap']:.1f}" if "ap" in row else "-",
            weights,
        )
    console = Console()
    console.print(table)
    console.print(
        "Parameters with COCO's 91 class rows. AP (COCO val2017) and GFLOPs as published. "
        "Weights: epochs of the published checkpoint, which --weights coco downloads; 'here' if "
        "it is on this machine. --json adds AP by size, addresses and files."
    )
    return 0
