"""Learning curves as numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from detrlab.compare.results import Epoch, Row


class Curve(NamedTuple):
    """One line of a chart: the mean ``y`` over the seeds, with the lowest and highest of them."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


class Chart(NamedTuple):
    """The curves of all detectors in one quantity; ``name`` is that of its file."""

    name: str
    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    log: bool = False


def charts(rows: Sequence[Row]) -> tuple[Chart, ...]:
    """The curves of a comparison, and AP against its cost; those without a point are left out."""
    points = "AP in points"
    costs = [
        mean_curve(row.name, [{0: (row.cost.minutes, 100 * row.metrics["ap"])}])
        for row in rows
        if row.cost.minutes is not None and row.metrics["ap"] is not None
    ]
    found = [
        Chart("ap-epochs", "AP by epoch", "epoch", points, _curves(rows, "ap")),
        Chart("ap-minutes", "AP by training time", "minutes", points,
              _curves(rows, "ap", by_minutes=True)),
        *(
            Chart(f"ap-{size}-epochs", f"AP of {size} objects", "epoch", points,
                  _curves(rows, f"ap_{size}"))
            for size in ("small", "medium", "large")
        ),
        Chart("loss-epochs", "Training loss (not comparable between detectors)", "epoch", "loss",
              _curves(rows, "loss"), log=True),
        Chart("ap-cost", "AP after the whole training", "minutes of training", points,
              tuple(filter(None, costs))),
    ]  # fmt: skip
    return tuple(chart for chart in found if chart.curves)


def mean_curve(name: str, seeds: Sequence[Mapping[int, tuple[float, float]]]) -> Curve | None:
    """The mean over the seeds, each (x, y) by epoch, in the epochs where all of them are finite."""
    finite = [{epoch for epoch in seed if all(map(math.isfinite, seed[epoch]))} for seed in seeds]
    shared = sorted(set.intersection(*finite)) if finite else []
    if not shared:
        return None
    columns = [[points[epoch] for points in seeds] for epoch in shared]
    return Curve(
        name=name,
        x=tuple(sum(x for x, _ in column) / len(column) for column in columns),
        y=tuple(sum(y for _, y in column) / len(column) for column in columns),
        low=tuple(min(y for _, y in column) for column in columns),
        high=tuple(max(y for _, y in column) for column in columns),
    )


def _curves(rows: Sequence[Row], quantity: str, *, by_minutes: bool = False) -> tuple[Curve, ...]:
    found = []
    for row in rows:
        seeds = [
            {
                epoch.epoch: (epoch.minutes if by_minutes else epoch.epoch, value)
                for epoch in run.epochs
                if (value := _value(epoch, quantity)) is not None
            }
            for run in (row.runs[:1] if by_minutes else row.runs)
        ]
        found.append(mean_curve(row.name, seeds))
    return tuple(curve for curve in found if curve is not None)


def _value(epoch: Epoch, quantity: str) -> float | None:
    if quantity == "loss":
        return epoch.losses.get("loss")
    value = epoch.metrics.get(quantity)
    return None if value is None else 100 * value
