"""Small objects in large pictures: the picture is searched in overlapping tiles.

After sliced inference (Akyon et al. 2022, arXiv 2202.06934). There, all boxes of all tiles are
merged by their overlap, which also merges neighbours that one tile tells apart. Here a tile's own
detections are never merged with each other; two tiles are compared where both have looked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from detrlab.detections import Detections, Threshold
from detrlab.errors import UserError
from detrlab.images import Finder, as_picture, as_pixels

if TYPE_CHECKING:
    from detrlab.images import Picture

AGREE = 0.5
"""IoU, in the region that two tiles share, from which two detections are one object."""
COVERED = 0.7
"""Share of a cut-off part that must lie in another tile's box to belong to it."""
_ROWS = 128  # detections that are compared with all others at once, to bound memory
_EDGE = 3.0  # pixels from a tile's inner edge within which a box counts as cut off


@dataclass(frozen=True)
class Tiled(Finder):
    """A detector that looks at overlapping tiles of each picture, and at the whole of it.

    Attributes:
        detector: sees the tiles.
        side: of a tile, in pixels of the picture.
        overlap: share of a tile that its neighbour sees too; an object that is smaller than this
            strip lies whole in one of them.
    """

    detector: Finder
    side: int
    overlap: float = 0.2

    def __post_init__(self) -> None:
        if self.side < 32:
            raise UserError(f"tiles of {self.side} px are too small: take at least 32")
        if not 0 <= self.overlap <= 0.9:
            raise UserError(f"tiles cannot overlap by {self.overlap}: take 0 to 0.9, such as 0.2")

    @property
    def classes(self) -> tuple[str, ...]:  # type: ignore[override]
        """The detector's."""
        return self.detector.classes

    def predict_each(
        self,
        images: Iterable[Picture],
        *,
        threshold: Threshold = "auto",
        limit: int = 100,
        keep_image: bool = True,
    ) -> Iterator[Detections]:
        """As ``Detector.predict_each``; ``limit`` counts for each tile."""
        for image in images:
            pixels = as_pixels(image)
            height, width = pixels.shape[1:]
            areas = tiles_of(height, width, self.side, self.overlap)
            parts = (pixels[:, y0:y1, x0:x1].contiguous() for x0, y0, x1, y1 in areas)
            found = list(
                self.detector.predict_each(
                    parts, threshold=threshold, limit=limit, keep_image=False
                )
            )
            merged = merge(found, areas, (height, width))
            yield replace(merged, image=as_picture(pixels) if keep_image else None)


def tiles_of(height: int, width: int, side: int, overlap: float) -> list[tuple[int, ...]]:
    """The whole picture, then its tiles: xyxy in pixels; only the whole where one tile holds it."""
    whole = (0, 0, width, height)
    rows, columns = (_starts(length, side, overlap) for length in (height, width))
    tiles = [(x, y, min(x + side, width), min(y + side, height)) for y in rows for x in columns]
    return [whole] if len(tiles) == 1 else [whole, *tiles]


def _starts(length: int, side: int, overlap: float) -> list[int]:
    """Where tiles start, evenly spaced from edge to edge."""
    if length <= side:
        return [0]
    count = math.ceil((length - overlap * side) / (side * (1 - overlap)))
    return [round(i * (length - side) / (count - 1)) for i in range(count)]


