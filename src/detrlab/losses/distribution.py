"""Losses of distributions over box edges: fine-grained localisation and self-distillation.

Source: arXiv 2410.13842 (D-FINE), sections 4.1 and 4.2; ``loss_local`` of the original code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from detrlab.boxes import REACH, cxcywh_to_xyxy, edge_steps, split_edges
from detrlab.losses.pairs import MatchedPairs

TEMPERATURE = 5.0


@dataclass(frozen=True)
class FineGrained:
    """FGL: cross entropy with the two weights beside the true movement of each edge.

    Args:
        scale: of the steps, see ``boxes.edge_steps``.
    """

    scale: float = 4.0

    def __call__(self, pairs: MatchedPairs) -> Tensor | None:
        """The sum over edges, each by the IoU of its box, divided by the number of objects.

        None for a set without distributions.
        """
        details = pairs.predictions.details
        if "corners" not in details:
            return None
        corners = split_edges(details["corners"].flatten(0, 1)[pairs.queries]).flatten(0, 1)
        initial = details["initial"].flatten(0, 1)[pairs.queries]
        left, share = wanted_bins(initial, pairs.boxes, corners.shape[-1] - 1, self.scale)
        weights = pairs.iou.detach()[:, None].expand(-1, 4).flatten()
        nearer = F.cross_entropy(corners, left, reduction="none") * (1 - share)
        further = F.cross_entropy(corners, left + 1, reduction="none") * share
        return ((nearer + further) * weights).sum() / pairs.counts.objects


@torch.no_grad()
def wanted_bins(initial: Tensor, boxes: Tensor, bins: int, scale: float) -> tuple[Tensor, Tensor]:
    """Between which weights of the distribution each edge of an object lies.

    Args:
        initial: (P, 4) boxes that the distributions lie around.
        boxes: (P, 4) the objects; both cxcywh.
        bins: N.
        scale: of the steps.

    Returns:
        (4 P,) the lower index, 0 to N - 1, and how much of the probability belongs to the next.
        What lies further away than the last weight belongs to the last.
    """
    corners, centers = cxcywh_to_xyxy(boxes), initial[:, :2]
    unit = initial[:, 2:] / scale + 1e-16
    low, high = (centers - corners[:, :2]) / unit, (corners[:, 2:] - centers) / unit
    moves = (torch.cat([low, high], dim=1) - 0.5 * scale).flatten()
    values = edge_steps(moves.new_tensor([REACH]), moves.new_tensor([scale]), bins)
    index = torch.searchsorted(values, moves, right=True) - 1
    left = index.clamp(0, bins - 1)
    from_left, to_right = (moves - values[left]).abs(), (values[left + 1] - moves).abs()
    share = from_left / (from_left + to_right)
    share = torch.where(index < 0, 0.0, torch.where(index >= bins, 1.0, share))
    return left, share


def self_distillation(pairs: MatchedPairs) -> Tensor | None:
    """DDF: earlier layers learn the last layer's distributions, matched queries and others.

    Matched queries count by their IoU, others by the last layer's confidence; the means of both
    are weighed by the roots of their numbers. None for the last layer and sets without
    distributions.
    """
    details = pairs.predictions.details
    if "teacher_corners" not in details:
        return None
    learner = split_edges(details["corners"]).flatten(0, 1)  # (B Q, 4, N + 1)
    teacher = split_edges(details["teacher_corners"]).flatten(0, 1)
    weights = details["teacher_logits"].sigmoid().max(-1).values.flatten()
    weights = weights.index_put((pairs.queries,), pairs.iou.detach().to(weights.dtype))
    distance = F.kl_div(
        (learner / TEMPERATURE).log_softmax(-1),
        (teacher / TEMPERATURE).softmax(-1),
        reduction="none",
    ).sum(-1)
    losses = TEMPERATURE**2 * weights * distance.mean(-1)
    matched = torch.zeros_like(weights)
    matched[pairs.queries] = 1.0
    others = 1 - matched
    inside = (losses * matched).sum() / matched.sum().clamp(min=1)
    outside = (losses * others).sum() / others.sum().clamp(min=1)
    taken, left = (count**0.5 for count in pairs.taken)
    # A mean over the queries here: a micro-batch counts by its share of the step's.
    share = sum(pairs.taken) / pairs.counts.queries
    return share * (inside * taken + outside * left) / (taken + left)
