"""A split as it lies on disk, before anything is repaired, and how it becomes a table.

Readers give the annotator's values, broken ones included, and say what they could not even
read. ``clean`` keeps what can be trained on and evaluated; ``detrlab check`` looks at the same
raw split and explains.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from detrlab.data.findings import Findings
from detrlab.data.images import Header, read_header
from detrlab.data.store import Store
from detrlab.data.table import Table
from detrlab.errors import UserError


@dataclass(frozen=True, eq=False)
class RawSplit:
    """One split as its annotations say.

    Attributes:
        name: ``train``, ``val``, ``test`` or empty when nothing tells.
        source: the annotation file or folder, for messages.
        store: where the files lie.
        format: ``coco``, ``yolo`` or ``voc``.
        categories: name of each category id, in the order of the ids.
        groups: supercategory of each category id.
        image_ids: ids as found: numbers, or text.
        files: image file names as the annotations write them.
        members: the store's file of each image; None where there is none.
        declared: (N, 2) int64 (height, width) as annotated, 0 where not said.
        owners: (M,) int64, position of each annotation's image; -1 if that is not listed.
        boxes: (M, 4) float64 xywh in pixels as annotated.
        category_ids: (M,) int64.
        crowd: (M,) bool.
        areas: (M,) float64; NaN where not annotated.
        annotation_ids: (M,) int64; -1 where missing.
        fractions: (M, 4) float64 center and size as fractions, where the format says so
            (YOLO); the boxes in pixels follow when the image sizes are known.
        places: where each annotation stands, when its id does not say it.
        findings: what the reader could not take over.
        extras: what annotations carry beside boxes (masks, keypoints), and how many do.
        licences: of the images, as the annotations state them.
    """

    name: str
    source: str
    store: Store
    format: str
    categories: dict[int, str]
    groups: dict[int, str]
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
    fractions: np.ndarray | None = None
    places: Sequence[str] | None = None
    findings: Findings = field(default_factory=Findings)
    extras: dict[str, int] = field(default_factory=dict)
    licences: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.image_ids)

    def place(self, row: int) -> int | str:
        """What to call an annotation in messages."""
        if self.places is not None:
            return self.places[row]
        return int(self.annotation_ids[row])


class Vocabulary(NamedTuple):
    """The classes of a whole data set.

    Attributes:
        names: class names, by class index.
        category_ids: of each split by its position, the category id of each class.
        labels: of each split by its position, the class index of each of its category ids.
    """

    names: tuple[str, ...]
    category_ids: tuple[tuple[int, ...], ...]
    labels: tuple[dict[int, int], ...]


def vocabulary(splits: Sequence[RawSplit], findings: Findings) -> Vocabulary:
    """One list of classes for all splits: by name, in the order of the first split's ids."""
    labelled = [_distinct_names(split, findings) for split in splits]
    placeholders = _placeholders(splits)
    names: list[str] = []
    ids: dict[str, int] = {}
    for split, categories in zip(splits, labelled, strict=True):
        for category, name in categories.items():
            if category in placeholders:
                continue
            if name not in ids:
                names.append(name)
                ids[name] = category
            elif ids[name] != category:
                findings.add(
                    "category-mismatch", split.name, split.source, None, None,
                    f"{name!r} is category {category} here and {ids[name]} in {splits[0].source}",
                )  # fmt: skip
    for category in sorted(placeholders):
        name = splits[0].categories.get(category, "")
        findings.add(
            "category-placeholder", "", splits[0].source, None, None, f"{category}: {name!r}"
        )
    order = {name: i for i, name in enumerate(names)}
    index = tuple(
        {category: order[name] for category, name in categories.items() if name in order}
        for categories in labelled
    )
    return Vocabulary(tuple(names), tuple(_ids_by_class(i, names, ids) for i in index), index)


def _ids_by_class(index: dict[int, int], names: list[str], ids: dict[str, int]) -> tuple[int, ...]:
    """The split's own category id of each class; the data set's where the split lacks it.

    A borrowed id that means another class in this split gives way to a new one.
    """
    own = {label: category for category, label in index.items()}
    taken = set(own.values())
    fresh = max(taken | set(ids.values()), default=0) + 1
    result = []
    for label, name in enumerate(names):
        category = own.get(label)
        if category is None:
            category = ids[name] if ids[name] not in taken else fresh
            fresh = max(fresh, category) + 1
            taken.add(category)
        result.append(category)
    return tuple(result)


