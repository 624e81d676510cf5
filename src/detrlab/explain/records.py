"""An explanation as plain values: the contents of ``explanation.json``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from detrlab.explain.inspection import Found, Inspection
from detrlab.explain.looks import Look, Samples
from detrlab.explain.missed import sentence
from detrlab.explain.paths import Proposals

DIGITS = 4
"""Decimals that are kept; weights of looks get one more."""


def as_dict(inspection: Inspection, *, top: int = 20, threshold: float = 0.3) -> dict[str, Any]:
    """What the detector did with the image, as numbers, lists and texts.

    Boxes are cxcywh and points x, y, both as fractions of the image; layers, queries, levels
    and objects are counted from 0.

    Args:
        inspection: of one image.
        top: the best detections, so many, are followed through the layers.
        threshold: score from which a detection counts, for the verdicts on annotated objects.

    Returns:
        ``model``, ``classes``, ``size``, ``layers``, ``threshold``, ``detections`` (each with
        its ``path`` and its ``look``: ``points`` or a ``map``), and, None where there are none,
        ``proposals`` and ``objects``.
    """
    found = inspection.detections()[:top]
    proposals = objects = None
    if inspection.proposals is not None:
        queries = dict.fromkeys(each.query for each in found)
        proposals = [_proposal(inspection.proposals, query) for query in queries]
    if inspection.target is not None:
        objects = [
            _plain(asdict(verdict)) | {"sentence": sentence(verdict, inspection.classes, threshold)}
            for verdict in inspection.verdicts(threshold)
        ]
    return {
        "model": inspection.name,
        "classes": inspection.classes,
        "size": inspection.size,
        "layers": len(inspection.recording.layers),
        "threshold": threshold,
        "detections": [
            _plain(each)
            | {"path": _path(inspection, each), "look": look_as_dict(inspection.look(each.query))}
            for each in found
        ],
        "proposals": proposals,
        "objects": objects,
    }


def look_as_dict(look: Look, digits: int = DIGITS) -> dict[str, Any]:
    """Where one query looks.

    Returns:
        ``points``: x, y, weight (a share of the query's whole attention), level and head of
        each, by falling weight; or ``map``: the mean of the heads over (height, width) cells,
        row by row.
    """
    if not isinstance(look, Samples):
        mean = look.maps[0].mean(0)
        return {"map": {"shape": list(mean.shape), "weights": _plain(mean.flatten(), digits + 1)}}
    heads, levels, points = look.weights.shape
    weights = (look.weights / heads).flatten()
    order = weights.argsort(descending=True)
    xy = _plain(look.locations.flatten(0, 2)[order], digits)
    rows = zip(xy, _plain(weights[order], digits + 1), order.tolist(), strict=True)
    return {
        "points": [
            [x, y, weight, place // points % levels, place // (points * levels)]
            for (x, y), weight, place in rows
        ]
    }


def _path(inspection: Inspection, found: Found) -> list[dict[str, Any]]:
    """One entry for each decoder layer: where it looked from, its box, its score."""
    path = inspection.paths
    steps = []
    for layer, references in enumerate(path.references):
        step = {
            "box": _plain(path.boxes[layer, found.query]),
            "score": _plain(path.scores[layer, found.query, found.label]),
        }
        if references is not None:
            parts = [part[found.query] for part in references if part is not None]
            step["reference"] = _plain(torch.cat(parts))
        steps.append(step)
    return steps


def _proposal(seen: Proposals, query: int) -> dict[str, Any]:
    """Where a query comes from."""
    anchor = seen.anchors[query]
    return {
        "query": query,
        "level": int(seen.levels[query]),
        "anchor": None if anchor.isnan().any() else _plain(anchor),  # JSON has no NaN
        "box": _plain(seen.boxes[query]),
        "objectness": _plain(seen.objectness[query]),
    }


def _plain(value: Any, digits: int = DIGITS) -> Any:
    """Numbers rounded, tensors and tuples as lists, named tuples as dictionaries."""
    if isinstance(value, Tensor):
        return _plain(value.tolist(), digits)
    if isinstance(value, float):
        return round(value, digits)
    if hasattr(value, "_asdict"):
        return _plain(value._asdict(), digits)
    if isinstance(value, dict):
        return {name: _plain(each, digits) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each, digits) for each in value]
    return value
