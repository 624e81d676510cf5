"""Charts as inline SVG: no script, no network, colours from the page's light or dark style.

Everything that comes from the data is escaped: a class may be called ``<script>``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH = 640
"""Of a chart with an x and a y axis, in SVG units; the page scales it."""
NARROW = 480
"""Of a chart of rows: fewer units leave its words larger, also on a phone."""
FULL = 100.0
"""The largest AP in points."""
MINUS = "−"
MANY = 25
"""A line of more points than this shows them only where it is read."""


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: for the legend and for hovering.
        x: ascending.
        y: one for each x.
        low: lower edge of the band; the same as ``y`` for none.
        high: upper edge of the band.
        series: which of the page's colours.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    series: int


@dataclass(frozen=True)
class Estimate:
    """One row of a forest plot: a value with its interval.

    Attributes:
        label: left of the row.
        value: the point.
        low: lower end of the interval.
        high: upper end of the interval.
        clear: whether the interval should be drawn as decided.
    """

    label: str
    value: float
    low: float
    high: float
    clear: bool


@dataclass(frozen=True)
class Level:
    """One detector's value with its interval, and the values it is the mean of.

    Attributes:
        label: above the row.
        value: the point.
        low: lower end of the interval.
        high: upper end of the interval.
        parts: of the single seeds; shown where there are several.
    """

    label: str
    value: float
    low: float
    high: float
    parts: Sequence[float] = ()


@dataclass(frozen=True)
class Group:
    """What every series has of one thing, such as a class.

    Attributes:
        label: of the thing.
        values: one for each series, None where there is none.
        bounds: lower and upper end of each value's interval, None where there is none.
    """

    label: str
    values: Sequence[float | None]
    bounds: Sequence[tuple[float, float] | None] = ()


def line_chart(
    title: str,
    x_label: str,
    y_label: str,
    lines: Sequence[Line],
    *,
    log: bool = False,
    shared: bool = False,
    start: float = 0.0,
) -> Markup:
    """Curves over a common x; whoever points at it reads the values.

    Args:
        title: for those who do not see it.
        x_label: unit of x.
        y_label: unit of y.
        lines: at least one, none of them empty.
        log: a logarithmic y axis.
        shared: all lines have their points at the same whole numbers, and are read together.
        start: where the x axis begins.
    """
    height, left, right, top, bottom = 310, 58, 12, 28, 44
    xs = [x for line in lines for x in line.x]
    ys = [y for line in lines for y in (*line.low, *line.high) if not log or y > 0]
    x_axis = _Axis(start, max(xs), left, WIDTH - right, finest=1.0 if shared else 0.0, exact=True)
    if log:
        y_axis = _Axis(min(ys), max(ys), height - bottom, top, log=True)
    else:
        y_axis = _Axis(min(0.0, *ys), max(ys), height - bottom, top)
    parts = [_grid(x_axis, y_axis)]
    bands = [_band(line, x_axis, y_axis) for line in lines if list(line.low) != list(line.high)]
    parts += [*bands, *(_curve(line, x_axis, y_axis) for line in lines)]
    parts.append(_text(WIDTH - right, height - 6, x_label, "end"))
    parts.append(_text(4, 14, y_label, "start"))
    return _svg(title, WIDTH, height, parts, kind="curves", unit=x_label, shared=shared)


def _band(line: Line, x_axis: _Axis, y_axis: _Axis) -> Markup:
    """What lies between the lowest and the highest seed."""
    edge = [(x_axis(x), y_axis(y)) for x, y in zip(line.x, line.high, strict=True)]
    edge += reversed([(x_axis(x), y_axis(y)) for x, y in zip(line.x, line.low, strict=True)])
    return Markup('<polygon class="band {}" data-series="{}" points="{}"/>').format(
        hue(line.series), line.series, _points(edge)
    )


def _curve(line: Line, x_axis: _Axis, y_axis: _Axis) -> Markup:
    places = [(x_axis(x), y_axis(y)) for x, y in zip(line.x, line.y, strict=True)]
    many = len(places) > MANY
    parts = [Markup('<polyline class="line" points="{}"/>').format(_points(places))]
    for (px, py), x, y in zip(places, line.x, line.y, strict=True):
        # Without a script few points can be hovered over; of many there is a table.
        told = "" if many else Markup("<title>{}: {:.4g} at {:.4g}</title>").format(line.name, y, x)
        parts.append(
            Markup(
                '<circle class="point" cx="{:.1f}" cy="{:.1f}" r="3" data-x="{:.5g}" '
                'data-y="{:.4g}">{}</circle>'
            ).format(px, py, x, y, told)
        )
    return Markup('<g class="curve {}{}" data-series="{}" data-name="{}">{}</g>').format(
        hue(line.series), " many" if many else "", line.series, line.name, Markup("").join(parts)
    )


def levels(title: str, unit: str, rows: Sequence[Level]) -> Markup:
    """Everybody's value with its interval, one row each, in the colours of the curves.

    Values lie between 0 and 100. An interval of few seeds may reach beyond; its numbers say so.
    """
    ends = [end for row in rows for end in (row.value, row.high, *row.parts)]
    frame = _Rows(0.0, min(max(ends), FULL), len(rows), step=34)
    parts = [frame.grid()]
    for index, row in enumerate(rows):
        y = frame.y(index)
        words = f"{row.value:.1f} {_range(row.low, row.high, '')}"
        seeds = Markup("").join(
            Markup('<circle class="part" cx="{:.1f}" cy="{:.1f}" r="2.2"/>').format(
                frame.axis(part), y
            )
            for part in (row.parts if len(row.parts) > 1 else ())
        )
        parts.append(
            Markup(
                '<g class="level {}" data-series="{}"><title>{}</title>'
                '<line x1="{:.1f}" x2="{:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>{}{}</g>'
            ).format(
                hue(index), index, f"{row.label}: {words}", frame.axis(max(row.low, 0.0)),
                frame.axis(min(row.high, FULL)), seeds,
                marker(index, frame.axis(row.value), y), y=y,
            )
        )  # fmt: skip
        parts += frame.words(index, row.label, words)
    return frame.svg(title, unit, parts)


def forest(title: str, unit: str, rows: Sequence[Estimate]) -> Markup:
    """Differences with their intervals; the line at zero is where there is none."""
    low = min(0.0, *(row.low for row in rows))
    high = max(0.0, *(row.high for row in rows))
    frame = _Rows(low, high, len(rows), step=40)
    parts = [frame.grid()]
    for index, row in enumerate(rows):
        y = frame.y(index)
        words = f"{_signed(row.value)} {_range(row.low, row.high, '+')}"
        parts.append(
            Markup(
                '<g class="estimate{}"><title>{}</title>'
                '<line x1="{:.1f}" x2="{:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
                '<circle cx="{:.1f}" cy="{y:.1f}" r="5"/></g>'
            ).format(
                " clear" if row.clear else "",
                f"{row.label}: {words}",
                frame.axis(row.low),
                frame.axis(row.high),
                frame.axis(row.value),
                y=y,
            )
        )
        parts += frame.words(index, row.label, words)
    return frame.svg(title, unit, parts)


class _Rows:
    """A chart of one row below the other: words above, the drawing below, numbers at its right.

    Args:
        low: the smallest value.
        high: the largest value.
        count: of rows.
        step: from one to the next.
    """

    left, right, top = 16, 136, 2

    def __init__(self, low: float, high: float, count: int, step: int) -> None:
        self.axis = _Axis(low, high, self.left, NARROW - self.right)
        self.step, self.bottom = step, self.top + step * count + 4

    def y(self, index: int) -> float:
        """Where the drawing of a row stands."""
        return self.top + self.step * (index + 1) - 8

    def grid(self) -> Markup:
        """Lines at the ticks, and their numbers."""
        parts = [
            Markup('<line class="{1}" x1="{0:.1f}" x2="{0:.1f}" y1="{2}" y2="{3}"/>').format(
                self.axis(tick), "grid" if tick else "zero", self.top, self.bottom
            )
            for tick in self.axis.ticks
        ]
        parts += [
            _text(self.axis(tick), self.bottom + 15, _number(tick), "middle")
            for tick in self.axis.ticks
        ]
        return Markup("").join(parts)

    def words(self, index: int, label: str, numbers: str) -> list[Markup]:
        """What stands above a row and right of it."""
        y = self.y(index)
        return [
            _text(self.left - 12, y - 11, _shortened(label, 64), "start", "label"),
            _text(NARROW - 2, y + 4, numbers, "end", "label"),
        ]

    def svg(self, title: str, unit: str, parts: Sequence[Markup]) -> Markup:
        """The whole."""
        below = self.bottom + 15
        words = _text(NARROW - 2, below, unit, "end")
        return _svg(title, NARROW, below + 6, [*parts, words])


def bars(title: str, unit: str, names: Sequence[str], groups: Sequence[Group]) -> Markup:
    """A bar for each detector, grouped by class or size, with its number and its interval.

    Values lie between 0 and 100, as those of ``levels``.
    """
    left, right, thick, step, head = 6, 52, 9, 14, 20
    tops = [value for group in groups for value in group.values if value is not None]
    tops += [bound[1] for group in groups for bound in group.bounds if bound is not None]
    axis = _Axis(0.0, min(max([*tops, 1e-9]), FULL), left, NARROW - right)
    parts = []
    y = 0.0
    for group in groups:
        parts.append(_text(left, y + 14, _shortened(group.label, 60), "start", "label"))
        y += head
        bounds = group.bounds or [None] * len(group.values)
        for series, (value, bound) in enumerate(zip(group.values, bounds, strict=True)):
            if value is None:
                continue
            words = f"{names[series]}, {group.label}: {value:.1f}"
            whisker = Markup("")
            if bound is not None:
                words += f" {_range(*bound, '')}"
                whisker = Markup(
                    '<line class="whisker" x1="{:.1f}" x2="{:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
                ).format(axis(max(bound[0], 0.0)), axis(min(bound[1], FULL)), y=y + thick / 2)
            parts.append(
                Markup(
                    '<g class="bar {}" data-series="{}"><title>{}</title>'
                    '<rect x="{}" y="{:.1f}" width="{:.1f}" height="{}"/>{}{}</g>'
                ).format(
                    hue(series), series, words, left, y, max(axis(value) - left, 1.0), thick,
                    whisker, _text(NARROW - 2, y + thick, f"{value:.1f}", "end"),
                )
            )  # fmt: skip
            y += step
        y += 6
    ticks = [
        Markup('<line class="grid" x1="{0:.1f}" x2="{0:.1f}" y1="0" y2="{1}"/>').format(
            axis(tick), y
        )
        for tick in axis.ticks
    ]
    ticks += [_text(axis(tick), y + 13, _number(tick), "middle") for tick in axis.ticks]
    ticks.append(_text(NARROW - 2, y + 28, unit, "end"))
    return _svg(title, NARROW, y + 34, [*ticks, *parts])


def dot_plot(title: str, unit: str, names: Sequence[str], groups: Sequence[Group]) -> Markup:
    """One row for each of many classes, one mark for each detector."""
    left, right, step, top = 142, 16, 28, 8
    bottom = top + step * len(groups)
    known = [value for group in groups for value in group.values if value is not None]
    axis = _Axis(0.0, max([*known, 1e-9]), left, NARROW - right)
    parts = [
        Markup('<line class="grid" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>').format(
            axis(tick), top, bottom
        )
        for tick in axis.ticks
    ]
    parts += [_text(axis(tick), bottom + 16, _number(tick), "middle") for tick in axis.ticks]
    for index, group in enumerate(groups):
        y = top + step * (index + 0.5)
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/>').format(
                left, NARROW - right, y=y
            )
        )
        parts.append(_text(left - 8, y + 4, _shortened(group.label, 18), "end"))
        for series, value in enumerate(group.values):
            if value is not None:
                parts.append(
                    Markup('<g class="dot {}" data-series="{}"><title>{}</title>{}</g>').format(
                        hue(series), series, f"{names[series]}, {group.label}: {value:.1f}",
                        marker(series, axis(value), y),
                    )
                )  # fmt: skip
    parts.append(_text(NARROW - right, bottom + 32, unit, "end"))
    return _svg(title, NARROW, bottom + 38, parts)


NUM_HUES = 8


def hue(series: int) -> str:
    """The class that gives a detector its colour."""
    return f"s{series % NUM_HUES}"


def marker(series: int, x: float, y: float) -> Markup:
    """A detector's mark: its shape tells it apart where its colour does not."""
    shape = (
        "M-5,0a5,5 0 1 0 10,0a5,5 0 1 0 -10,0z",
        "M-4.5,-4.5h9v9h-9z",
        "M0,-6l6,6l-6,6l-6,-6z",
        "M0,-6l5.5,10h-11z",
    )[series % 4]
    hollow = " hollow" if series % NUM_HUES > 3 else ""
    return Markup('<path class="mark{}" transform="translate({:.1f},{:.1f})" d="{}"/>').format(
        hollow, x, y, shape
    )


