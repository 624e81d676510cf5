"""Detailed analysis: AP by size, curves, confusion, TIDE, calibration, results by image."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from detrlab.evaluation.coco import (
    Accumulated,
    Metrics,
    accumulate,
    as_ground_truth,
    calibration_errors,
    mean_judged,
    tide_errors,
)
from detrlab.evaluation.matching import (
    AREAS,
    FALSE,
    FOUND,
    HALF,
    IGNORED,
    IOU_THRESHOLDS,
    Matches,
    match,
)
from detrlab.evaluation.records import Bools, Detected, Floats, GroundTruth, ImageId, Ints
from detrlab.evaluation.thresholds import (
    Thresholds,
    object_fates,
    suggest_thresholds,
)

if TYPE_CHECKING:
    from detrlab.data.table import Table

BACKGROUND = "background"
"""Name of the last row and column of a confusion matrix: no object, or no detection."""


@dataclass(frozen=True)
class SizeRow:
    """AP and number of annotated objects of one class by object size; None without objects."""

    name: str
    ap: dict[str, float | None]
    objects: dict[str, int]


@dataclass(frozen=True, eq=False)
class Curve:
    """Precision over recall of one class.

    Attributes:
        name: of the class.
        precision: (T, 101) at the recalls 0, .01, ... 1; NaN for a class without objects.
        scores: (101,) the score at which each recall is reached at IoU .50; 0 if never.
    """

    name: str
    precision: Floats
    scores: Floats

    @property
    def ap(self) -> Floats:
        """(T,) the area below the curve at each IoU threshold."""
        return self.precision.mean(axis=1)


@dataclass(frozen=True, eq=False)
class Confusion:
    """Annotated against predicted classes, at IoU .50.

    Attributes:
        counts: (K + 1, K + 1); rows are the annotated class, columns the predicted one. The
            last row holds false positives on background, the last column missed objects. The
            diagonal holds the true positives of the metric.
        names: K classes and ``BACKGROUND``.
        scores: (K,) threshold of each class; detections below it were left out.
    """

    counts: Ints
    names: tuple[str, ...]
    scores: Floats

    def shares(self) -> Floats:
        """Each row divided by its sum."""
        totals = self.counts.sum(axis=1, keepdims=True)
        return self.counts / np.maximum(totals, 1)


@dataclass(frozen=True)
class Tide:
    """TIDE: how much AP50 would rise if each kind of error were fixed.

    Attributes:
        ap50: without any fix.
        cost: ``Cls`` (wrong class), ``Loc`` (right class, IoU .1 to .5), ``Both``, ``Dupe``
            (duplicate), ``Bkg`` (background), ``Miss`` (missed), and all false positives
            ``FP`` and false negatives ``FN``.
        counts: number of errors of each kind.

    Source: arXiv 2008.08115.
    """

    ap50: float
    cost: dict[str, float]
    counts: dict[str, int]


@dataclass(frozen=True, eq=False)
class Calibration:
    """Whether scores are calibrated: of detections with score .7, are 70 % correct?

    Attributes:
        edges: (n + 1,) bounds of the bins.
        count: (n,) detections in each bin.
        confidence: (n,) their mean score; NaN in an empty bin.
        accuracy: (n,) share of true positives at IoU .50; NaN in an empty bin.
        error: expected calibration error (ECE): mean gap between the two, weighted by count.
        per_class: ECE of each class; None without detections.
        overconfidence: mean score minus accuracy above the suggested thresholds; None without
            such detections.
    """

    edges: Floats
    count: Ints
    confidence: Floats
    accuracy: Floats
    error: float
    per_class: dict[str, float | None]
    overconfidence: float | None


@dataclass(frozen=True)
class ImageVerdict:
    """The result on one image at the suggested thresholds and IoU .50.

    Attributes:
        image_id: the data set's id.
        file_name: "" where unknown.
        found: number of objects found.
        missed: number of objects missed.
        false_alarms: number of false positives.
        f1: 1 without mistakes.
    """

    image_id: ImageId
    file_name: str
    found: int
    missed: int
    false_alarms: int
    f1: float

    @property
    def mistakes(self) -> int:
        """Missed objects and false positives."""
        return self.missed + self.false_alarms


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
        return {
            **self.metrics.to_dict(),
            "per_class_by_size": {row.name: row.ap for row in self.sizes},
            "objects_by_size": {row.name: row.objects for row in self.sizes},
            "curves": {
                curve.name: {
                    "precision_50": _plain(curve.precision[HALF]),
                    "precision_mean": _plain(curve.precision.mean(axis=0)),
                    "scores_50": _plain(curve.scores),
                }
                for curve in self.curves
            },
            "confusion": _plain(self.confusion),
            "tide": _plain(self.tide),
            "thresholds": _plain(self.thresholds),
            "calibration": _plain(self.calibration),
            "images": [{**asdict(image), "mistakes": image.mistakes} for image in self.images],
        }


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
        tide=Tide(*tide_errors(truth, detected)),
        thresholds=thresholds,
        calibration=calibration(truth, detected, matches, thresholds),
        images=image_verdicts(truth, matches, thresholds),
    )


def per_size(accumulated: Accumulated, matches: Matches) -> list[SizeRow]:
    """AP of every class on all, small, medium and large objects."""
    precision = accumulated.precision[..., 2]  # (T, R, K, A)
    return [
        SizeRow(
            name=name,
            ap={area: mean_judged(precision[:, :, k, a]) for a, area in enumerate(AREAS)},
            objects={
                area: int(matches.counts[matches.object_label == k, a].sum())
                for a, area in enumerate(AREAS)
            },
        )
        for k, name in enumerate(matches.classes)
    ]


def curves(accumulated: Accumulated, classes: tuple[str, ...]) -> list[Curve]:
    """Precision over recall of every class."""
    precision = accumulated.precision[:, :, :, 0, 2]  # (T, R, K)
    precision = np.where(precision < 0, np.nan, precision)
    scores = np.maximum(accumulated.scores[HALF, :, :, 0, 2], 0.0)
    return [Curve(name, precision[:, :, k], scores[:, k]) for k, name in enumerate(classes)]


def calibration(
    truth: GroundTruth, detected: Detected, matches: Matches, thresholds: Thresholds
) -> Calibration:
    """Compare scores with the accuracy of the detections at IoU .50.

    Scores are clipped to [0, 1] first.
    """
    found = calibration_errors(truth, detected)
    bins = found["bins"]
    count = np.array([each["count"] for each in bins], dtype=np.int64)
    confidence = np.array([each["avg_confidence"] for each in bins])
    accuracy = np.array([each["avg_accuracy"] for each in bins])
    verdict = matches.verdict_50
    above = matches.score >= thresholds.scores(matches.classes)[matches.label]
    above &= verdict != IGNORED
    gap = None
    if above.any():
        gap = float(matches.score[above].mean() - (verdict[above] == FOUND).mean())
    return Calibration(
        edges=np.array([0.0, *(each["bin_upper"] for each in bins)]),
        count=count,
        confidence=np.where(count > 0, confidence, np.nan),
        accuracy=np.where(count > 0, accuracy, np.nan),
        error=float(found["ece"]),
        per_class={name: found["per_category"].get(name) for name in truth.classes},
        overconfidence=gap,
    )


def confusion(
    truth: GroundTruth, detected: Detected, matches: Matches, scores: Floats
) -> Confusion:
    """Annotated against predicted classes of the detections above their class's threshold.

    Detections are first matched to objects of their own class, as in the metric. The remaining
    ones are then matched, in order of score, to the remaining object with the highest IoU, if it
    is at least .50. Crowd regions neither count nor cause false positives.

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
    wrong = np.flatnonzero(loud & (matches.verdict_50 == FALSE))
    wrong = wrong[np.lexsort((-matches.score[wrong], matches.image[wrong]))]
    taken_for = _match_across_classes(
        truth, detected.boxes[matches.row[wrong]], matches.image[wrong], free
    )
    # Index -1 (no object) reads the extra last entry: background.
    seen = np.append(truth.label, num_classes)[taken_for]
    np.add.at(counts, (seen, matches.label[wrong]), 1)
    free[taken_for[taken_for >= 0]] = False
    counts[:num_classes, num_classes] = np.bincount(truth.label[free], minlength=num_classes)
    return Confusion(counts, (*truth.classes, BACKGROUND), scores)


