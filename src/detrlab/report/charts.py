"""Charts as SVG, drawn by matplotlib: for the page, and as files beside it.

Text stays text. Each mark carries its detector (``data-series``), so that the page can hide it,
and its numbers (``title``), which a browser shows under the pointer.
"""

from __future__ import annotations

import functools
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

from detrlab.figures import new_figure, short, style
from detrlab.palette import DETECTORS, INK, PAGE, PAPER, RULE, SOFT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from detrlab.compare.curves import Chart

_VARIABLES = {
    colour: f"var(--{name})"
    for name, colour in PAGE.items()
    if colour in (*DETECTORS, INK, SOFT, RULE, PAPER)
}
"""The page's CSS variable for each colour of a chart."""

_DASHES = ("solid", "dashed", "dashdot", "dotted")
_MARKERS = ("o", "s", "D", "^")
MANY_POINTS = 30
"""A curve with more points is drawn without markers."""
MANY_ROWS = 12
"""A chart with more rows, such as classes, gives each of them one line, without intervals."""


@dataclass(frozen=True)
class Estimate:
    """A value with its interval, in points, of a detector or a difference.

    Attributes:
        row: the heading that it stands below, such as a class.
        series: position of the detector in the comparison: its colour and marker; None for a
            difference.
        seeds: values of the single seeds, drawn as small dots.
        clear: whether a difference is statistically clear; None for a value of one detector.
    """

    row: str
    name: str
    series: int | None
    value: float
    low: float
    high: float
    seeds: Sequence[float] = ()
    clear: bool | None = None

    def __str__(self) -> str:
        sign = "" if self.clear is None else "+"
        words = f"{self.value:{sign}.1f} [{self.low:{sign}.1f}, {self.high:{sign}.1f}]"
        return words.replace("-", "−")