class _Axis:
    """Values to places along one axis, with round ticks.

    Args:
        low: the smallest value.
        high: the largest value.
        start: place of the axis's beginning.
        end: place of its end.
        log: equal distances are equal ratios.
        finest: no ticks closer than this.
        exact: begins and ends at the values themselves, not at the ticks around them.
    """

    def __init__(
        self,
        low: float,
        high: float,
        start: float,
        end: float,
        *,
        log: bool = False,
        finest: float = 0.0,
        exact: bool = False,
    ) -> None:
        self.start, self.end = start, end
        self._log = log
        if log:
            high = max(high, low * 1.1)
            self.ticks = _log_ticks(low, high)
            self._low, self._high = math.log10(low), math.log10(high)
            return
        if high - low < 1e-9:
            high = low + 1.0
        step = max(finest, _round_step((high - low) / 6))
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        self.ticks = [index * step for index in range(first, last + 1)]
        self._low, self._high = self.ticks[0], self.ticks[-1]
        if exact:
            self._low, self._high = low, high
            self.ticks = [tick for tick in self.ticks if low <= tick <= high + step / 1e6]

    def __call__(self, value: float) -> float:
        place = math.log10(max(value, 1e-30)) if self._log else value
        share = (place - self._low) / (self._high - self._low)
        return self.start + share * (self.end - self.start)


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten between the bounds, or some more where they are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)):
        ticks = [factor * 10.0**power for power in powers for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) > 2:
            break
    return ticks


