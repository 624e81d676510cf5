"""Compiled loops of the matching and the resampling; importing this file imports numba."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np


def _compiled(function: Any) -> Any:
    """Compile with a cache on disk, if there is a writable folder for it."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # numba found no folder it may write to
        return numba.njit(nogil=True)(function)


@_compiled
def match_groups(
    groups: Any,
    object_groups: Any,
    boxes: Any,
    outside: Any,
    object_boxes: Any,
    crowd: Any,
    ignored: Any,
    thresholds: Any,
) -> Any:
    """Greedy matching within each (image, class): verdicts (D, A, T), matched objects (D, T).

    ``groups`` and ``object_groups`` (P, 2) hold the first and last detection, sorted by score,
    and object of each. ``outside`` (D, A) and ``ignored`` (G, A) are True where the size is
    outside of the range, or the object is a crowd, which many detections may match.
    """
    num_areas, num_thresholds = outside.shape[1], len(thresholds)
    verdict = np.zeros((len(boxes), num_areas, num_thresholds), np.int8)
    owner = np.full((len(boxes), num_thresholds), -1, np.int64)
    for group in range(len(groups)):
        first, last = groups[group]
        start, stop = object_groups[group]
        overlaps = _overlaps(boxes[first:last], object_boxes[start:stop], crowd[start:stop])
        for area in range(num_areas):
            # Objects that count come first: detections are matched to them before the others.
            order = np.argsort(ignored[start:stop, area], kind="mergesort")
            for level in range(num_thresholds):
                taken = np.zeros(stop - start, np.bool_)
                for d in range(last - first):
                    best = min(thresholds[level], 1 - 1e-10)
                    chosen = -1
                    for g in order:
                        if taken[g] and not crowd[start + g]:
                            continue
                        if (
                            chosen >= 0
                            and not ignored[start + chosen, area]
                            and ignored[start + g, area]
                        ):
                            break
                        if overlaps[d, g] < best:
                            continue
                        best = overlaps[d, g]
                        chosen = g
                    if chosen >= 0:
                        taken[chosen] = True
                        verdict[first + d, area, level] = -1 if ignored[start + chosen, area] else 1
                        if area == 0:
                            owner[first + d, level] = start + chosen
                    elif outside[first + d, area]:
                        verdict[first + d, area, level] = -1
    return verdict, owner


@_compiled
def _overlaps(boxes: Any, objects: Any, crowd: Any) -> Any:
    """(D, G) IoU of xywh boxes; against a crowd, the share of the detection it covers.

    Source: cocoapi, maskApi.c, ``bbIou``. The operations have the same order, so that an IoU
    exactly on a threshold gets the same verdict.
    """
    overlaps = np.zeros((len(boxes), len(objects)))
    for g in range(len(objects)):
        object_area = objects[g, 2] * objects[g, 3]
        for d in range(len(boxes)):
            area = boxes[d, 2] * boxes[d, 3]
            width = min(boxes[d, 2] + boxes[d, 0], objects[g, 2] + objects[g, 0]) - max(
                boxes[d, 0], objects[g, 0]
            )
            height = min(boxes[d, 3] + boxes[d, 1], objects[g, 3] + objects[g, 1]) - max(
                boxes[d, 1], objects[g, 1]
            )
            if width > 0 and height > 0:
                shared = width * height
                union = area if crowd[g] else area + object_area - shared
                overlaps[d, g] = shared / union
    return overlaps


@_compiled
def weighted_average_precision(
    bounds: Any,
    image: Any,
    usual: Any,
    event_bounds: Any,
    event_row: Any,
    event_found: Any,
    event_extra: Any,
    object_image: Any,
    object_label: Any,
    counts: Any,
    weights: Any,
    num_thresholds: int,
    recalls: Any,
) -> Any:
    """AP of every class, size and IoU threshold with weighted images.

    With weights of 1 this is COCO's AP. With the multiplicities of a bootstrap sample it is the
    AP of that sample, without a new matching. Most detections are false positives at every
    threshold, so only the others, the events, are visited for each threshold.

    Args:
        bounds: (K + 1,) where each class starts among the detections.
        image: (D,) image of each detection, sorted by score within a class.
        usual: (A, D) True where a detection is false at some threshold.
        event_bounds: (K * A * T + 1,) where the events of each class, size, threshold start.
        event_row: (E,) the detection of each event, ascending.
        event_found: (E,) 1 where it found an object, else 0.
        event_extra: (E,) what the event adds to the detections that ``usual`` counts: 1 for
            a true positive that is not usual, -1 for a usual one that is not counted here.
        object_image: (G,), as in ``Matches``.
        object_label: (G,).
        counts: (G, A).
        weights: (W, N) float64, how often each image counts, W times.
        num_thresholds: T.
        recalls: (R,) ascending, where precision is read.

    Returns:
        (W, K, A, T), -1 where no object counts.
    """
    num_areas, num_classes = len(usual), len(bounds) - 1
    result = np.full((len(weights), num_classes, num_areas, num_thresholds), -1.0)
    judged = np.empty(len(image))
    weight = np.empty(len(image))
    recall = np.empty(len(event_row))
    precision = np.empty(len(event_row))
    for w in range(len(weights)):
        totals = np.zeros((num_classes, num_areas))
        for g in range(len(object_image)):
            for area in range(num_areas):
                if counts[g, area]:
                    totals[object_label[g], area] += weights[w, object_image[g]]
        for d in range(len(image)):
            weight[d] = weights[w, image[d]]
        for k in range(num_classes):
            for area in range(num_areas):
                total = totals[k, area]
                if total == 0:
                    continue
                running = 0.0
                for d in range(bounds[k], bounds[k + 1]):
                    running += weight[d] * usual[area, d]
                    judged[d] = running
                for level in range(num_thresholds):
                    slot = (k * num_areas + area) * num_thresholds + level
                    found = 0.0
                    extra = 0.0
                    count = 0
                    for e in range(event_bounds[slot], event_bounds[slot + 1]):
                        d = event_row[e]
                        extra += weight[d] * event_extra[e]
                        if event_found[e] and weight[d] > 0:
                            # Precision has its maxima at true positives.
                            found += weight[d]
                            seen = judged[d] + extra
                            recall[count] = found / total
                            precision[count] = found / (seen + 2.220446049250313e-16)
                            count += 1
                    result[w, k, area, level] = _area_below(
                        recall[:count], precision[:count], recalls
                    )
    return result


@_compiled
def _area_below(recall: Any, precision: Any, recalls: Any) -> Any:
    """Mean over ``recalls`` of the best precision at that recall or beyond; 0 beyond the last."""
    total = 0.0
    best = 0.0
    point = len(recalls) - 1
    for i in range(len(recall) - 1, -1, -1):
        while point >= 0 and recalls[point] > recall[i]:
            total += best
            point -= 1
        best = max(best, precision[i])
    while point >= 0:
        total += best
        point -= 1
    return total / len(recalls)
