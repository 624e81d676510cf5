"""Loss and AP curves as pictures, and where two of them cross."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from detrlab import files
from detrlab.compare.results import Epoch, Row, RunResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart with every common colour vision; from the sixth on violet,
# dark red and nearly black, because their sky blue is too near to the blue of the first.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#6a51c7", "#99283c", "#3d3d3d")
DASHES = ("solid", "dashed", "dashdot", "dotted")


@dataclass(frozen=True)
class Curve:
    """One line of a picture: the mean over the seeds, and how far they lie apart.

    Attributes:
        name: the entrant's.
        x: epochs or minutes, ascending.
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
    """Two curves that change places for good.

    Attributes:
        ahead: who is ahead from there on.
        behind: who was ahead before.
        x: where, in the curves' unit.
    """

    ahead: str
    behind: str
    x: float


@dataclass(frozen=True)
class Chart:
    """One picture: what it shows, and its lines.

    Attributes:
        name: of its file.
        title: above it.
        x_label: unit of x.
        y_label: unit of y.
        curves: its lines.
        log: a logarithmic y axis.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    log: bool = False


def charts(rows: Sequence[Row]) -> tuple[Chart, ...]:
    """The pictures that a comparison draws; those without a line are left out."""
    found = [
        Chart(
            "ap-epochs", "AP against epochs", "epoch", "AP in points",
            _lines(rows, _epoch, _points("ap")),
        ),
        Chart(
            "ap-minutes", "AP against training time", "minutes", "AP in points",
            _lines(rows, _minutes, _points("ap"), lambda row: row.timed),
        ),
        Chart(
            "ap-small-epochs", "AP of small objects", "epoch", "AP in points",
            _lines(rows, _epoch, _points("ap_small")),
        ),
        Chart(
            "ap-medium-epochs", "AP of medium objects", "epoch", "AP in points",
            _lines(rows, _epoch, _points("ap_medium")),
        ),
        Chart(
            "ap-large-epochs", "AP of large objects", "epoch", "AP in points",
            _lines(rows, _epoch, _points("ap_large")),
        ),
        Chart(
            "loss-epochs", "Training loss (not comparable between detectors)", "epoch", "loss",
            _lines(rows, _epoch, _loss), log=True,
        ),
    ]  # fmt: skip
    return tuple(chart for chart in found if chart.curves)


def crossings(curves: Sequence[Curve]) -> tuple[Crossing, ...]:
    """For each pair, where the order changes for good; pairs that never change have none."""
    found = (
        _crossing(first, second)
        for index, first in enumerate(curves)
        for second in curves[index + 1 :]
    )
    return tuple(crossing for crossing in found if crossing is not None)


def write_pictures(rows: Sequence[Row], folder: Path) -> tuple[Path, ...]:
    """Draw every chart and the cost picture into ``folder``, as PNG and as SVG.

    Raises:
        UserError: the folder cannot be written.
    """
    written: list[Path] = []
    for chart in charts(rows):
        written += _write(draw(chart), folder, chart.name)
    pareto = draw_pareto(rows)
    if pareto is not None:
        written += _write(pareto, folder, "ap-cost")
    return tuple(written)


def draw(chart: Chart) -> Figure:
    """One chart as a matplotlib figure."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure()
    for index, curve in enumerate(chart.curves):
        colour, dash = style(index)
        axes.plot(
            curve.x, curve.y, label=curve.name, color=colour, linestyle=dash,
            marker="o" if len(curve.x) < 30 else None, markersize=3,
        )  # fmt: skip
        if curve.low != curve.high:
            axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.15, lw=0)
    axes.set_xlabel(chart.x_label)
    if chart.x_label == "epoch":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel(chart.y_label)
    axes.set_title(chart.title, loc="left")
    axes.set_xlim(left=0)
    if chart.log:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure


