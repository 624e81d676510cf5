"""Learning curves as numbers, and where two of them cross."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from detrlab.compare.results import Epoch, Row

LEARNT = 1.0
"""AP in points; a detector that ends below has not learnt anything."""


@dataclass(frozen=True)
class Curve:
    """One line of a chart: the mean over the seeds, and their range.

    Attributes:
        name: the detector's.
        x: ascending, such as epochs or minutes.
        y: the mean over the seeds.
        low: the lowest seed's value; equal to ``y`` with one seed.
        high: the highest seed's.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Crossing:
    """Two curves whose order changes for the last time.

    Attributes:
        ahead: the detector that is ahead from there on.
        behind: the detector that was ahead before.
        x: where, in the curves' unit.
    """

    ahead: str
    behind: str
    x: float


@dataclass(frozen=True)
class Chart:
    """The curves of all detectors in one quantity.

    Attributes:
        name: of its file.
        title: above it.
        x_label: unit of x.
        y_label: unit of y.
        curves: its lines.
        log: whether the y axis is logarithmic.
    """

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
    """The mean over the seeds, epoch by epoch; None where no epoch is shared by all of them.

    Args:
        name: the detector's.
        seeds: for each seed (x, y) by epoch; points that are not finite are left out.
    """
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


def crossings(curves: Sequence[Curve]) -> tuple[Crossing, ...]:
    """Where AP curves cross for the last time, for each pair that does.

    Two detectors that both end below ``LEARNT`` have no crossing: their order is noise.
    """
    found = (
        _crossing(first, second)
        for index, first in enumerate(curves)
        for second in curves[index + 1 :]
        if max(first.y[-1], second.y[-1]) >= LEARNT
    )
    return tuple(crossing for crossing in found if crossing is not None)


def _crossing(first: Curve, second: Curve) -> Crossing | None:
    """The last change of sign of ``second - first`` in the range of x that both have."""
    import numpy as np

    low, high = max(first.x[0], second.x[0]), min(first.x[-1], second.x[-1])
    x = np.array(sorted(at for at in {*first.x, *second.x} if low <= at <= high))
    gaps = np.interp(x, second.x, second.y) - np.interp(x, first.x, first.y)
    x, gaps = x[gaps != 0], gaps[gaps != 0]
    changes = np.flatnonzero(np.diff(np.sign(gaps)))
    if not len(changes):
        return None
    before, after = changes[-1], changes[-1] + 1
    share = gaps[before] / (gaps[before] - gaps[after])
    ahead, behind = (second, first) if gaps[-1] > 0 else (first, second)
    return Crossing(ahead.name, behind.name, float(x[before] + share * (x[after] - x[before])))


def _curves(rows: Sequence[Row], quantity: str, *, by_minutes: bool = False) -> tuple[Curve, ...]:
    found = []
    for row in rows:
        seeds = [
            {
                epoch.epoch: (epoch.minutes if by_minutes else epoch.epoch, value)
                for epoch in run.epochs
                if (value := _value(epoch, quantity)) is not None
            }
            for run in (row.timed if by_minutes else row.runs)
        ]
        found.append(mean_curve(row.name, seeds))
    return tuple(curve for curve in found if curve is not None)


def _value(epoch: Epoch, quantity: str) -> float | None:
    if quantity == "loss":
        return epoch.losses.get("loss")
    value = epoch.metrics.get(quantity)
    return None if value is None else 100 * value
