"""Charts as inline SVG: no script, no network, colours from the page's light or dark style.

Everything that comes from the data is escaped: a class may be called ``<script>``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH = 640
"""Of every chart, in SVG units; the page scales them."""


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
class Dots:
    """One row of a dot plot: a value for each series, None where there is none."""

    label: str
    values: Sequence[float | None]


def line_chart(
    title: str,
    x_label: str,
    y_label: str,
    lines: Sequence[Line],
    *,
    log: bool = False,
    whole: bool = False,
) -> Markup:
    """Curves over a common x; hovering over a point reads its value.

    Args:
        title: for those who do not see it.
        x_label: unit of x.
        y_label: unit of y.
        lines: at least one, none of them empty.
        log: a logarithmic y axis.
        whole: no ticks between whole numbers on the x axis.
    """
    height, left, right, top, bottom = 310, 58, 12, 28, 44
    xs = [x for line in lines for x in line.x]
    ys = [y for line in lines for y in (*line.low, *line.high) if not log or y > 0]
    x_axis = _Axis(0.0, max(xs), left, WIDTH - right, finest=1.0 if whole else 0.0)
    if log:
        y_axis = _Axis(min(ys), max(ys), height - bottom, top, log=True)
    else:
        y_axis = _Axis(min(0.0, *ys), max(ys), height - bottom, top)
    parts = [_grid(x_axis, y_axis)]
    for line in lines:
        places = [(x_axis(x), y_axis(y)) for x, y in zip(line.x, line.y, strict=True)]
        if list(line.low) != list(line.high):
            band = [(x_axis(x), y_axis(y)) for x, y in zip(line.x, line.high, strict=True)]
            band += [
                (x_axis(x), y_axis(y))
                for x, y in reversed(list(zip(line.x, line.low, strict=True)))
            ]
            parts.append(
                Markup('<polygon class="band s{}" points="{}"/>').format(line.series, _points(band))
            )
        parts.append(
            Markup('<polyline class="line s{}" points="{}"/>').format(line.series, _points(places))
        )
        parts += [
            Markup(
                '<circle class="point s{}" cx="{:.1f}" cy="{:.1f}" r="3"><title>{}</title></circle>'
            ).format(line.series, px, py, f"{line.name}: {y:.4g} at {x:.4g}")
            for (px, py), x, y in zip(places, line.x, line.y, strict=True)
        ]
    parts.append(_text(WIDTH - right, height - 6, x_label, "end"))
    parts.append(_text(4, 14, y_label, "start"))
    return _svg(title, height, parts)


def forest(title: str, unit: str, rows: Sequence[Estimate]) -> Markup:
    """Differences with their intervals; the line at zero is where there is none."""
    left, right, step, top = 12, 220, 48, 4
    height = top + step * len(rows) + 44
    low = min(0.0, *(row.low for row in rows))
    high = max(0.0, *(row.high for row in rows))
    axis = _Axis(low, high, left, WIDTH - right)
    bottom = top + step * len(rows)
    parts = [
        Markup('<line class="grid" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>').format(
            axis(tick), top, bottom
        )
        for tick in axis.ticks
    ]
    parts += [_text(axis(tick), bottom + 16, _number(tick), "middle") for tick in axis.ticks]
    parts.append(
        Markup('<line class="zero" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>').format(
            axis(0.0), top, bottom
        )
    )
    for index, row in enumerate(rows):
        y = top + step * index + 34
        parts.append(
            Markup(
                '<g class="estimate{}"><title>{}</title>'
                '<line x1="{:.1f}" x2="{:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
                '<circle cx="{:.1f}" cy="{y:.1f}" r="5"/></g>'
            ).format(
                " clear" if row.clear else "",
                f"{row.label}: {row.value:+.1f} [{row.low:+.1f}, {row.high:+.1f}]",
                axis(row.low),
                axis(row.high),
                axis(row.value),
                y=y,
            )
        )
        parts.append(_text(left, y - 16, _shortened(row.label, 60), "start"))
        words = f"{row.value:+.1f} [{row.low:+.1f}, {row.high:+.1f}]"
        parts.append(_text(WIDTH - 4, y + 4, words, "end"))
    parts.append(_text(left, height - 6, unit, "start"))
    return _svg(title, height, parts)


def dot_plot(title: str, unit: str, names: Sequence[str], rows: Sequence[Dots]) -> Markup:
    """One row for each class or size, one dot for each detector."""
    left, right, step, top = 190, 16, 28, 8
    bottom = top + step * len(rows)
    known = [value for row in rows for value in row.values if value is not None]
    axis = _Axis(0.0, max([*known, 1e-9]), left, WIDTH - right)
    parts = [
        Markup('<line class="grid" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>').format(
            axis(tick), top, bottom
        )
        for tick in axis.ticks
    ]
    parts += [_text(axis(tick), bottom + 16, _number(tick), "middle") for tick in axis.ticks]
    for index, row in enumerate(rows):
        y = top + step * (index + 0.5)
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/>').format(
                left, WIDTH - right, y=y
            )
        )
        parts.append(_text(left - 10, y + 4, _shortened(row.label, 22), "end"))
        for series, value in enumerate(row.values):
            if value is not None:
                parts.append(
                    Markup(
                        '<circle class="dot s{}" cx="{:.1f}" cy="{:.1f}" r="5">'
                        "<title>{}</title></circle>"
                    ).format(series, axis(value), y, f"{names[series]}, {row.label}: {value:.1f}")
                )
    parts.append(_text(WIDTH - right, bottom + 32, unit, "end"))
    return _svg(title, bottom + 38, parts)


class _Axis:
    """Values to places along one axis, with round ticks.

    Args:
        low: the smallest value.
        high: the largest value.
        start: place of the axis's beginning.
        end: place of its end.
        log: equal distances are equal ratios.
        finest: no ticks closer than this.
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


def _svg(title: str, height: float, parts: Iterable[Markup]) -> Markup:
    return Markup(
        '<svg class="chart" role="img" aria-label="{}" viewBox="0 0 {} {:.0f}">{}</svg>'
    ).format(title, WIDTH, height, Markup("").join(parts))


def _text(x: float, y: float, words: str, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        x, y, anchor, words
    )


def _points(places: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _number(value: float) -> str:
    return f"{value:.3g}" if value else "0"


def _shortened(words: str, length: int) -> str:
    return words if len(words) <= length else words[: length - 1] + "…"
