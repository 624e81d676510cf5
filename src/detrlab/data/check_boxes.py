"""The rules about boxes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from detrlab.config import DataConfig
from detrlab.data.findings import Finding, Findings
from detrlab.data.raw import RawSplit, misfits, pixel_boxes, sound
from detrlab.data.table import Table
from detrlab.data.transforms import evaluation_size

EDGE_SLACK = 1.0
"""Pixels by which a box may pass the edge before it is a finding: rounding does that."""
WHOLE_IMAGE = 0.99
"""Share of the image that a box covers to count as covering all of it."""
VANISHED = 2.0
"""Pixels below which an object has vanished."""


def looks_like_corners(boxes: np.ndarray, owners: np.ndarray, sizes: np.ndarray) -> bool:
    """Whether a split's boxes make sense as corners, and do not as xywh."""
    finite = np.isfinite(boxes).all(axis=1) & (owners >= 0)
    boxes, owners = boxes[finite], owners[finite]
    height, width = sizes[owners].T
    known = (height > 0) & (width > 0)
    boxes, height, width = boxes[known], height[known], width[known]
    if len(boxes) < 3:
        return False
    as_corners = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    as_corners &= (boxes[:, 2] <= width + EDGE_SLACK) & (boxes[:, 3] <= height + EDGE_SLACK)
    with np.errstate(over="ignore"):
        outside = (boxes[:, 0] + boxes[:, 2] > width + EDGE_SLACK) | (
            boxes[:, 1] + boxes[:, 3] > height + EDGE_SLACK
        )
    return bool(as_corners.all() and outside.mean() > 0.25)


class Masks(NamedTuple):
    """Which annotations of a split break which rule; (M,) bool each."""

    not_finite: np.ndarray
    empty: np.ndarray
    scale: np.ndarray
    off_image: np.ndarray
    over_edge: np.ndarray
    whole: np.ndarray
    duplicate: np.ndarray
    two_classes: np.ndarray


def box_masks(
    boxes: np.ndarray,
    owners: np.ndarray,
    category_ids: np.ndarray,
    crowd: np.ndarray,
    sizes: np.ndarray,
) -> Masks:
    """The rules that each annotation can be judged by, from xywh boxes in pixels."""
    finite, solid = sound(boxes)
    at = placed(boxes, owners, sizes)
    duplicate, two_classes = _repeated(boxes, owners, category_ids, at.judged & ~crowd)
    return Masks(
        not_finite=~finite,
        empty=finite & ~solid,
        scale=at.scale,
        off_image=at.off_image,
        over_edge=at.over_edge,
        whole=at.whole,
        duplicate=duplicate,
        two_classes=two_classes,
    )


class Placed(NamedTuple):
    """How boxes lie in their images; (M,) bool each."""

    judged: np.ndarray
    """Sound boxes in pixels, of listed images of known size."""
    scale: np.ndarray
    off_image: np.ndarray
    over_edge: np.ndarray
    whole: np.ndarray


def placed(boxes: np.ndarray, owners: np.ndarray, sizes: np.ndarray) -> Placed:
    """How xywh boxes lie in images of these (height, width)."""
    _, solid = sound(boxes)
    listed = owners >= 0
    frame = sizes[np.where(listed, owners, 0)] if len(sizes) else np.zeros((len(owners), 2))
    height, width = frame.T.astype(np.float64)
    judged = solid & listed & (height > 0) & (width > 0)
    with np.errstate(invalid="ignore", over="ignore"):
        low = boxes[:, :2]
        high = boxes[:, :2] + boxes[:, 2:]
        bounds = np.stack([width, height], axis=1)
        inner = np.minimum(high, bounds) - np.maximum(low, 0)
        scale = judged & (high <= 1.0).all(1) & (low >= 0).all(1) & (bounds > 4).all(1)
        judged &= ~scale
        off = judged & (inner <= 0).any(axis=1)
        beyond = np.maximum(high - bounds, -low).max(axis=1, initial=-np.inf)
        over = judged & ~off & (beyond > EDGE_SLACK)
        covered = inner.clip(min=0).prod(axis=1) / np.maximum(bounds.prod(axis=1), 1)
    return Placed(judged, scale, off, over, judged & ~off & (covered >= WHOLE_IMAGE))


