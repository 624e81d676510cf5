"""The public entry to this package: explain one image, and save the result."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detrlab.errors import UserError
from detrlab.explain import plots, records
from detrlab.explain.capture import record
from detrlab.explain.denoising import restore
from detrlab.explain.inspection import Inspection
from detrlab.files import write_text
from detrlab.losses.criterion import Criterion
from detrlab.models.network import Network
from detrlab.structures import ImageBatch, Target

if TYPE_CHECKING:
    from PIL import Image


FORMATS = ("png", "svg", "jpg", "webp", "pdf")


class Explanation(Inspection):
    """What a detector did with one image, ready to be saved."""

    def to_dict(self, *, top: int = 20, threshold: float = 0.3) -> dict[str, Any]:
        """Plain values for JSON; see ``records.as_dict``."""
        return records.as_dict(self, top=top, threshold=threshold)

    def save(
        self,
        folder: str | Path,
        *,
        threshold: float = 0.3,
        image_format: str = "png",
        dpi: int = 110,
        **options: Any,
    ) -> list[Path]:
        """Write figures and ``explanation.json``.

        Args:
            folder: created if it does not exist; files of the same names are replaced.
            threshold: score from which a detection is drawn and counts.
            image_format: one of ``FORMATS``.
            dpi: pixels per inch.
            **options: ``queries`` to draw and ``points`` (x, y) as fractions to look from in
                the encoder, by default of the three best detections; ``layer`` of the encoder
                and decoder to draw, from 0, or from the last if negative.

        Returns:
            The files, ``explanation.json`` last.

        Raises:
            UserError: unknown format, query, layer or point; the folder cannot be written.
        """
        if image_format not in FORMATS:
            raise UserError(f"unknown image format {image_format!r}: one of {', '.join(FORMATS)}")
        figures = plots.draw_all(self, threshold=threshold, **options)
        files = [
            plots.write(figure, Path(folder) / f"{name}.{image_format}", dpi)
            for name, figure in figures.items()
        ]
        numbers = Path(folder) / "explanation.json"
        write_text(numbers, json.dumps(self.to_dict(threshold=threshold), ensure_ascii=False))
        return [*files, numbers]


def explain(
    network: Network,
    criterion: Criterion,
    images: ImageBatch,
    classes: Sequence[str],
    *,
    picture: Image.Image | None = None,
    target: Target | None = None,
    name: str = "",
) -> Explanation:
    """Run a detector on one image and keep what it did.

    ``Detector.explain`` is the short form. The outputs are the same bits as without explaining.

    Args:
        network: any detector.
        criterion: of its training: how logits are read, how queries are matched.
        images: one image without padding, as a batch on the network's device.
        classes: name of every class, by class index.
        picture: the image as people see it.
        target: its annotated objects.
        name: of the detector, for titles.
    """
    assert len(images.pixels) == 1, f"explain takes one image, not {len(images.pixels)}"
    assert not images.padding.any(), "explain takes an image without padding"
    height, width = images.pixels.shape[-2:]
    size = (height, width) if picture is None else (picture.height, picture.width)
    if target is not None:
        target = Target(*(part.to(images.pixels.device) for part in target))
    recording = record(network, images)
    restored = None if target is None else restore(network, images, target)
    return Explanation(recording, criterion, tuple(classes), size, picture, target, name, restored)
