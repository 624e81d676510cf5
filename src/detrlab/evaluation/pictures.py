"""An ``Analysis`` in pictures: matplotlib figures, and a contact sheet of the hardest images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from detrlab.drawing import draw_boxes, text_colour_on
from detrlab.evaluation.analysis import Analysis, Curve, ImageVerdict, object_fates
from detrlab.evaluation.matching import FALSE, FOUND, IOU_THRESHOLDS, match
from detrlab.evaluation.records import Detected, GroundTruth
from detrlab.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

    from detrlab.evaluation.coco import Metrics

Subject = TypeVar("Subject")

# Okabe and Ito's palette: told apart with every common colour vision.
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
    "Loc": "box too far off",
    "Both": "wrong class and box",
    "Dupe": "found before",
    "Bkg": "nothing there",
    "Miss": "missed",
    "FP": "all false alarms",
    "FN": "all that is not found",
}
_FOUND_COLOUR, _MISSED_COLOUR, _FALSE_COLOUR = (0, 158, 115), (214, 39, 40), (255, 191, 0)
_MOST_ROWS = 24  # classes in the picture of sizes
_MOST_NUMBERED = 20  # classes up to which a confusion matrix shows its counts


def _styled(draw: Callable[[Subject], Figure]) -> Callable[[Subject], Figure]:
    """The same drawing in our style, whatever the user has set for their own plots."""

    @wraps(draw)
    def styled(subject: Subject) -> Figure:
        from matplotlib import rc_context, rcParamsDefault

        with rc_context({**rcParamsDefault, **_STYLE, "font.sans-serif": _fonts()}):
            figure = draw(subject)
            # Laid out once: each format would come out a little different otherwise.
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
            return figure

    return styled


def save(analysis: Analysis, folder: str | Path, formats: Sequence[str] = ("png",)) -> list[Path]:
    """Write every picture that needs no photographs to ``folder``.

    Args:
        analysis: of one detector.
        folder: made if it is not there.
        formats: endings such as ``png`` and ``svg``.

    Returns:
        The files written.

    Raises:
        UserError: the folder cannot be written.
    """
    drawings: dict[str, Callable[[Analysis], Figure]] = {
        "precision_recall": precision_recall,
        "sizes": sizes,
        "confusion": confusion,
        "tide": tide,
        "calibration": calibration,
    }
    paths = []
    for name, draw in drawings.items():
        figure = draw(analysis)
        for ending in formats:
            path = Path(folder) / f"{name}.{ending}"
            save_figure(figure, path)
            paths.append(path)
    return paths


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure, whole or not at all; the ending chooses the format.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib import rc_context

    path = Path(path)
    # No date and no random names inside, so that equal results are equal files.
    metadata = {"Date": None} if path.suffix == ".svg" else None
    with replacing(path) as temporary, rc_context({"svg.fonttype": "none", "svg.hashsalt": "x"}):
        figure.savefig(temporary, format=path.suffix[1:], dpi=150, metadata=metadata)


@_styled
def precision_recall(analysis: Analysis) -> Figure:
    """Precision over recall: each class at IoU .50, and the mean at every IoU."""
    figure, (left, right) = _figure(11, 5, columns=2)
    judged = [curve for curve in analysis.curves if not np.isnan(curve.precision).any()]
    recalls = np.linspace(0, 1, 101)
    _f1_lines(left)
    shown = sorted(judged, key=lambda curve: -curve.ap[0])
    for place, curve in enumerate(shown):
        # Of many classes, the best and the worst four are named.
        rank = place if place < 4 else place - len(shown) + len(_COLOURS)
        named = len(shown) <= len(_COLOURS) or place < 4 or rank >= 4
        colour = _COLOURS[place if len(shown) <= len(_COLOURS) else rank] if named else _FAINT
        label = f"{_short(curve.name)}  {_points(curve.ap[0])}" if named else None
        left.plot(
            recalls,
            _reached(curve.precision[0]),
            color=colour,
            linewidth=1.6 if named else 0.7,
            label=label,
        )
        if named:
            _mark_threshold(left, curve, analysis, colour)
    if judged:
        mean = np.mean([curve.precision for curve in judged], axis=0)
        left.plot(
            recalls,
            _reached(mean[0]),
            color=_INK,
            linewidth=2.6,
            label=f"mean  {_points(mean[0].mean())}",
        )
        for level, threshold in reversed(list(enumerate(IOU_THRESHOLDS))):
            shade = 0.15 + 0.75 * level / len(IOU_THRESHOLDS)
            right.plot(
                recalls,
                _reached(mean[level]),
                color=_shade(shade),
                linewidth=1.6,
                label=f"IoU {threshold:.2f}  {_points(mean[level].mean())}",
            )
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
    """AP of every class on small, medium and large objects, with how many there are."""
    # The weakest classes on top, and only those where there are many.
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
    axes.set_title(f"{which} by object size; small figures count the objects")
    return figure


@_styled
def confusion(analysis: Analysis) -> Figure:
    """What the objects of each class were taken for."""
    result = analysis.confusion
    count = len(result.names)
    side = min(16.0, max(5.0, 2.4 + 0.62 * count if count <= _MOST_NUMBERED else 0.17 * count + 3))
    figure, axes = _figure(side + 1.2, side)
    shares = result.shares()
    image = axes.imshow(100 * shares, cmap=_blues(), vmin=0, vmax=100)
    size = 9 if count <= 12 else 7 if count <= _MOST_NUMBERED else 5
    names = [_short(name) for name in result.names[:-1]]
    axes.set_xticks(
        range(count),
        [*names, "(missed)"],
        rotation=45 if count <= 40 else 90,
        ha="right",
        fontsize=size,
    )
    axes.set_yticks(range(count), [*names, "(nothing there)"], fontsize=size)
    # The corner where nothing was there and nothing seen cannot be counted.
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
    """How many points of AP50 each kind of error costs."""
    result = analysis.tide
    figure, axes = _figure(7.5, 4.2)
    kinds = list(_KINDS)
    costs = [100 * result.cost[kind] for kind in kinds]
    # The two sums stand apart: they are other views of the same errors, not two more kinds.
    places = [-y for y in range(6)] + [-6.6, -7.6]
    words = [f"({result.counts[kind]:,}×)" if kind in result.counts else "" for kind in kinds]
    colours = [_COLOURS[0]] * 6 + ["#999999"] * 2
    axes.barh(places, costs, color=colours, height=0.62)
    for y, cost, word in zip(places, costs, words, strict=True):
        axes.annotate(
            f"{cost:.1f}   {word}",
            (max(cost, 0), y),
            (5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color="#444444",
        )
    axes.set_yticks(places, [_KINDS[kind] for kind in kinds])
    axes.set(xlabel="points of AP50 that mending it would bring, and how often it happens")
    axes.set_xlim(0, max(1.0, *costs) * 1.25)
    axes.grid(axis="y", visible=False)
    axes.set_title(f"Kinds of error at AP50 {_points(result.ap50)}")
    return figure


@_styled
def calibration(analysis: Analysis) -> Figure:
    """Whether scores mean what they say, and how many detections there are at each."""
    result = analysis.calibration
    figure, (upper, lower) = _figure(6.8, 6.4, rows=2, heights=(3, 1))
    width = np.diff(result.edges)
    middle = result.edges[:-1] + width / 2
    filled = result.count > 0
    upper.plot([0, 1], [0, 1], color="#777777", linewidth=1, linestyle="dashed", label="honest")
    upper.bar(
        middle[filled],
        result.accuracy[filled],
        width[filled] * 0.94,
        color=_COLOURS[0],
        alpha=0.75,
        label="share that is right",
    )
    upper.plot(
        result.confidence[filled],
        result.accuracy[filled],
        "o-",
        color=_INK,
        markersize=4,
        linewidth=1,
        label="at the mean score",
    )
    overall = analysis.thresholds.overall.score
    for axes in (upper, lower):
        axes.axvline(overall, color=_COLOURS[1], linewidth=1.4, label=f"threshold {overall:.2f}")
    lower.bar(middle[filled], result.count[filled], width[filled] * 0.94, color="#999999")
    lower.set_yscale("log")
    # matplotlib's own labels of a log axis are formulas, which this style does not read.
    lower.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    lower.set(xlabel="score", ylabel="detections", xlim=(0, 1))
    upper.set(ylabel="share right at IoU .50", xlim=(0, 1), ylim=(0, 1.02))
    upper.legend(fontsize=8, loc="upper left")
    upper.set_title(_calibration_words(analysis))
    return figure


@_styled
def layers(metrics: Sequence[Metrics]) -> Figure:
    """AP of every decoder layer, the first one left."""
    figure, axes = _figure(6, 3.8)
    x = range(1, len(metrics) + 1)
    ends = []
    for name, label, colour in zip(
        ("ap50", "ap", "ap75", "ap_small"),
        ("AP50", "AP", "AP75", "AP small"),
        _COLOURS,
        strict=False,
    ):
        values = [getattr(each, name) for each in metrics]
        if None not in values:
            points = [100 * value for value in values]
            axes.plot(x, points, "o-", color=colour, linewidth=1.8, markersize=5)
            ends.append((points[-1], f"{label} {points[-1]:.1f}", colour))
    # Words at the lines' ends, pushed apart where the lines end close together.
    distance = 0.06 * max([end[0] for end in ends], default=1.0)
    below = -np.inf
    for value, words, colour in sorted(ends):
        below = max(value, below + distance)
        axes.annotate(
            words,
            (len(metrics), below),
            (8, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=colour,
        )
    axes.set_xticks(list(x))
    axes.set(xlabel="decoder layer", xlim=(0.8, len(metrics) + 0.9), ylabel="AP")
    axes.set_ylim(bottom=0)
    axes.set_title("What each decoder layer adds")
    return figure


def hard_images(
    truth: GroundTruth,
    detected: Detected,
    analysis: Analysis,
    read: Callable[[int], Image.Image],
    count: int = 12,
    tile: int = 420,
) -> Image.Image:
    """The images that went worst, side by side, with what was found, missed and imagined.

    Args:
        truth: the annotations.
        detected: what was analysed.
        analysis: of ``detected``.
        read: gives the photograph of an index into ``truth.image_ids``.
        count: images at most; flawless ones are never shown.
        tile: width of each in pixels.
    """
    from PIL import Image

    worst = [verdict for verdict in analysis.images if verdict.mistakes][:count]
    matches = match(truth, detected)
    found, fate = object_fates(matches, analysis.thresholds)
    tiles = []
    for verdict in worst:
        index = truth.image_index[verdict.image_id]
        objects = np.flatnonzero((truth.image == index) & ~truth.crowd)
        loud = np.flatnonzero((matches.image == index) & (fate == FALSE))
        rows = [
            *((truth.boxes[g], f"missed {truth.classes[truth.label[g]]}", _MISSED_COLOUR)
              for g in objects if not found[g]),
            *((detected.boxes[matches.row[d]],
               f"{truth.classes[matches.label[d]]} {matches.score[d]:.2f}", _FALSE_COLOUR)
              for d in loud),
            *((detected.boxes[matches.row[d]], "", _FOUND_COLOUR)
              for d in np.flatnonzero((matches.image == index) & (fate == FOUND))),
        ]  # fmt: skip
        tiles.append(_tile(read(index), rows, verdict, tile))
    columns = min(3, max(1, len(tiles)))
    return _sheet(tiles, columns, tile) if tiles else Image.new("RGB", (tile, 40), "white")


def _tile(
    image: Image.Image, rows: Sequence[tuple[Any, str, Any]], verdict: ImageVerdict, width: int
) -> Image.Image:
    """One photograph with its boxes and a line of words below."""
    from PIL import Image, ImageDraw, ImageFont

    scale = width / image.width
    # Scaled first, drawn after: captions keep one size in every tile.
    small = image.convert("RGB").resize((width, max(1, round(image.height * scale))))
    corners = [np.r_[box[:2], box[:2] + box[2:]] * scale for box, _, _ in rows]
    drawn = draw_boxes(small, corners, [row[1] for row in rows], [row[2] for row in rows])
    canvas = Image.new("RGB", (width, drawn.height + 22), "white")
    canvas.paste(drawn, (0, 0))
    words = (
        f"{verdict.image_id}: {verdict.found} found, {verdict.missed} missed, "
        f"{verdict.false_alarms} false alarm{'' if verdict.false_alarms == 1 else 's'}"
    )
    font = ImageFont.load_default(13)
    ImageDraw.Draw(canvas).text((4, drawn.height + 3), words, fill=(34, 34, 34), font=font)
    return canvas


def _sheet(tiles: Sequence[Image.Image], columns: int, width: int) -> Image.Image:
    """Tiles in columns below a legend, each put where there is most room left."""
    from PIL import Image, ImageDraw, ImageFont

    gap, top = 10, 30
    heights = [top] * columns
    places = []
    for each in tiles:
        column = heights.index(min(heights))
        places.append((gap + column * (width + gap), heights[column]))
        heights[column] += each.height + gap
    sheet = Image.new("RGB", (columns * (width + gap) + gap, max(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    x, font = gap, ImageFont.load_default(14)
    for words, colour in (
        ("found", _FOUND_COLOUR),
        ("missed", _MISSED_COLOUR),
        ("false alarm", _FALSE_COLOUR),
    ):
        length = round(draw.textlength(words, font=font))
        draw.rectangle((x, 5, x + length + 12, 25), fill=colour)
        draw.text((x + 6, 6), words, fill=text_colour_on(colour), font=font)
        x += length + 22
    for each, place in zip(tiles, places, strict=True):
        sheet.paste(each, place)
    return sheet


def _figure(
    width: float,
    height: float,
    *,
    columns: int = 1,
    rows: int = 1,
    heights: Sequence[float] | None = None,
) -> tuple[Figure, Any]:
    """A figure of its own, outside pyplot's global list, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, height_ratios=heights)


