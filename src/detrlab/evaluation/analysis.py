"""Detailed analysis: AP by size, curves, thresholds, confusion, TIDE, calibration, each image."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detrlab.evaluation.coco import (
    Accumulated,
    Metrics,
    Tide,
    accumulate,
    as_ground_truth,
    calibration_errors,
    mean_judged,
    tide_errors,
)
from detrlab.evaluation.matching import AREAS, FALSE, FOUND, HALF, IGNORED, Matches, match
from detrlab.evaluation.records import Bools, Detected, Floats, GroundTruth, ImageId, Ints

if TYPE_CHECKING:
    from detrlab.data.table import Table

BACKGROUND = "background"
"""Name of the last row and column of a confusion matrix: no object, or no detection."""
FEWEST_OBJECTS = 10
"""A class with fewer annotated objects takes the overall threshold instead of its own."""


@dataclass(frozen=True)
class Threshold:
    """Detections with at least this score are kept; what this gives at IoU .50.

    Precision is None when no detection is kept, recall and F1 without annotated ``objects``.
    ``borrowed``: the class has too few objects and takes the overall threshold.
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


class SizeRow(NamedTuple):
    """AP and number of annotated objects of one class by object size; None without objects."""

    name: str
    ap: dict[str, float | None]
    objects: dict[str, int]


class Curve(NamedTuple):
    """Precision (T, 101) of one class at the recalls 0, .01, ... 1; NaN without objects.

    ``scores`` (101,): where each recall is reached at IoU .50; 0 if never.
    """

    name: str
    precision: Floats
    scores: Floats

    @property
    def ap(self) -> Floats:
        """(T,) the area below the curve at each IoU threshold."""
        return self.precision.mean(axis=1)


class Confusion(NamedTuple):
    """Annotated (rows) against predicted classes (columns), at IoU .50.

    Attributes:
        counts: (K + 1, K + 1). The last row holds false positives on background, the last column
            missed objects, the diagonal the true positives of the metric.
        names: K classes and ``BACKGROUND``.
        scores: (K,) threshold of each class; detections below it were left out.
    """

    counts: Ints
    names: tuple[str, ...]
    scores: Floats

    def shares(self) -> Floats:
        """Each row divided by its sum."""
        return self.counts / np.maximum(self.counts.sum(axis=1, keepdims=True), 1)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Whether scores are calibrated: of detections with score .7, are 70 % correct?

    Attributes:
        edges: (n + 1,) bounds of the bins.
        count: (n,) detections in each bin.
        confidence: (n,) their mean score; NaN in an empty bin.
        accuracy: (n,) share of true positives at IoU .50; NaN in an empty bin.
        error: expected calibration error (ECE): mean gap between the two, weighted by count.
        overconfidence: mean score minus accuracy above the suggested thresholds; None without
            such detections.
    """

    edges: Floats
    count: Ints
    confidence: Floats
    accuracy: Floats
    error: float
    overconfidence: float | None


class ImageVerdict(NamedTuple):
    """Objects found and missed, and false positives, at the suggested thresholds and IoU .50."""

    image_id: ImageId
    file_name: str
    found: int
    missed: int
    false_alarms: int
    f1: float
    mistakes: int


@dataclass(frozen=True, eq=False)
class Analysis:
    """Everything ``detrlab eval`` reports on one detector."""

    metrics: Metrics
    sizes: list[SizeRow]
    curves: list[Curve]
    confusion: Confusion
    tide: Tide
    thresholds: Thresholds
    calibration: Calibration
    images: list[ImageVerdict]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a json file; None where a number is not defined."""
        values = {
            "per_class_by_size": {row.name: row.ap for row in self.sizes},
            "objects_by_size": {row.name: row.objects for row in self.sizes},
            "curves": {
                curve.name: {
                    "precision_50": curve.precision[HALF],
                    "precision_mean": curve.precision.mean(axis=0),
                    "scores_50": curve.scores,
                }
                for curve in self.curves
            },
            "confusion": self.confusion._asdict(),
            "tide": self.tide._asdict(),
            "thresholds": self.thresholds.to_dict(),
            "calibration": asdict(self.calibration),
            "images": [image._asdict() for image in self.images],
        }
        return self.metrics.to_dict() | _plain(values)


BYTES = 1000
"""Of memory for each detection that is analysed."""


