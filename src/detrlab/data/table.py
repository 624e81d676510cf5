"""The table of a split: numpy columns, in memory or in a file, cheap to share between processes.

Class indices are contiguous, 0..K-1; the data set's own ids and names are kept beside them.
Boxes are kept as annotated (xywh in pixels, double precision) for the evaluation; they are
clamped to the image when a training sample is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from detrlab.boxes import xyxy_to_cxcywh
from detrlab.data.mapped import gather
from detrlab.errors import UserError
from detrlab.structures import Sample, Target

PER_BOX = ("boxes", "labels", "crowd", "areas", "annotation_ids")
"""Columns of a table with a row for each box."""

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from detrlab.data.pictures import Pictures


@dataclass(frozen=True, eq=False)
class Table:
    """One split of a data set: N images with M boxes, K classes.

    Without Python objects, forked loader processes share the columns' memory: reference counting
    never copies them.

    Attributes:
        name: of the split, such as ``train``.
        classes: class names, by class index.
        category_ids: the data set's id of each class, by class index.
        image_ids: (N,) int64; text if the data set's ids are text, objects if they are mixed.
        sizes: (N, 2) int32, (height, width) as declared.
        starts: (N + 1,) int64, the boxes of image i are ``starts[i]:starts[i + 1]``.
        boxes: (M, 4) float64, xywh in pixels, as annotated.
        labels: (M,) int64 class indices.
        crowd: (M,) bool, regions that only the evaluation uses.
        areas: (M,) float64, as annotated.
        annotation_ids: (M,) int64.
        pictures: source of the pixels.
    """

    name: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_ids: NDArray[Any]
    sizes: NDArray[np.int32]
    starts: NDArray[np.int64]
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]
    annotation_ids: NDArray[np.int64]
    pictures: Pictures

    def __post_init__(self) -> None:
        assert len(self.sizes) == len(self.image_ids) == len(self.starts) - 1
        assert self.starts[-1] == len(self.boxes)
        of_boxes = [getattr(self, key) for key in PER_BOX]
        assert {len(column) for column in of_boxes} == {len(self.boxes)}
        for column in (*of_boxes, self.image_ids, self.sizes, self.starts):
            column.setflags(write=False)

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)

    def with_classes(self, classes: Sequence[str]) -> Table:
        """The same table with another list of classes.

        Raises:
            UserError: the table has boxes of a class that is not in the list.
        """
        used = set(np.unique(self.labels).tolist())
        strange = [name for k, name in enumerate(self.classes) if k in used and name not in classes]
        if strange:
            raise UserError(f"classes not among {', '.join(classes)}: {', '.join(strange)}")
        own = dict(zip(self.classes, self.category_ids, strict=True))
        fresh = max(self.category_ids, default=0) + 1
        ids = [own.get(name, fresh + k) for k, name in enumerate(classes)]
        index = [classes.index(name) if name in classes else -1 for name in self.classes]
        return replace(
            self,
            classes=tuple(classes),
            category_ids=tuple(ids),
            labels=np.array(index, dtype=np.int64)[self.labels],
        )

    def owners(self) -> NDArray[np.int64]:
        """(M,) position of each box's image."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    def image_id(self, i: int) -> int | str:
        """The data set's own id of image i, as a plain Python value."""
        value = self.image_ids[i]
        return value.item() if isinstance(value, np.generic) else value

    def file(self, i: int) -> str:
        """Name of image i's file, for messages."""
        return self.pictures.name(i)

    def picture(self, i: int) -> torch.Tensor:
        """The pixels of image i, (3, H, W) uint8, RGB.

        Raises:
            UserError: the file cannot be read; the message names it.
        """
        height, width = self.sizes[i].tolist()
        return self.pictures.read(i, (height, width))

    def read(self, i: int, least: int = 0) -> Sample:
        """Image i with its boxes, clamped to the decoded image; raises as ``picture``.

        With ``least``, the image may be smaller than its file, if no side gets shorter than that.
        """
        declared = tuple(self.sizes[i].tolist())
        # Pictures that are made in memory, or by users, need not know of ``least``.
        image = self.pictures.read(i, declared, least) if least else self.picture(i)
        decoded = tuple(image.shape[-2:])
        if least and decoded != declared and decoded not in _fractions(declared):
            image = self.picture(i)  # the file is not as declared: its own size counts
            declared = decoded = tuple(image.shape[-2:])
        height, width = declared if least else decoded
        boxes, labels = self._trainable(i, height, width)
        boxes *= np.tile(np.divide(decoded, (height, width))[::-1], 2)
        return Sample(
            image=image,
            boxes=torch.from_numpy(boxes.astype(np.float32)),
            labels=torch.from_numpy(labels),
            image_id=self.image_id(i),
            original_size=(height, width),
        )

    def targets(self, i: int) -> Target:
        """The target of image i, from the declared size, without opening its file."""
        height, width = self.sizes[i].tolist()
        boxes, labels = self._trainable(i, height, width)
        corners = boxes / np.array([width, height, width, height], dtype=np.float64)
        return Target(
            labels=torch.from_numpy(labels),
            boxes=xyxy_to_cxcywh(torch.from_numpy(corners)).float(),
        )

    def _trainable(self, i: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (xyxy, clamped, not empty) and labels for training at this image size."""
        rows = slice(int(self.starts[i]), int(self.starts[i + 1]))
        corners = clamped_corners(self.boxes[rows], height, width)
        keep = ~self.crowd[rows] & (corners[:, 2:] > corners[:, :2]).all(axis=1)
        return corners[keep], self.labels[rows][keep]

    def coco_ground_truth(self) -> dict[str, Any]:
        """The annotations as a COCO dict with the data set's ids, for the evaluator.

        Boxes are as annotated, not clamped; crowd regions and areas are kept.
        """
        ids, sizes = self.image_ids.tolist(), self.sizes.tolist()
        columns = {
            "id": self.annotation_ids,
            "image_id": self.owners(),
            "category_id": self.labels,
            "bbox": self.boxes,
            "area": self.areas,
            "iscrowd": self.crowd.astype(int),
        }
        values = (column.tolist() for column in columns.values())
        records = [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]
        for record in records:
            record["image_id"] = ids[record["image_id"]]
            record["category_id"] = self.category_ids[record["category_id"]]
        return {
            "info": {"description": self.name},
            "licenses": [],
            "images": [
                {"id": ids[i], "file_name": self.file(i), "height": height, "width": width}
                for i, (height, width) in enumerate(sizes)
            ],
            "annotations": records,
            "categories": [
                {"id": category, "name": name, "supercategory": ""}
                for category, name in zip(self.category_ids, self.classes, strict=True)
            ],
        }

    def select(self, images: Any, name: str | None = None) -> Table:
        """The table of some images, by their positions, in the order given."""
        images = np.asarray(images, dtype=np.int64)
        if len(images) and (images.min() < 0 or images.max() >= len(self)):
            last = len(self) - 1
            raise UserError(f"{self.name} has {len(self)} images: a position is outside 0..{last}")
        counts = np.diff(self.starts)[images]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        rows = np.repeat(self.starts[:-1][images] - starts[:-1], counts)
        rows += np.arange(starts[-1])
        per_image = {key: getattr(self, key)[images] for key in ("image_ids", "sizes")}
        per_box: dict[str, Any] = {key: gather(getattr(self, key), rows) for key in PER_BOX}
        pictures = self.pictures.select(images)
        name = name or self.name
        return replace(self, name=name, starts=starts, pictures=pictures, **per_image, **per_box)


def _fractions(size: tuple[int, ...]) -> list[tuple[int, ...]]:
    """(height, width) of a JPEG file that libjpeg decodes at a fraction of its size."""
    return [tuple(-(-side // scale) for side in size) for scale in (2, 4, 8)]


def by_size(areas: np.ndarray) -> dict[str, np.ndarray]:
    """Which objects are small, medium and large: (M,) bool by name.

    COCO's rule on annotated areas: small < 32 x 32 <= medium < 96 x 96 <= large.
    """
    small, large = areas < 32**2, areas >= 96**2
    return {"small": small, "medium": ~small & ~large, "large": large}


def clamped_corners(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """(N, 4) xywh -> (N, 4) corners inside an image of this size, float64."""
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    return np.clip(corners, 0, np.array([width, height, width, height], dtype=np.float64))
