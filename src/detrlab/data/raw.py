"""A split as its annotations describe it, before any repair, and how it becomes a table.

Readers keep the annotated values, broken ones included, and report what they could not read.
``clean`` keeps what training and evaluation can use; ``detrlab check`` reports on the same split.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from detrlab.data.findings import Findings
from detrlab.data.pictures import Header, read_header
from detrlab.data.store import Store
from detrlab.data.table import Table
from detrlab.errors import UserError

EDGE_SLACK = 1.0
"""Pixels by which a box may pass the edge without a finding: rounding causes that much."""


@dataclass(frozen=True, eq=False)
class RawSplit:
    """One split as annotated: N images, M annotations.

    Attributes:
        name: ``train``, ``val``, ``test``, or empty if no name says which.
        source: the annotation file or folder, for messages.
        store: the files.
        format: ``coco``, ``yolo`` or ``voc``.
        categories: name of each category id, in the order of the ids.
        image_ids: ids as found: numbers, or text.
        files: image file names as annotated.
        members: the store's file of each image; None if it was not found.
        declared: (N, 2) int64 (height, width) as annotated, 0 if missing.
        owners: (M,) int64, position of each annotation's image; -1 if that is not listed.
        boxes: (M, 4) float64, xywh in pixels as annotated.
        category_ids: (M,) int64.
        crowd: (M,) bool.
        areas: (M,) float64; NaN if not annotated.
        annotation_ids: (M,) int64; -1 if missing.
        groups: supercategory of each category id.
        fractions: the boxes are center and size as fractions of the image instead (YOLO).
        places: location of each annotation in its file, if its id does not identify it.
        findings: what the reader could not use.
        extras: what annotations contain beside boxes (masks, keypoints), and how many do.
        licences: of the images, as the annotations state them.
    """

    name: str
    source: str
    store: Store
    format: str
    categories: dict[int, str]
    image_ids: list[int | str]
    files: list[str]
    members: list[str | None]
    declared: np.ndarray
    owners: np.ndarray
    boxes: np.ndarray
    category_ids: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    annotation_ids: np.ndarray
    groups: dict[int, str] = field(default_factory=dict)
    fractions: bool = False
    places: Sequence[str] | None = None
    findings: Findings = field(default_factory=Findings)
    extras: dict[str, int] = field(default_factory=dict)
    licences: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.image_ids)

    def place(self, row: int) -> int | str:
        """The name of an annotation in messages."""
        return int(self.annotation_ids[row]) if self.places is None else self.places[row]

    def file_of(self, row: int) -> str:
        """The image file of an annotation, for messages."""
        owner = int(self.owners[row])
        return (self.members[owner] or self.files[owner]) if owner >= 0 else self.source


class Vocabulary(NamedTuple):
    """The classes of a whole data set.

    Attributes:
        names: class names, by class index.
        category_ids: for each split, the category id of each class.
        labels: for each split, the class index of each of its category ids.
    """

    names: tuple[str, ...]
    category_ids: tuple[tuple[int, ...], ...]
    labels: tuple[dict[int, int], ...]


def vocabulary(splits: Sequence[RawSplit], findings: Findings) -> Vocabulary:
    """One list of classes for all splits: by name, in the order of the first split's ids.

    Raises:
        UserError: no classes are declared.
    """
    labelled = [_distinct_names(split, findings) for split in splits]
    placeholders = _placeholders(splits)
    ids: dict[str, int] = {}
    for split, categories in zip(splits, labelled, strict=True):
        for category, name in categories.items():
            if category not in placeholders and ids.setdefault(name, category) != category:
                findings.add(
                    "category-mismatch", split.name, split.source, None, None,
                    f"{name!r} is category {category} here and {ids[name]} in {splits[0].source}",
                )  # fmt: skip
    for category in sorted(placeholders):
        detail = f"{category}: {splits[0].categories.get(category, '')!r}"
        findings.add("category-placeholder", "", splits[0].source, None, None, detail)
    if not ids:
        raise UserError(f"{splits[0].source}: no classes are declared")
    order = {name: i for i, name in enumerate(ids)}
    labels = tuple(
        {category: order[name] for category, name in categories.items() if name in order}
        for categories in labelled
    )
    return Vocabulary(tuple(ids), tuple(_ids_by_class(index, ids) for index in labels), labels)


def _ids_by_class(labels: dict[int, int], ids: dict[str, int]) -> tuple[int, ...]:
    """The split's own category id of each class, or the data set's if the split lacks the class.

    A borrowed id that means another class in this split is replaced by a new one.
    """
    own = {label: category for category, label in labels.items()}
    taken = set(own.values())
    fresh = max(taken | set(ids.values())) + 1
    result = []
    for label, borrowed in enumerate(ids.values()):
        category = own.get(label)
        if category is None:
            category = borrowed if borrowed not in taken else fresh
            fresh = max(fresh, category) + 1
            taken.add(category)
        result.append(category)
    return tuple(result)


def _distinct_names(split: RawSplit, findings: Findings) -> dict[int, str]:
    """The split's categories; a repeated name gets its id appended."""
    seen: dict[str, int] = {}
    named = {}
    for category, name in split.categories.items():
        if name in seen:
            detail = f"{name!r} is category {seen[name]} and {category}"
            findings.add("category-name-duplicate", split.name, split.source, None, None, detail)
            name = f"{name} ({category})"
        seen.setdefault(name, category)
        named[category] = name
    return named


