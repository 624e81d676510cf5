"""Detectors of Hugging Face transformers that detrlab has not: for inference only."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detrlab.checkpoints.weights import HUB, fetch_repository
from detrlab.detections import Detections
from detrlab.errors import UserError
from detrlab.export.base import OtherDetector
from detrlab.images import as_picture


def transformers_detector(source: str) -> TransformersDetector | None:
    """A detector that transformers runs.

    Args:
        source: ``hf:REPOSITORY``, or a folder that transformers wrote.

    Returns:
        None where the source is neither, or transformers is not installed.

    Raises:
        UserError: transformers has no such detector, or the folder is damaged.
    """
    folder = Path(source).expanduser()
    if source.startswith(HUB):
        folder = fetch_repository(source.removeprefix(HUB))
    if not (folder / "config.json").is_file():
        return None
    try:
        import transformers
    except ImportError:
        return None
    try:
        # Only what is in the folder, and only code of transformers itself.
        given = {"local_files_only": True, "trust_remote_code": False}
        model = transformers.AutoModelForObjectDetection.from_pretrained(folder, **given)
        processor = transformers.AutoImageProcessor.from_pretrained(folder, **given)
    except Exception as error:  # it has dozens
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{source}: transformers cannot load this {kind!r} as a detector: {reason}"
        ) from None
    return TransformersDetector(model, processor, source)


class TransformersDetector(OtherDetector):
    """A model and an image processor of transformers.

    Args:
        model: of ``AutoModelForObjectDetection``.
        processor: that prepares pictures for it and reads its outputs.
        source: for messages.
    """

    def __init__(self, model: Any, processor: Any, source: str) -> None:
        self.model = model.eval()
        self.processor = processor
        names = model.config.id2label
        self.classes = tuple(str(names[label]) for label in sorted(names))
        self.category_ids = tuple(range(len(self.classes)))
        self.parameters = sum(each.numel() for each in model.parameters())
        self.description = (
            f"{type(model).__name__} with {type(processor).__name__} of transformers; "
            f"{len(self.classes)} classes ({', '.join(self.classes[:3])}, ...)"
        )
        self.notes = (f"{source}: run by transformers, prepared and decoded by its processor",)
        self.rename = {}

    def inference(self, pixels: Tensor) -> Callable[[], Any]:
        """See ``OtherDetector``."""
        given = self.processor(images=as_picture(pixels), return_tensors="pt")
        return torch.inference_mode()(lambda: self.model(**given))

    @torch.inference_mode()
    def detect(self, pixels: Tensor, limit: int = 100) -> Detections:
        """The objects in a (3, H, W) uint8 picture."""
        size = (pixels.shape[1], pixels.shape[2])
        given = self.processor(images=as_picture(pixels), return_tensors="pt")
        outputs = self.model(**given)
        (found,) = self.processor.post_process_object_detection(
            outputs, threshold=0.0, target_sizes=[size]
        )
        order = found["scores"].argsort(descending=True, stable=True)[:limit]
        return self.found(
            found["boxes"][order], found["scores"][order], found["labels"][order], size
        )
