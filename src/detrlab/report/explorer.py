"""What the page's image browser holds: pictures, boxes at any score, and what explains them.

The browser is an enrichment: without a script the page shows the same images as they were
before (``gallery``). Everything here is plain values; the page shows them as text only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from detrlab.drawing import colour_of

if TYPE_CHECKING:
    from torch import Tensor

    from detrlab.api import Detector
    from detrlab.compare.results import Row
    from detrlab.data.table import Table
    from detrlab.evaluation.records import Detected, GroundTruth
    from detrlab.explain import Explanation
    from detrlab.explain.inspection import Found
    from detrlab.explain.looks import Samples
    from detrlab.report.gallery import Exhibit, View

LEAST_SCORE = 0.02
"""Detections below are left out; the slider begins here."""
EXPLAINED = 20
"""So many detections of an image carry their path and where they looked, the best."""
MAPPED = 400
"""Most cells of an attention map; a finer one is averaged down."""


def exploration(
    rows: Sequence[Row],
    views: Sequence[View],
    truth: GroundTruth,
    table: Table,
    chosen: Sequence[int],
    shown: Sequence[Exhibit],
    folder: Path,
) -> dict[str, Any]:
    """Everything the browser shows, ready for JSON. Boxes are xywh in pixels, points per mille.

    Args:
        rows: of the comparison; the first run of each is shown.
        views: what each of them detected, in the same order.
        truth: what was to be found.
        table: the validation split, for the pixels.
        chosen: positions of the images in ``truth``.
        shown: the same images, as the page shows them without a script.
        folder: of the comparison.
    """
    position = {table.image_id(i): i for i in range(len(table))}
    models = [_model(row, view, truth) for row, view in zip(rows, views, strict=True)]
    images = [_image(truth, *each) for each in zip(chosen, shown, strict=True)]
    for row, view, model in zip(rows, views, models, strict=True):
        detector = load_detector(folder / row.runs[0].folder)
        model["explained"] = detector is not None
        for index, image in zip(chosen, images, strict=True):
            at = position[truth.image_ids[index]]
            if detector is None:
                told = {"boxes": _detections(view.detected, index), "others": [], "why": []}
            else:
                threshold = round(view.thresholds.overall.score, 3)
                told = _explained(detector, table, at, image, threshold)
            image["models"].append(told)
    return {"classes": list(truth.classes), "colours": _colours(truth), "models": models,
            "images": images}  # fmt: skip


def load_detector(run: Path) -> Detector | None:
    """The detector a run trained; None where its weights are not at hand."""
    from detrlab.api import load
    from detrlab.errors import UserError

    weights = run / "weights" / "last.safetensors"
    if not weights.is_file():
        return None
    try:
        return load(weights)
    except UserError:  # another version's file: the boxes are shown all the same
        return None


def _colours(truth: GroundTruth) -> list[str]:
    return ["#{:02x}{:02x}{:02x}".format(*colour_of(k)) for k in range(len(truth.classes))]


def _model(row: Row, view: View, truth: GroundTruth) -> dict[str, Any]:
    scores = view.thresholds.scores(truth.classes)
    return {"name": row.name, "best": [round(float(score), 4) for score in scores]}


def _image(truth: GroundTruth, index: int, exhibit: Exhibit) -> dict[str, Any]:
    objects = np.flatnonzero(truth.image == index)
    return {
        "name": exhibit.name,
        "width": exhibit.width,
        "height": exhibit.height,
        "truth": [
            {
                "b": [round(side, 1) for side in truth.boxes[g].tolist()],
                "l": int(truth.label[g]),
                "crowd": bool(truth.crowd[g]),
            }
            for g in objects
        ],
        "models": [],
    }


def _detections(detected: Detected, index: int) -> list[dict[str, Any]]:
    """Boxes of a detector whose network is not at hand, best first."""
    mine = np.flatnonzero((detected.image == index) & (detected.score >= LEAST_SCORE))
    order = mine[np.argsort(-detected.score[mine], kind="stable")][:100]
    return [
        {
            "b": [round(side, 1) for side in detected.boxes[d].tolist()],
            "l": int(detected.label[d]),
            "s": round(float(detected.score[d]), 3),
        }
        for d in order
    ]


def _explained(
    detector: Detector, table: Table, at: int, image: dict[str, Any], threshold: float
) -> dict[str, Any]:
    """Boxes with their path and their look, and what became of each annotated object."""
    from detrlab.explain.missed import sentence

    explanation = detector.explain(table.picture(at), table.targets(at))
    size = image["width"], image["height"]
    found = [
        each
        for rank, each in enumerate(explanation.detections())
        if each.score >= LEAST_SCORE or rank == 0
    ]
    boxes = [_plain(each, size) for each in found]
    for each, box in zip(found[:EXPLAINED], boxes, strict=False):
        box |= _story(explanation, each, size)
    verdicts = explanation.verdicts(threshold)
    # The query that an object costs least, followed even where it is no detection.
    followed = {each.query for each in found[:EXPLAINED]}
    nearest = {verdict.final.best.query: verdict.label for verdict in verdicts}
    others = [
        _says(explanation, query, label)
        for query, label in list(nearest.items())[:EXPLAINED]
        if query not in followed
    ]
    return {
        "boxes": boxes,
        "others": [_plain(each, size) | _story(explanation, each, size) for each in others],
        "threshold": threshold,
        "why": [
            {
                "b": _pixels(verdict.box, size),
                "q": verdict.final.best.query,
                "words": sentence(verdict, explanation.classes, threshold),
            }
            for verdict in verdicts
        ],
    }


def _says(explanation: Explanation, query: int, label: int) -> Found:
    """What a query says of a class at the end, whether or not that is a detection."""
    from detrlab.explain.inspection import Found

    path = explanation.paths
    box = tuple(path.boxes[-1, query].tolist())
    return Found(query, label, float(path.scores[-1, query, label]), box)


def _plain(found: Found, size: tuple[int, int]) -> dict[str, Any]:
    return {"b": _pixels(found.box, size), "l": found.label, "s": round(found.score, 3)}


def _story(explanation: Explanation, found: Found, size: tuple[int, int]) -> dict[str, Any]:
    """How a detection came about: its query, its path, where the last layer looked."""
    return {
        "q": found.query,
        "path": _path(explanation, found.query, found.label, size),
        **_look(explanation, found.query),
    }


def _pixels(box: Sequence[float], size: tuple[int, int]) -> list[float]:
    """Cxcywh fractions -> xywh in pixels."""
    (x, y, w, h), (width, height) = box, size
    return [
        round(value, 1)
        for value in ((x - w / 2) * width, (y - h / 2) * height, w * width, h * height)
    ]


def _path(
    explanation: Explanation, query: int, label: int, size: tuple[int, int]
) -> list[dict[str, Any]]:
    """Where each layer looked from, its box, its score for the class."""
    path = explanation.paths
    steps = []
    for layer, references in enumerate(path.references):
        step: dict[str, Any] = {
            "b": _pixels(path.boxes[layer, query].tolist(), size),
            "s": round(float(path.scores[layer, query, label]), 3),
        }
        if references is not None:
            center = references.centers[query].tolist()
            sizes = [0.0, 0.0] if references.sizes is None else references.sizes[query].tolist()
            step["r"] = _pixels([*center, *sizes], size)
        steps.append(step)
    return steps


def _look(explanation: Explanation, query: int) -> dict[str, Any]:
    """Where the last layer looked: points (x, y, weight per mille, level) or a map."""
    from detrlab.explain.looks import Samples

    look = explanation.look(query)
    if isinstance(look, Samples):
        return {"points": _points(look)}
    return {"map": _map(look.maps[0].mean(0).cpu())}


def _points(look: Samples) -> list[int]:
    """Flat: x, y, weight, level of one sample after the other, the weightiest last (on top)."""
    heads, levels, points = look.weights.shape
    weights = look.weights.flatten() / heads
    order = weights.argsort()
    xy = (look.locations.flatten(0, 2)[order] * 1000).round().int().clamp(-9999, 9999).tolist()
    level = (order // points % levels).tolist()
    # Ten thousandths: with 128 samples a uniform weight is 78 of them.
    share = (weights[order] * 10_000).round().int().tolist()
    return [
        number for (x, y), s, at in zip(xy, share, level, strict=True) for number in (x, y, s, at)
    ]


def _map(weights: Tensor) -> dict[str, Any]:
    """Rows, columns and weights from 0 to 255, the largest 255."""
    while weights.numel() > MAPPED:
        rows, columns = weights.shape
        smaller = -(-rows // 2), -(-columns // 2)
        weights = torch.nn.functional.adaptive_avg_pool2d(weights[None], smaller)[0]
    scaled = (255 * weights / weights.max()).round().int()
    return {"shape": list(weights.shape), "weights": scaled.flatten().tolist()}
