"""``Detections``: what ``predict`` returns for one image."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from detrlab.boxes import xyxy_to_cxcywh

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image

Threshold = float | Literal["auto"] | None
"""A score, the detector's own (``auto``), or None for all detections."""
DEFAULT_THRESHOLD = 0.3
"""Score from which boxes are drawn when neither the user nor the checkpoint names a threshold."""


@dataclass(frozen=True)
class Detections:
    """The objects found in one image, best first.

    Attributes:
        boxes: (N, 4) float32, xyxy in pixels of the original image.
        scores: (N,) float32 in [0, 1].
        labels: (N,) int64 class indices.
        classes: name of every class, by class index.
        category_ids: the data set's id of every class, by class index.
        size: (height, width) of the original image.
        image_id: the data set's id of the image, if it has one.
        image: the picture itself, kept for ``plot``; None when it was not kept.
        threshold: the score from which ``plot`` and ``save`` draw boxes: what ``predict`` or
            ``above`` was given, else the checkpoint's own, else ``DEFAULT_THRESHOLD``.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    size: tuple[int, int]
    image_id: int | str | None = None
    image: Image.Image | None = field(default=None, repr=False, compare=False)
    threshold: float = DEFAULT_THRESHOLD

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """The class name of each detection."""
        return [self.classes[label] for label in self.labels.tolist()]

    def chosen(self, threshold: Threshold) -> Detections:
        """Those that score at least a threshold: the detector's own for ``auto``, None for all."""
        if threshold is None:
            return self
        return self.above(self.threshold if threshold == "auto" else threshold)

    def above(self, threshold: float) -> Detections:
        """The detections that score at least ``threshold``."""
        keep = self.scores >= threshold
        return replace(
            self,
            boxes=self.boxes[keep],
            scores=self.scores[keep],
            labels=self.labels[keep],
            threshold=threshold,
        )

    def only(self, classes: Collection[str]) -> Detections:
        """The detections of these classes."""
        keep = torch.tensor([name in classes for name in self.names], dtype=torch.bool)
        return replace(
            self, boxes=self.boxes[keep], scores=self.scores[keep], labels=self.labels[keep]
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

    def to_yolo(self) -> list[str]:
        """Lines of a YOLO label file: class index, centre and size as fractions of the image.

        Boxes are clamped to the image, as the format demands.
        """
        height, width = self.size
        scale = torch.tensor([width, height, width, height], dtype=torch.float32)
        boxes = xyxy_to_cxcywh((self.boxes / scale).clamp(0, 1)).tolist()
        rows = zip(self.labels.tolist(), boxes, strict=True)
        return [f"{label} " + " ".join(f"{side:.6f}" for side in box) for label, box in rows]

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

    def plot(self, threshold: float | None = None) -> Image.Image:
        """The picture with boxes drawn on it.

        Args:
            threshold: draw boxes that score at least this; None takes ``self.threshold``.

        Raises:
            ValueError: the detections were made without keeping their picture.
        """
        from detrlab.drawing import draw_detections

        if self.image is None:
            raise ValueError("these detections carry no picture: predict with keep_image=True")
        return draw_detections(
            self.image, self.above(self.threshold if threshold is None else threshold)
        )

    def save(self, path: str | Path, threshold: float | None = None) -> None:
        """Write ``plot(threshold)`` to an image file; the file name's extension sets the format."""
        self.plot(threshold).save(path)
