"""Box conversion, overlap, moved edges, the clamped inverse sigmoid: pure functions on tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) center, width, height -> (..., 4) corners."""
    centers, sizes = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centers - 0.5 * sizes, centers + 0.5 * sizes], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4) corners -> (..., 4) center, width, height."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def xywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) top left corner, width, height (COCO's json) -> (..., 4) corners."""
    return torch.cat([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], dim=-1)


def box_area(boxes: Tensor) -> Tensor:
    """(..., 4) corners -> (...) area."""
    sizes = boxes[..., 2:] - boxes[..., :2]
    return sizes[..., 0] * sizes[..., 1]


def _overlap(a: Tensor, b: Tensor, eps: float = 0.0) -> tuple[Tensor, Tensor]:
    """Intersection over union, and the union, of broadcastable corner boxes."""
    low = torch.maximum(a[..., :2], b[..., :2])
    high = torch.minimum(a[..., 2:], b[..., 2:])
    sides = (high - low).clamp(min=0)
    intersection = sides[..., 0] * sides[..., 1]
    union = box_area(a) + box_area(b) - intersection
    return intersection / (union + eps if eps else union), union


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of broadcastable corner boxes, (..., 4) and (..., 4) -> (...)."""
    return _overlap(a, b)[0]


def generalized_box_iou(a: Tensor, b: Tensor, eps: float = 0.0) -> Tensor:
    """Generalised IoU of broadcastable corner boxes: ``IoU - (hull - union) / hull``.

    Without epsilon, as in DETR and Deformable DETR, two boxes that are both empty give NaN.

    Args:
        a: (..., 4) corners.
        b: (..., 4) corners; give ``a[:, None]`` and ``b[None]`` for all pairs.
        eps: added to both denominators; 1e-6 in DINO.

    Returns:
        (...) in (-1, 1].

    Source: arXiv 1902.09630, section 3.
    """
    iou, union = _overlap(a, b, eps)
    hull_sides = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    hull = hull_sides[..., 0] * hull_sides[..., 1]
    return iou - (hull - union) / (hull + eps if eps else hull)


def inverse_sigmoid(values: Tensor, eps: float = 1e-5) -> Tensor:
    """The logit of ``values`` in [0, 1], clamped so that its size stays below ``log(1 / eps)``.

    Source: arXiv 2010.04159, appendix A.4, as the original code clamps it.
    """
    values = values.clamp(0, 1)
    return torch.log(values.clamp(min=eps) / (1 - values).clamp(min=eps))


# --- edges as distributions (D-FINE) ---------------------------------------------------------

BINS = 32
"""A distribution over the movement of an edge has one weight more."""
REACH = 0.5
"""``up`` of the original: how far an edge moves; never trained."""


def edge_steps(reach: Tensor, scale: Tensor, bins: int = BINS) -> Tensor:
    """W(n): how far an edge moves for each weight of its distribution, not evenly spaced.

    Args:
        reach: (1,); the edge moves by at most twice as many widths or heights of the box.
        scale: (1,), in which units the movement is given: ``scale`` to a width or height.
        bins: N, even.

    Returns:
        (N + 1,), rising and odd around the middle, which is 0.

    Source: arXiv 2410.13842, equation 2.
    """
    bound = (reach * scale).abs()
    factor = (bound + 1) ** (2 / (bins - 2))
    powers = torch.arange(1, bins // 2, device=reach.device)
    inner = factor**powers - 1
    return torch.cat([-2 * bound, -inner.flip(0), torch.zeros_like(bound), inner, 2 * bound])


def boxes_from_edges(initial: Tensor, moves: Tensor, scale: Tensor) -> Tensor:
    """Move the edges of boxes.

    Args:
        initial: (..., 4) cxcywh fractions.
        moves: (..., 4) of the left, top, right and bottom edge, outwards; ``scale`` to a width or
            height.
        scale: see ``edge_steps``.

    Returns:
        (..., 4) cxcywh fractions, which may reach beyond the image.
    """
    centers, sizes = initial.split(2, dim=-1)
    low, high = moves.split(2, dim=-1)
    half, unit = 0.5 * abs(scale), sizes / abs(scale)
    corners = torch.cat([centers - (half + low) * unit, centers + (half + high) * unit], dim=-1)
    return xyxy_to_cxcywh(corners)


def split_edges(corners: Tensor) -> Tensor:
    """(..., 4 * (N + 1)) -> (..., 4, N + 1)."""
    return corners.unflatten(-1, (4, -1))
