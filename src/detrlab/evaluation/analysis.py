"""What lies behind an AP: sizes, curves, confusions, kinds of error, calibration, hard images."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from detrlab.evaluation.coco import Accumulated, Metrics, accumulate, as_ground_truth, tide_errors
from detrlab.evaluation.matching import (
    AREAS,
    FALSE,
    FOUND,
    IGNORED,
    IOU_THRESHOLDS,
    Matches,
    match,
)
from detrlab.evaluation.records import Bools, Detected, Floats, GroundTruth, ImageId, Ints

if TYPE_CHECKING:
    from detrlab.data.table import Table

BACKGROUND = "background"
"""Name of the last row and column of a confusion matrix: nothing there, or nothing seen."""
FEWEST_OBJECTS = 10
"""A class with fewer annotated objects takes the overall threshold instead of its own."""
_HALF = 0  # index of IoU .50 among the thresholds


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


@dataclass(frozen=True)
class Threshold:
    """A score to cut at, and what one gets there, at IoU .50.

    Attributes:
        score: detections from here on are kept.
        precision: share of the kept that are right; None when nothing is kept.
        recall: share of the objects that are found; None without objects.
        f1: harmonic mean of both; None without objects.
        objects: annotated objects it was chosen on.
        borrowed: True when the class has too few objects and takes the overall score.
    """

    score: float
    precision: float | None
    recall: float | None
    f1: float | None
    objects: int
    borrowed: bool = False


@dataclass(frozen=True)
class Thresholds:
    """The scores with the best F1 on the judged images, overall and by class."""

    overall: Threshold
    per_class: dict[str, Threshold]

    def scores(self, classes: tuple[str, ...]) -> Floats:
        """(K,) the score to cut each class at."""
        return np.array([self.per_class[name].score for name in classes])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as a checkpoint stores them."""
        return asdict(self)


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
                    "precision_50": _plain(curve.precision[_HALF]),
                    "precision_mean": _plain(curve.precision.mean(axis=0)),
                    "scores_50": _plain(curve.scores),
                }
                for curve in self.curves
            },
            "confusion": {
                "names": list(self.confusion.names),
                "counts": self.confusion.counts.tolist(),
                "scores": _plain(self.confusion.scores),
            },
            "tide": asdict(self.tide),
            "thresholds": self.thresholds.to_dict(),
            "calibration": {
                "edges": _plain(self.calibration.edges),
                "count": self.calibration.count.tolist(),
                "confidence": _plain(self.calibration.confidence),
                "accuracy": _plain(self.calibration.accuracy),
                "error": self.calibration.error,
                "per_class": self.calibration.per_class,
                "overconfidence": self.calibration.overconfidence,
            },
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
        calibration=calibration(matches, thresholds),
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
    scores = np.maximum(accumulated.scores[_HALF, :, :, 0, 2], 0.0)
    return [Curve(name, precision[:, :, k], scores[:, k]) for k, name in enumerate(classes)]


def suggest_thresholds(matches: Matches, fewest_objects: int = FEWEST_OBJECTS) -> Thresholds:
    """The scores at which F1 is best at IoU .50, overall and by class.

    The score lies half-way between the last detection kept and the first one dropped, so that
    nothing hangs on the last digits. A class with fewer than ``fewest_objects`` annotated
    objects takes the overall score: its own would be an accident of a few detections. Where
    nothing is right at any score, it is .5.
    """
    overall = _best_f1(matches, np.ones(len(matches.score), bool), int(_countable(matches).sum()))
    per_class = {}
    for k, name in enumerate(matches.classes):
        mine = matches.label == k
        objects = int((_countable(matches) & (matches.object_label == k)).sum())
        if objects >= fewest_objects:
            per_class[name] = _best_f1(matches, mine, objects)
        else:
            per_class[name] = _at_score(matches, mine, objects, overall.score)
    return Thresholds(overall, per_class)


def calibration(matches: Matches, thresholds: Thresholds, bins: int = 10) -> Calibration:
    """Compare scores with the share of detections that are right at IoU .50.

    Scores outside [0, 1] fall into the first or last bin: they cannot be probabilities.
    """
    judged = _verdicts(matches) != IGNORED
    score = matches.score[judged]
    right = _verdicts(matches)[judged] == FOUND
    label = matches.label[judged]
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.clip((score * bins).astype(np.int64), 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(place, score, bins) / count
        accuracy = np.bincount(place, right, bins) / count
    above = score >= thresholds.scores(matches.classes)[label]
    return Calibration(
        edges=edges,
        count=count,
        confidence=confidence,
        accuracy=accuracy,
        error=_calibration_error(place, score, right, bins) or 0.0,
        per_class={
            name: _calibration_error(place[label == k], score[label == k], right[label == k], bins)
            for k, name in enumerate(matches.classes)
        },
        overconfidence=float(score[above].mean() - right[above].mean()) if above.any() else None,
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
    right = loud & (_verdicts(matches) == FOUND)
    np.add.at(counts, (matches.label[right], matches.label[right]), 1)
    free = _countable(matches)
    free[matches.owner[right, _HALF]] = False
    wrong = np.flatnonzero(loud & (_verdicts(matches) == FALSE))
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


def object_fates(matches: Matches, thresholds: Thresholds) -> tuple[Bools, NDArray[np.int8]]:
    """What became of each object and each detection at the suggested thresholds, at IoU .50.

    Returns:
        (G,) True where an object was found; (D,) ``FOUND`` or ``FALSE`` for detections at or
        above their class's threshold, ``IGNORED`` for all others.
    """
    loud = matches.score >= thresholds.scores(matches.classes)[matches.label]
    fate = np.where(loud, _verdicts(matches), IGNORED).astype(np.int8)
    found = np.zeros(len(matches.object_label), dtype=bool)
    found[matches.owner[fate == FOUND, _HALF]] = True
    return found, fate


def _image_counts(matches: Matches, thresholds: Thresholds) -> tuple[Ints, Ints, Ints]:
    """(N,) found objects, missed objects and false alarms of each image."""
    found, fate = object_fates(matches, thresholds)
    missed = _countable(matches) & ~found
    images = matches.num_images
    return (
        np.bincount(matches.image[fate == FOUND], minlength=images),
        np.bincount(matches.object_image[missed], minlength=images),
        np.bincount(matches.image[fate == FALSE], minlength=images),
    )


def _verdicts(matches: Matches) -> NDArray[np.int8]:
    """(D,) at IoU .50, objects of every size."""
    return matches.verdict[:, 0, _HALF]


def _countable(matches: Matches) -> Bools:
    """(G,) a fresh mask of the objects that are to be found."""
    return matches.counts[:, 0].copy()


def _best_f1(matches: Matches, mine: Bools, objects: int) -> Threshold:
    """The cut with the best F1 among the detections ``mine``."""
    score, right = _judged(matches, mine)
    # A cut between equal scores is no cut.
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
    """Scores, best first, and whether they are right, of detections that are of account."""
    rows = np.flatnonzero(mine & (_verdicts(matches) != IGNORED))
    rows = rows[np.argsort(-matches.score[rows], kind="stable")]
    return matches.score[rows], _verdicts(matches)[rows] == FOUND


def _calibration_error(place: Ints, score: Floats, right: Bools, bins: int) -> float | None:
    """Sum over the bins of |sum of scores - number of right ones|, by detections."""
    if not len(score):
        return None
    gaps = np.bincount(place, score, bins) - np.bincount(place, right, bins)
    return float(np.abs(gaps).sum() / len(score))


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
            if overlaps[d, best] >= IOU_THRESHOLDS[_HALF]:
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


def _plain(values: Floats) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
