"""An exported file as a detector: the same calls as ``detrlab.Detector``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from detrlab.config import DataConfig
from detrlab.data.transforms import (
    evaluation_size,
    resize_as_pillow,
    resize_pixels,
)
from detrlab.detections import Detections
from detrlab.errors import UserError
from detrlab.evaluation.postprocess import decode
from detrlab.export.base import OtherDetector
from detrlab.export.reading import SIZES, Reading, image_port, query_ports, reading_of
from detrlab.export.sessions import Session, open_session
from detrlab.scoring import SigmoidScoring, SoftmaxScoring
from detrlab.structures import Predictions

GREY = 114
"""Around a letterboxed image, as YOLO's tools fill it."""
CANDIDATES = 30_000
"""Boxes that enter non-maximum suppression at most."""
LEAST_SCORE = 0.001
"""Of boxes that enter it, as YOLO's tools evaluate."""


def load(path: str | Path, *, threads: int | None = None) -> ExportedDetector:
    """Open what ``detrlab export`` wrote, or an ONNX file of any detector.

    Args:
        path: ``.onnx``, or ``.xml`` of OpenVINO.
        threads: that its runtime may use; None takes torch's number.

    Raises:
        UserError: the file is missing, damaged, refused, or not understood; the message says how
            to describe it.
    """
    path = Path(path)
    session = open_session(path, threads)
    reading, notes = reading_of(path, session)
    return ExportedDetector(session, reading, path, notes)


