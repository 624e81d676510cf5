"""The records that travel between rooms.

Each type has one box format, so that no transform ever changes it silently:

* ``Sample``: xyxy in pixels of the image as it is now.
* ``Target`` and ``Predictions``: cxcywh as fractions of the *unpadded* image.
* ``Detections``: xyxy in pixels of the original image.

Axes: B images, Q queries, K classes, N objects, D width, L levels, S tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image

LevelShapes = tuple[tuple[int, int], ...]
"""(height, width) of each feature level, as plain ints."""


class ImageBatch(NamedTuple):
    """Images padded at the bottom and right to one size.

    Attributes:
        pixels: (B, 3, H, W) float, normalised, 0 where padded.
        padding: (B, H, W) bool, True where padded.
    """

    pixels: Tensor
    padding: Tensor


class Sample(NamedTuple):
    """One annotated image, as readers give it and transforms change it.

    Attributes:
        image: (3, H, W) uint8, RGB.
        boxes: (N, 4) float32, xyxy in pixels of ``image``.
        labels: (N,) int64 class indices, 0..K-1.
        image_id: the data set's own id of the image.
        original_size: (height, width) of the image on disk.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    image_id: int | str
    original_size: tuple[int, int]


class Target(NamedTuple):
    """What one image should yield; also right for an image without objects (N = 0).

    Attributes:
        labels: (N,) int64 class indices, 0..K-1.
        boxes: (N, 4) float32, cxcywh as fractions of the unpadded image.
    """

    labels: Tensor
    boxes: Tensor


class Memory(NamedTuple):
    """Feature maps flattened to tokens, level after level, rows first.

    Attributes:
        tokens: (B, S, D).
        position: (B, S, D), sine embedding plus the level's, if there is one.
        padding: (B, S) bool, True where padded.
        level_shapes: (height, width) of each level; their products sum to S.
        valid_ratios: (B, L, 2), the unpadded share of each level's width and height.
    """

    tokens: Tensor
    position: Tensor
    padding: Tensor
    level_shapes: LevelShapes
    valid_ratios: Tensor


class References(NamedTuple):
    """Where each query looks: a point, or a box, as fractions of the unpadded image.

    Attributes:
        centers: (B, Q, 2), x and y.
        sizes: (B, Q, 2), width and height; None when the reference is a point.
    """

    centers: Tensor
    sizes: Tensor | None = None


class Queries(NamedTuple):
    """Object queries on their way into the decoder.

    Attributes:
        content: (B, Q, D), what the decoder layers transform.
        position: (B, Q, D), added to the content wherever attention compares.
        references: where the queries look first; None when they have no place (DETR).
    """

    content: Tensor
    position: Tensor
    references: References | None


class Predictions(NamedTuple):
    """One set of predictions.

    Attributes:
        logits: (B, Q, K) or, with a no-object class, (B, Q, K + 1).
        boxes: (B, Q, 4), cxcywh as fractions of the unpadded image.
    """

    logits: Tensor
    boxes: Tensor


class ModelOutput(NamedTuple):
    """Everything a detector says about a batch.

    Attributes:
        layers: predictions of each decoder layer; the last are the detector's, the earlier
            ones are what auxiliary losses are taken on.
        proposals: predictions of the first stage over all S tokens; None without one.
    """

    layers: tuple[Predictions, ...]
    proposals: Predictions | None

    @property
    def final(self) -> Predictions:
        """The last decoder layer's predictions."""
        return self.layers[-1]


@dataclass(frozen=True)
class Detections:
    """What a person gets from ``predict``: the objects found in one image, best first.

    Attributes:
        boxes: (N, 4) float32, xyxy in pixels of the original image.
        scores: (N,) float32 in [0, 1].
        labels: (N,) int64 class indices.
        classes: name of every class, by class index.
        category_ids: the data set's id of every class, by class index.
        size: (height, width) of the original image.
        image_id: the data set's id of the image, if it has one.
        image: the picture itself, kept for ``plot``; None when it was not kept.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    size: tuple[int, int]
    image_id: int | str | None = None
    image: Image.Image | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """The class name of each detection."""
        return [self.classes[label] for label in self.labels.tolist()]

    def above(self, threshold: float) -> Detections:
        """The detections that score at least ``threshold``."""
        return self._select(self.scores >= threshold)

    def _select(self, keep: Tensor) -> Detections:
        return Detections(
            boxes=self.boxes[keep],
            scores=self.scores[keep],
            labels=self.labels[keep],
            classes=self.classes,
            category_ids=self.category_ids,
            size=self.size,
            image_id=self.image_id,
            image=self.image,
        )

    def to_coco(self) -> list[dict[str, Any]]:
        """COCO result records: ``image_id``, ``category_id``, ``bbox`` (xywh), ``score``."""
        corners = self.boxes.double()
        xywh = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1)
        rows = zip(xywh.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True)
        return [
            {
                "image_id": self.image_id,
                "category_id": self.category_ids[label],
                "bbox": box,
                "score": score,
            }
            for box, score, label in rows
        ]

    def to_supervision(self) -> Any:
        """The same detections as ``supervision.Detections`` (needs ``supervision``)."""
        try:
            import supervision
        except ImportError as error:
            raise ImportError(
                "to_supervision() needs the package supervision: pip install supervision"
            ) from error
        import numpy as np

        return supervision.Detections(
            xyxy=self.boxes.numpy(),
            confidence=self.scores.numpy(),
            class_id=self.labels.numpy(),
            data={"class_name": np.array(self.names)},
        )

    def plot(self, threshold: float = 0.3) -> Image.Image:
        """The picture with the boxes that score at least ``threshold`` drawn on it.

        Raises:
            ValueError: the detections were made without keeping their picture.
        """
        from detrlab.drawing import draw_detections

        if self.image is None:
            raise ValueError("these detections carry no picture: predict with keep_image=True")
        return draw_detections(self.image, self.above(threshold))

    def save(self, path: str | Path, threshold: float = 0.3) -> None:
        """Write ``plot(threshold)`` to an image file; the ending chooses the format."""
        self.plot(threshold).save(path)
