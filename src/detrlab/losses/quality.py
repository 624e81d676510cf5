"""Class losses whose target is how well the box fits: the score learns to say it."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from detrlab.losses.pairs import MatchedPairs


@dataclass(frozen=True)
class MatchabilityAware:
    """MAL: matched queries should score IoU ** gamma, whatever the IoU with full weight.

    Source: arXiv 2412.04234 (DEIM), section 3.3.
    """

    gamma: float = 1.5

    def __call__(self, pairs: MatchedPairs) -> Tensor:
        """The sum over queries and classes, divided by the number of objects."""
        logits = pairs.predictions.logits
        matched, iou = matched_columns(pairs)
        score = logits.sigmoid().detach()
        weight = score**self.gamma * (1 - matched) + matched
        loss = F.binary_cross_entropy_with_logits(
            logits, iou**self.gamma, weight=weight, reduction="sum"
        )
        return loss / pairs.counts.objects


@dataclass(frozen=True)
class Varifocal:
    """VFL: matched queries should score the IoU of their box; others count by their score.

    Source: arXiv 2008.13367; arXiv 2304.08069 (RT-DETR), section 4.3.
    """

    alpha: float = 0.75
    gamma: float = 2.0

    def __call__(self, pairs: MatchedPairs) -> Tensor:
        """The sum over queries and classes, divided by the number of objects."""
        logits = pairs.predictions.logits
        matched, iou = matched_columns(pairs)
        score = logits.sigmoid().detach()
        weight = self.alpha * score**self.gamma * (1 - matched) + iou
        loss = F.binary_cross_entropy_with_logits(logits, iou, weight=weight, reduction="sum")
        return loss / pairs.counts.objects


def matched_columns(pairs: MatchedPairs) -> tuple[Tensor, Tensor]:
    """Where each matched query's class lies: ones, and the IoU of its box; both (B, Q, K)."""
    logits = pairs.predictions.logits
    row = (pairs.queries, pairs.labels)
    matched, iou = logits.new_zeros(logits.shape), logits.new_zeros(logits.shape)
    matched.flatten(0, 1)[row] = 1.0
    iou.flatten(0, 1)[row] = pairs.iou.detach().to(logits.dtype)
    return matched, iou
