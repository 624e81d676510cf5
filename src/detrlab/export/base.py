"""The calls that detectors outside of detrlab share with ``detrlab.Detector``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from detrlab.detections import DEFAULT_THRESHOLD, Detections, Threshold
from detrlab.images import Finder, as_picture, as_pixels

if TYPE_CHECKING:
    from detrlab.images import Picture


class OtherDetector(Finder):
    """What is not a network of ours, and finds objects in pictures.

    Attributes:
        classes: the name of each class, by class index.
        category_ids: the data set's id of each class.
        threshold: the suggested score threshold, if one is known.
        notes: what was assumed about it, a line each.
        description: how pictures are prepared and the outputs understood.
        parameters: numbers in its weights.
    """

    category_ids: tuple[int, ...]
    threshold: float | None = None
    notes: tuple[str, ...] = ()
    description: str = ""
    parameters: int = 0
    rename: dict[str, str]

    def detect(self, pixels: Tensor, limit: int = 100) -> Detections:
        """The objects in a (3, H, W) uint8 picture, best first."""
        raise NotImplementedError

    def inference(self, pixels: Tensor) -> Callable[[], Any]:
        """A call that runs the network once on a prepared picture: what its latency is of."""
        raise NotImplementedError

    def predict_each(
        self,
        images: Iterable[Picture],
        *,
        threshold: Threshold = "auto",
        limit: int = 100,
        keep_image: bool = True,
    ) -> Iterator[Detections]:
        """As ``Detector.predict_each``."""
        for image in images:
            pixels = as_pixels(image)
            found = self.detect(pixels, limit)
            if keep_image:
                found = replace(found, image=as_picture(pixels))
            yield found.chosen(threshold)

    def found(
        self, boxes: Tensor, scores: Tensor, labels: Tensor, size: tuple[int, int]
    ) -> Detections:
        """The public record of one image of this (height, width)."""
        return Detections(
            boxes=boxes.float(),
            scores=scores.float(),
            labels=labels.long(),
            classes=self.classes,
            category_ids=self.category_ids,
            size=size,
            threshold=DEFAULT_THRESHOLD if self.threshold is None else self.threshold,
        )
