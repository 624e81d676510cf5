"""Plots of an ``Analysis``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from detrlab.evaluation.analysis import Analysis
from detrlab.evaluation.matching import IOU_THRESHOLDS
from detrlab.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from detrlab.evaluation.coco import Metrics

Subject = TypeVar("Subject")

# Okabe and Ito's palette, for readers with any colour vision.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d3b", "#777777")
_INK, _FAINT = "#222222", "#d9d9d9"
_STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # a class may be called "$x$"
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#777777",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
}
_KINDS = {
    "Cls": "wrong class",
    "Loc": "box not precise enough",
    "Both": "wrong class and box",
    "Dupe": "duplicate",
    "Bkg": "background",
    "Miss": "missed",
    "FP": "all false positives",
    "FN": "all false negatives",
}
_MOST_ROWS = 24  # classes in the plot of sizes
_MOST_NUMBERED = 20  # classes up to which a confusion matrix shows its counts


def _styled(draw: Callable[[Subject], Figure]) -> Callable[[Subject], Figure]:
    """The same plot in our style, whatever the user's matplotlib settings are."""

    @wraps(draw)
    def styled(subject: Subject) -> Figure:
        from matplotlib import rc_context, rcParamsDefault

        with rc_context({**rcParamsDefault, **_STYLE, "font.sans-serif": _fonts()}):
            figure = draw(subject)
            # Fix the layout: it would differ a little between file formats otherwise.
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
            return figure

    return styled


def save(analysis: Analysis, folder: str | Path, layers: Sequence[Metrics] = ()) -> None:
    """Write every plot to ``folder`` as PNG.

    Args:
        analysis: of one detector.
        folder: created if needed.
        layers: metrics of each decoder layer, for one more plot.

    Raises:
        UserError: the folder cannot be written.
    """
    figures = {
        "precision_recall": precision_recall(analysis),
        "sizes": sizes(analysis),
        "confusion": confusion(analysis),
        "tide": tide(analysis),
        "calibration": calibration(analysis),
    }
    if layers:
        figures["layers"] = layer_metrics(layers)
    for name, figure in figures.items():
        save_figure(figure, Path(folder) / f"{name}.png")


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure atomically; the extension chooses the format.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib import rc_context

    path = Path(path)
    # No date and no random ids, so that equal results give equal files.
    metadata = {"Date": None} if path.suffix == ".svg" else None
    with replacing(path) as temporary, rc_context({"svg.fonttype": "none", "svg.hashsalt": "x"}):
        figure.savefig(temporary, format=path.suffix[1:], dpi=150, metadata=metadata)


@_styled
def precision_recall(analysis: Analysis) -> Figure:
    """Precision over recall: each class at IoU .50, and the mean at every IoU."""
    figure, (left, right) = _figure(11, 5, columns=2)
    judged = [curve for curve in analysis.curves if not np.isnan(curve.precision).any()]
    recalls = np.linspace(0, 1, 101)
    shown = sorted(judged, key=lambda curve: -curve.ap[0])
    half = len(_COLOURS) // 2
    if len(shown) > len(_COLOURS):  # only the best and the worst four have a name and a colour
        for curve in shown[half:-half]:
            left.plot(recalls, _reached(curve.precision[0]), color=_FAINT, linewidth=0.7)
        shown = shown[:half] + shown[-half:]
    for curve, colour in zip(shown, _COLOURS, strict=False):
        label = f"{_short(curve.name)}  {_points(curve.ap[0])}"
        left.plot(recalls, _reached(curve.precision[0]), color=colour, linewidth=1.6, label=label)
        cut = analysis.thresholds.per_class[curve.name]
        if cut.recall is not None and cut.precision is not None:
            left.plot(
                cut.recall, cut.precision, "o", color=colour, markersize=6, markeredgecolor="white"
            )
    if judged:
        mean = np.mean([curve.precision for curve in judged], axis=0)
        label = f"mean  {_points(mean[0].mean())}"
        left.plot(recalls, _reached(mean[0]), color=_INK, linewidth=2.6, label=label)
        for level, threshold in reversed(list(enumerate(IOU_THRESHOLDS))):
            label = f"IoU {threshold:.2f}  {_points(mean[level].mean())}"
            colour = _shade(0.15 + 0.75 * level / len(IOU_THRESHOLDS))
            right.plot(recalls, _reached(mean[level]), color=colour, linewidth=1.6, label=label)
    handles, labels = right.get_legend_handles_labels()
    right.legend(handles[::-1], labels[::-1], fontsize=8, loc="upper right")
    if judged:
        left.legend(fontsize=8, loc="best", title="AP50", title_fontsize=8, alignment="left")
    left.set_title("At IoU .50; dots mark the suggested thresholds")
    right.set_title("Mean over the classes, by IoU")
    for axes in (left, right):
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    return figure


