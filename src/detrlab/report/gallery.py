"""The same validation images with the boxes of every detector side by side."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from detrlab.compare.verdicts import judged
from detrlab.evaluation.analysis import Outcome, outcomes, suggest_thresholds

if TYPE_CHECKING:
    from torch import Tensor

    from detrlab.compare.results import Row
    from detrlab.data.table import Table
    from detrlab.evaluation.analysis import Thresholds
    from detrlab.evaluation.matching import Matches
    from detrlab.evaluation.records import Detected, GroundTruth

LONG_SIDE = 480
"""Pixels of the long side of an embedded picture."""


class Panel(NamedTuple):
    """One detector's boxes on one picture, xywh in pixels of the original image.

    The kinds of boxes are ``truth``, ``found``, ``false`` and ``missed``.
    """

    name: str
    summary: str
    boxes: list[Outcome]


class Exhibit(NamedTuple):
    """One picture with the annotated boxes and those of all detectors.

    ``image`` is its position in the ground truth, ``position`` that in the validation split;
    ``source`` is the picture as a data URL.
    """

    image: int
    position: int
    name: str
    width: int
    height: int
    source: str
    panels: list[Panel]


class View(NamedTuple):
    """The detections of a detector's first run on the whole split, and its best thresholds."""

    name: str
    run: Path
    detected: Detected
    matches: Matches
    thresholds: Thresholds


def view_of(row: Row, truth: GroundTruth, folder: Path) -> View:
    """The detections of a detector's first run, at the thresholds where its F1 is best.

    One threshold for all would not be fair: softmax and sigmoid scores are not comparable.
    """
    first = row.runs[0]
    detected, matches = judged(folder / first.predictions, truth)
    thresholds = suggest_thresholds(matches)
    return View(row.name, folder / first.folder, detected, matches, thresholds)


def choose(truth: GroundTruth, count: int) -> list[int]:
    """Positions of some images, selected deterministically by id; those with objects first."""
    occupied = set(truth.image.tolist())
    digests = [hashlib.sha256(str(image_id).encode()).digest() for image_id in truth.image_ids]
    ranked = sorted(range(truth.num_images), key=lambda i: (i not in occupied, digests[i]))
    return ranked[:count]


def exhibits(
    views: Sequence[View], truth: GroundTruth, table: Table, chosen: Sequence[int]
) -> list[Exhibit]:
    """The images at the ``chosen`` positions of ``truth`` with the boxes of every detector."""
    positions = {table.image_id(i): i for i in range(len(table))}
    shown = []
    for index in chosen:
        position = positions[truth.image_ids[index]]
        image = table.picture(position)
        objects = np.flatnonzero(truth.image == index).tolist()
        count = f"{len(objects)} object{'s' * (len(objects) != 1)}"
        boxes = [
            Outcome("truth", truth.boxes[g].round(1).tolist(), truth.classes[truth.label[g]])
            for g in objects
        ]
        annotated = Panel("annotated", count, boxes)
        name = Path(truth.file_names[index]).name or str(truth.image_ids[index])
        panels = [annotated, *(_panel(truth, index, view) for view in views)]
        height, width = image.shape[-2:]
        source = _data_url(image)
        shown.append(Exhibit(index, position, name, width, height, source, panels))
    return shown


def _data_url(image: Tensor) -> str:
    """(3, H, W) uint8 -> a JPEG of at most ``LONG_SIDE`` pixels."""
    from PIL import Image

    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    picture.thumbnail((LONG_SIDE, LONG_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _panel(truth: GroundTruth, index: int, view: View) -> Panel:
    boxes = outcomes(truth, view.detected, view.matches, view.thresholds, index)
    kinds = [kind for kind, _, _ in boxes]
    summary = ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("found", "missed", "false"))
    return Panel(view.name, summary, boxes)
