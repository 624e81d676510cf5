"""The first picture of a comparison: what the detectors are about to be shown."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from detrlab import files
from detrlab.boxes import cxcywh_to_xyxy
from detrlab.config import DataConfig
from detrlab.drawing import colour_of, draw_boxes

if TYPE_CHECKING:
    from PIL import Image

    from detrlab.data import Batch, DataSet

IMAGES = 12
COLUMNS = 4
SIDE = 320
"""Largest side of each image on the sheet, in pixels."""


def write_first_look(data: DataSet, config: DataConfig, seed: int, path: Path) -> None:
    """Draw the first training images of the first epoch, augmented, with their boxes.

    These are the very pixels that every detector of the comparison begins with. Wrong boxes,
    a wrong size or colours in the wrong order are seen here before they cost a training.

    Args:
        data: what is compared on.
        config: size and augmentation.
        seed: of order and augmentation.
        path: of the PNG file.
    """
    from detrlab.data import batches

    stream = batches(data.train, config, batch=1, seed=seed, epoch=0, train=True, workers=0)
    pictures = [
        _drawn(batch, config, data.train.classes)
        for batch, _ in zip(stream, range(IMAGES), strict=False)
    ]
    content = io.BytesIO()
    _sheet(pictures).save(content, format="PNG")
    files.write_bytes(path, content.getvalue())


def _drawn(batch: Batch, config: DataConfig, classes: tuple[str, ...]) -> Image.Image:
    """The only image of a batch as a picture, enlarged or reduced to the sheet's size."""
    from PIL import Image

    pixels = batch.images.pixels[0]
    mean, std = (pixels.new_tensor(value)[:, None, None] for value in (config.mean, config.std))
    values = ((pixels * std + mean).clamp(0, 1) * 255).round().byte()
    picture = Image.fromarray(values.permute(1, 2, 0).numpy())
    scale = SIDE / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    labels, boxes = batch.targets[0]
    corners = cxcywh_to_xyxy(boxes) * boxes.new_tensor([width, height, width, height])
    return draw_boxes(
        picture.resize((width, height)),
        corners.tolist(),
        [classes[label] for label in labels.tolist()],
        [colour_of(label) for label in labels.tolist()],
    )


def _sheet(pictures: list[Image.Image]) -> Image.Image:
    from PIL import Image

    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (SIDE + 8), max(1, rows) * (SIDE + 8)), (40, 40, 40))
    for number, picture in enumerate(pictures):
        row, column = divmod(number, COLUMNS)
        left = column * (SIDE + 8) + (SIDE + 8 - picture.width) // 2
        top = row * (SIDE + 8) + (SIDE + 8 - picture.height) // 2
        sheet.paste(picture, (left, top))
    return sheet
