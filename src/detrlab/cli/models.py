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
    from detrlab.checkpoints.catalogue import ModelRow, models

    rows = models()
    if options.json:
        print(json.dumps([row.to_dict() for row in rows]))
        return 0

    from rich.console import Console
    from rich.table import Table

    table = Table(title="detectors, with COCO's 91 rows of classes", title_justify="left")
    for name in ("name", "backbone"):
        table.add_column(name, no_wrap=True)
    for name in ("parameters", "trainable", "GFLOPs", "COCO AP", "AP S", "AP M", "AP L"):
        table.add_column(name, justify="right")
    table.add_column("weights")

    def where(row: ModelRow) -> str:
        if row.weights is None:
            return "none published"
        return "cached" if row.cached else f"{row.weights.epochs} epochs, not cached"

    def points(row: ModelRow, name: str) -> str:
        return f"{row.ap[name]:.1f}" if name in row.ap else "-"

    for row in rows:
        table.add_row(
            row.preset,
            row.backbone,
            f"{row.parameters / 1e6:.1f} M",
            f"{row.trainable / 1e6:.1f} M",
            "-" if row.gflops is None else str(row.gflops),
            *(points(row, name) for name in ("ap", "ap_small", "ap_medium", "ap_large")),
            where(row),
        )
    console = Console()
    console.print(table)
    console.print(
        "Accuracy and GFLOPs as published by the original repositories (COCO val2017); "
        "use weights with --weights coco. --json gives addresses and files."
    )
    return 0
