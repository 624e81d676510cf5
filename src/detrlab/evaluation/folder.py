"""Write the analysis of an evaluation to a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from detrlab.drawing import draw_boxes
from detrlab.errors import UserError
from detrlab.evaluation import plots
from detrlab.evaluation.analysis import Analysis, analyse, outcomes
from detrlab.evaluation.matching import match
from detrlab.evaluation.records import Detected, GroundTruth
from detrlab.files import replacing, write_json
from detrlab.palette import FALSE_ALARM, FOUND, INK, MISSED, from_hex, text_colour_on

if TYPE_CHECKING:
    from detrlab.data.table import Table
    from detrlab.evaluation.coco import Evaluator

_COLOURS = {"found": FOUND, "missed": MISSED, "false": FALSE_ALARM}
_TILE, _LINE = (420, 360), 22  # of the hard images, and the height of a line of text; pixels


def write_analysis(
    table: Table,
    evaluator: Evaluator,
    folder: str | Path,
    layers: Sequence[Evaluator] = (),
) -> Analysis:
    """Analyse an evaluator's detections, and write the result as json and as pictures.

    Writes ``analysis.json``, ``pictures/`` and ``hard_images.jpg``.

    Args:
        table: the annotated images that the evaluator was made for.
        evaluator: filled.
        folder: created if needed.
        layers: one filled evaluator for each decoder layer, as ``evaluate_layers`` returns them.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = Path(folder)
    detected = evaluator.detected()
    analysis = analyse(evaluator.truth, detected)
    by_layer = [each.metrics() for each in layers]
    values = analysis.to_dict()
    if by_layer:
        values["layers"] = [each.to_dict() for each in by_layer]
    write_json(folder / "analysis.json", values)
    plots.save(analysis, folder / "pictures", by_layer)
    rows = {table.image_id(i): i for i in range(len(table))}

    def read(index: int) -> Image.Image:
        return _image(table, rows[evaluator.truth.image_ids[index]])

    sheet = hard_images(evaluator.truth, detected, analysis, read)
    with replacing(folder / "hard_images.jpg") as temporary:
        sheet.save(temporary, format="JPEG", quality=88)
    return analysis


def _image(table: Table, row: int) -> Image.Image:
    """One image; a grey one where the file cannot be read."""
    try:
        return Image.fromarray(table.picture(row).permute(1, 2, 0).numpy())
    except UserError:
        # The metrics do not need the file, and opening the data has already warned about it.
        height, width = table.sizes[row].tolist()
        return Image.new("RGB", (max(1, width), max(1, height)), (160, 160, 160))


def hard_images(
    truth: GroundTruth,
    detected: Detected,
    analysis: Analysis,
    read: Callable[[int], Image.Image],
    count: int = 12,
) -> Image.Image:
    """The images with the lowest F1, three in a row: found objects, missed ones, false positives.

    Args:
        truth: the annotations.
        detected: the detections that were analysed.
        analysis: of ``detected``.
        read: gives the image of an index into ``truth.image_ids``.
        count: largest number of images; images without mistakes are never shown.
    """
    worst = [verdict for verdict in analysis.images if verdict.mistakes][:count]
    matches = match(truth, detected)
    columns = max(1, min(3, len(worst)))
    width, height = _TILE[0], _TILE[1] + _LINE
    sheet = Image.new("RGB", (columns * width, _LINE - (-len(worst) // columns) * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for place, (kind, colour) in enumerate(_COLOURS.items()):
        draw.rectangle((80 * place, 0, 80 * place + 72, _LINE - 4), fill=colour)
        fill = text_colour_on(from_hex(colour))
        draw.text((80 * place + 4, 1), kind, fill=fill, font=font)
    for place, verdict in enumerate(worst):
        x, y = place % columns * width, _LINE + place // columns * height
        image = read(truth.image_index[verdict.image_id])
        # Resized before drawing, so that captions have one size in every tile.
        small = ImageOps.contain(image.convert("RGB"), _TILE)
        scale = small.width / image.width
        boxes = outcomes(
            truth, detected, matches, analysis.thresholds, truth.image_index[verdict.image_id]
        )
        drawn = draw_boxes(
            small,
            [np.r_[box[:2], np.add(box[:2], box[2:])] * scale for _, box, _ in boxes],
            ["" if kind == "found" else label for kind, _, label in boxes],
            [from_hex(_COLOURS[kind]) for kind, _, _ in boxes],
        )
        sheet.paste(drawn, (x, y))
        words = f"{verdict.found} found, {verdict.missed} missed, {verdict.false_alarms} false"
        draw.text((x + 4, y + drawn.height + 2), f"{verdict.image_id}: {words}", INK, font)
    return sheet