def _repeated(
    boxes: np.ndarray, owners: np.ndarray, category_ids: np.ndarray, judged: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes seen before in the same image: with the same category, and with another."""
    duplicate = np.zeros(len(boxes), dtype=bool)
    two_classes = np.zeros(len(boxes), dtype=bool)
    rows = np.flatnonzero(judged)
    if len(rows) < 2:
        return duplicate, two_classes
    keys = (category_ids[rows], *boxes[rows].T[::-1], owners[rows])
    order = rows[np.lexsort(keys)]
    same_box = (owners[order[1:]] == owners[order[:-1]]) & (
        boxes[order[1:]] == boxes[order[:-1]]
    ).all(axis=1)
    same_category = category_ids[order[1:]] == category_ids[order[:-1]]
    duplicate[order[1:]] = same_box & same_category
    two_classes[order[1:]] = same_box & ~same_category
    return duplicate, two_classes


def check_boxes(
    split: RawSplit,
    labels: dict[int, int],
    sizes: np.ndarray,
    config: DataConfig,
    findings: Findings,
) -> None:
    """Findings about the boxes of a split.

    Args:
        split: as it lies.
        labels: class index of each known category id.
        sizes: (N, 2) (height, width) of the image files, 0 where unreadable.
        config: the size that training will use.
        findings: gets the findings.
    """
    sizes = np.where(sizes > 0, sizes, split.declared)
    boxes = pixel_boxes(split, sizes)
    corners = split.format == "coco" and looks_like_corners(boxes, split.owners, sizes)
    if corners:
        boxes = boxes.copy()
        _add(split, "box-corners", np.ones(len(boxes), dtype=bool), boxes, findings)
        boxes[:, 2:] -= boxes[:, :2]
    fits_declared = [i for i, scaled in misfits(split, sizes).items() if scaled]
    frame = sizes.copy()
    frame[fits_declared] = split.declared[fits_declared]
    masks = box_masks(boxes, split.owners, split.category_ids, split.crowd, frame)
    unknown = ~np.isin(split.category_ids, np.fromiter(labels, np.int64, len(labels)))
    listed = split.owners >= 0
    _add(split, "category-unknown", unknown & listed, boxes, findings, "category {category}")
    _add(split, "box-not-finite", masks.not_finite, boxes, findings)
    _add(split, "box-empty", masks.empty, boxes, findings)
    _add(split, "box-scale", masks.scale, boxes, findings)
    _add(split, "box-off-image", masks.off_image, boxes, findings)
    _add(split, "box-over-edge", masks.over_edge, boxes, findings)
    _add(split, "box-whole-image", masks.whole & ~split.crowd, boxes, findings)
    _add(split, "box-duplicate", masks.duplicate, boxes, findings)
    _add(split, "box-two-classes", masks.two_classes, boxes, findings)
    solid = sound(boxes)[1] & listed & ~masks.scale & ~masks.off_image & ~split.crowd
    tiny = solid & (_trained_side(boxes, split.owners, frame, config) < VANISHED)
    _add(split, "box-vanishes", tiny, boxes, findings)


def _trained_side(
    boxes: np.ndarray, owners: np.ndarray, sizes: np.ndarray, config: DataConfig
) -> np.ndarray:
    """(M,) the shorter side of each box in pixels at the evaluation size."""
    ratios = np.ones((len(sizes), 2))
    for shape in np.unique(sizes, axis=0):
        height, width = shape.tolist()
        if height > 0 and width > 0:
            new_height, new_width = evaluation_size(height, width, config)
            ratios[(sizes == shape).all(axis=1)] = new_width / width, new_height / height
    if not len(sizes):
        return np.zeros(len(boxes))
    with np.errstate(invalid="ignore", over="ignore"):
        return (boxes[:, 2:] * ratios[np.where(owners >= 0, owners, 0)]).min(axis=1, initial=np.inf)


def check_small(name: str, table: Table, config: DataConfig, findings: Findings) -> None:
    """Objects of a table that vanish at the training size."""
    owners = np.repeat(np.arange(len(table)), np.diff(table.starts))
    sides = _trained_side(table.boxes, owners, table.sizes, config)
    rows = np.flatnonzero((sides < VANISHED) & ~table.crowd)
    findings.extend(
        "box-vanishes",
        len(rows),
        (
            Finding("box-vanishes", name, table.file(int(owners[row])),
                    table.image_id(int(owners[row])), int(table.annotation_ids[row]))
            for row in rows
        ),
    )  # fmt: skip


def _add(
    split: RawSplit,
    rule: str,
    mask: np.ndarray,
    boxes: np.ndarray,
    findings: Findings,
    detail: str = "{box}",
) -> None:
    """Findings of one rule for the marked annotations."""
    rows = np.flatnonzero(mask)

    def found() -> Iterable[Finding]:
        for row in rows.tolist():
            owner = int(split.owners[row])
            member = (split.members[owner] or split.files[owner]) if owner >= 0 else split.source
            yield Finding(
                rule,
                split.name,
                member,
                split.image_ids[owner] if owner >= 0 else None,
                split.place(row),
                detail.format(box=_box_text(boxes[row]), category=int(split.category_ids[row])),
                box=tuple(boxes[row].tolist()),
            )

    findings.extend(rule, len(rows), found())


def _box_text(box: np.ndarray) -> str:
    return "x {:g}, y {:g}, w {:g}, h {:g}".format(*box.tolist())
