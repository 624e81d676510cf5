"""Class losses whose targets are the quality of a box: the IoU of a matched pair.

Source: arXiv 2304.08069, section 4.3; arXiv 2008.13367, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from detrlab.losses.pairs import MatchedPairs


@dataclass(frozen=True)
class Varifocal:
    """Sigmoid cross entropy to the IoU of each pair; other queries and classes count by focus.

    A matched class weighs as much as its IoU, all others ``alpha * p ** gamma``. The IoU and the
    weights are constants to the gradient.

    Source: arXiv 2008.13367, equation 2, as ``loss_labels_vfl`` of lyuwenyu/RT-DETR.
    """

    alpha: float = 0.75
    gamma: float = 2.0

    def __call__(self, pairs: MatchedPairs) -> Tensor:
        """The sum over queries and classes, divided by the number of objects."""
        logits = pairs.predictions.logits
        weights = self.alpha * logits.detach().sigmoid() ** self.gamma
        targets = weights.new_zeros(weights.shape)
        iou = pairs.iou.detach()
        for values in (weights, targets):
            values.flatten(0, 1)[pairs.queries, pairs.labels] = iou
        total = F.binary_cross_entropy_with_logits(logits, targets, weights, reduction="sum")
        return total / pairs.counts.objects
