"""From an annotated split to a table: sizes and units, broken boxes, and what is left.

``detrlab check`` and training use the same rules here, so that they agree on what is broken.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from detrlab.data.images import Header, read_header
from detrlab.data.mapped import gather, in_blocks
from detrlab.data.raw import RawSplit, Vocabulary
from detrlab.data.table import Table
from detrlab.errors import UserError

EDGE_SLACK = 1.0
"""Pixels by which a box may pass the edge without a finding: rounding causes that much."""
WHOLE_IMAGE = 0.99
"""Share of the image that a box must cover to count as covering all of it."""


@dataclass(frozen=True, eq=False)
class Measured:
    """A split with the sizes of its images, its boxes in pixels, and the rules that they break.

    Attributes:
        headers: of the image files, or why they cannot be read; None if they were not read.
        sizes: (N, 2) int64 (height, width) of the images that training sees; 0 if unreadable.
        frame: (N, 2) int64 (height, width) of the images that the boxes were drawn on.
        boxes: (M, 4) float64, xywh in pixels of ``frame``.
        in_files: (M, 4) float64, the boxes in pixels of the image files, ``sizes``.
        masks: (M,) bool, which boxes break a rule, by rule.
        mismatched: images whose declared size is not the file's size.
        drawn_on_declared: those of them whose boxes fit the declared size only.
    """

    split: RawSplit
    headers: Sequence[Header | str] | None
    sizes: np.ndarray
    frame: np.ndarray
    boxes: np.ndarray
    in_files: np.ndarray
    masks: dict[str, np.ndarray]
    mismatched: list[int]
    drawn_on_declared: list[int]

    def usable(self) -> np.ndarray:
        """(N,) bool, images whose file exists and can be read."""
        present = np.array([member is not None for member in self.split.members], dtype=bool)
        return present & (self.sizes > 0).all(axis=1)

    def counts(self) -> dict[str, int]:
        """How often the reader, the images and the boxes break each rule."""
        found = {rule.key: count for rule, count, _ in self.split.findings.by_rule()}
        found.update({rule: int(mask.sum()) for rule, mask in self.masks.items()})
        missing = sum(member is None for member in self.split.members)
        found["image-unreadable"] = len(self.split) - missing - int(self.usable().sum())
        found["image-size"] = len(self.mismatched)
        return {rule: count for rule, count in found.items() if count}

    def clean(self, name: str, words: Vocabulary, position: int) -> tuple[Table, np.ndarray]:
        """What training and evaluation can use of the data set's split at this position.

        Returns:
            the table, and (N,) int64 the position of each of its images in the split.
        """
        split, usable = self.split, self.usable()
        boxes = self.in_files
        index = sorted(words.labels[position].items())
        known, labels = np.array(index, dtype=np.int64).reshape(-1, 2).T

        def label_of(categories: np.ndarray) -> np.ndarray:
            at = np.searchsorted(known, categories).clip(max=len(known) - 1)
            return np.where(known[at] == categories, labels[at], -1)

        def kept(owners: np.ndarray, categories: np.ndarray, boxes: np.ndarray) -> np.ndarray:
            present = usable[np.maximum(owners, 0)] if len(usable) else False
            return (owners >= 0) & (label_of(categories) >= 0) & sound(boxes)[1] & present

        rows = np.flatnonzero(in_blocks(kept, split.owners, split.category_ids, boxes))
        owners = split.owners[rows]
        if (owners[1:] < owners[:-1]).any():
            everything = len(rows) == len(split.owners)
            rows = rows[:0] if everything else rows  # gigabytes count here
            order = np.argsort(owners, kind="stable")
            rows = order if everything else rows[order]
            del order
        images = np.flatnonzero(usable)
        counts = np.bincount(owners, minlength=len(split))[images]
        del owners
        ids, given = gather(split.annotation_ids, rows), split.annotation_ids
        if not (np.diff(given, prepend=-1) > 0).all() and _repeated(ids):
            ids = np.arange(1, len(ids) + 1)
        image_ids = [split.image_ids[i] for i in images.tolist()]
        kinds = set(map(type, image_ids))
        dtype = np.int64 if kinds <= {int} else np.str_ if kinds == {str} else object
        table = Table(
            name=name,
            classes=words.names,
            category_ids=words.category_ids[position],
            image_ids=np.array(image_ids, dtype=dtype),
            sizes=self.sizes[images].astype(np.int32),
            starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            boxes=gather(boxes, rows),
            labels=in_blocks(lambda some: label_of(split.category_ids[some]), rows),
            crowd=split.crowd[rows],
            areas=in_blocks(lambda some: _areas(split.areas[some], boxes[some]), rows),
            annotation_ids=ids,
            pictures=split.store.pictures([split.members[i] or "" for i in images.tolist()]),
        )
        return table, images


def read_headers(split: RawSplit) -> list[Header | str]:
    """The header of each image file, or the reason why it cannot be read."""

    def header(member: str | None) -> Header | str:
        if member is None:
            return "missing"
        try:
            with split.store.open(member) as stream:
                return read_header(stream, member)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(header, split.members, chunksize=64))


def measure(
    split: RawSplit, headers: Sequence[Header | str] | None, labels: dict[int, int]
) -> Measured:
    """Work out sizes and units; without headers, the declared sizes are trusted.

    ``labels`` has the class index of each known category id.
    """
    sizes = split.declared
    if headers is not None:
        shown = [
            (0, 0) if isinstance(header, str) else header.shown((declared[0], declared[1]))
            for header, declared in zip(headers, split.declared.tolist(), strict=True)
        ]
        sizes = np.array(shown, dtype=np.int64).reshape(-1, 2)
    frame = np.where(sizes > 0, sizes, split.declared)
    boxes = split.boxes
    if split.fractions and len(boxes):
        scale = np.tile(frame[split.owners, ::-1].astype(np.float64), 2)
        with np.errstate(invalid="ignore", over="ignore"):
            centers = boxes * scale
            boxes = np.concatenate([centers[:, :2] - centers[:, 2:] / 2, centers[:, 2:]], axis=1)
        # Undo the rounding of fractions: whole numbers of pixels become whole numbers again.
        boxes = np.round(boxes, 6)
    corners = split.format == "coco" and _look_like_corners(boxes, split.owners, frame)
    if corners:
        boxes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    mismatched, drawn = _mismatched(split, boxes, sizes)
    in_files = boxes
    if drawn:
        frame[drawn] = split.declared[drawn]
        ratios = np.ones((len(frame) + 1, 4))  # the last row is for -1, unlisted images
        ratios[drawn] = np.tile(sizes[drawn] / frame[drawn], 2)[:, [1, 0, 1, 0]]
        with np.errstate(invalid="ignore", over="ignore"):
            in_files = boxes * ratios[split.owners]
    ids = np.fromiter(labels, np.int64, len(labels))
    known = in_blocks(lambda categories: np.isin(categories, ids), split.category_ids)
    masks = {
        "box-corners": np.full(len(boxes), corners),
        "category-unknown": ~known & (split.owners >= 0),
        **misplaced(boxes, split.owners, frame),
    }
    return Measured(split, headers, sizes, frame, boxes, in_files, masks, mismatched, drawn)


def misplaced(boxes: np.ndarray, owners: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
    """Which (M, 4) xywh boxes break which rule about their place in the image: (M,) by rule.

    ``owners`` are (M,), -1 if unlisted; ``sizes`` (N, 2) (height, width), 0 if unknown.
    """
    return in_blocks(lambda boxes, owners: _misplaced(boxes, owners, sizes), boxes, owners)


def _repeated(ids: np.ndarray) -> bool:
    """Whether some are missing or twice the same."""
    ids = np.sort(ids)
    return bool(len(ids) and (ids[0] < 0 or (ids[1:] == ids[:-1]).any()))


def _areas(areas: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # sides of 1e200 are only over the edge
        return np.where(np.isfinite(areas), areas, np.nan_to_num(boxes[:, 2] * boxes[:, 3]))


def _misplaced(boxes: np.ndarray, owners: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
    finite, solid = sound(boxes)
    frame = sizes[np.maximum(owners, 0)] if len(sizes) else np.zeros((len(owners), 2))
    bounds = frame[:, ::-1].astype(np.float64)
    judged = solid & (owners >= 0) & (bounds > 0).all(axis=1)
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


def sound(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which xywh boxes are finite, and which of those have an area."""
    with np.errstate(invalid="ignore", over="ignore"):
        finite = np.isfinite(boxes).all(axis=1) & np.isfinite(boxes[:, :2] + boxes[:, 2:]).all(1)
        return finite, finite & (boxes[:, 2:] > 0).all(axis=1)


