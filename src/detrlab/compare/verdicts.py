"""What the numbers allow one to say: intervals, differences, and a sentence for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detrlab.compare.results import Row

if TYPE_CHECKING:
    from detrlab.evaluation.records import GroundTruth


@dataclass(frozen=True)
class Interval:
    """A number in points with its 95 % interval.

    Attributes:
        value: the point.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"[{self.low:.1f}, {self.high:.1f}]"


@dataclass(frozen=True)
class Verdicts:
    """Everything that is said about who is ahead of whom.

    Attributes:
        intervals: of each detector's AP, by name.
        sentences: the verdicts, the most important first.
    """

    intervals: dict[str, Interval]
    sentences: tuple[str, ...]

    def words(self) -> dict[str, str]:
        """Each detector's interval as the table shows it."""
        return {name: str(interval) for name, interval in self.intervals.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "intervals": {name: vars(interval) for name, interval in self.intervals.items()},
            "sentences": list(self.sentences),
        }


def judge(rows: Sequence[Row], truth: GroundTruth, folder: Path) -> Verdicts:
    """Judge a table's detectors by their predictions."""
    return Verdicts({}, ())
