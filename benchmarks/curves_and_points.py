"""What the tables share: a run's curve, and how a value is written."""

import csv
from pathlib import Path


def curve(file: Path) -> dict[int, dict[str, float]]:
    """The rows of a run's ``metrics.csv`` by epoch."""
    with file.open() as rows:
        return {
            int(row["epoch"]): {key: float(value) for key, value in row.items() if value}
            for row in csv.DictReader(rows)
        }


def points(value: float | None) -> str:
    """In points: 0.018 is 1.8; empty where there is none."""
    return "" if value is None else f"{100 * value:.1f}"
