"""Findings about boxes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from detrlab.config import DataConfig
from detrlab.data.findings import Finding, Findings
from detrlab.data.measure import Measured, sound
from detrlab.data.raw import RawSplit
from detrlab.data.transforms import evaluation_size

VANISHED = 2.0
"""Pixels below which an object is too small to be learned."""


def check_boxes(measured: Measured, config: DataConfig, findings: Findings) -> None:
    """Add findings about the boxes of a split; ``config`` says at which size it will be trained."""
    split, boxes = measured.split, measured.boxes
    masks = {**measured.masks, **repeated(split, boxes)}
    masks["box-whole-image"] = masks["box-whole-image"] & ~split.crowd
    # Boxes that break other rules are not reported again for being small.
    other = masks["box-not-finite"] | masks["box-empty"] | masks["box-scale"]
    other |= masks["box-off-image"] | split.crowd | (split.owners < 0)
    sides = _trained_sides(boxes, split.owners, measured.frame, config)
    masks["box-vanishes"] = ~other & (sides < VANISHED)
    for rule, mask in masks.items():
        rows = np.flatnonzero(mask)
        findings.extend(rule, len(rows), _findings(rule, rows, split, boxes))


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


def _trained_sides(
    boxes: np.ndarray, owners: np.ndarray, sizes: np.ndarray, config: DataConfig
) -> np.ndarray:
    """(M,) the shorter side of each box in pixels at the evaluation size."""
    if not len(sizes):
        return np.zeros(len(boxes))
    shapes, inverse = np.unique(sizes, axis=0, return_inverse=True)
    ratios = np.ones((len(shapes), 2))
    for k, (height, width) in enumerate(shapes.tolist()):
        if height > 0 and width > 0:
            new_height, new_width = evaluation_size(height, width, config)
            ratios[k] = new_width / width, new_height / height
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = boxes[:, 2:] * ratios[inverse.reshape(-1)[np.maximum(owners, 0)]]
    return scaled.min(axis=1, initial=np.inf)
