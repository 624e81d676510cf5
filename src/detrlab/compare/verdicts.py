"""What the statistics allow one to say: which pairs are compared, and a sentence for each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detrlab.compare import statistics
from detrlab.compare.entrants import in_order, placed
from detrlab.compare.results import Row
from detrlab.compare.statistics import (
    LEARNT,
    LEVEL,
    MOST_SEEDS,
    TARGET,
    Difference,
    Findings,
    Needed,
)
from detrlab.presets import BESIDE_THE_LADDER, LADDER

if TYPE_CHECKING:
    from detrlab.evaluation.matching import Matches
    from detrlab.evaluation.records import Detected, GroundTruth


@dataclass(frozen=True, eq=False)
class Verdicts:
    """Which detector is better, in numbers and in sentences on AP, the leader first."""

    found: Findings
    sentences: tuple[str, ...]

    def words(self) -> dict[str, str]:
        """Each detector's interval of AP as the table shows it, and whether it has learnt."""
        return {
            name: f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
            + ("" if self.found.has_learnt(name) else " not learnt")
            for name, quantities in self.found.intervals.items()
            if (interval := quantities["ap"]).low is not None and interval.high is not None
        }

    def notes(self) -> list[str]:
        """What a reader must know to understand the verdicts."""
        lines = [
            f"intervals at {100 * LEVEL:.3g} %, by resampling {self.found.images} images together "
            "for all detectors; p-values are corrected for all planned comparisons (Holm)"
        ]
        if any(each.about_models for each in self.found.differences):
            lines.append(
                "where a detector has one seed, a verdict is about these trained models; only "
                "several seeds can tell whether the architecture is better"
            )
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        found = asdict(self.found)
        for values, each in zip(found["differences"], self.found.differences, strict=True):
            values["verdict"] = verdict(each)
        sentences = list(self.sentences)
        return {"sentences": sentences, "notes": self.notes(), "level": LEVEL, **found}


def judge(rows: Sequence[Row], truth: GroundTruth, folder: Path) -> Verdicts:
    """Judge a table's detectors by their predictions, whose paths are relative to ``folder``."""
    detectors = {
        row.name: [judged(folder / run.predictions, truth)[1] for run in row.runs] for row in rows
    }
    found = statistics.compare(detectors, planned_pairs(rows))
    points = {row.name: ap for row in rows if (ap := row.metrics["ap"]) is not None}
    if points and not any(found.has_learnt(name) for name in points):
        highest = _points(max(points.values()))
        return Verdicts(found, (f"no detector has learnt yet: the highest AP is {highest}",))
    return Verdicts(found, (*_leader(points, found), *map(verdict, found.of("ap"))))


def judged(path: Path, truth: GroundTruth) -> tuple[Detected, Matches]:
    """A run's detections, and how they match the annotated objects."""
    from detrlab.evaluation.foreign import load_predictions
    from detrlab.evaluation.matching import match

    # Judged before: that they fit the ground truth need not be checked again.
    detected = load_predictions(path, truth, trust=True).detected
    return detected, match(truth, detected)