def analyse(ground_truth: dict[str, Any] | Table | GroundTruth, detected: Detected) -> Analysis:
    """Analyse the detections of one detector.

    Args:
        ground_truth: a COCO dict, a ``Table`` or a ``GroundTruth``.
        detected: from ``Evaluator.detected()`` or ``load_predictions``.
    """
    truth = as_ground_truth(ground_truth)
    accumulated = accumulate(truth, detected)
    matches = match(truth, detected)
    thresholds = suggest_thresholds(matches)
    return Analysis(
        metrics=accumulated.metrics(truth.classes),
        sizes=per_size(accumulated, matches),
        curves=curves(accumulated, truth.classes),
        confusion=confusion(truth, detected, matches, thresholds.scores(truth.classes)),
        tide=tide_errors(truth, detected),
        thresholds=thresholds,
        calibration=calibration(truth, detected, matches, thresholds),
        images=image_verdicts(truth, matches, thresholds),
    )


def per_size(accumulated: Accumulated, matches: Matches) -> list[SizeRow]:
    """AP of every class on all, small, medium and large objects."""
    precision = accumulated.precision[..., 2]  # (T, R, K, A)
    rows = []
    for k, name in enumerate(matches.classes):
        objects = matches.counts[matches.object_label == k].sum(axis=0).tolist()
        ap = [mean_judged(precision[:, :, k, a]) for a in range(len(AREAS))]
        rows.append(
            SizeRow(name, dict(zip(AREAS, ap, strict=True)), dict(zip(AREAS, objects, strict=True)))
        )
    return rows


def curves(accumulated: Accumulated, classes: tuple[str, ...]) -> list[Curve]:
    """Precision over recall of every class."""
    precision = accumulated.precision[:, :, :, 0, 2]  # (T, R, K)
    precision = np.where(precision < 0, np.nan, precision)
    scores = np.maximum(accumulated.scores[HALF, :, :, 0, 2], 0.0)
    return [Curve(name, precision[:, :, k], scores[:, k]) for k, name in enumerate(classes)]


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
            borrowed = _at_score(*_judged(matches, mine), objects, overall.score)
            per_class[name] = replace(borrowed, borrowed=True)
    return Thresholds(overall, per_class)


def _best_f1(matches: Matches, mine: Bools, objects: int) -> Threshold:
    score, right = _judged(matches, mine)
    # A threshold cannot separate equal scores.
    possible = np.append(score[1:] < score[:-1], True)[: len(score)]
    kept = np.arange(1, len(score) + 1)
    f1 = np.where(possible, 2 * np.cumsum(right) / (kept + objects), -1.0)
    if not objects or f1.max(initial=0.0) <= 0:
        return Threshold(0.5, None, 0.0 if objects else None, 0.0 if objects else None, objects)
    best = int(np.argmax(f1))
    below = score[best + 1] if best + 1 < len(score) else 0.0
    return _at_score(score, right, objects, float((score[best] + below) / 2))


def _at_score(score: Floats, right: Bools, objects: int, threshold: float) -> Threshold:
    kept = int((score >= threshold).sum())
    found = int(right[:kept].sum())
    return Threshold(
        score=threshold,
        precision=found / kept if kept else None,
        recall=found / objects if objects else None,
        f1=2 * found / (kept + objects) if objects else None,
        objects=objects,
    )


def _judged(matches: Matches, mine: Bools) -> tuple[Floats, Bools]:
    """Scores in descending order, and True where a detection is a true positive."""
    rows = np.flatnonzero(mine & (matches.verdict_50 != IGNORED))
    rows = rows[np.argsort(-matches.score[rows], kind="stable")]
    return matches.score[rows], matches.verdict_50[rows] == FOUND


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


class Outcome(NamedTuple):
    """A box of one image: kind (``missed``, ``false`` or ``found``), xywh in pixels, caption."""

    kind: str
    box: list[float]
    label: str


