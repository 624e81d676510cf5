"""What each step of the ladder bought: AP, AP by size, epochs, cost, and the paper's number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from detrlab.compare.curves import Curve, charts
from detrlab.compare.results import Row
from detrlab.compare.tables import NOTHING, SIZES, Grid, count
from detrlab.compare.verdicts import planned_pairs
from detrlab.presets import BESIDE_THE_LADDER, LADDER
from detrlab.presets.ladder import PUBLISHED_GAINS, Gain

if TYPE_CHECKING:
    from detrlab.compare.statistics import Difference, Findings, Interval

HEADERS = (
    "step", "AP", "gain", "APs", "APm", "APl", "epochs to the AP before", "minutes", "params",
    "published gain", "source",
)  # fmt: skip


def steps_grid(rows: Sequence[Row], found: Findings) -> Grid | None:
    """The table; None unless two detectors of the ladder were compared.

    Args:
        rows: of the comparison.
        found: intervals and differences of its planned pairs.
    """
    ours = {row.name: row for row in rows if row.name in {*LADDER, *BESIDE_THE_LADDER}}
    if len(ours) < 2:
        return None
    before = {after: ours[first] for first, after in planned_pairs(rows) if first in ours}
    gains = {each.second: each for each in found.of("ap")}
    by_epoch = (chart.curves for chart in charts(rows) if chart.name == "ap-epochs")
    curves = {each.name: each for each in next(by_epoch, ())}
    cells = []
    for name, row in ours.items():
        published = Gain(NOTHING, NOTHING)
        if name in before and before[name].name == _built_on(name):
            published = PUBLISHED_GAINS.get(name, published)
        minutes, parameters = row.cost.minutes, row.cost.parameters
        cells.append(
            (
                name,
                _words(found.intervals[name]["ap"]),
                _gain(gains.get(name)),
                *(_words(found.intervals[name].get(f"ap_{size}")) for size in SIZES),
                _epochs(curves.get(name), _goal(before.get(name), found)),
                NOTHING if minutes is None else f"{minutes:.1f}",
                NOTHING if parameters is None else count(parameters),
                *published,
            )
        )
    return Grid("What each step bought, in points with 95 % intervals", HEADERS, tuple(cells))


def _built_on(name: str) -> str | None:
    """The step that the paper's gain is over."""
    index = LADDER.index(name) if name in LADDER else 0
    return BESIDE_THE_LADDER.get(name, LADDER[index - 1] if index else None)


def _words(value: Interval | Difference | None, form: str = ".1f") -> str:
    if value is None or value.estimate is None:
        return NOTHING
    text = f"{100 * value.estimate:{form}}"
    if value.low is None or value.high is None:
        return text
    return f"{text} [{100 * value.low:{form}}, {100 * value.high:{form}}]"


def _gain(difference: Difference | None) -> str:
    if difference is not None and not any(difference.learnt):
        return "neither has learnt"
    return _words(difference, "+.1f")


def _goal(before: Row | None, found: Findings) -> float | None:
    """AP of the step before; None where there is none, or it has not learnt."""
    if before is None or not found.has_learnt(before.name):
        return None
    return before.metrics["ap"]


def _epochs(curve: Curve | None, goal: float | None) -> str:
    """The first epoch as good as the step before was at its end."""
    if curve is None or goal is None:
        return NOTHING
    reached = (x for x, y in zip(curve.x, curve.y, strict=True) if y >= 100 * goal)
    return next((f"{x:g}" for x in reached), "not reached")
