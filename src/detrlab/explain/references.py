"""How references and boxes move from layer to layer, and where two-stage queries come from."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from detrlab.explain.attention import level_of
from detrlab.explain.capture import Recording
from detrlab.models.queries.proposals import anchor_logits
from detrlab.scoring import Scoring
from detrlab.structures import References


class Paths(NamedTuple):
    """What every query of one image said, layer by layer. T layers, boxes in cxcywh fractions.

    Attributes:
        references: where each layer looked from, (Q, 2) centers and sizes; None without one.
        boxes: (T, Q, 4), what each layer said.
        scores: (T, Q, K) in [0, 1].
    """

    references: tuple[References | None, ...]
    boxes: Tensor
    scores: Tensor


class Proposals(NamedTuple):
    """The first stage of one image: what each query was before the decoder.

    Attributes:
        cells: (Q,) the memory's cell that each query comes from.
        levels: (Q,) the level that cell lies on.
        anchors: (Q, 4) cxcywh, the box each cell started from; NaN where the cell may not
            propose and was taken because there were too few others.
        boxes: (Q, 4) cxcywh, what the first stage made of it: the decoder's first references.
        objectness: (Q,) in [0, 1], best first.
        of_all_cells: (S,) objectness of every cell of the memory.
    """

    cells: Tensor
    levels: Tensor
    anchors: Tensor
    boxes: Tensor
    objectness: Tensor
    of_all_cells: Tensor


@torch.no_grad()
def paths(recording: Recording, scoring: Scoring, image: int) -> Paths:
    """The boxes, scores and references of every layer; the last are the detector's own."""
    layers = recording.output.layers
    return Paths(
        references=tuple(_of_image(call.references, image) for call in recording.decoder),
        boxes=torch.stack([layer.boxes[image] for layer in layers]),
        scores=torch.stack([scoring.probabilities(layer.logits[image]) for layer in layers]),
    )


def _of_image(references: References | None, image: int) -> References | None:
    if references is None:
        return None
    centers, sizes = references
    return References(centers[image], None if sizes is None else sizes[image])


@torch.no_grad()
def proposals(recording: Recording, image: int) -> Proposals | None:
    """Where the queries of a two-stage detector come from; None for the others.

    Source: arXiv 2010.04159, section 4.2 and appendix A.4.
    """
    stage = recording.output.proposals
    if stage is None:
        return None
    objectness = stage.logits[..., 0]
    count = recording.queries.content.shape[1]
    cells = objectness.topk(count, dim=1).indices[image]  # the choice the queries were made by
    logits, usable = anchor_logits(recording.memory)
    anchors = logits[image].sigmoid().masked_fill(~usable[image, :, None], float("nan"))
    return Proposals(
        cells=cells,
        levels=torch.tensor([level_of(recording.memory, cell) for cell in cells.tolist()]),
        anchors=anchors[cells],
        boxes=stage.boxes[image, cells],
        objectness=objectness[image, cells].sigmoid(),
        of_all_cells=objectness[image].sigmoid(),
    )