def _placeholders(splits: Sequence[RawSplit]) -> set[int]:
    """Categories that Roboflow adds: no boxes, and all others have it as supercategory."""
    used = set(np.unique(np.concatenate([split.category_ids for split in splits])).tolist())
    groups = splits[0].groups
    members = Counter(groups.values())
    return {
        category
        for category, name in splits[0].categories.items()
        if category not in used
        and 0 < members[name] - (groups.get(category) == name) == len(groups.keys() - {category})
    }


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


class Measured(NamedTuple):
    """The boxes of a split in pixels, and the images that they were drawn on.

    Attributes:
        sizes: (N, 2) int64 (height, width) of the images that training sees; 0 if unreadable.
        frame: (N, 2) int64 (height, width) of the images that the boxes were drawn on.
        boxes: (M, 4) float64, xywh in pixels of ``frame``.
        corners: the boxes were annotated as x0 y0 x1 y1 where the format has x y width height.
        mismatched: images whose declared size is not the file's size.
        drawn_on_declared: those of them whose boxes fit the declared size only.
    """

    sizes: np.ndarray
    frame: np.ndarray
    boxes: np.ndarray
    corners: bool
    mismatched: list[int]
    drawn_on_declared: list[int]

    def in_files(self, owners: np.ndarray) -> np.ndarray:
        """(M, 4) the boxes in pixels of the image files; ``owners`` are the split's."""
        if not self.drawn_on_declared:
            return self.boxes
        ratios = np.ones((len(self.frame) + 1, 4))  # the last row is for -1, unlisted images
        chosen = self.drawn_on_declared
        ratios[chosen] = np.tile(self.sizes[chosen] / self.frame[chosen], 2)[:, [1, 0, 1, 0]]
        with np.errstate(invalid="ignore", over="ignore"):
            scaled: np.ndarray = self.boxes * ratios[owners]
        return scaled


def measure(split: RawSplit, headers: Sequence[Header | str] | None) -> Measured:
    """Work out sizes and units. ``headers`` of the image files; None trusts declared sizes."""
    if headers is None:
        sizes = split.declared
    else:
        shown = [
            (0, 0) if isinstance(header, str) else header.shown((declared[0], declared[1]))
            for header, declared in zip(headers, split.declared.tolist(), strict=True)
        ]
        sizes = np.array(shown, dtype=np.int64).reshape(-1, 2)
    frame = np.where(sizes > 0, sizes, split.declared)
    boxes = _pixel_boxes(split, frame)
    corners = split.format == "coco" and _look_like_corners(boxes, split.owners, frame)
    if corners:
        boxes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    mismatched, drawn = _mismatched(split, boxes, sizes)
    frame[drawn] = split.declared[drawn]
    return Measured(sizes, frame, boxes, corners, mismatched, drawn)


def _pixel_boxes(split: RawSplit, sizes: np.ndarray) -> np.ndarray:
    """(M, 4) float64 xywh in pixels, also if the format has fractions."""
    if not split.fractions or not len(split.owners):
        return split.boxes
    scale = np.tile(sizes[split.owners, ::-1].astype(np.float64), 2)
    with np.errstate(invalid="ignore", over="ignore"):
        centers = split.boxes * scale
        boxes = np.concatenate([centers[:, :2] - centers[:, 2:] / 2, centers[:, 2:]], axis=1)
    # Undo the rounding of fractions: whole numbers of pixels become whole numbers again.
    return np.round(boxes, 6)