def curves(chart: Chart, series: dict[str, int]) -> str:
    """Curves of detectors, each with a band from the lowest to the highest seed.

    Args:
        chart: at least one curve, none of them empty.
        series: position of each detector in the comparison.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator

    with _canvas(chart.name, chart.title) as canvas:
        axes = canvas.axes
        for curve in chart.curves:
            index, style = series[curve.name], _style(series[curve.name])
            words = [f"{curve.name}: {y:.4g} at {chart.x_label} {x:.4g}"
                     for x, y in zip(curve.x, curve.y, strict=True)]  # fmt: skip
            if len(words) > MANY_POINTS:
                words, style = [curve.name], style | {"marker": None}
            axes.plot(
                curve.x, curve.y, label=short(curve.name, 40), linestyle=_DASHES[index % 4],
                markersize=3.5, gid=canvas.mark(index, words), **style,
            )  # fmt: skip
            if curve.low != curve.high:
                axes.fill_between(
                    curve.x, curve.low, curve.high, color=style["color"], alpha=0.15, linewidth=0,
                    gid=canvas.mark(index),
                )  # fmt: skip
        axes.set(xlabel=chart.x_label, ylabel=chart.y_label)
        if all(float(x).is_integer() for curve in chart.curves for x in curve.x):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        else:
            axes.set_xlim(0, 1.05 * max(x for curve in chart.curves for x in curve.x))
        if chart.log:
            axes.set_yscale("log", subs=())
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
        else:
            axes.set_ylim(bottom=0)
        axes.legend(facecolor=PAPER, edgecolor="none").set_gid("legend")
    return canvas.svg


def intervals(name: str, title: str, unit: str, estimates: Sequence[Estimate]) -> str:
    """Values with their intervals, one below the other, and their numbers on the right.

    There is at least one estimate; those of one row stand next to each other.
    """
    differences = estimates[0].clear is not None
    sizes = {row: sum(e.row == row for e in estimates) for row in [e.row for e in estimates]}
    many = len(sizes) > MANY_ROWS
    height = sum(1.2 if many else size + 1.3 for size in sizes.values())
    with _canvas(name, title, height=0.8 + 0.175 * height) as canvas:
        axes, y, row = canvas.axes, 0.0, None
        beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center"}
        for estimate in estimates:
            words = [f"{estimate.name}: {estimate}"]
            index, style = estimate.series, _style(estimate.series, estimate.clear)
            if many and estimate.row != row:
                y += 1.2
                axes.text(-0.02, y, short(estimate.row, 24), ha="right", **beside)
            elif estimate.row != row:
                y += 1.3
                axes.text(0, y - 1, short(estimate.row, 64), **beside)
            row = estimate.row
            if not many:
                axes.plot([estimate.low, estimate.high], [y, y], color=style["markeredgecolor"],
                          gid=canvas.mark(index, words))  # fmt: skip
                axes.text(1.02, y, str(estimate), **beside)
            if len(estimate.seeds) > 1:
                axes.plot(
                    estimate.seeds, [y] * len(estimate.seeds), "o", markersize=2.5, alpha=0.55,
                    color=style["color"], gid=canvas.mark(index),
                )  # fmt: skip
            axes.plot([estimate.value], [y], linestyle="none", clip_on=False,
                      gid=canvas.mark(index, words), **style)  # fmt: skip
            y += 0 if many else 1
        axes.set(xlabel=unit, yticks=[], ylim=(y + 0.3, 0.6 if many else -0.4))
        axes.spines["left"].set_visible(False)
        if differences:
            axes.axvline(0, color=SOFT, linewidth=1)
        else:
            axes.set_xlim(left=0)
    return canvas.svg


@functools.cache
def key(series: int) -> str:
    """The line and the marker of a detector, for a legend."""
    with _canvas(f"key-{series}", "", width=0.44, height=0.16) as canvas:
        canvas.axes.set_axis_off()
        canvas.axes.plot([0, 1, 2], [0] * 3, linestyle=_DASHES[series % 4], markevery=[1],
                         **_style(series))  # fmt: skip
    return canvas.svg


def embedded(svg: str) -> Markup:
    """A chart for the page, which sets its colours by CSS variables."""
    colours = re.compile("|".join(_VARIABLES))
    inside = lambda style: colours.sub(lambda found: _VARIABLES[found[0]], style[0])  # noqa: E731
    return Markup(re.sub(r'style="[^"]*"', inside, svg))


def _style(series: int | None, filled: bool | None = None) -> dict[str, Any]:
    """Colour and marker of a detector: the shape tells where the colour does not."""
    series = series or 0
    colour = SOFT if filled is False else DETECTORS[series % len(DETECTORS)]
    filled = series % len(DETECTORS) < len(_MARKERS) if filled is None else filled
    return {
        "color": colour,
        "marker": _MARKERS[series % len(_MARKERS)],
        "markeredgecolor": colour,
        "markerfacecolor": colour if filled else PAPER,
    }


@dataclass
class _Canvas:
    """The axes of a chart, the detector and the words of each mark, and in the end the SVG."""

    axes: Axes
    marks: dict[str, tuple[int | None, Sequence[str]]] = field(default_factory=dict)
    svg: str = ""

    def mark(self, series: int | None, words: Sequence[str] = ()) -> str:
        """An id for an artist: the words of all of it, or of each of its points."""
        name = f"mark-{len(self.marks)}"
        self.marks[name] = series, words
        return name


@contextmanager
def _canvas(name: str, title: str, *, width: float = 4.8, height: float = 3.0) -> Iterator[_Canvas]:
    """Axes to draw on; at the end of the block they become an SVG.

    The same content gives the same bytes. Sizes are in inches: the page scales a chart to its
    column, and a small chart keeps its text large.
    """
    chart_style = style(
        axes__edgecolor=SOFT, axes__labelcolor=SOFT, xtick__color=SOFT, ytick__color=SOFT,
        axes__titlesize=10, axes__facecolor="none", font__size=8.8,
        # DejaVu may lack letters of a name. It only measures them; the reader's fonts draw them.
        legend__fontsize=8, lines__markersize=5, xtick__major__size=0, ytick__major__size=0,
        figure__facecolor=PAPER, svg__hashsalt=name, **{"font.sans-serif": ["DejaVu Sans"]},
    )  # fmt: skip
    with chart_style, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")
        figure, (axes,) = new_figure(width, height)
        canvas = _Canvas(axes)
        axes.set_title(title)
        yield canvas
        file = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=nothing)
    canvas.svg = _tidied(file.getvalue(), title, canvas.marks)


def _tidied(svg: str, title: str, marks: dict[str, tuple[int | None, Sequence[str]]]) -> str:
    """An SVG that can stand inside a page, with the words of its marks."""
    used = set(re.findall(r'(?:url\(|href=")#([\w-]+)', svg))
    # Its only style rule would be the whole page's.
    root = ElementTree.fromstring(re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL))
    for element in root.iter():
        local = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        identity = local.pop("id", "")
        element.tag, element.attrib = element.tag.rpartition("}")[2], local
        element.text, element.tail = (element.text or "").strip(), None
        if identity in used:
            element.set("id", identity)
        elif identity == "legend":
            element.set("class", "legend-inside")
        elif identity in marks:
            series, words = marks[identity]
            if series is not None:
                element.set("data-series", str(series))
            points = element.findall(".//{*}use")
            places = points if len(points) == len(words) else [element] * (len(words) == 1)
            for place, text in zip(places, words, strict=False):
                told = ElementTree.Element("title")
                told.text = short(text, 200)
                place.insert(0, told)
    root.attrib |= {"xmlns": "http://www.w3.org/2000/svg", "class": "chart"}
    root.attrib |= {"role": "img", "aria-label": title} if title else {"aria-hidden": "true"}
    root.set("stroke-linejoin", "round")
    return ElementTree.tostring(root, encoding="unicode")