def image_verdicts(
    truth: GroundTruth, matches: Matches, thresholds: Thresholds
) -> list[ImageVerdict]:
    """Every image by ascending F1; with equal F1, the one with more mistakes comes first."""
    covered, fate = object_fates(matches, thresholds)
    images = matches.num_images
    found = np.bincount(matches.image[fate == FOUND], minlength=images)
    false = np.bincount(matches.image[fate == FALSE], minlength=images)
    left = matches.counts[:, 0] & ~covered
    missed = np.bincount(matches.object_image[left], minlength=images)
    everything = 2 * found + missed + false
    f1 = np.where(everything > 0, 2 * found / np.maximum(everything, 1), 1.0)
    order = np.lexsort((-(missed + false), f1))
    return [
        ImageVerdict(
            image_id=truth.image_ids[i],
            file_name=truth.file_names[i],
            found=int(found[i]),
            missed=int(missed[i]),
            false_alarms=int(false[i]),
            f1=float(f1[i]),
        )
        for i in order.tolist()
    ]


def _match_across_classes(truth: GroundTruth, boxes: Floats, image: Ints, free: Bools) -> Ints:
    """Row of the object each detection matches, or -1; detections sorted by image and score."""
    taken_for = np.full(len(boxes), -1, dtype=np.int64)
    rows = np.flatnonzero(free)
    rows = rows[np.argsort(truth.image[rows], kind="stable")]
    owners = truth.image[rows]
    for i in np.intersect1d(image, owners).tolist():
        first, last = np.searchsorted(image, [i, i + 1]).tolist()
        start, stop = np.searchsorted(owners, [i, i + 1]).tolist()
        objects = rows[start:stop]
        overlaps = box_overlaps(boxes[first:last], truth.boxes[objects])
        for d in range(last - first):
            best = int(np.argmax(overlaps[d]))
            if overlaps[d, best] >= IOU_THRESHOLDS[HALF]:
                taken_for[first + d] = objects[best]
                overlaps[:, best] = 0.0
    return taken_for


def box_overlaps(a: Floats, b: Floats) -> Floats:
    """(M, 4) and (N, 4) xywh boxes -> (M, N) IoU; 0 where both are empty."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, :2] + a[:, None, 2:], b[None, :, :2] + b[None, :, 2:])
    shared = np.clip(high - low, 0.0, None).prod(axis=-1)
    union = a[:, 2:].prod(axis=-1)[:, None] + b[:, 2:].prod(axis=-1)[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _plain(value: Any) -> Any:
    """Plain values for json; None for NaN."""
    if is_dataclass(value):
        return {entry.name: _plain(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and np.isnan(value) else value
