"""All that an evaluation leaves behind for people, written to one folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detrlab.errors import UserError
from detrlab.evaluation import pictures
from detrlab.evaluation.analysis import Analysis, analyse
from detrlab.files import replacing, write_json

if TYPE_CHECKING:
    from PIL import Image

    from detrlab.data.table import Table
    from detrlab.evaluation.coco import Evaluator


def write_analysis(
    table: Table,
    evaluator: Evaluator,
    folder: str | Path,
    layers: Sequence[Evaluator] = (),
    formats: Sequence[str] = ("png",),
) -> Analysis:
    """Analyse what an evaluator has gathered, and write it as json and as pictures.

    Writes ``analysis.json``, ``pictures/`` (precision over recall, sizes, confusion, kinds of
    error, calibration, and decoder layers if they are given) and ``hard_images.jpg``.

    Args:
        table: that the evaluator was made of; gives the photographs.
        evaluator: filled.
        folder: made if it is not there.
        layers: one filled evaluator for each decoder layer, as ``evaluate_layers`` gives them.
        formats: of the pictures: ``png``, ``svg`` ...

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
    pictures.save(analysis, folder / "pictures", formats)
    if by_layer:
        figure = pictures.layers(by_layer)
        for ending in formats:
            pictures.save_figure(figure, folder / "pictures" / f"layers.{ending}")
    rows = {table.image_id(i): i for i in range(len(table))}

    def read(index: int) -> Image.Image:
        return _photograph(table, rows[evaluator.truth.image_ids[index]])

    sheet = pictures.hard_images(evaluator.truth, detected, analysis, read)
    with replacing(folder / "hard_images.jpg") as temporary:
        sheet.save(temporary, format="JPEG", quality=88)
    return analysis


def _photograph(table: Table, row: int) -> Image.Image:
    """The picture of one image; a grey one where the file cannot be read."""
    from PIL import Image

    try:
        return Image.fromarray(table.picture(row).permute(1, 2, 0).numpy())
    except UserError:
        # The numbers are right without it, and the reader has been told when the data was opened.
        height, width = table.sizes[row].tolist()
        return Image.new("RGB", (max(1, width), max(1, height)), (160, 160, 160))
