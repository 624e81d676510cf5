"""What the numbers allow one to say: which pairs are compared, and a sentence for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detrlab.compare import statistics
from detrlab.compare.entrants import in_order
from detrlab.compare.results import Row
from detrlab.compare.statistics import Difference
from detrlab.presets import BESIDE_THE_LADDER, LADDER, PRESETS

if TYPE_CHECKING:
    from detrlab.evaluation.matching import Matches
    from detrlab.evaluation.records import Detected, GroundTruth


@dataclass(frozen=True, eq=False)
class Verdicts:
    """Everything that is said about who is ahead of whom.

    Attributes:
        found: intervals and differences in numbers.
        sentences: the verdicts on AP, the leader first.
    """

    found: statistics.Comparison
    sentences: tuple[str, ...]

    def words(self) -> dict[str, str]:
        """Each detector's interval of AP as the table shows it."""
        return {
            name: f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
            for name, quantities in self.found.intervals.items()
            if (interval := quantities["ap"]).low is not None and interval.high is not None
        }

    def differences(self, quantity: str = "ap") -> list[Difference]:
        """The planned pairs in one quantity, those with something to judge."""
        return [each for each in self.found.of(quantity) if each.estimate is not None]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"sentences": list(self.sentences), **self.found.to_dict()}


def judge(rows: Sequence[Row], truth: GroundTruth, folder: Path) -> Verdicts:
    """Judge a table's detectors by their predictions.

    Args:
        rows: of the table.
        truth: what was to be found.
        folder: that the paths of the predictions are relative to.

    Raises:
        UserError: predictions are damaged.
    """
    contenders = [
        statistics.Contender(
            row.name, tuple(judged(folder / run.predictions, truth)[1] for run in row.runs)
        )
        for row in rows
    ]
    found = statistics.compare(contenders, planned_pairs(rows))
    return Verdicts(found, (*_leader(rows, found), *found.verdicts()))


def judged(path: Path, truth: GroundTruth) -> tuple[Detected, Matches]:
    """A run's detections, and how they match the annotated objects."""
    from detrlab.evaluation.foreign import load_predictions
    from detrlab.evaluation.matching import match

    # Judged before: that they fit the ground truth need not be checked again.
    detected = load_predictions(path, truth, trust=True).detected
    return detected, match(truth, detected)


def planned_pairs(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Each detector against the step it builds on; other tools' against the last of ours.

    The pairs are settled before anything is looked at: more of them would make all stricter.
    """
    ours = [row.name for row in rows if row.seeds]
    if all(name in PRESETS for name in ours):
        ours = in_order(ours)  # in whatever order they were asked for, the same pairs
    pairs = [(before, name) for name in ours if (before := _step_before(name, ours))]
    return pairs + [(ours[-1], row.name) for row in rows if ours and not row.seeds]


def _step_before(name: str, ours: Sequence[str]) -> str | None:
    """The nearest detector of the comparison that ``name`` builds on."""
    if not all(each in PRESETS for each in ours):
        index = ours.index(name)
        return ours[index - 1] if index else None
    rung = BESIDE_THE_LADDER.get(name)
    if rung is not None:
        return rung if rung in ours else _neighbour(name, ours)
    below = [rung for rung in LADDER[: LADDER.index(name)] if rung in ours]
    return below[-1] if below else _neighbour(name, ours)


def _neighbour(name: str, ours: Sequence[str]) -> str | None:
    """Where the step before is missing: a variant that builds on nothing here, if there is one."""
    index = ours.index(name)
    return ours[index - 1] if index else None


def _leader(rows: Sequence[Row], found: statistics.Comparison) -> list[str]:
    judged = [row for row in rows if row.metrics["ap"] is not None]
    if len(judged) < 2:
        return []
    best = max(judged, key=lambda row: row.metrics["ap"] or 0.0)
    interval = found.intervals[best.name]["ap"]
    assert interval.low is not None
    assert interval.high is not None
    return [
        f"{best.name} has the highest AP here, {100 * (best.metrics['ap'] or 0):.1f} "
        f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
    ]
