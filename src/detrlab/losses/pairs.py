"""The record that losses read: one set of predictions and the objects it should predict."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detrlab.boxes import box_iou, cxcywh_to_xyxy
from detrlab.structures import Predictions, Target

UNMATCHED = -1
"""Class index of a query that no object is matched to."""


class Weighted(NamedTuple):
    """A loss term or a matching cost.

    Attributes:
        name: in logs.
        weight: what it is multiplied by.
        function: a term or a cost, see ``terms`` and ``matching``. A term may give None for a
            set that it does not apply to.
        union: a term over the pairs that all sets have agreed on, see ``union``.
    """

    name: str
    weight: float
    function: Callable[..., Any]
    union: bool = False


class Counts(NamedTuple):
    """What a whole optimiser step divides its losses by, over all processes and micro-batches.

    All three depend on the targets only, so they are known before the forward pass.

    Attributes:
        objects: annotated objects, at least 1.
        matched: queries that are matched to an object: ``sum(min(Q, objects of the image))``.
        queries: all queries, ``images * Q``.
    """

    objects: float
    matched: float
    queries: float


def tally(targets: Iterable[Target], num_queries: int) -> Counts:
    """The counts of some images. Add those of a whole step up with ``total_counts``."""
    sizes = [len(target.labels) for target in targets]
    return Counts(
        objects=float(sum(sizes)),
        matched=float(sum(min(size, num_queries) for size in sizes)),
        queries=float(len(sizes) * num_queries),
    )


def total_counts(parts: Iterable[Sequence[float]]) -> Counts:
    """The counts of an optimiser step from those of its micro-batches and processes.

    Differs from the reference, which divides by each process's own mean: here a step gives the
    same result however it is split.
    """
    objects, matched, queries = (sum(column) for column in zip(*parts, strict=True))
    return Counts(max(1.0, objects), matched, queries)


@dataclass(frozen=True)
class MatchedPairs:
    """One set of predictions with its matched pairs. Everything is float32 at least.

    Attributes:
        predictions: the whole set, matched or not: (B, Q, ...).
        queries: (P,) int64, matched queries as indices into ``B * Q``.
        labels: (P,) int64, the class each matched query should predict.
        boxes: (P, 4), the box each matched query should predict, cxcywh fractions.
        counts: what the step divides by.
        taken: how many of the batch's real queries (not the denoising ones) are matched, and how
            many are not.
    """

    predictions: Predictions
    queries: Tensor
    labels: Tensor
    boxes: Tensor
    counts: Counts
    taken: tuple[int, int] = (0, 0)

    @cached_property
    def found(self) -> Tensor:
        """(P, 4), the boxes that the matched queries predict, cxcywh fractions."""
        return self.predictions.boxes.flatten(0, 1)[self.queries]

    @cached_property
    def iou(self) -> Tensor:
        """(P,), the IoU of each pair's boxes."""
        return box_iou(cxcywh_to_xyxy(self.found), cxcywh_to_xyxy(self.boxes))

    @cached_property
    def all_labels(self) -> Tensor:
        """(B, Q), the class each query should predict, ``UNMATCHED`` for no object."""
        logits = self.predictions.logits
        labels = logits.new_full(logits.shape[:2], UNMATCHED, dtype=torch.long)
        labels.view(-1)[self.queries] = self.labels
        return labels


def precise(values: Any) -> Any:
    """A tensor, or all tensors of ``Predictions``, as float32 at least.

    Half precision is too coarse for boxes, costs and losses.
    """
    if isinstance(values, Predictions):
        details = {name: precise(value) for name, value in values.details.items()}
        return Predictions(precise(values.logits), precise(values.boxes), details)
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