def _round_step(raw: float) -> float:
    """The smallest of 1, 2, 5, 10 times a power of ten that is at least ``raw``."""
    power = 10 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)


def _grid(x_axis: _Axis, y_axis: _Axis) -> Markup:
    left, right = x_axis.start, x_axis.end
    bottom = y_axis.start
    parts = [
        Markup('<line class="grid" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/>').format(
            left, right, y=y_axis(tick)
        )
        for tick in y_axis.ticks
    ]
    parts += [_text(left - 6, y_axis(tick) + 4, _number(tick), "end") for tick in y_axis.ticks]
    parts += [_text(x_axis(tick), bottom + 16, _number(tick), "middle") for tick in x_axis.ticks]
    parts.append(
        Markup('<line class="axis" x1="{}" x2="{}" y1="{y}" y2="{y}"/>').format(
            left, right, y=bottom
        )
    )
    return Markup("").join(parts)


def _svg(
    title: str,
    width: float,
    height: float,
    parts: Iterable[Markup],
    *,
    kind: str = "rows",
    unit: str = "",
    shared: bool = False,
) -> Markup:
    return Markup(
        '<svg class="chart {}" role="img" aria-label="{}" viewBox="0 0 {} {:.0f}"{}{}>{}</svg>'
    ).format(
        kind, title, width, height,
        Markup(' data-unit="{}"').format(unit) if unit else "",
        Markup(' data-shared=""') if shared else "",
        Markup("").join(parts),
    )  # fmt: skip


def _text(x: float, y: float, words: str, anchor: str, kind: str = "") -> Markup:
    return Markup('<text{} x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        Markup(' class="{}"').format(kind) if kind else "", x, y, anchor, words
    )


def _points(places: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", MINUS) if value else "0"


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", MINUS)


def _range(low: float, high: float, sign: str) -> str:
    return f"[{low:{sign}.1f}, {high:{sign}.1f}]".replace("-", MINUS)


def _shortened(words: str, length: int) -> str:
    return words if len(words) <= length else words[: length - 1] + "…"
