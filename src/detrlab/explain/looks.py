"""Where queries look, how their boxes move from layer to layer, and where they come from.

Attention is computed from its recorded inputs, one query at a time. The whole (M, N, S) matrix is
never built: for DETR-DC5 at 640 pixels it would hold 8 x 1,600 x 1,600 numbers in each encoder
layer. Samples use the reference form of the operator, whatever the backend of the forward pass.

The recorded batch is one image without padding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from detrlab.explain.capture import Call, Recording
from detrlab.models.attention import DeformableAttention
from detrlab.models.queries.proposals import anchor_logits
from detrlab.ops.reference import sampling_locations
from detrlab.scoring import Scoring
from detrlab.structures import Memory, References


class Row(NamedTuple):
    """One row of dense attention over the memory: each head's weights (M, S) sum to 1.

    ``maps`` are the same as (M, height, width) of each level.
    """

    weights: Tensor
    maps: tuple[Tensor, ...]


class Samples(NamedTuple):
    """The sampling points of one query of deformable attention.

    Attributes:
        locations: (M, L, P, 2), x and y as fractions of the image; samples outside of [0, 1]
            count as 0.
        weights: (M, L, P); over L and P of one head they sum to 1.
    """

    locations: Tensor
    weights: Tensor


Look = Row | Samples


@torch.no_grad()
def look(call: Call, query: int) -> Look:
    """Where one query looks.

    Args:
        call: the recorded attention.
        query: index of the query; in the encoder, of the cell (``cell_at``).

    Source: arXiv 2005.12872, section 3.2 (figures 3 and 6 show rows of dense attention);
    arXiv 2010.04159, section 4.1 (figure 6 shows samples).
    """
    if isinstance(call.attention, DeformableAttention):
        return _samples(call, call.attention, query)
    attention, memory = call.attention, call.memory
    query_weight, key_weight, _ = attention.in_proj_weight.chunk(3)
    query_bias, key_bias, _ = attention.in_proj_bias.chunk(3)
    keys = memory.tokens[0] + memory.position[0]
    q = F.linear(call.query[0, query], query_weight, query_bias)
    k = F.linear(keys, key_weight, key_bias)
    q, k = (part.unflatten(-1, (attention.num_heads, -1)) for part in (q, k))
    weights = (torch.einsum("md,smd->ms", q, k) / q.shape[-1] ** 0.5).softmax(-1)
    return Row(weights, tuple(as_maps(weights, memory)))


def _samples(call: Call, attention: DeformableAttention, query: int) -> Samples:
    assert call.references is not None
    here = slice(query, query + 1)
    offsets, scores = attention.where(call.query[:1, here])
    centers, sizes = call.references
    locations = sampling_locations(
        References(centers[:1, here], None if sizes is None else sizes[:1, here]),
        call.memory.valid_ratios[:1],
        offsets.to(centers.dtype),
        call.memory.level_shapes,
    )
    weights = scores[0, 0].softmax(-1).unflatten(-1, (attention.levels, attention.points))
    return Samples(locations[0, 0], weights)


def cell_at(memory: Memory, point: tuple[float, float], level: int = 0) -> int:
    """The index of the memory's cell that covers a point, (x, y) in fractions of the image."""
    rows, columns = memory.level_shapes[level]
    row, column = min(int(point[1] * rows), rows - 1), min(int(point[0] * columns), columns - 1)
    start = sum(height * width for height, width in memory.level_shapes[:level])
    return start + row * columns + column


def as_maps(row: Tensor, memory: Memory) -> list[Tensor]:
    """Values of all cells as one map for each level: (..., S) -> (..., h, w)."""
    shapes = memory.level_shapes
    parts = row.split([height * width for height, width in shapes], dim=-1)
    return [part.unflatten(-1, shape) for part, shape in zip(parts, shapes, strict=True)]


class Paths(NamedTuple):
    """What every query predicted in T layers: boxes (T, Q, 4), cxcywh, and scores (T, Q, K).

    The references, (Q, 2) centers and sizes, say where each layer looked from; None without one.
    """

    references: tuple[References | None, ...]
    boxes: Tensor
    scores: Tensor


class Proposals(NamedTuple):
    """The first stage of a two-stage detector: what each query was before the decoder.

    Attributes:
        cells: (Q,) the memory's cell that each query comes from.
        levels: (Q,) the level of that cell.
        anchors: (Q, 4) cxcywh, the box each cell started from; NaN where the cell has none and
            was chosen only because there were too few others.
        boxes: (Q, 4) cxcywh, the first stage's prediction: the decoder's first references.
        objectness: (Q,) in [0, 1], best first.
        of_all_cells: (S,) objectness of every cell of the memory; None if only the chosen cells
            are predicted.
    """

    cells: Tensor
    levels: Tensor
    anchors: Tensor
    boxes: Tensor
    objectness: Tensor
    of_all_cells: Tensor | None


@torch.no_grad()
def paths(recording: Recording, scoring: Scoring) -> Paths:
    """The boxes, scores and references of every decoder layer."""
    references = [
        each and References(each.centers[0], None if each.sizes is None else each.sizes[0])
        for each in (call.references for call in recording.decoder)
    ]
    return Paths(
        references=tuple(references),
        boxes=torch.stack([layer.boxes[0] for layer in recording.layers]),
        scores=torch.stack([scoring.probabilities(layer.logits[0]) for layer in recording.layers]),
    )


@torch.no_grad()
def proposals(recording: Recording) -> Proposals | None:
    """Where the queries of a two-stage detector come from; None for the others.

    Source: arXiv 2010.04159, section 4.2 and appendix A.4.
    """
    stage = recording.first_stage
    if stage is None or recording.queries.cells is None:
        return None
    cells = recording.queries.cells[0]
    # Two-stage Deformable DETR trains every cell and reads logit 0; DINO trains the chosen cells
    # with real classes.
    of_all = len(stage.boxes[0]) == len(recording.memory.tokens[0])
    objectness = stage.logits[0, :, 0] if of_all else stage.logits[0].amax(-1)
    logits, usable = anchor_logits(recording.memory)
    anchors = logits[0].sigmoid().masked_fill(~usable[0, :, None], float("nan"))
    ends = torch.tensor([height * width for height, width in recording.memory.level_shapes])
    return Proposals(
        cells=cells,
        levels=torch.bucketize(cells.cpu(), ends.cumsum(0), right=True),
        anchors=anchors[cells],
        boxes=stage.boxes[0, cells] if of_all else stage.boxes[0],
        objectness=(objectness[cells] if of_all else objectness).sigmoid(),
        of_all_cells=objectness.sigmoid() if of_all else None,
    )