@cache
def _fonts() -> list[str]:
    """Fonts to look for letters in: matplotlib's own, then those with more scripts."""
    from matplotlib import font_manager

    wide = ["Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Micro Hei", "PingFang SC"]
    wide += ["Microsoft YaHei", "Malgun Gothic", "Arial Unicode MS"]
    there = set(font_manager.get_font_names())
    return ["DejaVu Sans", *(name for name in wide if name in there)]


def _f1_lines(axes: Axes) -> None:
    """Where F1 is constant, faint in the background."""
    recall = np.linspace(0.01, 1, 200)
    for f1 in (0.2, 0.4, 0.6, 0.8):
        with np.errstate(divide="ignore", invalid="ignore"):
            precision = f1 * recall / (2 * recall - f1)
        valid = (precision > 0) & (precision <= 1)
        axes.plot(recall[valid], precision[valid], color=_FAINT, linewidth=0.8, zorder=0)
        axes.annotate(
            f"F1 {f1:.1f}", (0.995, f1 / (2 - f1)), fontsize=7, color="#aaaaaa", ha="right"
        )


def _reached(precision: Any) -> Any:
    """The curve up to the highest recall, without the line along 0 beyond it."""
    return np.where(precision > 0, precision, np.nan)


def _mark_threshold(axes: Axes, curve: Curve, analysis: Analysis, colour: str) -> None:
    chosen = analysis.thresholds.per_class[curve.name]
    if chosen.recall is not None and chosen.precision is not None:
        axes.plot(
            chosen.recall,
            chosen.precision,
            "o",
            color=colour,
            markersize=6,
            markeredgecolor="white",
        )


def _calibration_words(analysis: Analysis) -> str:
    gap = analysis.calibration.overconfidence
    if gap is None:
        return "No detection reaches the threshold"
    if abs(gap) < 0.02:
        return "Above the threshold, scores mean what they say"
    word = "too high" if gap > 0 else "too low"
    return f"Above the threshold, scores are {100 * abs(gap):.0f} points {word}"


def _short(name: str, limit: int = 24) -> str:
    return name if len(name) <= limit else name[: limit - 1] + "…"


def _points(value: float) -> str:
    return f"{100 * value:.1f}"


def _blues() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("detrlab", ["#ffffff", "#9ecae1", "#08519c"])


def _shade(share: float) -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"](share)