def _look_like_corners(boxes: np.ndarray, owners: np.ndarray, sizes: np.ndarray) -> bool:
    """Whether a split's boxes make sense as corners and not as xywh."""
    use = np.isfinite(boxes).all(axis=1) & (owners >= 0)
    use &= (sizes[np.where(owners >= 0, owners, 0)] > 0).all(axis=1) if len(sizes) else False
    if use.sum() < 3:
        return False
    low, high = boxes[use, :2], boxes[use, 2:]
    bounds = sizes[owners[use], ::-1] + EDGE_SLACK
    with np.errstate(over="ignore"):
        outside = (low + high > bounds).any(axis=1)
    return bool(((high > low) & (high <= bounds)).all() and outside.mean() > 0.25)


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
    slack = 2.0
    rows = np.flatnonzero(split.owners >= 0)
    rows = rows[wrong[split.owners[rows]]]
    owners = split.owners[rows]
    with np.errstate(invalid="ignore", over="ignore"):
        corners = boxes[rows, :2] + boxes[rows, 2:]
        outside = (corners > sizes[owners, ::-1] + slack).any(axis=1)
        fits = (corners <= split.declared[owners, ::-1] + slack).all(axis=1)
    outside_of = np.bincount(owners[outside], minlength=len(split)) > 0
    unfit_of = np.bincount(owners[~fits], minlength=len(split)) > 0
    drawn_on_declared = wrong & outside_of & ~unfit_of
    return np.flatnonzero(wrong).tolist(), np.flatnonzero(drawn_on_declared).tolist()


class Cleaned(NamedTuple):
    """A table, and what it took to make it.

    Attributes:
        table: what training and evaluation can use.
        images: (N,) int64, the position of each of its images in the raw split.
        left_out: how many things were left out, by reason.
    """

    table: Table
    images: np.ndarray
    left_out: dict[str, int]


def clean(
    split: RawSplit, measured: Measured, name: str, words: Vocabulary, position: int
) -> Cleaned:
    """What training and evaluation can use, and what had to be left out.

    Args:
        split: as annotated.
        measured: its sizes and boxes.
        name: the table's name.
        words: the classes of the whole data set.
        position: which of the data set's splits this is.
    """
    present = np.array([member is not None for member in split.members], dtype=bool)
    readable = (measured.sizes > 0).all(axis=1)
    image_ok = present & readable
    boxes = measured.in_files(split.owners)
    labels = _lookup(split.category_ids, words.labels[position])
    listed, known = split.owners >= 0, labels >= 0
    finite, solid = sound(boxes)
    left_out = {
        "images whose file is missing or not allowed": ~present,
        "images that cannot be read": present & ~readable,
        "boxes of images that are not listed": ~listed,
        "boxes of unknown categories": listed & ~known,
        "boxes that are NaN or infinite": listed & known & ~finite,
        "boxes without width or height": listed & known & finite & ~solid,
    }
    owners = np.where(listed, split.owners, 0)
    keep = listed & known & solid
    keep &= image_ok[owners] if len(image_ok) else False

    rows = np.flatnonzero(keep)
    rows = rows[np.argsort(owners[rows], kind="stable")]
    images = np.flatnonzero(image_ok)
    counts = np.bincount(owners[rows], minlength=len(split))[images]
    areas = split.areas[rows]
    ids = split.annotation_ids[rows]
    if len(ids) and (ids.min() < 0 or len(np.unique(ids)) < len(ids)):
        ids = np.arange(1, len(ids) + 1)
    table = Table(
        name=name,
        classes=words.names,
        category_ids=words.category_ids[position],
        image_ids=_id_column([split.image_ids[i] for i in images.tolist()]),
        sizes=measured.sizes[images].astype(np.int32),
        starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=boxes[rows],
        labels=labels[rows],
        crowd=split.crowd[rows],
        areas=np.where(np.isfinite(areas), areas, boxes[rows, 2] * boxes[rows, 3]),
        annotation_ids=ids.astype(np.int64),
        pictures=split.store.pictures([split.members[i] or "" for i in images.tolist()]),
    )
    counted = {reason: int(mask.sum()) for reason, mask in left_out.items() if mask.any()}
    return Cleaned(table, images, counted)


def sound(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which xywh boxes are finite, and which of those have an area."""
    with np.errstate(invalid="ignore", over="ignore"):
        finite = np.isfinite(boxes).all(axis=1) & np.isfinite(boxes[:, :2] + boxes[:, 2:]).all(1)
        return finite, finite & (boxes[:, 2:] > 0).all(axis=1)


def _lookup(values: np.ndarray, index: dict[int, int]) -> np.ndarray:
    """Class index of each category id; -1 if it has none."""
    known, inverse = np.unique(values, return_inverse=True)
    labels = np.array([index.get(int(value), -1) for value in known], dtype=np.int64)
    return labels[inverse]


def _id_column(ids: list[int | str]) -> np.ndarray:
    kinds = {type(value) for value in ids}
    if kinds <= {int}:
        return np.array(ids, dtype=np.int64)
    return np.array(ids, dtype=np.str_ if kinds == {str} else object)