class ExportedDetector(OtherDetector):
    """A detector that runs in ONNX Runtime or OpenVINO.

    Attributes:
        session: runs the file.
        reading: how pictures are prepared and the outputs understood.
        path: of the file.
    """

    def __init__(
        self, session: Session, reading: Reading, path: Path, notes: tuple[str, ...] = ()
    ) -> None:
        self.session = session
        self.reading = reading
        self.path = path
        self.notes = notes
        self.classes = reading.classes
        self.category_ids = reading.category_ids or tuple(range(len(reading.classes)))
        self.threshold = reading.threshold
        self.parameters = session.parameters
        self.description = reading.describe()
        self.rename = reading.rename
        self._image = image_port(path, session)
        self._sizes = next((port for port in session.inputs if port.name == SIZES), None)

    def __repr__(self) -> str:
        return f"ExportedDetector({self.path}, {len(self.classes)} classes)"

    def detect(self, pixels: Tensor, limit: int = 100) -> Detections:
        """The objects in a (3, H, W) uint8 picture."""
        size = (pixels.shape[1], pixels.shape[2])
        prepared, place = self.prepare(pixels)
        boxes, scores, labels = self._decode(
            self.session.run(self.feeds(prepared, size)), size, limit
        )
        if place is not None:
            left, top, scale = place
            boxes = (boxes - boxes.new_tensor([left, top, left, top])) / scale
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.classes):
            raise UserError(
                f"{self.path} finds class {int(labels.max())}, and only {len(self.classes)} "
                f"classes are named: list all of them in {self.path.with_suffix('.yaml').name}"
            )
        return self.found(boxes, scores, labels, size)

    def inference(self, pixels: Tensor) -> Callable[[], Any]:
        """See ``OtherDetector``."""
        prepared, _ = self.prepare(pixels)
        feeds = self.feeds(prepared, (pixels.shape[1], pixels.shape[2]))
        return lambda: self.session.run(feeds)

    def prepare(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int, float] | None]:
        """The (1, 3, H, W) input of a picture; with a letterbox its left, top and scale."""
        reading, place = self.reading, None
        old_height, old_width = pixels.shape[-2:]
        height, width = reading.size
        if reading.resize == "short_side":
            bounds = DataConfig(image_size=height, max_size=width)
            resized = resize_pixels(pixels, *evaluation_size(old_height, old_width, bounds))
        elif reading.resize == "letterbox":
            scale = min(height / old_height, width / old_width)
            inner = (max(1, round(old_height * scale)), max(1, round(old_width * scale)))
            free = (height - inner[0], width - inner[1])
            top, left = round(free[0] / 2 - 0.1), round(free[1] / 2 - 0.1)
            sides = (left, free[1] - left, top, free[0] - top)
            resized = F.pad(resize_as_pillow(pixels, *inner), sides, value=GREY)
            place = (left, top, scale)
        else:
            resized = resize_as_pillow(pixels, height, width)
        if reading.channels == "bgr":
            resized = resized.flip(0)
        if self._image.dtype == "uint8":
            return resized[None], place
        mean, std = (torch.tensor(each)[:, None, None] for each in (reading.mean, reading.std))
        values = resized.float() if reading.range == 255 else resized.float() / 255
        dtype = getattr(torch, self._image.dtype, torch.float32)
        return ((values - mean) / std)[None].to(dtype).contiguous(), place

    def feeds(self, prepared: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        """The inputs of one inference; ``size`` is the original's (height, width)."""
        feeds = {self._image.name: prepared}
        if self._sizes is not None:
            dtype = getattr(torch, self._sizes.dtype, torch.int64)
            feeds[SIZES] = torch.tensor([[size[1], size[0]]], dtype=dtype)
        return feeds

    def _decode(
        self, outputs: dict[str, Tensor], size: tuple[int, int], limit: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and labels, best first; boxes of YOLO in pixels of the input."""
        try:
            if self.reading.layout == "detections":
                return _detections(outputs, size, limit, scaled=self._sizes is not None)
            if self.reading.layout == "queries":
                return self._queries(outputs, size, limit)
            (rows,) = outputs.values()
            if self.reading.layout == "yolo":
                return self._yolo(rows, limit)
            best = rows[0, rows[0, :, 4].argsort(descending=True)[:limit]]
            return best[:, :4], best[:, 4], best[:, 5].round()
        except (IndexError, KeyError, RuntimeError, ValueError) as error:
            shapes = {name: tuple(each.shape) for name, each in outputs.items()}
            raise UserError(
                f"{self.path}: its outputs {shapes} are not {self.reading.layout} of "
                f"{len(self.classes)} classes ({' '.join(str(error).split())[:100]}): say how they "
                f"are meant in {self.path.with_suffix('.yaml').name}"
            ) from None

    def _queries(
        self, outputs: dict[str, Tensor], size: tuple[int, int], limit: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        logits, boxes = (outputs[name] for name in query_ports(self.session.outputs) or outputs)
        if boxes.shape[-1] != 4:
            logits, boxes = boxes, logits
        scoring = SigmoidScoring() if self.reading.scores == "sigmoid" else SoftmaxScoring()
        decoded = decode(Predictions(logits, boxes), scoring, [size], limit)
        return decoded.boxes[0], decoded.scores[0], decoded.labels[0]

    def _yolo(self, rows: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
        from torchvision.ops import batched_nms

        boxes, scores = rows[0].float().split([4, len(self.classes)])
        flat = scores.t().flatten()
        best = flat.topk(min(CANDIDATES, int((flat > LEAST_SCORE).sum()))).indices
        owners, labels = best // len(self.classes), best % len(self.classes)
        centers, sizes = boxes.t()[owners].split(2, dim=1)
        corners = torch.cat([centers - sizes / 2, centers + sizes / 2], dim=1)
        kept = batched_nms(corners, flat[best], labels, self.reading.iou)[:limit]
        return corners[kept], flat[best][kept], labels[kept]


def _detections(
    outputs: dict[str, Tensor], size: tuple[int, int], limit: int, *, scaled: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """What is decoded in the file; without the original's size its boxes are fractions."""
    named = {name.rsplit("/")[-1]: each[0] for name, each in outputs.items()}
    order = named["scores"].argsort(descending=True, stable=True)[:limit]
    boxes = named["boxes"].float()[order]
    if not scaled:
        height, width = size
        boxes = boxes * boxes.new_tensor([width, height, width, height])
    return boxes, named["scores"][order], named["labels"][order]