def planned_pairs(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Each detector with the one it builds on; others with the last of ours, or the first other.

    The pairs are fixed before any result is known: each further pair makes all of them stricter.
    """
    ours = [row.name for row in rows if row.seeds]
    if placed(ours):
        ours = in_order(ours)  # the same pairs, whatever the order of --models
    pairs = [(before, name) for name in ours if (before := _step_before(name, ours))]
    others = [row.name for row in rows if not row.seeds]
    base = [*ours[-1:], *others][0] if rows else ""
    return pairs + [(base, name) for name in others if name != base]


def _step_before(name: str, ours: Sequence[str]) -> str | None:
    """The nearest detector of the comparison that ``name`` builds on."""
    if placed(ours):
        rung = BESIDE_THE_LADDER.get(name)
        below = LADDER[: LADDER.index(name)] if name in LADDER else [rung]
        known = [each for each in below if each in ours]
        if known:
            return known[-1]
    index = ours.index(name)
    return ours[index - 1] if index else None


def verdict(difference: Difference) -> str:
    """One difference in a sentence.

    One detector is better, or the two are equal for practical purposes (the whole interval lies
    within one AP of 0), or they cannot be distinguished here, and what that would take.
    """
    d = difference
    what = d.quantity.upper()
    if d.quantity.startswith("class:"):
        what = f"AP on {d.quantity.removeprefix('class:')}"
    elif d.quantity.startswith("ap_"):
        what = f"AP on {d.quantity.removeprefix('ap_')} objects"
    if d.estimate is None or d.low is None or d.high is None or d.p_adjusted is None:
        return f"{d.second} against {d.first}: nothing to judge in {what}"
    first, second = _spoken(d.first, d.seeds[0], d), _spoken(d.second, d.seeds[1], d)
    if not any(d.learnt):
        return (
            f"neither {first} nor {second} has learnt: both have less than "
            f"{100 * LEARNT:.3g} AP, so nothing can be said about the two"
        )
    ahead, behind = (second, first) if d.estimate >= 0 else (first, second)
    sign = 1.0 if d.estimate >= 0 else -1.0
    low, high = sorted((sign * d.low, sign * d.high))
    size = f"{_points(sign * d.estimate)} {what} [{_points(low)}, {_points(high)}]"
    if d.p_adjusted <= 1 - LEVEL:
        has_not = "" if all(d.learnt) else ", which has not learnt"
        return f"{ahead} beats {behind}{has_not}{',' if has_not else ''} by {size}"
    if low > 0:
        return (
            f"{ahead} is ahead of {behind} by {size}, but with several comparisons planned that "
            f"may be chance (adjusted p = {d.p_adjusted:.3f})"
        )
    if max(-low, high) <= TARGET:
        return f"{ahead} and {behind} are equal within {100 * TARGET:.3g} {what}: {size}"
    seeds = " and ".join(map(str, dict.fromkeys(d.seeds)))
    base = f"{d.images} images" + ("" if d.about_models else f" with {seeds} seeds")
    return (
        f"{ahead} and {behind} are not distinguishable on {base} ({size})"
        f"{_needed_words(d.needed, what)}"
    )


def _needed_words(needed: Needed | None, what: str) -> str:
    if needed is None:
        return ""
    ways = []
    if needed.images is not None:
        ways.append(f"about {_rounded(needed.images)} images")
    if needed.seeds is not None:
        ways.append(f"{needed.seeds} seeds")
    goal = f"{100 * TARGET:.3g} {what}"
    if not ways:
        return f": neither more images nor {MOST_SEEDS} seeds of each alone would resolve {goal}"
    return f": to resolve {goal} here you need {' or '.join(ways)}"


def _leader(points: dict[str, float], found: Findings) -> list[str]:
    if len(points) < 2:
        return []
    best = max(points, key=lambda name: points[name])
    interval = found.intervals[best]["ap"]
    assert interval.low is not None
    assert interval.high is not None
    return [
        f"{best} has the highest AP here, {_points(points[best])} "
        f"[{_points(interval.low)}, {_points(interval.high)}]"
    ]


def _points(value: float) -> str:
    """A value in [0, 1] in points: .018 is 1.8."""
    return f"{100 * value:.1f}".replace("-0.0", "0.0")


def _rounded(count: int) -> str:
    """Rounded up to two significant digits: the estimate is no more exact than that."""
    digits = max(0, len(str(count)) - 2)
    return f"{math.ceil(count / 10**digits) * 10**digits:,}"


def _spoken(name: str, seeds: int, difference: Difference) -> str:
    """How a verdict names a detector: the one trained model, or the detector."""
    if not difference.about_models:
        return name
    return f"this trained {name}" if seeds < 2 else f"{name} with {seeds} seeds"