def _distinct_names(split: RawSplit, findings: Findings) -> dict[int, str]:
    """The split's categories, with the id added to names that occur twice."""
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
    """Categories that Roboflow adds: no boxes, and the name is the others' supercategory."""
    used = set(np.unique(np.concatenate([split.category_ids for split in splits])).tolist())
    groups = splits[0].groups
    members = Counter(groups.values())
    return {
        category
        for category, name in splits[0].categories.items()
        if category not in used
        # Every other category belongs to it, and there are others.
        and 0 < members[name] - (groups.get(category) == name) == len(groups.keys() - {category})
    }


def read_headers(split: RawSplit) -> list[Header | str]:
    """The header of each image file, or why it cannot be read."""

    def header(i: int) -> Header | str:
        member = split.members[i]
        if member is None:
            return "missing"
        try:
            with split.store.open(member) as stream:
                return read_header(stream, member)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(header, range(len(split)), chunksize=64))


def shown_sizes(split: RawSplit, headers: Sequence[Header | str]) -> np.ndarray:
    """(N, 2) int64 (height, width) of the pictures that training sees; 0 where unreadable."""
    sizes = [
        (0, 0) if isinstance(header, str) else header.shown((declared[0], declared[1]))
        for header, declared in zip(headers, split.declared.tolist(), strict=True)
    ]
    return np.array(sizes, dtype=np.int64).reshape(-1, 2)


def misfits(split: RawSplit, sizes: np.ndarray) -> dict[int, bool]:
    """Images whose declared size is not the file's, and whether their boxes fit the declared.

    Boxes that leave the picture and fit the declared size were drawn on the declared one, and
    have to be scaled. Otherwise they stay as they are, as in every other tool.
    """
    wrong = (split.declared > 0).all(1) & (sizes > 0).all(1) & (split.declared != sizes).any(1)
    if not wrong.any():
        return {}
    slack = 2.0
    rows = np.flatnonzero(split.owners >= 0)
    rows = rows[wrong[split.owners[rows]]]
    owners = split.owners[rows]
    with np.errstate(invalid="ignore", over="ignore"):
        corners = split.boxes[rows, :2] + split.boxes[rows, 2:]
        outside = (corners > sizes[owners, ::-1] + slack).any(axis=1)
        fits = (corners <= split.declared[owners, ::-1] + slack).all(axis=1)
    outside_of = np.bincount(owners[outside], minlength=len(split)) > 0
    unfit_of = np.bincount(owners[~fits], minlength=len(split)) > 0
    images = np.flatnonzero(wrong)
    drawn_on_declared = outside_of[images] & ~unfit_of[images]
    return dict(zip(images.tolist(), drawn_on_declared.tolist(), strict=True))


def scaled_to_file(
    split: RawSplit, boxes: np.ndarray, sizes: np.ndarray, images: Sequence[int]
) -> np.ndarray:
    """The boxes, those of these images scaled from the declared size to the file's."""
    ratios = np.ones((len(split) + 1, 4))  # the last one stands for -1, unlisted
    chosen = list(images)
    ratios[chosen] = np.tile(sizes[chosen] / split.declared[chosen], 2)[:, [1, 0, 1, 0]]
    with np.errstate(invalid="ignore", over="ignore"):
        scaled: np.ndarray = boxes * ratios[split.owners]
    return scaled


def pixel_boxes(split: RawSplit, sizes: np.ndarray) -> np.ndarray:
    """(M, 4) float64 xywh in pixels, also where the format writes fractions."""
    if split.fractions is None or not len(split.owners):
        return split.boxes
    height, width = sizes[split.owners].T.astype(np.float64)
    scale = np.stack([width, height, width, height], axis=1)
    with np.errstate(invalid="ignore", over="ignore"):
        centers = split.fractions * scale
        boxes = np.concatenate([centers[:, :2] - centers[:, 2:] / 2, centers[:, 2:]], axis=1)
    # A millionth of a pixel is below what any tool writes, and it undoes the rounding of
    # fractions: boxes that were whole numbers once are whole numbers again.
    return np.round(boxes, 6)


