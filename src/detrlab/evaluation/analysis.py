"""What lies behind an AP: sizes, curves, confusions, kinds of error, calibration, hard images."""

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
    countable,
    object_fates,
    suggest_thresholds,
    verdicts,
)

if TYPE_CHECKING:
    from detrlab.data.table import Table

BACKGROUND = "background"
"""Name of the last row and column of a confusion matrix: nothing there, or nothing seen."""


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
        scores: (101,) the score at which each recall is reached at IoU .50; 0 beyond reach.
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
    """What annotated objects were taken for, at IoU .50.

    Attributes:
        counts: (K + 1, K + 1); rows are the annotated class, columns the predicted one. The
            last row holds false alarms on background, the last column missed objects. The
            diagonal is what the metric counts as found.
        names: K classes and ``BACKGROUND``.
        scores: (K,) detections of each class below its score were left out.
    """

    counts: Ints
    names: tuple[str, ...]
    scores: Floats

    def shares(self) -> Floats:
        """Each row divided by its sum: where the objects of a class went."""
        totals = self.counts.sum(axis=1, keepdims=True)
        return self.counts / np.maximum(totals, 1)

    def worst(self, limit: int = 5) -> list[tuple[str, str, int]]:
        """The most frequent mix-ups of two classes: (annotated, predicted, times)."""
        between = self.counts[:-1, :-1].copy()
        np.fill_diagonal(between, 0)
        flat = np.argsort(-between, axis=None, kind="stable")[:limit]
        pairs = (np.unravel_index(index, between.shape) for index in flat)
        return [
            (self.names[a], self.names[b], int(between[a, b])) for a, b in pairs if between[a, b]
        ]


@dataclass(frozen=True)
class Tide:
    """How much AP50 each kind of error costs: what it would rise by if that kind were mended.

    Attributes:
        ap50: where it stands.
        cost: ``Cls`` (wrong class), ``Loc`` (right class, IoU .1 to .5), ``Both``, ``Dupe``
            (found before), ``Bkg`` (nothing there), ``Miss`` (nothing near it), and the two
            sums ``FP`` and ``FN``.
        counts: how many of each kind.

    Source: arXiv 2008.08115.
    """

    ap50: float
    cost: dict[str, float]
    counts: dict[str, int]


@dataclass(frozen=True, eq=False)
class Calibration:
    """Whether scores mean what they say: of detections with score .7, are 70 % right?

    Attributes:
        edges: (n + 1,) bounds of the bins.
        count: (n,) detections in each bin.
        confidence: (n,) their mean score; NaN in an empty bin.
        accuracy: (n,) the share of them that is right at IoU .50; NaN in an empty bin.
        error: the mean gap between the two, weighted by count (ECE).
        per_class: the same error by class; None without detections.
        overconfidence: above the suggested threshold, mean score minus share of right ones;
            positive when the detector promises too much; None when nothing is above.
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
    """How one image went at the suggested thresholds, at IoU .50.

    Attributes:
        image_id: the data set's id.
        file_name: "" where unknown.
        found: objects that were found.
        missed: objects that were not.
        false_alarms: detections that found nothing.
        f1: 1 for a flawless image.
    """

    image_id: ImageId
    file_name: str
    found: int
    missed: int
    false_alarms: int
    f1: float

    @property
    def mistakes(self) -> int:
        """Missed objects and false alarms."""
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
        """Plain values for a json file; None where there is nothing to judge."""
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
    """Judge one detector's detections in every respect.

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
            ap={area: _mean(precision[:, :, k, a]) for a, area in enumerate(AREAS)},
            objects={
                area: int(matches.counts[matches.object_label == k, a].sum())
                for a, area in enumerate(AREAS)
            },
        )
        for k, name in enumerate(matches.classes)
    ]


def curves(accumulated: Accumulated, classes: tuple[str, ...]) -> list[Curve]:
    """The curves whose area is AP, of every class."""
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
    verdict = matches.verdict[:, 0, HALF]
    above = matches.score >= thresholds.scores(matches.classes)[matches.label]
    above &= verdict != IGNORED
    gap = (
        float(matches.score[above].mean() - (verdict[above] == FOUND).mean())
        if any(above)
        else None
    )
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
    """Count what objects were taken for, among detections with at least their class's score.

    Detections first find objects of their own class, as in the metric. Those left over then
    take, best score first, the object of another class that they overlap most, at IoU .50 or
    more, if it was not found. Crowds neither count nor turn a detection into a false alarm.
    """
    num_classes = truth.num_classes
    counts = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    loud = matches.score >= scores[matches.label]
    right = loud & (verdicts(matches) == FOUND)
    np.add.at(counts, (matches.label[right], matches.label[right]), 1)
    free = countable(matches)
    free[matches.owner[right, HALF]] = False
    wrong = np.flatnonzero(loud & (verdicts(matches) == FALSE))
    wrong = wrong[np.lexsort((-matches.score[wrong], matches.image[wrong]))]
    taken_for = _mix_ups(truth, detected.boxes[matches.row[wrong]], matches.image[wrong], free)
    # A detection that took nothing (-1) reads the extra last entry: background.
    seen = np.append(truth.label, num_classes)[taken_for]
    np.add.at(counts, (seen, matches.label[wrong]), 1)
    free[taken_for[taken_for >= 0]] = False
    counts[:num_classes, num_classes] = np.bincount(truth.label[free], minlength=num_classes)
    return Confusion(counts, (*truth.classes, BACKGROUND), scores)


def image_verdicts(
    truth: GroundTruth, matches: Matches, thresholds: Thresholds
) -> list[ImageVerdict]:
    """Every image, the hardest first: lowest F1, among equals most mistakes."""
    found, missed, false = _image_counts(matches, thresholds)
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


def _image_counts(matches: Matches, thresholds: Thresholds) -> tuple[Ints, Ints, Ints]:
    """(N,) found objects, missed objects and false alarms of each image."""
    found, fate = object_fates(matches, thresholds)
    missed = countable(matches) & ~found
    images = matches.num_images
    return (
        np.bincount(matches.image[fate == FOUND], minlength=images),
        np.bincount(matches.object_image[missed], minlength=images),
        np.bincount(matches.image[fate == FALSE], minlength=images),
    )


def _mix_ups(truth: GroundTruth, boxes: Floats, image: Ints, free: Bools) -> Ints:
    """Row of the free object each detection takes, or -1; detections sorted by image, score."""
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


def _mean(values: Floats) -> float | None:
    judged = values[values > -1]
    return float(judged.mean()) if len(judged) else None


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