def merge(
    found: list[Detections], areas: list[tuple[int, ...]], size: tuple[int, int]
) -> Detections:
    """The detections of tiles as those of the picture; an object on a seam is listed once.

    Two detections of one class in two tiles are one object if they agree in the region that both
    tiles have seen: by an IoU of at least ``AGREE`` there, or, for one that its tile cuts off, by
    ``COVERED`` of its area. Pairs that agree most are joined first. Two detections of one tile are
    never joined, except parts that are cut off, to an object that another tile shows whole. The
    object's box is its best detection that no tile cuts off or, if all are cut off, the smallest
    box around them; its score is the best one.

    Args:
        found: the detections of each tile, in pixels of the tile.
        areas: the tiles, xyxy in pixels of the picture.
        size: (height, width) of the picture.
    """
    tile = torch.tensor([i for i, each in enumerate(found) for _ in range(len(each))])
    area = torch.tensor(areas, dtype=torch.float32)[tile.long()].reshape(-1, 4)
    boxes = torch.cat([each.boxes for each in found]) + area[:, [0, 1, 0, 1]]
    scores = torch.cat([each.scores for each in found])
    labels = torch.cat([each.labels for each in found])
    cut = _cut(boxes, area, size)
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        pairs = _pairs(boxes[rows], area[rows], cut[rows], tile[rows])
        for group in _joined(pairs, tile[rows].tolist(), cut[rows].tolist()):
            members = rows[torch.tensor(group)]
            whole = members[~cut[members]]
            if len(whole):
                box = boxes[whole[scores[whole].argmax()]]
            else:
                box = torch.cat([boxes[members, :2].amin(0), boxes[members, 2:].amax(0)])
            kept.append((box, scores[members].max(), label))
    if not kept:
        return replace(found[0], size=size)
    kept.sort(key=lambda each: -float(each[1]))
    columns = (torch.stack(list(column)) for column in zip(*kept, strict=True))
    boxes, scores, labels = columns
    return replace(found[0], boxes=boxes, scores=scores, labels=labels, size=size)


def _cut(boxes: Tensor, area: Tensor, size: tuple[int, int]) -> Tensor:
    """(N,) whether a box reaches an edge of its tile that is no edge of the picture."""
    height, width = size
    inner = area != torch.tensor([0, 0, width, height])
    sign = torch.tensor([1, 1, -1, -1])
    return (inner & ((boxes - area) * sign < _EDGE)).any(1)


def _pairs(boxes: Tensor, area: Tensor, cut: Tensor, tile: Tensor) -> list[tuple[float, int, int]]:
    """The pairs of detections that are one object, and how much they agree, most first."""
    found: list[tuple[float, int, int]] = []
    every = torch.arange(len(boxes))
    for rows in every.split(_ROWS):
        both = _common(area[rows, None], area[None])
        mine, theirs = _common(boxes[rows, None], both), _common(boxes[None], both)
        shared = _area(_common(mine, theirs))
        own, other = (_area(part).clamp(min=1e-6) for part in (mine, theirs))
        iou = shared / (own + other - shared)
        covered = torch.maximum(cut[rows, None] * (shared / own), cut * (shared / other))
        same = ((iou >= AGREE) | (covered >= COVERED)) & (rows[:, None] < every)
        first, second = (same & (tile[rows, None] != tile)).nonzero(as_tuple=True)
        agreement = torch.maximum(iou, covered)[first, second]
        found += zip(agreement.tolist(), rows[first].tolist(), second.tolist(), strict=True)
    return sorted(found, key=lambda pair: -pair[0])


def _joined(
    pairs: list[tuple[float, int, int]], tile: list[int], cut: list[bool]
) -> list[list[int]]:
    """The detections of each object, as positions."""
    group = {i: [i] for i in range(len(tile))}
    for _, i, j in pairs:
        one, other = group[i], group[j]
        parts = all(cut[k] for k in one) != all(cut[k] for k in other)
        apart = {tile[k] for k in one}.isdisjoint(tile[k] for k in other)
        if one is not other and (apart or parts):
            one += other
            group |= dict.fromkeys(other, one)
    return list({id(each): each for each in group.values()}.values())


def _common(one: Tensor, other: Tensor) -> Tensor:
    return torch.cat(
        [torch.maximum(one[..., :2], other[..., :2]), torch.minimum(one[..., 2:], other[..., 2:])],
        -1,
    )


def _area(boxes: Tensor) -> Tensor:
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]
