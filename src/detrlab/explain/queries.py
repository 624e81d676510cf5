"""Where object queries specialise over a data set: what each of them says, image after image."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from detrlab.models.network import Network
from detrlab.scoring import Scoring
from detrlab.structures import ImageBatch

if TYPE_CHECKING:
    from detrlab.api import Detector
    from detrlab.data.table import Table


class QueryUse(NamedTuple):
    """What each query said about each of N images.

    Attributes:
        boxes: (N, Q, 4) cxcywh fractions of the unpadded image.
        scores: (N, Q), for the class the query is surest of.
        labels: (N, Q), that class.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


@torch.inference_mode()
def query_use(
    network: Network, scoring: Scoring, images: Iterable[ImageBatch], limit: int = 1000
) -> QueryUse:
    """Collect what every query says over a data set; all of it, also what scores low.

    Args:
        network: of any detector; it is used as it is, so put it into evaluation mode.
        scoring: how the logits are read.
        images: batches, taken until ``limit`` images have been seen.
        limit: 1000 images and 300 queries are 7 MB.

    Source: arXiv 2005.12872, figure 7.
    """
    parts: list[QueryUse] = []
    seen = 0
    for batch in images:
        final = network(batch).final
        scores, labels = scoring.probabilities(final.logits.float()).max(-1)
        parts.append(QueryUse(final.boxes.float().cpu(), scores.cpu(), labels.cpu()))
        seen += len(scores)
        if seen >= limit:
            break
    joined = (torch.cat(column)[:limit] for column in zip(*parts, strict=True))
    return QueryUse(*joined)


def query_use_over(detector: Detector, table: Table, limit: int = 1000) -> QueryUse:
    """Collect what every query of a detector says over the images of a split.

    Args:
        detector: what ``detrlab.load`` returns.
        table: the images.
        limit: at most so many of them, the first.
    """
    from detrlab.data import batches

    device = next(detector.network.parameters()).device
    parts = batches(
        table.select(range(min(limit, len(table)))), detector.preprocessing,
        batch=8, seed=0, epoch=0, train=False, workers=0,
    )  # fmt: skip
    images = (ImageBatch(*(part.to(device) for part in each.images)) for each in parts)
    return query_use(detector.network, detector.scoring, images, limit)


def explained_share(use: QueryUse) -> float:
    """How much of where a box lies is known from its query's index alone, in [0, 1].

    The variance of the box centers between queries over their whole variance: near 1 when each
    query keeps to its own place, near 0 when queries go wherever the image asks them to (as
    two-stage queries do: their index is only a rank).
    """
    centers = use.boxes[..., :2].double()
    whole = (centers - centers.mean(dim=(0, 1))).square().sum()
    within = (centers - centers.mean(dim=0)).square().sum()
    return float(1 - within / whole) if whole > 0 else 1.0


def spread(use: QueryUse) -> Tensor:
    """(Q,) how far each query's boxes lie from their mean place: root mean square, fractions."""
    centers = use.boxes[..., :2].double()
    return (centers - centers.mean(dim=0)).square().sum(-1).mean(0).sqrt()
