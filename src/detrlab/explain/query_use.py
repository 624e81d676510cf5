"""Where object queries specialise over a data set: what each of them predicts in every image."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from detrlab.structures import ImageBatch

if TYPE_CHECKING:
    from detrlab.api import Detector
    from detrlab.data import Table


class QueryUse(NamedTuple):
    """What each query predicted for each of N images.

    Boxes (N, Q, 4) are cxcywh fractions of the unpadded image; scores (N, Q) are the highest over
    the classes.
    """

    boxes: Tensor
    scores: Tensor


@torch.inference_mode()
def query_use(detector: Detector, table: Table, limit: int = 1000) -> QueryUse:
    """Collect what every query predicts over a split, low scores included.

    Args:
        detector: in evaluation mode, as ``detrlab.load`` returns it.
        table: the images.
        limit: at most so many of them, the first; 1000 images and 300 queries take 6 MB.

    Source: arXiv 2005.12872, figure 7.
    """
    from detrlab.data import batches

    table = table.select(range(min(limit, len(table))))
    boxes, scores = [], []
    for batch in batches(
        table, detector.preprocessing, batch=8, seed=0, epoch=0, train=False, workers=0
    ):
        images = ImageBatch(*(part.to(detector.device) for part in batch.images))
        final = detector.network(images).final
        boxes.append(final.boxes.float().cpu())
        scores.append(detector.scoring.probabilities(final.logits.float()).amax(-1).cpu())
    return QueryUse(torch.cat(boxes), torch.cat(scores))


def explained_share(use: QueryUse) -> float:
    """How much of a box's place is known from the index of its query alone, in [0, 1].

    The variance of the box centers between queries, divided by their whole variance: near 1
    when each query keeps to its own place, near 0 when the image decides (as with two-stage
    queries, whose index is only a rank).
    """
    centers = use.boxes[..., :2].double()
    whole = (centers - centers.mean(dim=(0, 1))).square().sum()
    within = (centers - centers.mean(dim=0)).square().sum()
    return float(1 - within / whole) if whole > 0 else 1.0
