"""Queries as anchor boxes: their position embedded anew in every layer, their boxes refined.

Source: arXiv 2201.12329 (DAB-DETR), section 4; arXiv 2203.03605 (DINO), section 3.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detrlab.boxes import inverse_sigmoid
from detrlab.models.heads import Activation, Mlp, PredictionHead
from detrlab.models.layers import xavier_matrices
from detrlab.models.position import box_sine_features
from detrlab.structures import Memory, Predictions, Queries, References

EPS = 1e-3
"""Of the inverse sigmoid, as in DINO's code (1e-5 elsewhere)."""


class AnchorPosition(nn.Module):
    """The position of each query is made from the box it looks from, before every layer.

    Source: arXiv 2201.12329, section 4.2.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.linear1 = nn.Linear(2 * width, width)
        self.linear2 = nn.Linear(width, width)
        xavier_matrices(self)

    def forward(self, queries: Queries, memory: Memory) -> Queries:
        """Queries with boxes as references -> the same with a new position."""
        # Fractions of the padded image, as in the original code.
        ratio = memory.valid_ratios[:, :1]  # (B, 1, 2), of the finest level
        boxes = anchors(queries) * torch.cat([ratio, ratio], dim=-1)
        # Order y, x, w, h, as in the original code.
        features = box_sine_features(boxes[..., [1, 0, 2, 3]], self.width)
        features = features.to(queries.content.dtype)
        return queries._replace(position=self.linear2(self.linear1(features).relu()))


class BoxPosition(nn.Module):
    """The position of each query as a small network of the box it looks from.

    Args:
        widths: of the network, from 4 to D.
        activation: between its layers.
        bound: largest size of its numbers; D-FINE clamps them to 10.

    Source: arXiv 2304.08069 (RT-DETR), ``query_pos_head`` of the original code.
    """

    def __init__(
        self, widths: Sequence[int], activation: Activation, bound: float = math.inf
    ) -> None:
        super().__init__()
        self.network = Mlp(widths, activation)
        self.bound = bound
        xavier_matrices(self)

    def forward(self, queries: Queries, memory: Memory) -> Queries:  # noqa: ARG002
        """Queries with boxes as references -> the same with a new position."""
        boxes = anchors(queries).to(queries.content.dtype)
        return queries._replace(position=self.network(boxes).clamp(-self.bound, self.bound))


def anchors(queries: Queries) -> Tensor:
    """The boxes that queries look from, (B, Q, 4) cxcywh fractions."""
    assert queries.references is not None
    assert queries.references.sizes is not None
    return torch.cat([queries.references.centers, queries.references.sizes], dim=-1)


def refine_anchors(
    head: PredictionHead,
    states: Tensor,
    queries: Queries,
    previous: Predictions | None,  # noqa: ARG001
) -> tuple[Predictions, Queries]:
    """Boxes from the normalised states; the next references from the content as it is.

    Gradients stop at the references: a layer is trained by its own boxes only.
    """
    logits, deltas = head(states)
    start = inverse_sigmoid(anchors(queries), EPS)
    refined = (head.boxes(queries.content).to(start.dtype) + start).sigmoid()
    boxes = (deltas.to(start.dtype) + start).sigmoid()
    return Predictions(logits, boxes), _look_from(refined, queries)


def look_forward_twice(
    head: PredictionHead, states: Tensor, queries: Queries, previous: Predictions | None
) -> tuple[Predictions, Queries]:
    """As ``refine_anchors``, but a layer's boxes also train the layer before it.

    They start from the references of the layer before with their gradient; where the layer
    looks, the references have none.

    Source: arXiv 2203.03605, section 3.5 ("Look Forward Twice").
    """
    logits, deltas = head(states)
    references = anchors(queries)
    origin = references if previous is None else previous.details["refined"]
    start = inverse_sigmoid(references, EPS)
    refined = (head.boxes(queries.content).to(start.dtype) + start).sigmoid()
    boxes = (deltas.to(start.dtype) + inverse_sigmoid(origin, EPS)).sigmoid()
    return Predictions(logits, boxes, {"refined": refined}), _look_from(refined, queries)


def _look_from(boxes: Tensor, queries: Queries) -> Queries:
    centers, sizes = boxes.detach().split(2, dim=-1)
    return queries._replace(references=References(centers, sizes))
