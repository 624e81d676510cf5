"""Denoising queries: noisy objects that the decoder learns to restore.

Source: arXiv 2203.01305 (DN-DETR), section 4; arXiv 2203.03605 (DINO), section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from detrlab.boxes import cxcywh_to_xyxy, inverse_sigmoid, xyxy_to_cxcywh
from detrlab.errors import UserError
from detrlab.models.anchors import EPS, anchors
from detrlab.ops.shares import current_share, image_generators
from detrlab.structures import Denoising, Memory, Pairs, Queries, References, SupervisedSet, Target

MOST = 4000
"""Denoising queries of an image; the self-attention of more needs too much memory."""


class Noise(NamedTuple):
    """What is drawn for R repeats of the N objects of a batch.

    Attributes:
        chosen: (R, N) uniform in [0, 1): the label is replaced where it is below half the ratio.
        labels: (R, N) int64, the labels that replace others.
        signs: (R, N, 4), each -1 or 1.
        parts: (R, N, 4) uniform in [0, 1).
    """

    chosen: Tensor
    labels: Tensor
    signs: Tensor
    parts: Tensor


class DenoisingQueries(nn.Module):
    """Adds denoising queries in front of the queries of another source, in training only.

    Each group holds every object once with little noise, to be restored, and (contrastive) once
    with more noise, to be rejected. Groups do not see one another, and the other queries do not
    see them. The number of groups follows the image with the most objects: of the whole step in
    training, so that a step does not depend on its split. Each image's noise is its own.

    Args:
        source: memory, targets -> queries, supervised sets.
        num_classes: K.
        width: D.
        number: about how many denoising queries (of one kind) an image gets.
        label_noise: twice the share of labels that are replaced.
        box_noise: how far the corners of a box move, in halves of its size.
        contrastive: with queries to be rejected (DINO) or without (DN).
        unused_labels: rows of the label embedding beyond the classes, which are never read:
            the original has one.
    """

    eps: ClassVar[float] = EPS
    """Of the inverse sigmoid."""
    empty_place: ClassVar[float] = 0.0
    """Logit of the boxes where an image has fewer objects than another: the half image."""

    def __init__(
        self,
        source: nn.Module,
        num_classes: int,
        width: int,
        *,
        number: int = 100,
        label_noise: float = 0.5,
        box_noise: float = 0.4,
        contrastive: bool = True,
        unused_labels: int = 1,
    ) -> None:
        super().__init__()
        self.source = source
        self.num_classes = num_classes
        self.number = number
        self.label_noise = label_noise
        self.box_noise = box_noise
        self.kinds = 2 if contrastive else 1
        self.labels = nn.Parameter(torch.empty(num_classes + unused_labels, width))
        nn.init.normal_(self.labels)

    def forward(
        self, memory: Memory, targets: Sequence[Target] | None = None
    ) -> tuple[Queries, tuple[SupervisedSet, ...]]:
        """Queries of the source, with denoising queries first where there are objects."""
        queries, sets = self.source(memory, targets)
        if targets is None:
            return queries, sets
        share = current_share()
        most = max(len(each.labels) for each in targets) if share is None else share.fullest
        if most == 0:
            # Several processes must agree on losses, and on which parameters have a gradient.
            none = torch.zeros(0, dtype=torch.long, device=queries.content.device)
            content = queries.content + 0.0 * self.labels[0, 0]
            without = Denoising(0, Pairs(none, none), groups=1)
            return queries._replace(content=content, denoising=without), sets
        groups = self.num_groups(most)
        if groups * most * self.kinds > MOST:
            raise UserError(self._too_many(groups, most))
        noise = self.draw(targets, groups)
        return self.insert(queries, targets, noise, most), sets

    def num_groups(self, most: int) -> int:
        """How many groups there are when the largest image holds ``most`` objects.

        Below 50, twice ``number`` is the number of groups, whatever ``most`` is: DINO's code
        does so.
        """
        twice = 2 * self.number
        return max(1, twice // (2 * most) if twice >= 100 else twice)

    def _too_many(self, groups: int, most: int) -> str:
        count = groups * most * self.kinds
        remedy = f"set denoising to at most {MOST // 2}"
        if 2 * self.number < 100:
            remedy = "set denoising to 50 or more: below, it is not divided by the objects"
        elif groups == 1:
            remedy = "train a model without denoising, or crop the images"
        return (
            f"denoising {self.number} makes {count:,} queries ({groups} groups) for an image with "
            f"{most} objects, and at most {MOST:,} are possible: {remedy}"
        )

    def draw(self, targets: Sequence[Target], groups: int) -> Noise:
        """Draw the noise of all groups."""
        repeats = groups * self.kinds
        generators = image_generators(len(targets))
        drawn = [
            self._draw(generator, (repeats, len(target.labels)))
            for generator, target in zip(generators, targets, strict=True)
        ]
        columns = (torch.cat(column, dim=1) for column in zip(*drawn, strict=True))
        device = targets[0].labels.device
        return Noise(*(column.to(device, non_blocking=True) for column in columns))

    def _draw(self, generator: torch.Generator, shape: tuple[int, int]) -> Noise:
        """The noise of one image, on the CPU."""
        return Noise(
            chosen=torch.rand(shape, generator=generator),
            labels=torch.randint(self.num_classes, shape, generator=generator),
            signs=torch.randint(2, (*shape, 4), generator=generator) * 2.0 - 1.0,
            parts=torch.rand((*shape, 4), generator=generator),
        )

    def insert(
        self, queries: Queries, targets: Sequence[Target], noise: Noise, most: int
    ) -> Queries:
        """Put denoising queries made with ``noise`` in front of ``queries``.

        Args:
            queries: of the source.
            targets: B of them.
            noise: for their objects.
            most: places of a group: objects of the fullest image.
        """
        real = anchors(queries)
        repeats = noise.chosen.shape[0]
        sizes = [len(each.labels) for each in targets]
        labels, boxes = self.disturb(targets, noise)
        device = labels.device
        # Where each object of the batch belongs: its image, and its place there. Found on the
        # CPU, because a GPU would wait for the sizes.
        image = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        place = torch.cat([torch.arange(size) for size in sizes])
        image, place = (each.to(device, non_blocking=True) for each in (image, place))
        place = place + most * torch.arange(repeats, device=device)[:, None]  # (R, N)
        count = repeats * most
        # An empty place keeps content 0.
        content = queries.content.new_zeros(len(sizes), count, queries.content.shape[2])
        content[image.expand_as(place), place] = self.labels[labels].to(content.dtype)
        logits = boxes.new_full((len(sizes), count, 4), self.empty_place)
        logits[image.expand_as(place), place] = inverse_sigmoid(boxes, self.eps)
        centers, extents = torch.cat([logits.sigmoid(), real], dim=1).split(2, dim=-1)
        return Queries(
            content=torch.cat([content, queries.content], dim=1),
            position=torch.cat([torch.zeros_like(content), queries.position], dim=1),
            references=References(centers, extents),
            blocked=self._blocked(count, most * self.kinds, queries.content.shape[1], device),
            denoising=Denoising(
                count, self._pairs(image, place, count), groups=repeats // self.kinds
            ),
            cells=queries.cells,
        )

    def disturb(self, targets: Sequence[Target], noise: Noise) -> tuple[Tensor, Tensor]:
        """Labels (R, N) and boxes (R, N, 4) with noise."""
        labels = torch.cat([each.labels for each in targets])
        boxes = torch.cat([each.boxes for each in targets])
        labels = torch.where(noise.chosen < self.label_noise * 0.5, noise.labels, labels)
        parts = noise.parts.to(boxes.dtype)
        # The second of each pair of repeats is to be rejected: it moves by one to two.
        further = torch.arange(len(parts), device=boxes.device) % self.kinds
        parts = (parts + further[:, None, None]) * noise.signs.to(boxes.dtype)
        reach = (boxes[:, 2:] / 2).repeat(1, 2) * self.box_noise
        corners = (cxcywh_to_xyxy(boxes) + parts * reach).clamp(0, 1)
        return labels, xyxy_to_cxcywh(corners)

    def _pairs(self, image: Tensor, place: Tensor, count: int) -> Pairs:
        """Queries to be restored and their objects, image by image as the loss reads them."""
        queries = image * count + place[:: self.kinds]  # (groups, N)
        objects = torch.arange(len(image), device=image.device).expand_as(queries)
        return Pairs(queries.flatten(), objects.flatten())

    @staticmethod
    def _blocked(count: int, group: int, real: int, device: torch.device) -> Tensor:
        """(P + Q, P + Q) bool, True where the row must not attend to the column."""
        groups = torch.arange(count, device=device) // group
        blocked = torch.zeros(count + real, count + real, dtype=torch.bool, device=device)
        blocked[:count, :count] = groups[:, None] != groups
        blocked[count:, :count] = True
        return blocked


class RtDetrDenoising(DenoisingQueries):
    """Contrastive denoising as in RT-DETR.

    ``number`` is divided by the objects of the fullest image whatever it is, and an empty place
    holds a box of no size in the corner.

    Source: lyuwenyu/RT-DETR, ``denoising.py``.
    """

    eps: ClassVar[float] = 1e-5
    empty_place: ClassVar[float] = math.log(1e-5)

    def __init__(self, source: nn.Module, num_classes: int, width: int, **options: Any) -> None:
        super().__init__(source, num_classes, width, **options)
        with torch.no_grad():
            self.labels[num_classes:] = 0.0  # what the originals put into empty places

    def num_groups(self, most: int) -> int:
        """How many groups there are when the largest image holds ``most`` objects."""
        return max(1, self.number // most)


class RealTimeDenoising(RtDetrDenoising):
    """Contrastive denoising as in D-FINE: a box that noise has turned inside out stays a box.

    Source: Peterande/D-FINE, ``denoising.py``.
    """

    def disturb(self, targets: Sequence[Target], noise: Noise) -> tuple[Tensor, Tensor]:
        """Labels (R, N) and boxes (R, N, 4) with noise."""
        labels, boxes = super().disturb(targets, noise)
        return labels, boxes.abs()
