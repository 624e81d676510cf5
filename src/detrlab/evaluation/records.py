"""Columns for evaluation: the annotations, and the detections of one detector.

Images and classes are indices from 0; the data set's own ids are kept beside them. Boxes are
xywh in pixels, float64, so that metrics are exactly those of the json files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detrlab.errors import UserError

if TYPE_CHECKING:
    from detrlab.data.table import Table

ImageId = int | str
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """The annotations, one row per object; unlike ``Table`` it needs no image files.

    Attributes:
        image_ids: the data set's id of every image, sorted, including images without objects.
        classes: name of every class, by class index.
        category_ids: the data set's id of every class, by class index.
        image: (G,) index into ``image_ids``.
        label: (G,) class index.
        boxes: (G, 4), xywh in pixels.
        area: (G,) the annotated area in square pixels, for small, medium and large.
        crowd: (G,) True for crowd regions, which any number of detections may match.
        sizes: (N, 2) height and width of every image, 0 where unknown.
        file_names: file of every image, "" where unknown.
    """

    image_ids: tuple[ImageId, ...]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    image: Ints
    label: Ints
    boxes: Floats
    area: Floats
    crowd: Bools
    sizes: Ints
    file_names: tuple[str, ...]

    @classmethod
    def from_coco(cls, coco: dict[str, Any]) -> GroundTruth:
        """Read a COCO dict: ``images``, ``annotations``, ``categories`` (in class order).

        Only what an evaluation needs is read. Annotation ids are not used: pycocotools counts a
        match with an annotation whose id is 0 as a false positive, and many files have one.

        Raises:
            UserError: a key is missing, an id is unknown or repeated, a box is not four finite
                numbers.
        """
        for key in ("images", "annotations", "categories"):
            if not isinstance(coco.get(key), list):
                raise UserError(f"the ground truth has no list {key!r}: it should be COCO json")
        # Numbers first, then texts: the order of the images in pycocotools.
        images = sorted(coco["images"], key=lambda each: (isinstance(each["id"], str), each["id"]))
        image_ids = tuple(image["id"] for image in images)
        category_ids = tuple(category["id"] for category in coco["categories"])
        image_index = _index(image_ids, "image")
        label_index = _index(category_ids, "category")
        rows = coco["annotations"]
        boxes = _boxes(rows)
        area = np.array([row.get("area") for row in rows], dtype=np.float64)  # NaN for None
        return cls(
            image_ids=image_ids,
            classes=tuple(str(category["name"]) for category in coco["categories"]),
            category_ids=category_ids,
            image=_look_up(rows, "image_id", image_index),
            label=_look_up(rows, "category_id", label_index),
            boxes=boxes,
            area=np.where(np.isnan(area), boxes[:, 2] * boxes[:, 3], area),
            crowd=np.array([bool(row.get("iscrowd", 0)) for row in rows], dtype=bool),
            sizes=np.array(
                [(image.get("height") or 0, image.get("width") or 0) for image in images],
                dtype=np.int64,
            ).reshape(-1, 2),
            file_names=tuple(str(image.get("file_name", "")) for image in images),
        )

    @classmethod
    def from_table(cls, table: Table) -> GroundTruth:
        """As ``from_coco`` of the table's COCO dict, without the millions of objects in it.

        Raises:
            UserError: as ``from_coco``.
        """
        ids = [table.image_id(i) for i in range(len(table))]
        order = sorted(range(len(ids)), key=lambda i: (isinstance(ids[i], str), ids[i]))
        if not np.isfinite(table.boxes).all() or len(set(ids)) < len(ids):
            return cls.from_coco(table.coco_ground_truth())  # which names what is wrong
        position = np.empty(len(ids), dtype=np.int64)
        position[order] = np.arange(len(ids))
        areas = np.asarray(table.areas)
        return cls(
            image_ids=tuple(ids[i] for i in order),
            classes=table.classes,
            category_ids=table.category_ids,
            image=position[table.owners()],
            label=table.labels,
            boxes=table.boxes,
            area=np.where(np.isnan(areas), table.boxes[:, 2] * table.boxes[:, 3], areas),
            crowd=table.crowd,
            sizes=table.sizes[order].astype(np.int64),
            file_names=tuple(table.file(i) for i in order),
        )

    def of_classes(self, first: int, last: int) -> GroundTruth:
        """With classes ``first`` to ``last - 1`` alone, numbered from 0; all images stay."""
        rows = np.flatnonzero((self.label >= first) & (self.label < last))
        return replace(
            self,
            classes=self.classes[first:last],
            category_ids=self.category_ids[first:last],
            label=self.label[rows] - first,
            **{key: getattr(self, key)[rows] for key in ("image", "boxes", "area", "crowd")},
        )

    @property
    def num_images(self) -> int:
        """N, including images without objects."""
        return len(self.image_ids)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)

    @cached_property
    def image_index(self) -> dict[ImageId, int]:
        """Index of every image, by the data set's id."""
        return {image_id: index for index, image_id in enumerate(self.image_ids)}

    @cached_property
    def label_index(self) -> dict[int, int]:
        """Class index, by the data set's category id."""
        return {category: index for index, category in enumerate(self.category_ids)}


