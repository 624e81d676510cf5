"""Convert a network's predictions to boxes in pixels of the original images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from detrlab.boxes import cxcywh_to_xyxy
from detrlab.detections import Detections
from detrlab.scoring import Scoring
from detrlab.structures import Predictions


class Decoded(NamedTuple):
    """The detections of a batch, by descending score in each image.

    Attributes:
        boxes: (B, k, 4), xyxy in pixels of the original images; not clipped to them.
        scores: (B, k) in [0, 1].
        labels: (B, k) int64 class indices.
        queries: (B, k) int64, the query each detection comes from.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    queries: Tensor


def decode(
    predictions: Predictions,
    scoring: Scoring,
    original_sizes: Sequence[tuple[int, int]],
    limit: int = 100,
) -> Decoded:
    """Detections from one set of predictions: no threshold, no NMS, no clipping.

    Boxes are fractions of the unpadded image, so padding has no influence. They may extend beyond
    the image, as in the originals, because clipping would change the metrics.

    Args:
        predictions: of any decoder layer; computed in float32 whatever their precision.
        scoring: how the class logits are read.
        original_sizes: (height, width) of each image on disk, B of them.
        limit: largest number of detections per image.

    Source: facebookresearch/detr and fundamentalvision/Deformable-DETR, class PostProcess.
    """
    logits, boxes = predictions.logits.float(), predictions.boxes.float()
    assert len(original_sizes) == len(boxes), "one original size for each image"
    scores, labels, queries = scoring.decode(logits, limit)
    corners = cxcywh_to_xyxy(boxes).gather(1, queries[..., None].expand(-1, -1, 4))
    scale = corners.new_tensor([(w, h, w, h) for h, w in original_sizes])  # (B, 4)
    return Decoded(corners * scale[:, None], scores, labels, queries)


def detections(
    decoded: Decoded,
    index: int,
    classes: tuple[str, ...],
    category_ids: tuple[int, ...],
    size: tuple[int, int],
    image_id: int | str | None = None,
) -> Detections:
    """The public record for image ``index`` of the batch, on the CPU; see ``Detections``."""
    boxes, scores, labels, _ = (part[index].detach().cpu() for part in decoded)
    return Detections(
        boxes=boxes.to(torch.float32),
        scores=scores.to(torch.float32),
        labels=labels,
        classes=classes,
        category_ids=category_ids,
        size=size,
        image_id=image_id,
    )
