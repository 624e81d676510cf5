"""Write the analysis of an evaluation to a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detrlab.errors import UserError
from detrlab.evaluation import plots
from detrlab.evaluation.analysis import Analysis, analyse
from detrlab.evaluation.hard_images import hard_images
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
) -> Analysis:
    """Analyse an evaluator's detections, and write the result as json and as pictures.

    Writes ``analysis.json``, ``pictures/`` (precision over recall, sizes, confusion, TIDE errors,
    calibration, and decoder layers if given) and ``hard_images.jpg``.

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
    from PIL import Image

    try:
        return Image.fromarray(table.picture(row).permute(1, 2, 0).numpy())
    except UserError:
        # The metrics do not need the file, and opening the data has already warned about it.
        height, width = table.sizes[row].tolist()
        return Image.new("RGB", (max(1, width), max(1, height)), (160, 160, 160))