def _look_like_corners(boxes: np.ndarray, owners: np.ndarray, sizes: np.ndarray) -> bool:
    """Whether a split's boxes make sense as corners and not as xywh."""

    def judged(boxes: np.ndarray, owners: np.ndarray) -> np.ndarray:
        use = np.isfinite(boxes).all(axis=1) & (owners >= 0)
        use &= (sizes[np.maximum(owners, 0)] > 0).all(axis=1) if len(sizes) else False
        low, high = boxes[use, :2], boxes[use, 2:]
        bounds = sizes[owners[use], ::-1] + EDGE_SLACK
        with np.errstate(over="ignore"):
            outside = (low + high > bounds).any(axis=1)
        return np.stack([outside, ((high > low) & (high <= bounds)).all(axis=1)], axis=1)

    found = in_blocks(judged, boxes, owners)
    return len(found) >= 3 and bool(found[:, 1].all() and found[:, 0].mean() > 0.25)


def _mismatched(
    split: RawSplit, boxes: np.ndarray, sizes: np.ndarray
) -> tuple[list[int], list[int]]:
    """Images whose declared size is not the file's, and those whose boxes fit the declared only.

    If boxes leave the file's image and fit the declared size, they were drawn on an image of
    that size and have to be scaled. Otherwise they stay as they are, as in every other tool.
    """
    wrong = (split.declared > 0).all(1) & (sizes > 0).all(1) & (split.declared != sizes).any(1)
    if not wrong.any():
        return [], []
    rows = np.flatnonzero(split.owners >= 0)
    rows = rows[wrong[split.owners[rows]]]
    owners, slack = split.owners[rows], 2.0
    with np.errstate(invalid="ignore", over="ignore"):
        corners = boxes[rows, :2] + boxes[rows, 2:]
        outside = (corners > sizes[owners, ::-1] + slack).any(axis=1)
        fits = (corners <= split.declared[owners, ::-1] + slack).all(axis=1)
    outside_of, unfit_of = (
        np.bincount(owners[rows], minlength=len(split)) > 0 for rows in (outside, ~fits)
    )
    drawn_on_declared = wrong & outside_of & ~unfit_of
    return np.flatnonzero(wrong).tolist(), np.flatnonzero(drawn_on_declared).tolist()
