"""How references and boxes move from layer to layer, and where two-stage queries come from.

The recorded batch is one image without padding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from detrlab.explain.capture import Recording
from detrlab.explain.looks import level_of
from detrlab.models.queries.proposals import anchor_logits
from detrlab.scoring import Scoring
from detrlab.structures import References


class Paths(NamedTuple):
    """What every query predicted, layer by layer. T layers, boxes in cxcywh fractions.

    Attributes:
        references: where each layer looked from, (Q, 2) centers and sizes; None without one.
        boxes: (T, Q, 4).
        scores: (T, Q, K) in [0, 1].
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
    references = []
    for call in recording.decoder:
        centers, sizes = call.references or (None, None)
        sizes = None if sizes is None else sizes[0]
        references.append(None if centers is None else References(centers[0], sizes))
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
    return Proposals(
        cells=cells,
        levels=torch.tensor([level_of(recording.memory, cell) for cell in cells.tolist()]),
        anchors=anchors[cells],
        boxes=stage.boxes[0, cells] if of_all else stage.boxes[0],
        objectness=(objectness[cells] if of_all else objectness).sigmoid(),
        of_all_cells=objectness.sigmoid() if of_all else None,
    )
