"""The story of one object query for a page: its boxes layer by layer, and where a layer looked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from detrlab.explain import Explanation, Samples
    from detrlab.explain.looks import Look

MAPPED = 400
"""Most cells of an attention map; a finer one is averaged down."""


def story(explanation: Explanation, query: int, label: int) -> dict[str, Any]:
    """The number of a query, and its reference, box and score for one class in each layer.

    Returns:
        ``q``, and ``path`` with ``b`` (box), ``s`` (score) and, where there is a reference, ``r``
        of each decoder layer. Boxes are xywh in pixels; a reference point has no extent.
    """
    height, width = explanation.size
    path = []
    for step in explanation.steps(query, label):
        told: dict[str, Any] = {"b": pixels(step.box, (width, height)), "s": round(step.score, 3)}
        if step.reference is not None:
            told["r"] = pixels([*step.reference, 0.0, 0.0][:4], (width, height))
        path.append(told)
    return {"q": query, "path": path}


def looked(look: Look) -> dict[str, Any]:
    """Where a query looked: ``points`` of deformable attention, or the ``map`` of dense."""
    from detrlab.explain import Samples

    if isinstance(look, Samples):
        return {"points": _points(look)}
    return {"map": attention_map(look.maps[0].mean(0).cpu())}


def pixels(box: Sequence[float], size: tuple[int, int]) -> list[float]:
    """Cxcywh fractions -> xywh in pixels."""
    (x, y, w, h), (width, height) = box, size
    edges = (x - w / 2) * width, (y - h / 2) * height, w * width, h * height
    return [round(value, 1) for value in edges]


def _points(look: Samples) -> list[int]:
    """Flat: x and y per mille, weight per ten thousand, level; the largest weight last (on top)."""
    heads, levels, points = look.weights.shape[-3:]
    weights = look.weights.flatten() / heads
    order = weights.argsort()
    order = order[weights[order] > 0]  # others fill up levels that have fewer points (D-FINE)
    xy = (look.locations.reshape(-1, 2)[order] * 1000).round().clamp(-9999, 9999)
    columns = [xy, (weights[order] * 10_000).round()[:, None], (order // points % levels)[:, None]]
    return torch.cat(columns, 1).int().flatten().tolist()


def attention_map(weights: Tensor) -> dict[str, Any]:
    """Rows, columns and weights from 0 to 255, the largest 255."""
    while weights.numel() > MAPPED:
        rows, columns = weights.shape
        smaller = -(-rows // 2), -(-columns // 2)
        weights = torch.nn.functional.adaptive_avg_pool2d(weights[None], smaller)[0]
    scaled = (255 * weights / weights.max()).round().int()
    return {"shape": list(weights.shape), "weights": scaled.flatten().tolist()}
