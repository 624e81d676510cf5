"""How class logits are read: softmax with a no-object class, or one sigmoid per class.

The two families differ in nothing else about classes, so everything that depends on the
choice stands here: the width of the class head, its initial bias, the matching cost, the
training loss and the decoding of detections.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

UNMATCHED = -1
"""Class index of a query that no object was matched to."""


class Counts(NamedTuple):
    """What a whole optimiser step divides its losses by, over all processes and micro-batches.

    All three follow from the targets alone, so that they are known before the forward pass.

    Attributes:
        objects: annotated objects, at least 1.
        matched: queries that get an object: ``sum(min(Q, objects of the image))``.
        queries: all queries, ``images * Q``.
    """

    objects: float
    matched: float
    queries: float


class Scores(NamedTuple):
    """Detections read off the logits, best first.

    Attributes:
        scores: (B, k).
        labels: (B, k) class indices.
        queries: (B, k) index of the query each detection comes from.
    """

    scores: Tensor
    labels: Tensor
    queries: Tensor


class Scoring(Protocol):
    """What matching, losses, heads and post-processing ask of a scoring."""

    @property
    def initial_bias(self) -> float | None:
        """Initial bias of the class head; None leaves PyTorch's default."""

    @property
    def class_weight(self) -> float:
        """Weight of the class term in the matching cost and in the loss."""

    def num_logits(self, num_classes: int) -> int:
        """Outputs of the class head for K classes."""

    def matching_cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cost of each query for each object: (B, Q, K'), (B, N) -> (B, Q, N)."""

    def loss(self, logits: Tensor, labels: Tensor, counts: Counts) -> Tensor:
        """Class loss of (B, Q, K') logits for (B, Q) labels, ``UNMATCHED`` where no object."""

    def probabilities(self, logits: Tensor) -> Tensor:
        """How sure each query is of each class: (..., K') logits -> (..., K) in [0, 1]."""

    def claims(self, logits: Tensor) -> Tensor:
        """Which queries say they found an object: (B, Q, K') logits -> (B, Q) bool."""

    def decode(self, logits: Tensor, limit: int = 100) -> Scores:
        """At most ``limit`` detections an image from (B, Q, K') logits."""


def _gather_classes(scores: Tensor, labels: Tensor) -> Tensor:
    """Columns of (B, Q, K') chosen by (B, N) labels -> (B, Q, N)."""
    return scores.gather(2, labels[:, None, :].expand(-1, scores.shape[1], -1))


@dataclass(frozen=True)
class SoftmaxScoring:
    """Softmax over K classes and "no object", which is the last.

    Source: arXiv 2005.12872, sections 3.1 and A.2.
    """

    no_object_weight: float = 0.1
    class_weight: float = 1.0

    @property
    def initial_bias(self) -> float | None:
        """None: PyTorch's default."""
        return None

    def num_logits(self, num_classes: int) -> int:
        """K + 1: the last logit is that of no object."""
        return num_classes + 1

    def matching_cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Minus the probability of the object's class."""
        return -_gather_classes(logits.softmax(-1), labels)

    def loss(self, logits: Tensor, labels: Tensor, counts: Counts) -> Tensor:
        """Weighted cross entropy, no object counting less."""
        no_object = logits.shape[-1] - 1
        targets = torch.where(labels == UNMATCHED, no_object, labels)
        weights = logits.new_ones(logits.shape[-1])
        weights[no_object] = self.no_object_weight
        total = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), weights, reduction="sum")
        # The weighted mean of the originals: divided by the weights, not by the objects.
        unmatched = counts.queries - counts.matched
        return total / (counts.matched + self.no_object_weight * unmatched)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Softmax over the classes and no object, without the latter."""
        return logits.softmax(-1)[..., :-1]

    def claims(self, logits: Tensor) -> Tensor:
        """Queries whose best logit is a class."""
        return logits.argmax(-1) != logits.shape[-1] - 1

    def decode(self, logits: Tensor, limit: int = 100) -> Scores:
        """The best class of each query, no object left out of the choice."""
        scores, labels = self.probabilities(logits).max(-1)
        scores, queries = scores.topk(min(limit, scores.shape[1]), dim=1)
        return Scores(scores, labels.gather(1, queries), queries)


@dataclass(frozen=True)
class SigmoidScoring:
    """One sigmoid per class, trained with the focal loss; there is no no-object class.

    Source: arXiv 1708.02002, section 3; arXiv 2010.04159, appendix A.4.
    """

    alpha: float = 0.25
    gamma: float = 2.0
    prior: float = 0.01
    class_weight: float = 2.0

    @property
    def initial_bias(self) -> float | None:
        """The logit of the prior probability."""
        return -math.log((1 - self.prior) / self.prior)

    def num_logits(self, num_classes: int) -> int:
        """K."""
        return num_classes

    def matching_cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What the focal loss would cost if the object were there, less if it were not."""
        p = logits.sigmoid()
        positive = self.alpha * (1 - p) ** self.gamma * -torch.log(p + 1e-8)
        negative = (1 - self.alpha) * p**self.gamma * -torch.log(1 - p + 1e-8)
        return _gather_classes(positive - negative, labels)

    def loss(self, logits: Tensor, labels: Tensor, counts: Counts) -> Tensor:
        """Focal loss of every query and class."""
        # An extra column takes the unmatched queries' ones and is cut off again.
        num_classes = logits.shape[-1]
        columns = torch.where(labels == UNMATCHED, num_classes, labels)
        targets = logits.new_zeros(*logits.shape[:-1], num_classes + 1)
        targets = targets.scatter(-1, columns[..., None], 1.0)[..., :-1]
        p = logits.sigmoid()
        cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        p_true = p * targets + (1 - p) * (1 - targets)
        alpha = self.alpha * targets + (1 - self.alpha) * (1 - targets)
        return (alpha * (1 - p_true) ** self.gamma * cross_entropy).sum() / counts.objects

    def probabilities(self, logits: Tensor) -> Tensor:
        """The sigmoid of each class."""
        return logits.sigmoid()

    def claims(self, logits: Tensor) -> Tensor:
        """Queries that give some class more than one half."""
        return (logits > 0).any(-1)  # sigmoid above one half

    def decode(self, logits: Tensor, limit: int = 100) -> Scores:
        """The best pairs of query and class; a query may appear with several classes."""
        num_classes = logits.shape[-1]
        flat = self.probabilities(logits).flatten(1)  # (B, Q * K)
        scores, index = flat.topk(min(limit, flat.shape[1]), dim=1)
        return Scores(scores, index % num_classes, index // num_classes)
