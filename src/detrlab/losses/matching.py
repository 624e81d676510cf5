"""Which query is responsible for which object: a minimum-cost assignment for each image.

The costs of all sets of one shape are computed at once for the padded batch and moved to the
CPU in one transfer; only the assignment itself runs image by image.

A cost of your own is any callable ``(logits, boxes, labels, objects) -> (B, Q, N)``.

Source: arXiv 2005.12872, section 3.1; arXiv 2010.04159, appendix A.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detrlab.boxes import box_iou, cxcywh_to_xyxy, generalized_box_iou
from detrlab.losses.pairs import Weighted, precise
from detrlab.structures import Predictions, Target


def softmax_cost(logits: Tensor, boxes: Tensor, labels: Tensor, objects: Tensor) -> Tensor:  # noqa: ARG001
    """Minus the softmax probability of each object's class."""
    return -_columns(logits.softmax(-1), labels)


@dataclass(frozen=True)
class FocalCost:
    """The focal loss if the object were predicted, minus the focal loss if it were not."""

    alpha: float = 0.25
    gamma: float = 2.0

    def __call__(self, logits: Tensor, boxes: Tensor, labels: Tensor, objects: Tensor) -> Tensor:  # noqa: ARG002
        """(B, Q, K), (B, Q, 4), (B, N), (B, N, 4) -> (B, Q, N)."""
        p = _columns(logits, labels).sigmoid()  # of the objects' classes only: there may be 1,200
        positive = self.alpha * (1 - p) ** self.gamma * -torch.log(p + 1e-8)
        negative = (1 - self.alpha) * p**self.gamma * -torch.log(1 - p + 1e-8)
        return positive - negative


def l1_cost(logits: Tensor, boxes: Tensor, labels: Tensor, objects: Tensor) -> Tensor:  # noqa: ARG001
    """L1 distance of the boxes (cxcywh)."""
    return torch.cdist(boxes, objects, p=1)


@dataclass(frozen=True)
class GIoUCost:
    """Minus the generalised IoU of the boxes.

    Args:
        eps: see ``boxes.generalized_box_iou``.
    """

    eps: float = 0.0

    def __call__(self, logits: Tensor, boxes: Tensor, labels: Tensor, objects: Tensor) -> Tensor:  # noqa: ARG002
        """(B, Q, K), (B, Q, 4), (B, N), (B, N, 4) -> (B, Q, N)."""
        all_boxes, all_objects = cxcywh_to_xyxy(boxes)[:, :, None], cxcywh_to_xyxy(objects)[:, None]
        return -generalized_box_iou(all_boxes, all_objects, self.eps)


@dataclass(frozen=True)
class ScoreIouCost:
    """Minus the score of the object's class times a power of the IoU.

    Source: arXiv 2509.20787 (DEIMv2); ``matcher.py`` of the original code.
    """

    power: float = 4.0

    def __call__(self, logits: Tensor, boxes: Tensor, labels: Tensor, objects: Tensor) -> Tensor:
        """(B, Q, K), (B, Q, 4), (B, N), (B, N, 4) -> (B, Q, N)."""
        all_boxes, all_objects = cxcywh_to_xyxy(boxes)[:, :, None], cxcywh_to_xyxy(objects)[:, None]
        return -_columns(logits, labels).sigmoid() * box_iou(all_boxes, all_objects) ** self.power


def _columns(scores: Tensor, labels: Tensor) -> Tensor:
    """Columns of (B, Q, K') chosen by (B, N) labels -> (B, Q, N)."""
    return scores.gather(2, labels[:, None, :].expand(-1, scores.shape[1], -1))


class Match(NamedTuple):
    """The pairs of one image, by ascending query; both are (min(Q, N),) int64 on the CPU."""

    queries: Tensor
    objects: Tensor


class Matching(NamedTuple):
    """The pairs of several sets of predictions.

    Attributes:
        sets: for each set one ``Match`` an image.
        invalid: entries of the costs that were NaN or infinite. They get the largest cost, so
            that such a pair is chosen only when no other is left.
    """

    sets: list[list[Match]]
    invalid: int


@dataclass(frozen=True)
class HungarianMatcher:
    """One-to-one assignment of queries to objects with the least total cost.

    Attributes:
        costs: summed with their weights, in this order.
    """

    costs: tuple[Weighted, ...]

    @torch.no_grad()
    def __call__(self, sets: Sequence[Predictions], targets: Sequence[Target]) -> Matching:
        """Match sets of one shape, such as all decoder layers, to the same objects.

        Args:
            sets: each (B, Q, K') logits and (B, Q, 4) boxes.
            targets: B of them, on the same device; any number of objects, also none.

        Returns:
            For each set and image ``min(Q, N)`` pairs.
        """
        sizes = [len(target.labels) for target in targets]
        invalid = 0
        matched = []
        for cost in self._all_costs(sets, targets).cpu().numpy():  # (B, Q, N)
            images = []
            for image, size in enumerate(sizes):
                pairs, bad = _assign(cost[image, :, :size])
                images.append(pairs)
                invalid += bad
            matched.append(images)
        return Matching(matched, invalid)

    def _all_costs(self, sets: Sequence[Predictions], targets: Sequence[Target]) -> Tensor:
        """The cost of every query for every object of its image: (sets, B, Q, N)."""
        count, batch = len(sets), len(targets)
        logits = precise(torch.stack([each.logits for each in sets])).flatten(0, 1)
        boxes = precise(torch.stack([each.boxes for each in sets])).flatten(0, 1)
        # Padding rows hold the whole image: an empty box could make the GIoU NaN.
        labels = pad_sequence([target.labels for target in targets], batch_first=True)
        objects = pad_sequence(
            [target.boxes for target in targets], batch_first=True, padding_value=1.0
        ).to(boxes.dtype)
        labels, objects = labels.repeat(count, 1), objects.repeat(count, 1, 1)
        cost = sum(
            each.weight * each.function(logits, boxes, labels, objects) for each in self.costs
        )
        assert isinstance(cost, Tensor), "a matcher needs at least one cost"
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
