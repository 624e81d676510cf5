"""The images with the worst detections, side by side with their boxes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from detrlab.drawing import draw_boxes, text_colour_on
from detrlab.evaluation.analysis import Analysis, object_fates
from detrlab.evaluation.matching import FALSE, FOUND, match
from detrlab.evaluation.records import Detected, GroundTruth

_COLOURS = {"found": (0, 158, 115), "missed": (214, 39, 40), "false positive": (255, 191, 0)}
_GAP, _LINE = 10, 22  # pixels between tiles, and of a line of text

_Box = tuple[Any, str, str]  # xywh, caption, kind


def hard_images(
    truth: GroundTruth,
    detected: Detected,
    analysis: Analysis,
    read: Callable[[int], Image.Image],
    count: int = 12,
    tile: int = 420,
) -> Image.Image:
    """The images with the lowest F1 in a grid: found objects, missed ones, false positives.

    Args:
        truth: the annotations.
        detected: the detections that were analysed.
        analysis: of ``detected``.
        read: gives the image of an index into ``truth.image_ids``.
        count: largest number of images; images without mistakes are never shown.
        tile: width of each in pixels.
    """
    worst = [verdict for verdict in analysis.images if verdict.mistakes][:count]
    boxes = dict(_boxes(truth, detected, analysis, [truth.image_index[v.image_id] for v in worst]))
    tiles = []
    for verdict in worst:
        index = truth.image_index[verdict.image_id]
        words = (
            f"{verdict.image_id}: {verdict.found} found, {verdict.missed} missed, "
            f"{verdict.false_alarms} false positive{'' if verdict.false_alarms == 1 else 's'}"
        )
        tiles.append(_tile(read(index), boxes[index], words, tile))
    return _grid(tiles, tile)


def _boxes(
    truth: GroundTruth, detected: Detected, analysis: Analysis, images: Sequence[int]
) -> Iterator[tuple[int, list[_Box]]]:
    """What to draw on each of some images."""
    matches = match(truth, detected)
    found, fate = object_fates(matches, analysis.thresholds)
    for image in images:
        rows: list[_Box] = [
            (truth.boxes[g], f"missed {truth.classes[truth.label[g]]}", "missed")
            for g in np.flatnonzero((truth.image == image) & ~truth.crowd & ~found)
        ]
        for d in np.flatnonzero((matches.image == image) & (fate == FALSE)):
            caption = f"{truth.classes[matches.label[d]]} {matches.score[d]:.2f}"
            rows.append((detected.boxes[matches.row[d]], caption, "false positive"))
        right = np.flatnonzero((matches.image == image) & (fate == FOUND))
        rows += [(detected.boxes[matches.row[d]], "", "found") for d in right]
        yield image, rows


def _tile(image: Image.Image, rows: Sequence[_Box], words: str, width: int) -> Image.Image:
    """One image with its boxes and a line of text below."""
    scale = width / image.width
    # Resized before drawing, so that captions have one size in every tile.
    small = image.convert("RGB").resize((width, max(1, round(image.height * scale))))
    corners = [np.r_[box[:2], box[:2] + box[2:]] * scale for box, _, _ in rows]
    colours = [_COLOURS[kind] for _, _, kind in rows]
    drawn = draw_boxes(small, corners, [caption for _, caption, _ in rows], colours)
    canvas = Image.new("RGB", (width, drawn.height + _LINE), "white")
    canvas.paste(drawn, (0, 0))
    font = ImageFont.load_default(13)
    ImageDraw.Draw(canvas).text((4, drawn.height + 3), words, fill=(34, 34, 34), font=font)
    return canvas


def _grid(tiles: Sequence[Image.Image], width: int) -> Image.Image:
    """Rows of three tiles below a legend."""
    rows = [tiles[start : start + 3] for start in range(0, len(tiles), 3)]
    heights = [max(tile.height for tile in row) + _GAP for row in rows]
    columns = max(1, min(3, len(tiles)))
    top = _LINE + _GAP
    sheet = Image.new("RGB", (columns * (width + _GAP) + _GAP, top + sum(heights)), "white")
    draw, font, x = ImageDraw.Draw(sheet), ImageFont.load_default(14), _GAP
    for words, colour in _COLOURS.items():
        length = round(draw.textlength(words, font=font)) + 12
        draw.rectangle((x, 5, x + length, 3 + _LINE), fill=colour)
        draw.text((x + 6, 6), words, fill=text_colour_on(colour), font=font)
        x += length + _GAP
    y = top
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            sheet.paste(tile, (_GAP + column * (width + _GAP), y))
        y += height
    return sheet