@dataclass(frozen=True, eq=False)
class Detected:
    """The detections of one detector, sorted by image; the given order within an image.

    Attributes:
        image: (D,) index into ``GroundTruth.image_ids``, ascending.
        label: (D,) class index.
        boxes: (D, 4), xywh in pixels.
        score: (D,).
    """

    image: Ints
    label: Ints
    boxes: Floats
    score: Floats

    def __len__(self) -> int:
        return len(self.score)

    @classmethod
    def join(cls, parts: Iterable[Detected]) -> Detected:
        """One table from many, sorted by image; the order within an image is kept."""
        nothing = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0)
        columns = [nothing, *((p.image, p.label, p.boxes, p.score) for p in parts)]
        joined = cls(*(np.concatenate(column) for column in zip(*columns, strict=True)))
        if (joined.image[1:] >= joined.image[:-1]).all():
            return joined
        return joined.select(np.argsort(joined.image, kind="stable"))

    def select(self, keep: NDArray[Any] | slice) -> Detected:
        """The rows of a mask, of indices or of a slice."""
        return Detected(self.image[keep], self.label[keep], self.boxes[keep], self.score[keep])


class Compact(NamedTuple):
    """Detections in fewer bytes, with exactly the same values.

    Networks give float32 corners: their widths are no float32, so the corners are kept.

    Attributes:
        label: (D,) int32 class index.
        boxes: (D, 4) float32, xyxy; or float64, xywh.
        score: (D,) float32 or float64.
    """

    label: NDArray[np.int32]
    boxes: NDArray[Any]
    score: NDArray[Any]

    @classmethod
    def of(cls, label: NDArray[Any], boxes: NDArray[Any], score: NDArray[Any]) -> Compact:
        """From float64 xywh or float32 xyxy."""
        single = score.astype(np.float32)
        return cls(label.astype(np.int32), boxes, single if (single == score).all() else score)

    def xywh(self, rows: Any = slice(None)) -> Floats:
        """(D, 4) float64 boxes of some of them."""
        boxes = self.boxes[rows]
        return to_xywh(boxes.astype(np.float64)) if boxes.dtype == np.float32 else boxes

    def detected(self, image: NDArray[Any], rows: Any = slice(None)) -> Detected:
        """Some of them, with the index of their images, (D,)."""
        label, score = self.label[rows].astype(np.int64), self.score[rows].astype(np.float64)
        return Detected(image[rows].astype(np.int64), label, self.xywh(rows), score)


def shortage(detections: float, each: int) -> str | None:
    """What is missing where ``each`` bytes a detection are more than the free memory, or None."""
    import psutil

    needed, free = detections * each, psutil.virtual_memory().available
    if needed <= free:
        return None
    return (
        f"about {detections:,.0f} detections take about {needed / 1e9:,.1f} GB of memory, and "
        f"{free / 1e9:,.1f} GB are free"
    )


def to_xywh(corners: Floats) -> Floats:
    """(N, 4) corners as left, top, width, height."""
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def protocol_rows(detected: Detected, limit: int = 100) -> Ints:
    """Rows that the metrics use, sorted by image, class and descending score.

    pycocotools uses the best 100 of each image and class; with equal scores the earlier ones.
    """
    order = np.lexsort((-detected.score, detected.label, detected.image))
    image, label = detected.image[order], detected.label[order]
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = (image[1:] != image[:-1]) | (label[1:] != label[:-1])
    starts = np.flatnonzero(is_first)
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    return order[rank < limit]


def _index(ids: Sequence[Any], what: str) -> dict[Any, int]:
    index = {identity: position for position, identity in enumerate(ids)}
    if len(index) != len(ids):
        doubled = next(i for i in ids if ids.count(i) > 1)
        raise UserError(f"{what} id {doubled!r} appears twice in the ground truth")
    return index


def _look_up(rows: list[dict[str, Any]], key: str, index: dict[Any, int]) -> Ints:
    try:
        return np.array([index[row[key]] for row in rows], dtype=np.int64)
    except KeyError:
        row = next(row for row in rows if row.get(key) not in index)
        raise UserError(
            f"annotation {row.get('id')!r} has {key} {row.get(key)!r}, which the ground truth "
            f"does not list: `detrlab check` names such annotations"
        ) from None


def _boxes(rows: list[dict[str, Any]]) -> Floats:
    """(G, 4) boxes; the first broken one is named."""
    try:
        boxes = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(len(rows), 4)
    except (KeyError, TypeError, ValueError):
        boxes = np.full((1, 4), np.nan)
    if np.isfinite(boxes).all():
        return boxes
    if len(rows) > 1:
        return np.concatenate([_boxes([row]) for row in rows])
    raise UserError(
        f"annotation {rows[0].get('id')!r} has bbox {rows[0].get('bbox')!r}: it should be four "
        "finite numbers [x, y, width, height]"
    )
