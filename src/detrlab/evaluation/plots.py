"""Plots of an ``Analysis``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detrlab.evaluation.analysis import Analysis
from detrlab.evaluation.coco import TIDE_KINDS
from detrlab.evaluation.matching import HALF, IOU_THRESHOLDS, RECALLS
from detrlab.figures import new_figure, save_figure, shades, short, styled
from detrlab.palette import DETECTORS, FAINT, INK, RULE, SIZES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from detrlab.evaluation.coco import Metrics

_KINDS = (
    "wrong class", "box not precise enough", "wrong class and box", "duplicate", "background",
    "missed", "all false positives", "all false negatives",
)  # fmt: skip
_MOST_ROWS = 24  # classes in the plot of sizes
_MOST_NUMBERED = 20  # classes up to which a confusion matrix shows its counts


def save(analysis: Analysis, folder: str | Path, layers: Sequence[Metrics] = ()) -> None:
    """Write every plot to ``folder`` as PNG.

    Args:
        analysis: of one detector.
        folder: created if needed.
        layers: metrics of each decoder layer, for one more plot.

    Raises:
        UserError: the folder cannot be written.
    """
    for draw in (precision_recall, sizes, confusion, tide, calibration):
        save_figure(draw(analysis), Path(folder) / f"{draw.__name__}.png", dpi=150)
    if layers:
        save_figure(layer_metrics(layers), Path(folder) / "layers.png", dpi=150)


@styled
def precision_recall(analysis: Analysis) -> Figure:
    """Precision over recall: each class at IoU .50, and the mean at every IoU."""
    figure, (left, right) = new_figure(11, 5, columns=2)
    judged = [curve for curve in analysis.curves if not np.isnan(curve.precision).any()]
    shown = sorted(judged, key=lambda curve: -curve.ap[HALF])
    half = len(DETECTORS) // 2
    if len(shown) > len(DETECTORS):  # only the best and the worst four have a name and a colour
        for curve in shown[half:-half]:
            _line(left, curve.precision[HALF], color=RULE, linewidth=0.7)
        shown = shown[:half] + shown[-half:]
    for curve, colour in zip(shown, DETECTORS, strict=False):
        _line(left, curve.precision[HALF], short(curve.name), color=colour)
        cut = analysis.thresholds.per_class[curve.name]
        if cut.recall is not None and cut.precision is not None:
            left.plot(cut.recall, cut.precision, "o", color=colour, markeredgecolor="white")
    if judged:
        mean = np.mean([curve.precision for curve in judged], axis=0)
        _line(left, mean[HALF], "mean", color=INK, linewidth=2.6)
        levels = list(zip(IOU_THRESHOLDS, mean, shades(len(mean), high=0.85), strict=True))
        for threshold, precision, colour in levels:
            _line(right, precision, f"IoU {threshold:.2f}", color=colour)
        left.legend(fontsize=8, loc="best", title="AP50", title_fontsize=8, alignment="left")
        right.legend(fontsize=8, loc="upper right")
    left.set_title("At IoU .50; dots mark the suggested thresholds")
    right.set_title("Mean over the classes, by IoU")
    for axes in (left, right):
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    return figure


def _line(axes: Axes, precision: Any, name: str = "", **style: Any) -> None:
    """Precision up to the highest recall, without the zeros beyond it; AP in the legend."""
    label = f"{name}  {100 * precision.mean():.1f}" if name else None
    reached = np.where(precision > 0, precision, np.nan)
    axes.plot(RECALLS, reached, label=label, **{"linewidth": 1.6} | style)


@styled
def sizes(analysis: Analysis) -> Figure:
    """AP and object count of every class by object size."""
    # The weakest classes on top; only those where there are many classes.
    order = sorted(analysis.sizes, key=lambda row: 2 if row.ap["all"] is None else row.ap["all"])
    rows = order[:_MOST_ROWS][::-1]
    figure, (axes,) = new_figure(8, 1.6 + 0.42 * max(2, len(rows)))
    for place, (area, colour) in enumerate(SIZES.items()):
        axes.plot([], [], "o", color=colour, label=area)
        for y, row in enumerate(rows):
            if (ap := row.ap[area]) is None:
                continue
            height, value = y + 0.22 * (1 - place), 100 * ap
            axes.plot([0, value], [height, height], color=colour, linewidth=1.2, alpha=0.5)
            axes.plot([value], [height], "o", color=colour, markersize=5)
            axes.text(value + 1.2, height, f"{row.objects[area]}", va="center", fontsize=7)
    axes.set_yticks(range(len(rows)), [short(row.name) for row in rows])
    axes.set(xlabel="AP", xlim=(0, 100), ylim=(-0.6, len(rows) - 0.4))
    axes.grid(axis="y", visible=False)
    axes.legend(fontsize=8, loc="lower right")
    which = f"The {len(rows)} weakest of {len(order)} classes" if len(order) > len(rows) else "AP"
    axes.set_title(f"{which} by object size; the small numbers are object counts")
    return figure


@styled
def confusion(analysis: Analysis) -> Figure:
    """Annotated against predicted classes."""
    result = analysis.confusion
    count = len(result.names)
    side = min(16.0, max(5.0, 2.4 + 0.62 * count if count <= _MOST_NUMBERED else 0.17 * count + 3))
    figure, (axes,) = new_figure(side + 1.2, side)
    shares = result.shares()
    image = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    size = 9 if count <= 12 else 7 if count <= _MOST_NUMBERED else 5
    names = [short(name) for name in result.names[:-1]]
    turned: dict[str, Any] = {"rotation": 45 if count <= 40 else 90, "ha": "right"}
    axes.set_xticks(range(count), [*names, "(missed)"], fontsize=size, **turned)
    axes.set_yticks(range(count), [*names, "(background)"], fontsize=size)
    for row, column in np.ndindex(*shares.shape) if count <= _MOST_NUMBERED else ():
        if row == column == count - 1:
            continue  # true negatives cannot be counted
        number = int(result.counts[row, column])
        colour = "white" if shares[row, column] > 0.5 else INK if number else FAINT
        centered: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": size}
        axes.text(column, row, str(number), color=colour, **centered)
    axes.grid(visible=False)
    axes.set(xlabel="predicted", ylabel="annotated")
    axes.set_title("At IoU .50, at the suggested thresholds")
    figure.colorbar(image, ax=axes, label="share of the row, %", shrink=0.8)
    return figure


@styled
def tide(analysis: Analysis) -> Figure:
    """How much AP50 each kind of error costs."""
    result = analysis.tide
    figure, (axes,) = new_figure(7.5, 4.2)
    costs = [100 * result.cost[kind] for kind in TIDE_KINDS]
    # The two sums stand apart: they count the same errors again.
    places = [0, -1, -2, -3, -4, -5, -6.6, -7.6]
    bars = axes.barh(places, costs, color=[DETECTORS[0]] * 6 + [FAINT] * 2, height=0.62)
    words = [f"({n:,}×)" for n in result.counts.values()] + ["", ""]
    labels = [f"{cost:.1f}   {word}" for cost, word in zip(costs, words, strict=True)]
    axes.bar_label(bars, labels, padding=5, fontsize=9)
    axes.set_yticks(places, _KINDS)
    axes.set(xlabel="AP50 gained if fixed (points); in brackets, the number of errors")
    axes.set_xlim(0, max(1.0, *costs) * 1.25)
    axes.grid(axis="y", visible=False)
    axes.set_title(f"Error types (TIDE) at AP50 {100 * result.ap50:.1f}")
    return figure


@styled
def calibration(analysis: Analysis) -> Figure:
    """Accuracy against confidence, and the number of detections by score."""
    result = analysis.calibration
    figure, (upper, lower) = new_figure(6.8, 6.4, rows=2, heights=(3, 1))
    width = np.diff(result.edges)
    middle = result.edges[:-1] + width / 2
    filled = result.count > 0
    upper.plot([0, 1], [0, 1], "--", color=FAINT, linewidth=1, label="perfectly calibrated")
    bars: dict[str, Any] = {"x": middle[filled], "width": width[filled] * 0.94}
    upper.bar(height=result.accuracy[filled], color=DETECTORS[0], label="accuracy", **bars)
    points = result.confidence[filled], result.accuracy[filled]
    upper.plot(*points, "o-", color=INK, markersize=4, linewidth=1, label="at the mean score")
    overall = analysis.thresholds.overall.score
    for axes in (upper, lower):
        axes.axvline(overall, color=DETECTORS[1], linewidth=1.4, label=f"threshold {overall:.2f}")
    lower.bar(height=result.count[filled], color=FAINT, **bars)
    lower.set_yscale("log")
    # matplotlib labels a log axis with formulas, which this style turns off.
    lower.tick_params(which="minor", labelleft=False)
    lower.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    lower.set(xlabel="score", ylabel="detections", xlim=(0, 1))
    upper.set(ylabel="accuracy at IoU .50", xlim=(0, 1), ylim=(0, 1.02))
    upper.legend(fontsize=8, loc="upper left")
    gap = result.overconfidence
    if gap is None:
        upper.set_title("No detection reaches the threshold")
    else:
        upper.set_title(f"Above the threshold, scores are {100 * gap:+.0f} points off")
    return figure


@styled
def layer_metrics(metrics: Sequence[Metrics]) -> Figure:
    """AP of every decoder layer."""
    figure, (axes,) = new_figure(6, 3.8)
    layers = range(1, len(metrics) + 1)
    names = {"ap50": "AP50", "ap": "AP", "ap75": "AP75", "ap_small": "AP small"}
    for (name, words), colour in zip(names.items(), DETECTORS, strict=False):
        values = [getattr(each, name) for each in metrics]
        if None not in values:
            points = [100 * value for value in values]
            axes.plot(layers, points, "o-", color=colour, label=f"{words} {points[-1]:.1f}")
            axes.legend(fontsize=9, title="Last layer")
    axes.set_xticks(list(layers))
    axes.set(xlabel="decoder layer", ylabel="AP")
    axes.set_ylim(bottom=0)
    axes.set_title("AP by decoder layer")
    return figure
