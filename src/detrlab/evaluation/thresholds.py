"""Score thresholds with the best F1, and what is found at them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detrlab.evaluation.matching import FOUND, HALF, IGNORED, Matches
from detrlab.evaluation.records import Bools, Floats

FEWEST_OBJECTS = 10
"""A class with fewer annotated objects takes the overall threshold instead of its own."""


@dataclass(frozen=True)
class Threshold:
    """A score threshold with the resulting precision and recall at IoU .50.

    Attributes:
        score: detections with at least this score are kept.
        precision: None when no detection is kept.
        recall: None without objects.
        f1: harmonic mean of both; None without objects.
        objects: number of annotated objects.
        borrowed: True when the class has too few objects and takes the overall threshold.
    """

    score: float
    precision: float | None
    recall: float | None
    f1: float | None
    objects: int
    borrowed: bool = False


@dataclass(frozen=True)
class Thresholds:
    """The thresholds with the best F1 on the evaluated images, overall and by class."""

    overall: Threshold
    per_class: dict[str, Threshold]

    def scores(self, classes: tuple[str, ...]) -> Floats:
        """(K,) the threshold of each class."""
        return np.array([self.per_class[name].score for name in classes])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as checkpoints store them."""
        return asdict(self)


def suggest_thresholds(matches: Matches, fewest_objects: int = FEWEST_OBJECTS) -> Thresholds:
    """The thresholds with the best F1 at IoU .50, overall and by class.

    A threshold lies half-way between the last detection kept and the first one dropped, so that
    rounding cannot change the result. A class with fewer than ``fewest_objects`` annotated
    objects takes the overall threshold: its own would depend on a few detections. Without any
    true positive the threshold is .5.
    """
    overall = _best_f1(matches, np.ones(len(matches.score), bool), int(matches.counts[:, 0].sum()))
    per_class = {}
    for k, name in enumerate(matches.classes):
        mine = matches.label == k
        objects = int((matches.counts[:, 0] & (matches.object_label == k)).sum())
        if objects >= fewest_objects:
            per_class[name] = _best_f1(matches, mine, objects)
        else:
            per_class[name] = _at_score(matches, mine, objects, overall.score)
    return Thresholds(overall, per_class)


def object_fates(matches: Matches, thresholds: Thresholds) -> tuple[Bools, NDArray[np.int8]]:
    """Found objects, and true and false positives, at the suggested thresholds and IoU .50.

    Returns:
        (G,) True where an object was found; (D,) ``FOUND`` or ``FALSE`` for detections at or
        above their class's threshold, ``IGNORED`` for the others.
    """
    loud = matches.score >= thresholds.scores(matches.classes)[matches.label]
    fate = np.where(loud, matches.verdict_50, IGNORED).astype(np.int8)
    found = np.zeros(len(matches.object_label), dtype=bool)
    found[matches.owner[fate == FOUND, HALF]] = True
    return found, fate


def _best_f1(matches: Matches, mine: Bools, objects: int) -> Threshold:
    score, right = _judged(matches, mine)
    # A threshold cannot separate equal scores.
    possible = np.append(score[1:] < score[:-1], True) if len(score) else np.zeros(0, bool)
    kept = np.arange(1, len(score) + 1)
    f1 = np.where(possible, 2 * np.cumsum(right) / (kept + objects), -1.0)
    if not objects or not len(score) or f1.max() <= 0:
        return Threshold(0.5, None, 0.0 if objects else None, 0.0 if objects else None, objects)
    best = int(np.argmax(f1))
    below = score[best + 1] if best + 1 < len(score) else 0.0
    return _at_score(matches, mine, objects, float((score[best] + below) / 2), borrowed=False)


def _at_score(
    matches: Matches, mine: Bools, objects: int, threshold: float, borrowed: bool = True
) -> Threshold:
    score, right = _judged(matches, mine)
    kept = score >= threshold
    found = int(right[kept].sum())
    return Threshold(
        score=threshold,
        precision=found / int(kept.sum()) if kept.any() else None,
        recall=found / objects if objects else None,
        f1=2 * found / (int(kept.sum()) + objects) if objects else None,
        objects=objects,
        borrowed=borrowed,
    )


def _judged(matches: Matches, mine: Bools) -> tuple[Floats, Bools]:
    """Scores in descending order, and True where a detection is a true positive."""
    rows = np.flatnonzero(mine & (matches.verdict_50 != IGNORED))
    rows = rows[np.argsort(-matches.score[rows], kind="stable")]
    return matches.score[rows], matches.verdict_50[rows] == FOUND
