"""The same images with every detector's boxes side by side."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from detrlab.compare.verdicts import judged
from detrlab.evaluation.analysis import object_fates, suggest_thresholds
from detrlab.evaluation.matching import FOUND, IGNORED

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from detrlab.compare.results import Row
    from detrlab.data.table import Table
    from detrlab.evaluation.analysis import Thresholds
    from detrlab.evaluation.matching import Matches
    from detrlab.evaluation.records import Bools, Detected, GroundTruth

LONG_SIDE = 480
"""Pixels of an embedded picture's long side."""


@dataclass(frozen=True)
class Box:
    """A rectangle on a picture, in pixels of the original image.

    Attributes:
        kind: ``truth``, ``found``, ``false`` or ``missed``.
        x: left edge.
        y: upper edge.
        width: of the box.
        height: of the box.
        label: class, and score where there is one.
    """

    kind: str
    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True)
class Panel:
    """One detector's view of one picture."""

    name: str
    summary: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Exhibit:
    """One picture and everybody's boxes on it.

    Attributes:
        name: of the file.
        width: of the original image in pixels.
        height: of the original image in pixels.
        source: the picture as a data address.
        panels: the annotated boxes, then one for each detector.
    """

    name: str
    width: int
    height: int
    source: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, eq=False)
class View:
    """What one detector made of the whole split.

    Attributes:
        name: the detector's.
        detected: its detections.
        matches: of its detections and the objects.
        thresholds: the scores at which its F1 is best.
        found: (G,) whether each object was found there.
        fate: (D,) what each detection is there.
    """

    name: str
    detected: Detected
    matches: Matches
    thresholds: Thresholds
    found: Bools
    fate: NDArray[np.int8]


def exhibits(
    views: Sequence[View], truth: GroundTruth, table: Table, chosen: Sequence[int]
) -> tuple[Exhibit, ...]:
    """Some validation images with every detector's boxes on them.

    Each detector is shown at the scores where its F1 is best over the whole split, because
    softmax and sigmoid scores cannot be cut at one number.

    Args:
        views: what each detector made of the split.
        truth: what was to be found.
        table: the validation split, for the pixels.
        chosen: positions of the images in ``truth``.
    """
    position = {table.image_id(i): i for i in range(len(table))}
    return tuple(
        _exhibit(truth, index, views, table.picture(position[truth.image_ids[index]]))
        for index in chosen
    )


def choose(truth: GroundTruth, count: int) -> list[int]:
    """Positions of a few images, by their ids alone so that nobody's taste is in it.

    Those whose hashed ids are smallest; those with objects first.
    """
    occupied = set(truth.image.tolist())
    return sorted(
        range(truth.num_images),
        key=lambda index: (
            index not in occupied,
            hashlib.sha256(str(truth.image_ids[index]).encode()).digest(),
        ),
    )[:count]


def embedded(image: Tensor) -> str:
    """(3, H, W) uint8 -> a JPEG of at most ``LONG_SIDE`` pixels as a data address."""
    from PIL import Image

    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    picture.thumbnail((LONG_SIDE, LONG_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def view_of(row: Row, truth: GroundTruth, folder: Path) -> View:
    """What a detector made of the split, by the predictions of its first run."""
    detected, matches = judged(folder / row.runs[0].predictions, truth)
    thresholds = suggest_thresholds(matches)
    found, fate = object_fates(matches, thresholds)
    return View(row.name, detected, matches, thresholds, found, fate)


def _exhibit(truth: GroundTruth, index: int, views: Sequence[View], image: Tensor) -> Exhibit:
    height, width = image.shape[-2:]
    objects = np.flatnonzero(truth.image == index).tolist()
    annotated = tuple(_box("truth", truth.boxes[g], truth.classes[truth.label[g]]) for g in objects)
    return Exhibit(
        name=Path(truth.file_names[index]).name or str(truth.image_ids[index]),
        width=width,
        height=height,
        source=embedded(image),
        panels=(
            Panel("annotated", f"{len(objects)} object{'s' * (len(objects) != 1)}", annotated),
            *(_panel(truth, index, view, objects) for view in views),
        ),
    )


def _panel(truth: GroundTruth, index: int, view: View, objects: Sequence[int]) -> Panel:
    matches = view.matches
    missed = [g for g in objects if matches.counts[g, 0] and not view.found[g]]
    boxes = [_box("missed", truth.boxes[g], truth.classes[truth.label[g]]) for g in missed]
    shown = np.flatnonzero((matches.image == index) & (view.fate != IGNORED)).tolist()
    for d in shown:
        label = f"{truth.classes[matches.label[d]]} {matches.score[d]:.2f}"
        kind = "found" if view.fate[d] == FOUND else "false"
        boxes.append(_box(kind, view.detected.boxes[matches.row[d]], label))
    found = int((view.fate[shown] == FOUND).sum())
    summary = f"{found} found, {len(missed)} missed, {len(shown) - found} false"
    return Panel(view.name, summary, tuple(boxes))


def _box(kind: str, xywh: Sequence[float], label: str) -> Box:
    x, y, width, height = (round(float(side), 1) for side in xywh)
    return Box(kind, x, y, width, height, label)
