"""Match detections to objects at every IoU threshold and object size.

The table keeps the result for every detection, so that thresholds and resampling over images need
no second matching. AP computed from the table equals hotcoco's (tested).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detrlab.evaluation.records import (
    Bools,
    Detected,
    Floats,
    GroundTruth,
    ImageId,
    Ints,
    protocol_rows,
)  # fmt: skip

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""T of them."""
HALF = 0
"""Index of IoU .50 among them."""
RECALLS = np.linspace(0.0, 1.0, 101)
"""R of them, where precision is read."""
AREAS = ("all", "small", "medium", "large")
"""A of them."""
AREA_RANGES = np.array([(0.0, 1e10), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e10)])
"""Bounds of the annotated area in square pixels, both included."""

FOUND, FALSE, IGNORED = 1, 0, -1
"""Verdicts on a detection: true positive, false positive, or not counted."""


@dataclass(frozen=True, eq=False)
class Matches:
    """Every detection with its verdicts, sorted by class, then by descending score.

    Attributes:
        classes, image_ids: of the ground truth.
        image, label: (D,) indices.
        score: (D,), descending within a class.
        row: (D,) row in the ``Detected`` table that was matched.
        verdict: (D, A, T) int8: ``FOUND``, ``FALSE`` or ``IGNORED``.
        owner: (D, T) row of the annotated object that was matched, whatever its size, or -1.
        object_image, object_label: (G,) indices of each annotated object.
        counts: (G, A) True where the object counts: it has that size and is no crowd.
    """

    classes: tuple[str, ...]
    image_ids: tuple[ImageId, ...]
    image: Ints
    label: Ints
    score: Floats
    row: Ints
    verdict: NDArray[np.int8]
    owner: Ints
    object_image: Ints
    object_label: Ints
    counts: Bools

    @property
    def verdict_50(self) -> NDArray[np.int8]:
        """(D,) the verdicts at IoU .50 on objects of every size."""
        return self.verdict[:, 0, HALF]

    @property
    def num_images(self) -> int:
        """N, including images without objects."""
        return len(self.image_ids)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)


def match(truth: GroundTruth, detected: Detected, limit: int = 100) -> Matches:
    """Match detections to objects as the COCO protocol does.

    Within an image and class, at most ``limit`` detections are matched in order of score, each to
    the unmatched object with the highest IoU; objects that count come before those that do not.

    Source: cocoapi, cocoeval.py, ``evaluateImg``.
    """
    rows = protocol_rows(detected, limit)
    kept = detected.select(rows)
    objects = np.lexsort((truth.label, truth.image))
    ignored = truth.crowd[:, None] | _outside(truth.area)
    from detrlab.evaluation.kernels import match_groups

    verdict, owner = match_groups(
        *_groups(kept, truth, objects),
        kept.boxes,
        _outside(kept.boxes[:, 2] * kept.boxes[:, 3]),
        truth.boxes[objects],
        truth.crowd[objects],
        ignored[objects],
        IOU_THRESHOLDS,
    )
    # A stable sort: with equal scores the earlier image comes first, as in pycocotools.
    order = np.lexsort((-kept.score, kept.label))
    kept = kept.select(order)
    return Matches(
        classes=truth.classes,
        image_ids=truth.image_ids,
        image=kept.image,
        label=kept.label,
        score=kept.score,
        row=rows[order],
        verdict=verdict[order],
        # An owner of -1 reads the extra last entry.
        owner=np.append(objects, -1)[owner[order]],
        object_image=truth.image,
        object_label=truth.label,
        counts=~ignored,
    )


def _outside(area: Floats) -> Bools:
    """(N,) areas -> (N, A), True where the area is outside the size range."""
    return (area[:, None] < AREA_RANGES[:, 0]) | (area[:, None] > AREA_RANGES[:, 1])


def _groups(kept: Detected, truth: GroundTruth, objects: Ints) -> tuple[Ints, Ints]:
    """(P, 2) first and last row of each (image, class) with detections, and of its objects."""
    keys = kept.image * truth.num_classes + kept.label
    object_keys = (truth.image * truth.num_classes + truth.label)[objects]
    present = np.unique(keys)
    first, last, start, stop = (
        np.searchsorted(rows, present, side)
        for rows in (keys, object_keys)
        for side in ("left", "right")
    )
    return np.stack([first, last], axis=1), np.stack([start, stop], axis=1)


class Resampler:
    """AP of one detector under many weightings of the same images, with one matching."""

    def __init__(self, matches: Matches) -> None:
        self._matches = matches
        # Most detections are false positives at every threshold and size. Only the exceptions
        # are stored, as events: true positives, and those that are not counted.
        verdict = matches.verdict.transpose(1, 2, 0)  # (A, T, D)
        self._usual = (verdict == FALSE).any(axis=1)
        found = verdict == FOUND
        hidden = (verdict == IGNORED) & self._usual[:, None]
        area, level, row = np.nonzero(found | hidden)
        slot = (matches.label[row] * len(AREAS) + area) * len(IOU_THRESHOLDS) + level
        order = np.lexsort((row, slot))
        area, level, row, slot = area[order], level[order], row[order], slot[order]
        self._found = found[area, level, row]
        unusual = (self._found & ~self._usual[area, row]).astype(np.int8)
        self._extra = unusual - hidden[area, level, row].astype(np.int8)
        self._row = row
        slots = matches.num_classes * len(AREAS) * len(IOU_THRESHOLDS)
        self._bounds = np.searchsorted(slot, np.arange(slots + 1))

    def average_precision(self, weights: Floats) -> Floats:
        """AP (W, K, A, T) under weights (W, N) of the images; NaN where no object counts."""
        from detrlab.evaluation.kernels import weighted_average_precision

        matches = self._matches
        table = weighted_average_precision(
            np.searchsorted(matches.label, np.arange(matches.num_classes + 1)),
            matches.image,
            self._usual,
            self._bounds,
            self._row,
            self._found,
            self._extra,
            matches.object_image,
            matches.object_label,
            matches.counts,
            np.ascontiguousarray(weights, dtype=np.float64),
            len(IOU_THRESHOLDS),
            RECALLS,
        )
        return np.where(table < 0, np.nan, table)


def average_precision(matches: Matches) -> Floats:
    """AP of every class, size and IoU threshold, (K, A, T); NaN where no object counts."""
    return Resampler(matches).average_precision(np.ones((1, matches.num_images)))[0]