def outcomes(
    truth: GroundTruth, detected: Detected, matches: Matches, thresholds: Thresholds, image: int
) -> list[Outcome]:
    """Missed objects, then false and true positives, of the image at one index."""
    found, fate = object_fates(matches, thresholds)
    missed = np.flatnonzero((truth.image == image) & matches.counts[:, 0] & ~found)
    rows = [
        Outcome("missed", truth.boxes[g].round(1).tolist(), truth.classes[truth.label[g]])
        for g in missed
    ]
    for verdict, kind in ((FALSE, "false"), (FOUND, "found")):
        for d in np.flatnonzero((matches.image == image) & (fate == verdict)):
            label = f"{truth.classes[matches.label[d]]} {matches.score[d]:.2f}"
            rows.append(Outcome(kind, detected.boxes[matches.row[d]].round(1).tolist(), label))
    return rows


def image_verdicts(
    truth: GroundTruth, matches: Matches, thresholds: Thresholds
) -> list[ImageVerdict]:
    """Every image by ascending F1; with equal F1, the one with more mistakes comes first."""
    covered, fate = object_fates(matches, thresholds)
    left = matches.counts[:, 0] & ~covered
    found, false, missed = (
        np.bincount(images, minlength=matches.num_images)
        for images in (
            matches.image[fate == FOUND],
            matches.image[fate == FALSE],
            matches.object_image[left],
        )
    )
    everything = 2 * found + missed + false
    f1 = np.where(everything > 0, 2 * found / np.maximum(everything, 1), 1.0)
    columns = (found, missed, false, f1, missed + false)
    return [
        ImageVerdict(
            truth.image_ids[i], truth.file_names[i], *(column[i].item() for column in columns)
        )
        for i in np.lexsort((-(missed + false), f1)).tolist()
    ]


def confusion(
    truth: GroundTruth, detected: Detected, matches: Matches, scores: Floats
) -> Confusion:
    """Annotated against predicted classes of the detections above their class's threshold.

    Detections are first matched to objects of their own class, as in the metric. The remaining
    ones are then matched to the remaining objects as if all had one class. Crowd regions neither
    count nor cause false positives.

    Differs from hotcoco's confusion matrix, which matches all classes together, so that its
    diagonal is not the number of true positives.
    """
    num_classes = truth.num_classes
    counts = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    loud = matches.score >= scores[matches.label]
    right = loud & (matches.verdict_50 == FOUND)
    np.add.at(counts, (matches.label[right], matches.label[right]), 1)
    free = matches.counts[:, 0].copy()
    free[matches.owner[right, HALF]] = False
    objects = np.flatnonzero(free)
    wrong = np.flatnonzero(loud & (matches.verdict_50 == FALSE))
    again = match(
        replace(
            truth,
            classes=("",),
            image=truth.image[objects],
            label=np.zeros_like(objects),
            boxes=truth.boxes[objects],
            area=truth.area[objects],
            crowd=truth.crowd[objects],
        ),
        Detected(
            image=matches.image[wrong],
            label=np.zeros_like(wrong),
            boxes=detected.boxes[matches.row[wrong]],
            score=matches.score[wrong],
        ),
        limit=len(wrong),
    )
    # An owner of -1 reads the extra last entry: background.
    taken_for = np.append(truth.label[objects], num_classes)[again.owner[:, HALF]]
    np.add.at(counts, (taken_for, matches.label[wrong[again.row]]), 1)
    counts[:num_classes, -1] = np.bincount(truth.label, matches.counts[:, 0], num_classes)
    counts[:num_classes, -1] -= counts[:num_classes, :-1].sum(axis=1)
    return Confusion(counts, (*truth.classes, BACKGROUND), scores)


def calibration(
    truth: GroundTruth, detected: Detected, matches: Matches, thresholds: Thresholds
) -> Calibration:
    """Compare scores, clipped to [0, 1], with the accuracy of the detections at IoU .50."""
    found = calibration_errors(truth, detected)
    bins = found["bins"]
    count, confidence, accuracy, upper = (
        np.array([each[key] for each in bins])
        for key in ("count", "avg_confidence", "avg_accuracy", "bin_upper")
    )
    _, fate = object_fates(matches, thresholds)
    above = fate != IGNORED
    gap = None
    if above.any():
        gap = float(matches.score[above].mean() - (fate[above] == FOUND).mean())
    return Calibration(
        edges=np.append(0.0, upper),
        count=count,
        confidence=np.where(count > 0, confidence, np.nan),
        accuracy=np.where(count > 0, accuracy, np.nan),
        error=float(found["ece"]),
        overconfidence=gap,
    )


def _plain(value: Any) -> Any:
    """Plain values for json; None for NaN."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and np.isnan(value) else value
