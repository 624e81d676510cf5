"""Contents of the page's image browser: boxes at any score, and how they came about.

The browser needs its script; without it the page shows the static images of ``gallery``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detrlab.report.story import looked, pixels, story

if TYPE_CHECKING:
    from detrlab.api import Detector
    from detrlab.data.table import Table
    from detrlab.evaluation.records import Detected, GroundTruth
    from detrlab.report.gallery import Exhibit, View

LEAST_SCORE = 0.02
"""Detections below are left out; the page's slider begins here."""
EXPLAINED = 20
"""Number of detections of an image, the best, that carry their path and where they looked."""


def exploration(
    views: Sequence[View], shown: Sequence[Exhibit], truth: GroundTruth, table: Table
) -> dict[str, Any]:
    """Everything the browser shows of some images, ready for JSON. Boxes are xywh in pixels."""
    models = []
    images: list[dict[str, Any]] = [
        {
            "name": exhibit.name, "width": exhibit.width, "height": exhibit.height, "models": [],
            "truth": [
                {"b": truth.boxes[g].round(1).tolist(), "l": int(truth.label[g]),
                 "crowd": bool(truth.crowd[g])}
                for g in np.flatnonzero(truth.image == exhibit.image)
            ],
        }
        for exhibit in shown
    ]  # fmt: skip
    for view in views:
        detector = load_detector(view.run)
        scores = view.thresholds.scores(truth.classes)
        best = [round(float(score), 4) for score in scores]
        models.append({"name": view.name, "best": best, "explained": detector is not None})
        for exhibit, image in zip(shown, images, strict=True):
            if detector is None:
                boxes = _detections(view.detected, exhibit.image)
                contents: dict[str, Any] = {"boxes": boxes, "others": [], "why": []}
            else:
                threshold = round(view.thresholds.overall.score, 3)
                contents = _explained(detector, table, exhibit.position, threshold)
            image["models"].append(contents)
    return {"classes": list(truth.classes), "models": models, "images": images}


def load_detector(run: Path) -> Detector | None:
    """The detector that a run trained; None where its weights are missing or unreadable."""
    from detrlab.api import load
    from detrlab.errors import UserError

    weights = run / "weights" / "last.safetensors"
    try:
        return load(weights) if weights.is_file() else None
    except UserError:
        return None


def _detections(detected: Detected, index: int) -> list[dict[str, Any]]:
    """Boxes of a detector without weights, best first."""
    mine = np.flatnonzero((detected.image == index) & (detected.score >= LEAST_SCORE))
    order = mine[np.argsort(-detected.score[mine], kind="stable")][:100]
    return [
        {
            "b": detected.boxes[d].round(1).tolist(),
            "l": int(detected.label[d]),
            "s": round(float(detected.score[d]), 3),
        }
        for d in order
    ]


def _explained(detector: Detector, table: Table, at: int, threshold: float) -> dict[str, Any]:
    """Boxes with their path and where they looked, and why each object was found or missed."""
    from detrlab.explain.missed import sentence

    picture = table.picture(at)
    height, width = picture.shape[-2:]
    size = width, height
    explanation = detector.explain(picture, table.targets(at))
    detections = explanation.detections()
    found = [each for each in detections if each.score >= LEAST_SCORE] or detections[:1]
    boxes = [
        {"b": pixels(each.box, size), "l": each.label, "s": round(each.score, 3)} for each in found
    ]
    for each, box in zip(found[:EXPLAINED], boxes, strict=False):
        box |= story(explanation, each.query, each.label) | looked(explanation.look(each.query))
    verdicts = explanation.verdicts(threshold)
    # The query with the lowest matching cost is shown even where it is not a detection.
    known = {each.query for each in found[:EXPLAINED]}
    nearest = {verdict.best.query: verdict.label for verdict in verdicts}
    others = []
    for query, label in list(nearest.items())[:EXPLAINED]:
        if query not in known:
            told = story(explanation, query, label) | looked(explanation.look(query))
            others.append({**told["path"][-1], "l": label, **told})
    why = [
        {
            "b": pixels(verdict.box, size),
            "q": verdict.best.query,
            "words": sentence(verdict, explanation.classes, threshold),
        }
        for verdict in verdicts
    ]
    return {"boxes": boxes, "others": others, "threshold": threshold, "why": why}
