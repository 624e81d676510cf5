"""Box policies: how a layer's deltas become boxes, and where the next layer looks.

A policy is called after each decoder layer as ``(head, states, queries, previous)``:

* ``head``: of this layer, states -> (logits, deltas);
* ``states``: (B, Q, D), the normalised content that the head reads;
* ``queries``: as they leave the layer; ``queries.content`` is not normalised;
* ``previous``: the ``Predictions`` of the layer before, with their gradient; None at first;

and returns the layer's ``Predictions`` and the queries that enter the next layer. A policy of
your own is any function or module of this form.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from detrlab.boxes import inverse_sigmoid
from detrlab.models.heads import PredictionHead
from detrlab.structures import Predictions, Queries, References

BoxPolicy = Callable[
    [PredictionHead, Tensor, Queries, Predictions | None], tuple[Predictions, Queries]
]


def decode_boxes(deltas: Tensor, references: References | None) -> Tensor:
    """Boxes from a head's deltas, relative to where the query looked.

    In logit space a box reference shifts all four numbers, a point only the center.

    Args:
        deltas: (B, Q, 4).
        references: of the layer that made them; None when the queries have no place.

    Returns:
        (B, Q, 4) cxcywh fractions.

    Source: arXiv 2010.04159, appendix A.3 and A.4.
    """
    deltas = deltas.to(torch.promote_types(deltas.dtype, torch.float32))  # also under autocast
    if references is None:
        return deltas.sigmoid()
    centers = deltas[..., :2] + inverse_sigmoid(references.centers)
    sizes = deltas[..., 2:]
    if references.sizes is not None:
        sizes = sizes + inverse_sigmoid(references.sizes)
    return torch.cat([centers, sizes], dim=-1).sigmoid()


def absolute(
    head: PredictionHead,
    states: Tensor,
    queries: Queries,
    previous: Predictions | None,  # noqa: ARG001
) -> tuple[Predictions, Queries]:
    """Boxes relative to the image: the queries have no place.

    Source: arXiv 2005.12872, section 3.2.
    """
    logits, deltas = head(states)
    return Predictions(logits, decode_boxes(deltas, None)), queries


def point(
    head: PredictionHead,
    states: Tensor,
    queries: Queries,
    previous: Predictions | None,  # noqa: ARG001
) -> tuple[Predictions, Queries]:
    """Boxes relative to a fixed reference, which the boxes of every layer train.

    Source: arXiv 2010.04159, section 4.1 and appendix A.3.
    """
    logits, deltas = head(states)
    return Predictions(logits, decode_boxes(deltas, queries.references)), queries


def refine(
    head: PredictionHead,
    states: Tensor,
    queries: Queries,
    previous: Predictions | None,  # noqa: ARG001
) -> tuple[Predictions, Queries]:
    """Each layer looks from the boxes of the one before (iterative bounding-box refinement).

    Gradients stop there: a layer is trained by its own boxes only.

    Source: arXiv 2010.04159, section 4.2 and appendix A.4.
    """
    logits, deltas = head(states)
    boxes = decode_boxes(deltas, queries.references)
    centers, sizes = boxes.detach().split(2, dim=-1)
    return Predictions(logits, boxes), queries._replace(references=References(centers, sizes))


def refine_twice(
    head: PredictionHead, states: Tensor, queries: Queries, previous: Predictions | None
) -> tuple[Predictions, Queries]:
    """As ``refine``, but a layer's boxes also train the layer before it.

    They start from the boxes of the layer before with their gradient; where the layer looks, the
    references have none.

    Source: arXiv 2203.03605, section 3.5 ("Look Forward Twice"), as lyuwenyu/RT-DETR does it:
    unlike DINO it does not normalise the states.
    """
    logits, deltas = head(states)
    refined = decode_boxes(deltas, queries.references)
    centers, sizes = refined.detach().split(2, dim=-1)
    boxes = refined
    if previous is not None:
        boxes = decode_boxes(deltas, References(*previous.details["refined"].split(2, dim=-1)))
    following = queries._replace(references=References(centers, sizes))
    return Predictions(logits, boxes, {"refined": refined}), following
