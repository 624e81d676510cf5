"""Which query is responsible for which object: a minimum-cost assignment, image by image.

The costs of all decoder layers are computed in one go for the padded batch and cross to the
CPU in one transfer; only the assignment itself runs image by image.

Source: arXiv 2005.12872, section 3.1; arXiv 2010.04159, appendix A.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detrlab.boxes import cxcywh_to_xyxy, generalized_box_iou
from detrlab.scoring import Scoring
from detrlab.structures import Predictions, Target


class Weights(NamedTuple):
    """How much the three terms count, in the matching cost and in the loss alike.

    Attributes:
        classes: of the class term; the originals take 1 with softmax, 2 with sigmoid.
        boxes: of the L1 distance of the boxes.
        giou: of the generalised IoU.
    """

    classes: float
    boxes: float = 5.0
    giou: float = 2.0


class Match(NamedTuple):
    """The pairs of one image, by ascending query; both are (min(Q, N),) int64 on the CPU."""

    queries: Tensor
    objects: Tensor


class Matching(NamedTuple):
    """The pairs of several sets of predictions.

    Attributes:
        sets: one list of ``Match``, one an image, for each set of predictions.
        invalid: entries of the costs that were NaN or infinite. They were given the largest
            cost, so that such a pair is chosen only when no other is left.
    """

    sets: list[list[Match]]
    invalid: int


def match(
    predictions: Predictions, targets: Sequence[Target], scoring: Scoring, weights: Weights
) -> list[Match]:
    """Match one set of predictions; see ``match_sets``."""
    return match_sets([predictions], targets, scoring, weights).sets[0]


@torch.no_grad()
def match_sets(
    sets: Sequence[Predictions], targets: Sequence[Target], scoring: Scoring, weights: Weights
) -> Matching:
    """Match sets of predictions of one shape, such as all decoder layers, to the same objects.

    Args:
        sets: each (B, Q, K') logits and (B, Q, 4) boxes.
        targets: B of them, on the same device; any number of objects, also none.
        scoring: how the logits are read.
        weights: of the three terms of the cost.

    Returns:
        For each set and image ``min(Q, N)`` pairs.
    """
    sizes = [len(target.labels) for target in targets]
    costs = _costs(sets, targets, scoring, weights).cpu().numpy()
    invalid = 0
    matched = []
    for cost in costs:  # (B, Q, N)
        images = []
        for image, size in enumerate(sizes):
            pairs, bad = _assign(cost[image, :, :size])
            images.append(pairs)
            invalid += bad
        matched.append(images)
    return Matching(matched, invalid)


def _costs(
    sets: Sequence[Predictions], targets: Sequence[Target], scoring: Scoring, weights: Weights
) -> Tensor:
    """The cost of every query for every object of its image: (sets, B, Q, N)."""
    count, batch = len(sets), len(targets)
    logits = precise(torch.stack([each.logits for each in sets])).flatten(0, 1)
    boxes = precise(torch.stack([each.boxes for each in sets])).flatten(0, 1)
    # Rows that only fill up hold the whole image: an empty box could make NaN of the GIoU.
    labels = pad_sequence([target.labels for target in targets], batch_first=True)
    objects = pad_sequence(
        [target.boxes for target in targets], batch_first=True, padding_value=1.0
    ).to(boxes.dtype)
    labels, objects = labels.repeat(count, 1), objects.repeat(count, 1, 1)

    distance = torch.cdist(boxes, objects, p=1)  # (sets * B, Q, N)
    overlap = generalized_box_iou(
        cxcywh_to_xyxy(boxes)[:, :, None], cxcywh_to_xyxy(objects)[:, None]
    )
    cost = (
        weights.boxes * distance
        + weights.classes * scoring.matching_cost(logits, labels)
        - weights.giou * overlap
    )
    return cost.unflatten(0, (count, batch))


def _assign(cost: np.ndarray) -> tuple[Match, int]:
    """Solve one image's (Q, N) assignment; also the number of entries that were not finite."""
    from scipy.optimize import linear_sum_assignment

    finite = np.isfinite(cost)
    invalid = cost.size - int(finite.sum())
    if invalid:
        # Differs from the originals, which stop here: like transformers, the pair is chosen
        # last, and the caller counts it. A loss that is not finite still stops the training.
        cost = np.where(finite, cost, np.finfo(cost.dtype).max)
    queries, objects = linear_sum_assignment(cost)
    order = np.argsort(queries)
    return Match(torch.from_numpy(queries[order]), torch.from_numpy(objects[order])), invalid


def precise(values: Tensor) -> Tensor:
    """At least float32: half precision is too coarse for boxes, costs and losses."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
