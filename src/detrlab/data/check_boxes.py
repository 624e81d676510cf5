"""The rules about boxes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from detrlab.config import DataConfig
from detrlab.data.findings import Finding, Findings
from detrlab.data.raw import EDGE_SLACK, Measured, RawSplit, sound
from detrlab.data.table import Table
from detrlab.data.transforms import evaluation_size

WHOLE_IMAGE = 0.99
"""Share of the image that a box must cover to count as covering all of it."""
VANISHED = 2.0
"""Pixels below which an object is too small to be learned."""


def misplaced(boxes: np.ndarray, owners: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
    """Which xywh boxes break which rule about their place in the image: (M,) bool by rule.

    Args:
        boxes: (M, 4) in pixels.
        owners: (M,) position of each box's image, -1 if unlisted.
        sizes: (N, 2) (height, width) of the images, 0 if unknown.
    """
    finite, solid = sound(boxes)
    listed = owners >= 0
    frame = sizes[np.where(listed, owners, 0)] if len(sizes) else np.zeros((len(owners), 2))
    bounds = frame[:, ::-1].astype(np.float64)
    judged = solid & listed & (bounds > 0).all(axis=1)
    with np.errstate(invalid="ignore", over="ignore"):
        low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
        inner = np.minimum(high, bounds) - np.maximum(low, 0)
        scale = judged & (high <= 1.0).all(1) & (low >= 0).all(1) & (bounds > 4).all(1)
        off = judged & ~scale & (inner <= 0).any(axis=1)
        inside = judged & ~scale & ~off
        beyond = np.maximum(high - bounds, -low).max(axis=1, initial=-np.inf)
        covered = inner.clip(min=0).prod(axis=1) / np.maximum(bounds.prod(axis=1), 1)
    return {
        "box-not-finite": ~finite,
        "box-empty": finite & ~solid,
        "box-scale": scale,
        "box-off-image": off,
        "box-over-edge": inside & (beyond > EDGE_SLACK),
        "box-whole-image": inside & (covered >= WHOLE_IMAGE),
    }


def repeated(split: RawSplit, boxes: np.ndarray) -> dict[str, np.ndarray]:
    """Which boxes an image has had before, with the same category or another: (M,) bool by rule."""
    same_class = np.zeros(len(boxes), dtype=bool)
    two_classes = np.zeros(len(boxes), dtype=bool)
    owners, categories = split.owners, split.category_ids
    rows = np.flatnonzero(sound(boxes)[1] & (owners >= 0) & ~split.crowd)
    order = rows[np.lexsort((categories[rows], *boxes[rows].T[::-1], owners[rows]))]
    one, other = order[:-1], order[1:]
    same_box = (owners[other] == owners[one]) & (boxes[other] == boxes[one]).all(axis=1)
    same_category = categories[other] == categories[one]
    same_class[other] = same_box & same_category
    two_classes[other] = same_box & ~same_category
    return {"box-duplicate": same_class, "box-two-classes": two_classes}


def check_boxes(
    split: RawSplit,
    measured: Measured,
    labels: dict[int, int],
    config: DataConfig,
    findings: Findings,
) -> None:
    """Add findings about the boxes of a split.

    Args:
        split: as annotated.
        measured: its sizes and boxes.
        labels: class index of each known category id.
        config: the size that training will use.
        findings: gets the findings.
    """
    boxes, owners, frame = measured.boxes, split.owners, measured.frame
    unknown = ~np.isin(split.category_ids, np.fromiter(labels, np.int64, len(labels)))
    masks = {
        "box-corners": np.full(len(boxes), measured.corners),
        "category-unknown": unknown & (owners >= 0),
        **misplaced(boxes, owners, frame),
        **repeated(split, boxes),
    }
    masks["box-whole-image"] &= ~split.crowd
    # Rules that already say more about a box than that it is small.
    known = masks["box-not-finite"] | masks["box-empty"] | masks["box-scale"]
    known |= masks["box-off-image"] | split.crowd | (owners < 0)
    masks["box-vanishes"] = ~known & (trained_side(boxes, owners, frame, config) < VANISHED)
    for rule, mask in masks.items():
        rows = np.flatnonzero(mask)
        findings.extend(rule, len(rows), _findings(rule, rows, split, boxes))


def _findings(rule: str, rows: np.ndarray, split: RawSplit, boxes: np.ndarray) -> Iterable[Finding]:
    for row in rows.tolist():
        owner = int(split.owners[row])
        detail = "x {:g}, y {:g}, w {:g}, h {:g}".format(*boxes[row].tolist())
        if rule == "category-unknown":
            detail = f"category {int(split.category_ids[row])}"
        yield Finding(
            rule,
            split.name,
            split.file_of(row),
            split.image_ids[owner] if owner >= 0 else None,
            split.place(row),
            detail,
            box=tuple(boxes[row].tolist()),
        )


def trained_side(
    boxes: np.ndarray, owners: np.ndarray, sizes: np.ndarray, config: DataConfig
) -> np.ndarray:
    """(M,) the shorter side of each box in pixels at the evaluation size."""
    if not len(sizes):
        return np.zeros(len(boxes))
    ratios = np.ones((len(sizes), 2))
    for shape in np.unique(sizes, axis=0):
        height, width = shape.tolist()
        if height > 0 and width > 0:
            new_height, new_width = evaluation_size(height, width, config)
            ratios[(sizes == shape).all(axis=1)] = new_width / width, new_height / height
    with np.errstate(invalid="ignore", over="ignore"):
        return (boxes[:, 2:] * ratios[np.where(owners >= 0, owners, 0)]).min(axis=1, initial=np.inf)


def check_small(table: Table, config: DataConfig, findings: Findings) -> None:
    """Add findings about objects of a table that vanish at the training size."""
    owners = table.owners()
    sides = trained_side(table.boxes, owners, table.sizes, config)
    for row in np.flatnonzero((sides < VANISHED) & ~table.crowd).tolist():
        i = int(owners[row])
        findings.add("box-vanishes", table.name, table.file(i), table.image_id(i),
                     int(table.annotation_ids[row]))  # fmt: skip
