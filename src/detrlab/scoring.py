"""How class logits are read: softmax with a no-object class, or one sigmoid per class.

This file holds what inference needs: the width of the class head, its initial bias and how
detections are decoded. The losses and matching costs of both are in ``losses``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor


class Scores(NamedTuple):
    """Detections read off the logits, best first.

    Attributes:
        scores: (B, k).
        labels: (B, k) class indices.
        queries: (B, k) index of the query of each detection.
    """

    scores: Tensor
    labels: Tensor
    queries: Tensor


class Scoring(Protocol):
    """What heads and post-processing ask of a scoring."""

    @property
    def initial_bias(self) -> float | None:
        """Initial bias of the class head; None leaves PyTorch's default."""

    def num_logits(self, num_classes: int) -> int:
        """Outputs of the class head for K classes."""

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probability of each class: (..., K') logits -> (..., K) in [0, 1]."""

    def claims(self, logits: Tensor) -> Tensor:
        """Which queries predict an object: (B, Q, K') logits -> (B, Q) bool."""

    def decode(self, logits: Tensor, limit: int = 100) -> Scores:
        """At most ``limit`` detections an image from (B, Q, K') logits."""


@dataclass(frozen=True)
class SoftmaxScoring:
    """Softmax over K classes and "no object", which is the last.

    Source: arXiv 2005.12872, sections 3.1 and A.2.
    """

    @property
    def initial_bias(self) -> float | None:
        """None: PyTorch's default."""
        return None

    def num_logits(self, num_classes: int) -> int:
        """K + 1: the last logit is that of no object."""
        return num_classes + 1

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
    """One sigmoid per class; there is no no-object class.

    Source: arXiv 1708.02002, section 3.3 (prior); arXiv 2010.04159, appendix A.4.
    """

    prior: float = 0.01

    @property
    def initial_bias(self) -> float | None:
        """The logit of the prior probability."""
        return -math.log((1 - self.prior) / self.prior)

    def num_logits(self, num_classes: int) -> int:
        """K."""
        return num_classes

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