class Cleaned(NamedTuple):
    """A table, and what it took to get there.

    Attributes:
        table: what can be trained on and evaluated.
        images: (N,) int64, the position of each of its images in the raw split.
        rows: (M,) int64, the position of each of its boxes in the raw split.
        left_out: how many things were left out, by reason.
        adjusted: how many things were read differently from how they are annotated.
    """

    table: Table
    images: np.ndarray
    rows: np.ndarray
    left_out: dict[str, int]
    adjusted: dict[str, int]


def clean(
    split: RawSplit,
    name: str,
    words: Vocabulary,
    position: int,
    headers: Sequence[Header | str] | None = None,
) -> Cleaned:
    """What can be trained on and evaluated, and what had to be left out.

    Args:
        split: as it lies.
        name: what the table is called.
        words: the classes of the whole data set.
        position: which of the data set's splits this is.
        headers: of the image files; None trusts the declared sizes where there are any.
    """
    if headers is None and (split.declared <= 0).any():
        headers = read_headers(split)
    sizes = split.declared if headers is None else shown_sizes(split, headers)
    present = np.array([member is not None for member in split.members], dtype=bool)
    readable = (sizes > 0).all(axis=1)
    image_ok = present & readable

    boxes = pixel_boxes(split, sizes)
    adjusted: dict[str, int] = {}
    if headers is not None:
        boxes, adjusted = _fitted(split, boxes, sizes)
    labels = _lookup(split.category_ids, words.labels[position])
    listed, known = split.owners >= 0, labels >= 0
    finite, solid = sound(boxes)
    left_out = {
        "images whose file is missing or not allowed": int((~present).sum()),
        "images that cannot be read": int((present & ~readable).sum()),
        "boxes of images that are not listed": int((~listed).sum()),
        "boxes of unknown categories": int((listed & ~known).sum()),
        "boxes that are NaN or infinite": int((listed & known & ~finite).sum()),
        "boxes without width or height": int((listed & known & finite & ~solid).sum()),
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
        sizes=sizes[images].astype(np.int32),
        starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes=boxes[rows],
        labels=labels[rows],
        crowd=split.crowd[rows],
        areas=np.where(np.isfinite(areas), areas, boxes[rows, 2] * boxes[rows, 3]),
        annotation_ids=ids.astype(np.int64),
        pictures=split.store.pictures([split.members[i] or "" for i in images.tolist()]),
    )
    some = {reason: count for reason, count in left_out.items() if count}
    return Cleaned(table, images, rows, some, adjusted)


def sound(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which xywh boxes are finite, and which of those have an area."""
    with np.errstate(invalid="ignore", over="ignore"):
        finite = np.isfinite(boxes).all(axis=1) & np.isfinite(boxes[:, :2] + boxes[:, 2:]).all(1)
        return finite, finite & (boxes[:, 2:] > 0).all(axis=1)


def _fitted(
    split: RawSplit, boxes: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, dict[str, int]]:
    """Boxes that were drawn on a picture of another size, scaled to the file's."""
    wrong = misfits(split, sizes)
    if not wrong:
        return boxes, {}
    scaled = [i for i, drawn_on_declared in wrong.items() if drawn_on_declared]
    return scaled_to_file(split, boxes, sizes, scaled), {
        "images whose declared size is not the file's (the file's counts)": len(wrong),
        "of them with boxes that only fit the declared size (scaled)": len(scaled),
    }


def _lookup(values: np.ndarray, index: dict[int, int]) -> np.ndarray:
    """Class index of each category id; -1 where it has none."""
    known, inverse = np.unique(values, return_inverse=True)
    labels = np.array([index.get(int(value), -1) for value in known], dtype=np.int64)
    return labels[inverse] if len(values) else np.zeros(0, dtype=np.int64)


def _id_column(ids: list[int | str]) -> np.ndarray:
    kinds = {type(value) for value in ids}
    if kinds <= {int}:
        return np.array(ids, dtype=np.int64)
    return np.array(ids, dtype=np.str_ if kinds == {str} else object)
