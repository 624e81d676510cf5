"""Loss terms: functions of ``MatchedPairs``, each a scalar that is already divided.

A term of your own is any callable ``(MatchedPairs) -> scalar``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from detrlab.boxes import cxcywh_to_xyxy, generalized_box_iou
from detrlab.losses.pairs import UNMATCHED, MatchedPairs


@dataclass(frozen=True)
class CrossEntropy:
    """Softmax cross entropy over K classes and "no object", which is the last.

    Args:
        no_object_weight: weight of queries that should predict no object.

    Source: arXiv 2005.12872, section 3.1 and appendix A.4.
    """

    no_object_weight: float = 0.1

    def __call__(self, pairs: MatchedPairs) -> Tensor:
        """The weighted mean over all queries."""
        logits, labels, counts = pairs.predictions.logits, pairs.all_labels, pairs.counts
        no_object = logits.shape[-1] - 1
        targets = torch.where(labels == UNMATCHED, no_object, labels)
        weights = torch.ones_like(logits[0, 0])
        weights[no_object] = self.no_object_weight
        total = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), weights, reduction="sum")
        # The weighted mean of the originals: divided by the weights, not by the objects.
        unmatched = counts.queries - counts.matched
        return total / (counts.matched + self.no_object_weight * unmatched)


@dataclass(frozen=True)
class Focal:
    """Sigmoid focal loss of every query and class.

    Source: arXiv 1708.02002, section 3; arXiv 2010.04159, appendix A.4.
    """

    alpha: float = 0.25
    gamma: float = 2.0

    def __call__(self, pairs: MatchedPairs) -> Tensor:
        """The sum over queries and classes, divided by the number of objects."""
        logits, labels = pairs.predictions.logits, pairs.all_labels
        # One more column takes the ones of unmatched queries and is cut off again.
        num_classes = logits.shape[-1]
        columns = torch.where(labels == UNMATCHED, num_classes, labels)
        targets = logits.new_zeros(*logits.shape[:-1], num_classes + 1)
        targets = targets.scatter(-1, columns[..., None], 1.0)[..., :-1]
        p = logits.sigmoid()
        cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        p_true = p * targets + (1 - p) * (1 - targets)
        alpha = self.alpha * targets + (1 - self.alpha) * (1 - targets)
        return (alpha * (1 - p_true) ** self.gamma * cross_entropy).sum() / pairs.counts.objects


def box_l1(pairs: MatchedPairs) -> Tensor:
    """L1 distance of the matched boxes (cxcywh), divided by the number of objects.

    Source: arXiv 2005.12872, section 3.1, "bounding box loss".
    """
    return (pairs.found - pairs.boxes).abs().sum() / pairs.counts.objects


@dataclass(frozen=True)
class GIoU:
    """One minus the generalised IoU of the matched boxes, divided by the number of objects.

    Args:
        eps: see ``boxes.generalized_box_iou``.

    Source: arXiv 2005.12872, section 3.1, "bounding box loss".
    """

    eps: float = 0.0

    def __call__(self, pairs: MatchedPairs) -> Tensor:
        """The sum over pairs, divided by the number of objects."""
        found, wanted = cxcywh_to_xyxy(pairs.found), cxcywh_to_xyxy(pairs.boxes)
        return (1 - generalized_box_iou(found, wanted, self.eps)).sum() / pairs.counts.objects
