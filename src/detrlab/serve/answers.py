"""What the service answers about a picture, as plain values for JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from detrlab.palette import colour_of, to_hex
from detrlab.serve.line import Refusal

if TYPE_CHECKING:
    from torch import Tensor

    from detrlab.api import Detector
    from detrlab.export.base import OtherDetector

LIMIT = 100
"""Most detections of one picture."""


def detections(
    detector: Detector | OtherDetector, pixels: Tensor, threshold: float
) -> dict[str, Any]:
    """Everything found in a picture that scores at least ``threshold``, best first.

    Returns:
        ``size`` (height, width), ``threshold`` and ``detections``, each with ``name``, ``label``
        (class index), ``category_id``, ``score`` and ``box`` (xyxy in pixels).
    """
    found = next(
        detector.predict_each([pixels], threshold=threshold, limit=LIMIT, keep_image=False)
    )
    rows = zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    return {
        "size": list(found.size),
        "threshold": threshold,
        "detections": [
            {
                "name": found.classes[label],
                "label": label,
                "category_id": found.category_ids[label],
                "score": round(score, 5),
                "box": [round(edge, 2) for edge in box],
            }
            for box, score, label in rows
        ],
    }


def explanation(detector: Detector, pixels: Tensor, number: int) -> dict[str, Any]:
    """Where the query of one detection looked in every decoder layer, and how its box moved.

    Args:
        detector: with its network.
        pixels: (3, H, W) uint8, RGB.
        number: of the detection, from 0 for the best, as ``detections`` lists them.

    Returns:
        ``name``, ``label`` and ``score`` of the detection; of its query the number ``q`` and the
        ``path`` (``report.story``); ``looks``: for each decoder layer the ``points`` or the
        ``map`` (``report.story``).

    Raises:
        Refusal: there is no such detection.
    """
    from detrlab.report.story import looked, story

    explained = detector.explain(pixels)
    found = explained.detections(LIMIT)
    if number >= len(found):
        raise Refusal(400, f"there is no detection {number}: this picture has {len(found)}, from 0")
    chosen = found[number]
    layers = range(len(explained.recording.decoder))
    return {
        "name": explained.classes[chosen.label],
        "label": chosen.label,
        "score": round(chosen.score, 5),
        **story(explained, chosen.query, chosen.label),
        "looks": [looked(explained.look(chosen.query, layer)) for layer in layers],
    }


def about(detector: Detector | OtherDetector, name: str) -> dict[str, Any]:
    """What a program or a page needs to know of the detector."""
    return {
        "model": name,
        "classes": list(detector.classes),
        "category_ids": list(detector.category_ids),
        "colours": [to_hex(colour_of(label)) for label in range(len(detector.classes))],
        "threshold": suggested(detector),
        "explains": hasattr(detector, "explain"),  # exported files do not
    }


def suggested(detector: Detector | OtherDetector) -> float:
    """The detector's own threshold, else the one that ``Detections`` draws from."""
    from detrlab.detections import DEFAULT_THRESHOLD

    return DEFAULT_THRESHOLD if detector.threshold is None else detector.threshold