@_styled
def sizes(analysis: Analysis) -> Figure:
    """AP and object count of every class by object size."""
    # The weakest classes on top; only those where there are many classes.
    order = sorted(
        analysis.sizes, key=lambda row: row.ap["all"] if row.ap["all"] is not None else 2
    )
    rows = order[:_MOST_ROWS][::-1]
    figure, axes = _figure(8, 1.6 + 0.42 * max(2, len(rows)))
    for place, (area, colour) in enumerate(
        zip(("small", "medium", "large"), _COLOURS, strict=False)
    ):
        judged = [(y, row) for y, row in enumerate(rows) if row.ap[area] is not None]
        height = np.array([y + 0.22 * (1 - place) for y, _ in judged])
        values = np.array([100 * (row.ap[area] or 0.0) for _, row in judged])
        axes.hlines(height, 0, values, color=colour, linewidth=1.2, alpha=0.5)
        axes.plot(values, height, "o", color=colour, markersize=5)
        for (_, row), x, y in zip(judged, values, height, strict=True):
            axes.text(x + 1.2, y, f"{row.objects[area]}", va="center", fontsize=7, color="#666666")
        axes.plot([], [], "o", color=colour, label=area)
    axes.set_yticks(range(len(rows)), [_short(row.name) for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set(xlabel="AP", xlim=(0, 100))
    axes.grid(axis="y", visible=False)
    axes.legend(fontsize=8, loc="lower right")
    which = f"The {len(rows)} weakest of {len(order)} classes" if len(order) > len(rows) else "AP"
    axes.set_title(f"{which} by object size; the small numbers are object counts")
    return figure


@_styled
def confusion(analysis: Analysis) -> Figure:
    """Annotated against predicted classes."""
    result = analysis.confusion
    count = len(result.names)
    side = min(16.0, max(5.0, 2.4 + 0.62 * count if count <= _MOST_NUMBERED else 0.17 * count + 3))
    figure, axes = _figure(side + 1.2, side)
    shares = result.shares()
    image = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    size = 9 if count <= 12 else 7 if count <= _MOST_NUMBERED else 5
    names = [_short(name) for name in result.names[:-1]]
    axes.set_xticks(
        range(count),
        [*names, "(missed)"],
        rotation=45 if count <= 40 else 90,
        ha="right",
        fontsize=size,
    )
    axes.set_yticks(range(count), [*names, "(background)"], fontsize=size)
    # True negatives cannot be counted: the last corner stays empty.
    for row, column in np.ndindex(*shares.shape) if count <= _MOST_NUMBERED else ():
        if row == column == count - 1:
            continue
        dark = shares[row, column] > 0.5
        number = int(result.counts[row, column])
        axes.text(
            column,
            row,
            str(number),
            ha="center",
            va="center",
            fontsize=size,
            color="white" if dark else _INK if number else "#bbbbbb",
        )
    axes.grid(visible=False)
    axes.set(xlabel="predicted", ylabel="annotated")
    axes.set_title("At IoU .50, at the suggested thresholds")
    figure.colorbar(image, ax=axes, label="share of the row, %", shrink=0.8)
    return figure


@_styled
def tide(analysis: Analysis) -> Figure:
    """How much AP50 each kind of error costs."""
    result = analysis.tide
    figure, axes = _figure(7.5, 4.2)
    kinds = list(_KINDS)
    costs = [100 * result.cost[kind] for kind in kinds]
    # The two sums stand apart: they count the same errors again.
    places = [-y for y in range(6)] + [-6.6, -7.6]
    words = [f"({result.counts[kind]:,}×)" if kind in result.counts else "" for kind in kinds]
    colours = [_COLOURS[0]] * 6 + ["#999999"] * 2
    bars = axes.barh(places, costs, color=colours, height=0.62)
    labels = [f"{cost:.1f}   {word}" for cost, word in zip(costs, words, strict=True)]
    axes.bar_label(bars, labels, padding=5, fontsize=9, color="#444444")
    axes.set_yticks(places, [_KINDS[kind] for kind in kinds])
    axes.set(xlabel="AP50 gained if fixed (points); in brackets, the number of errors")
    axes.set_xlim(0, max(1.0, *costs) * 1.25)
    axes.grid(axis="y", visible=False)
    axes.set_title(f"Error types (TIDE) at AP50 {_points(result.ap50)}")
    return figure


@_styled
def calibration(analysis: Analysis) -> Figure:
    """Accuracy against confidence, and the number of detections by score."""
    result = analysis.calibration
    figure, (upper, lower) = _figure(6.8, 6.4, rows=2, heights=(3, 1))
    width = np.diff(result.edges)
    middle = result.edges[:-1] + width / 2
    filled = result.count > 0
    upper.plot([0, 1], [0, 1], "--", color="#777777", linewidth=1, label="perfectly calibrated")
    bars = middle[filled], result.accuracy[filled], width[filled] * 0.94
    upper.bar(*bars, color=_COLOURS[0], alpha=0.75, label="accuracy")
    points = result.confidence[filled], result.accuracy[filled]
    upper.plot(*points, "o-", color=_INK, markersize=4, linewidth=1, label="at the mean score")
    overall = analysis.thresholds.overall.score
    for axes in (upper, lower):
        axes.axvline(overall, color=_COLOURS[1], linewidth=1.4, label=f"threshold {overall:.2f}")
    lower.bar(middle[filled], result.count[filled], width[filled] * 0.94, color="#999999")
    lower.set_yscale("log")
    # matplotlib labels a log axis with formulas, which this style turns off.
    lower.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    lower.set(xlabel="score", ylabel="detections", xlim=(0, 1))
    upper.set(ylabel="accuracy at IoU .50", xlim=(0, 1), ylim=(0, 1.02))
    upper.legend(fontsize=8, loc="upper left")
    upper.set_title(_calibration_words(analysis))
    return figure


@_styled
def layer_metrics(metrics: Sequence[Metrics]) -> Figure:
    """AP of every decoder layer."""
    figure, axes = _figure(6, 3.8)
    x = range(1, len(metrics) + 1)
    names = {"ap50": "AP50", "ap": "AP", "ap75": "AP75", "ap_small": "AP small"}
    for (name, words), colour in zip(names.items(), _COLOURS, strict=False):
        values = [getattr(each, name) for each in metrics]
        if None not in values:
            points = [100 * value for value in values]
            label = f"{words} {points[-1]:.1f}"
            axes.plot(x, points, "o-", color=colour, linewidth=1.8, markersize=5, label=label)
            axes.legend(fontsize=9, title="Last layer")
    axes.set_xticks(list(x))
    axes.set(xlabel="decoder layer", ylabel="AP")
    axes.set_ylim(bottom=0)
    axes.set_title("AP by decoder layer")
    return figure


def _figure(
    width: float,
    height: float,
    *,
    columns: int = 1,
    rows: int = 1,
    heights: Sequence[float] | None = None,
) -> tuple[Figure, Any]:
    """A figure outside pyplot's global list, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, height_ratios=heights)


@cache
def _fonts() -> list[str]:
    """Matplotlib's own font, then installed fonts with Chinese, Japanese and Korean."""
    from matplotlib import font_manager

    wide = ["Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Micro Hei", "PingFang SC"]
    wide += ["Microsoft YaHei", "Malgun Gothic", "Arial Unicode MS"]
    there = set(font_manager.get_font_names())
    return ["DejaVu Sans", *(name for name in wide if name in there)]


def _reached(precision: Any) -> Any:
    """The curve up to the highest recall, without the zeros beyond it."""
    return np.where(precision > 0, precision, np.nan)


def _calibration_words(analysis: Analysis) -> str:
    gap = analysis.calibration.overconfidence
    if gap is None:
        return "No detection reaches the threshold"
    if abs(gap) < 0.02:
        return "Above the threshold, scores are calibrated"
    word = "overconfident" if gap > 0 else "underconfident"
    return f"Above the threshold, scores are {100 * abs(gap):.0f} points {word}"


def _short(name: str, limit: int = 24) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"


def _points(value: float) -> str:
    return f"{100 * value:.1f}"


def _shade(share: float) -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"](share)