def draw_pareto(rows: Sequence[Row]) -> Figure | None:
    """AP against training time; a point is worth its place if none is better and cheaper."""
    points = [
        (row.name, row.cost.minutes, 100 * row.metrics["ap"])
        for row in rows
        if row.cost.minutes is not None and row.metrics["ap"] is not None
    ]
    if len(points) < 2:
        return None
    figure, axes = _figure()
    front = pareto_front([(minutes, ap) for _, minutes, ap in points])
    for index, (name, minutes, ap) in enumerate(points):
        colour, _ = style(index)
        axes.scatter(
            minutes, ap, color=colour, s=45, zorder=3,
            facecolors=colour if index in front else "none",
        )  # fmt: skip
        axes.annotate(name, (minutes, ap), xytext=(6, 4), textcoords="offset points", fontsize=9)
    line = sorted((points[index][1], points[index][2]) for index in front)
    axes.plot(*zip(*line, strict=True), color="#999999", lw=1, zorder=1, drawstyle="steps-post")
    axes.set_xlabel("minutes of training")
    axes.set_ylabel("AP in points")
    axes.set_title("Quality and cost (filled: none is both better and cheaper)", loc="left")
    axes.set_xlim(left=0, right=1.25 * max(point[1] for point in points))
    axes.set_ylim(bottom=0)
    return figure


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Positions of the (cost, quality) points that none beats in both."""
    return [
        index
        for index, (cost, quality) in enumerate(points)
        if not any((c <= cost and q >= quality) and (c < cost or q > quality) for c, q in points)
    ]


def style(index: int) -> tuple[str, str]:
    """Colour and dash of the line at ``index``: the same in every picture."""
    return COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]


def _crossing(first: Curve, second: Curve) -> Crossing | None:
    """The last change of sign of ``second - first``, on the stretch that both cover."""
    grid = sorted({*first.x, *second.x})
    low, high = max(first.x[0], second.x[0]), min(first.x[-1], second.x[-1])
    grid = [x for x in grid if low <= x <= high]
    gaps = [_at(second, x) - _at(first, x) for x in grid]
    signed = [index for index, gap in enumerate(gaps) if gap != 0]
    if not signed:
        return None
    last = signed[-1]
    earlier = [index for index in signed if gaps[index] * gaps[last] < 0]
    if not earlier:
        return None
    start = earlier[-1]
    stop = next(index for index in signed if index > start)
    share = gaps[start] / (gaps[start] - gaps[stop])
    x = grid[start] + share * (grid[stop] - grid[start])
    ahead, behind = (second, first) if gaps[last] > 0 else (first, second)
    return Crossing(ahead.name, behind.name, x)


def _at(curve: Curve, x: float) -> float:
    import numpy as np

    return float(np.interp(x, curve.x, curve.y))


def _lines(
    rows: Sequence[Row],
    x: Callable[[Epoch], float],
    y: Callable[[Epoch], float | None],
    runs: Callable[[Row], tuple[RunResult, ...]] = lambda row: row.runs,
) -> tuple[Curve, ...]:
    found = (_line(row.name, runs(row), x, y) for row in rows)
    return tuple(curve for curve in found if curve is not None)


def _line(
    name: str,
    runs: Sequence[RunResult],
    x: Callable[[Epoch], float],
    y: Callable[[Epoch], float | None],
) -> Curve | None:
    """The mean over the seeds, epoch by epoch, over the epochs that all of them have."""
    by_epoch = [
        {epoch.epoch: (x(epoch), value) for epoch in run.epochs if (value := y(epoch)) is not None}
        for run in runs
    ]
    shared = sorted(set.intersection(*map(set, by_epoch))) if by_epoch else []
    if not shared:
        return None
    columns = [[points[epoch] for points in by_epoch] for epoch in shared]
    return Curve(
        name=name,
        x=tuple(sum(at for at, _ in column) / len(column) for column in columns),
        y=tuple(sum(value for _, value in column) / len(column) for column in columns),
        low=tuple(min(value for _, value in column) for column in columns),
        high=tuple(max(value for _, value in column) for column in columns),
    )


def _epoch(epoch: Epoch) -> float:
    return epoch.epoch


def _minutes(epoch: Epoch) -> float:
    return epoch.minutes


def _loss(epoch: Epoch) -> float | None:
    return epoch.losses.get("loss")


def _points(name: str) -> Callable[[Epoch], float | None]:
    def points(epoch: Epoch) -> float | None:
        value = epoch.metrics.get(name)
        return None if value is None else 100 * value

    return points


def _figure() -> tuple[Figure, Axes]:
    # The object interface only: pyplot keeps global state and would look for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, alpha=0.25, lw=0.6)
    return figure, axes


def _write(figure: Figure, folder: Path, name: str) -> list[Path]:
    paths = [folder / f"{name}.png", folder / f"{name}.svg"]
    for path in paths:
        with files.replacing(path) as temporary:
            # No date inside: the same result gives the same file.
            metadata = {"Date": None} if path.suffix == ".svg" else None
            figure.savefig(temporary, format=path.suffix[1:], dpi=150, metadata=metadata)
    return paths
