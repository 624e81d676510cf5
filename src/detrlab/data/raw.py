"""A split as its annotations describe it, broken values included, and the classes of all splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from detrlab.data.findings import Findings
from detrlab.data.store import Store
from detrlab.errors import UserError


@dataclass(frozen=True, eq=False)
class RawSplit:
    """One split as annotated: N images, M annotations.

    Attributes:
        members: the store's file of each image; None if it was not found.
        declared: (N, 2) int64 (height, width) as annotated, 0 if missing.
        owners: (M,) int32 or int64, position of each annotation's image; -1 if that is not listed.
        boxes: (M, 4) float64, xywh in pixels; center and size in ``fractions`` for YOLO.
        areas: (M,) float64; NaN if not annotated.
        annotation_ids: (M,) int64; -1 if missing.
        groups: supercategory of each category id.
        places: location of each annotation in its file, if its id does not identify it.
        extras: what annotations contain beside boxes (masks, keypoints), and how many do.
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
    """The classes of a whole data set: their names, by class index.

    For each split, ``category_ids`` has the category id of each class, and ``labels`` the class
    index of each of its category ids.
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
    first, placeholders = splits[0], _placeholders(splits)
    ids: dict[str, int] = {}
    for split, categories in zip(splits, labelled, strict=True):
        for category, name in categories.items():
            if category not in placeholders and ids.setdefault(name, category) != category:
                detail = f"{name!r} is category {category} here and {ids[name]} in {first.source}"
                findings.add("category-mismatch", split.name, split.source, detail=detail)
    for category in sorted(placeholders):
        detail = f"{category}: {first.categories[category]!r}"
        findings.add("category-placeholder", "", first.source, detail=detail)
    if not ids:
        raise UserError(f"{first.source}: no classes are declared")
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
    fresh = max([*labels, *ids.values()]) + 1
    result: dict[int, None] = {}  # the ids are distinct, and looked up for every class
    for label, borrowed in enumerate(ids.values()):
        taken = borrowed in labels or borrowed in result
        result[own.get(label, fresh + label if taken else borrowed)] = None
    return tuple(result)


def _distinct_names(split: RawSplit, findings: Findings) -> dict[int, str]:
    """The split's categories; a repeated name gets its id appended."""
    seen: dict[str, int] = {}
    named = {}
    for category, name in split.categories.items():
        if name in seen:
            detail = f"{name!r} is category {seen[name]} and {category}"
            findings.add("category-name-duplicate", split.name, split.source, detail=detail)
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
