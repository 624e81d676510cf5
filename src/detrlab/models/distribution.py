"""Boxes as distributions: each edge is a distribution that the decoder layers refine.

Source: arXiv 2410.13842 (D-FINE), section 4.1 ("Fine-grained Distribution Refinement").
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detrlab.boxes import REACH, boxes_from_edges, edge_steps, inverse_sigmoid, split_edges
from detrlab.models.anchors import anchors
from detrlab.models.decoder import QueryPosition
from detrlab.models.heads import Activation, BoxHead, Mlp
from detrlab.structures import Memory, Predictions, Queries, References


class Edges(nn.Module):
    """From distributions over the four edges to boxes.

    The two numbers that shape ``boxes.edge_steps`` are kept with the weights, as in the original.

    Args:
        scale: ``reg_scale`` of the original, see ``boxes.edge_steps``.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.register_buffer("reach", torch.tensor([REACH]))
        self.register_buffer("scale", torch.tensor([scale]))

    def forward(self, corners: Tensor, initial: Tensor) -> Tensor:
        """The expected boxes.

        Args:
            corners: (B, Q, 4 * (N + 1)) logits.
            initial: (B, Q, 4) cxcywh fractions.
        """
        reach, scale = self.get_buffer("reach"), self.get_buffer("scale")
        weights = split_edges(corners).softmax(-1)
        return boxes_from_edges(initial, weights @ edge_steps(reach, scale), scale)


class LocationQuality(nn.Module):
    """Raises or lowers a query's class scores by how sharp its edges are (LQE).

    Source: arXiv 2011.12885; D-FINE, ``dfine_decoder.py``, ``LQE``.
    """

    BEST = 4
    HIDDEN = 64

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.network = Mlp((4 * (self.BEST + 1), self.HIDDEN, 1), activation)
        self.network.start_at_zero()

    def forward(self, logits: Tensor, corners: Tensor) -> Tensor:
        """(B, Q, K) and (B, Q, 4 * (N + 1)) -> (B, Q, K)."""
        best = split_edges(corners).softmax(-1).topk(self.BEST, dim=-1).values
        signs = torch.cat([best, best.mean(-1, keepdim=True)], dim=-1)
        return logits + self.network(signs.flatten(-2))


class DistributionDecoder(nn.Module):
    """A decoder whose layers refine the distribution of each box edge.

    The first layer predicts twice: a box as in other detectors, the first set of predictions,
    and then the distributions around that box, which all layers refine.

    Args:
        layers: the stack, each ``(Queries, Memory) -> Queries``.
        positions: what gives the queries their position before each layer.
        classes: a class head of each layer; the first predicts both sets of the first layer.
        corners: heads of the distributions: one of each layer, or one that all share.
        start: the head of the box that the distributions lie around.
        activation: of the quality networks.
        scale: see ``boxes.edge_steps``.
        evaluated: how many layers run in evaluation mode; None for all.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        positions: Sequence[QueryPosition],
        classes: Sequence[nn.Module],
        corners: Sequence[nn.Module],
        start: BoxHead,
        activation: Activation = F.relu,
        scale: float = 4.0,
        evaluated: int | None = None,
    ) -> None:
        super().__init__()
        assert len(positions) == len(classes) == len(layers)
        assert len(corners) in (1, len(layers))
        self.layers = nn.ModuleList(layers)
        # The same position network may stand several times; it is one part.
        self.position = next((each for each in positions if isinstance(each, nn.Module)), None)
        self._positions = tuple(positions)
        self.classes = nn.ModuleList(classes)
        self.corners = nn.ModuleList(corners)
        self.start = start
        self.quality = nn.ModuleList(LocationQuality(activation) for _ in layers)
        self.edges = Edges(scale)
        self.evaluated = evaluated

    def forward(self, queries: Queries, memory: Memory) -> tuple[Predictions, ...]:
        """The first box, then the predictions of every layer; the last are the answer."""
        predictions: list[Predictions] = []
        corners: Tensor | float = 0.0
        before: Tensor | float = 0.0
        initial = anchors(queries)
        layers = self.layers if self.training else self.layers[: self.evaluated]
        for index, layer in enumerate(layers):
            queries = layer(self._positions[index](queries, memory), memory)
            content = queries.content
            logits = self.classes[index](content)
            if index == 0:
                start = inverse_sigmoid(initial)
                boxes = (self.start(content).to(start.dtype) + start).sigmoid()
                predictions.append(Predictions(logits, boxes))
                initial = boxes.detach()
            moved: Tensor = self.corners[index % len(self.corners)](content + before) + corners
            boxes = self.edges(moved.to(initial.dtype), initial)
            logits = self.quality[index](logits, moved)
            details = {"corners": moved, "initial": initial}
            corners = moved
            predictions.append(Predictions(logits, boxes, details))
            before = content.detach()
            centers, sizes = boxes.detach().split(2, dim=-1)
            queries = queries._replace(references=References(centers, sizes))
        return (*(_taught(each, predictions[-1]) for each in predictions[:-1]), predictions[-1])


def _taught(student: Predictions, teacher: Predictions) -> Predictions:
    """With what the last layer predicts, which the layers before it learn (DDF)."""
    if "corners" not in student.details:
        return student
    lesson = {
        "teacher_corners": teacher.details["corners"].detach(),
        "teacher_logits": teacher.logits.detach(),
    }
    return student._replace(details={**student.details, **lesson})
