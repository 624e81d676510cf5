"""The page of ``check``: one self-contained HTML file with images."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detrlab.data.check_report import CheckReport, most_frequent
from detrlab.data.findings import Finding, Rule, printable, shortened
from detrlab.data.table import Table, clamped_corners
from detrlab.drawing import colour_of, draw_boxes
from detrlab.errors import UserError
from detrlab.files import write_text

if TYPE_CHECKING:
    from PIL import Image

IMAGES = 8
"""Images shown of each split."""
EXAMPLES = 2
"""Images shown for a rule."""
THUMB_WIDTH = 320
MOST_CLASSES = 200
"""Classes in a table; if there are more, the most frequent ones."""
LISTED = 20
"""Findings listed for a rule; the JSON has more."""

_MARK = (255, 0, 48)
_MARKED = 8
"""Pixels; a marked box that is smaller gets a ring around it."""

Box = tuple[float, float, float, float]


def write_page(report: CheckReport, path: str | Path) -> None:
    """Write the page.

    Raises:
        UserError: it cannot be written.
    """
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("detrlab.data", "."), autoescape=True, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["printable"] = printable
    page = environment.get_template("check.html.j2").render(
        report=report,
        rules=[_rule(report, *entry) for entry in report.findings.by_rule()],
        splits=[_split(report, k) for k in range(len(report.splits))],
    )
    write_text(path, page)


def _rule(report: CheckReport, rule: Rule, count: int, listed: list[Finding]) -> dict[str, Any]:
    return {
        "rule": rule,
        "count": count,
        "lines": [finding.describe() for finding in listed[:LISTED]],
        "more": count - min(LISTED, len(listed)),
        "examples": _examples(report, listed),
    }


def _examples(report: CheckReport, listed: list[Finding]) -> list[dict[str, str]]:
    """The images of the first findings that are about images in the tables."""
    tables = {table.name: table for table in report.tables}
    examples: list[dict[str, str]] = []
    shown = 0
    for finding in listed:
        about = [(finding.split, finding.image, finding.box, finding.describe())]
        if finding.other is not None:
            partner, other = finding.other
            about.append((partner, other, None, f"{partner or 'train'}: image {other}"))
        found = []
        for split, image, box, caption in about:
            table = tables.get(split or "train")
            if table is None or not (table.image_ids == image).any():
                continue
            position = int(np.flatnonzero(table.image_ids == image)[0])
            if data := _image(table, position, box):
                found.append({"data": data, "caption": printable(caption)})
        examples += found
        shown += bool(found)
        if shown == EXAMPLES:
            break
    return examples


def _split(report: CheckReport, k: int) -> dict[str, Any]:
    split, table = report.splits[k], report.tables[k]
    top = max(split.per_class.values(), default=0) or 1
    shown = most_frequent(split.per_class, MOST_CLASSES)
    objects = sum(split.sizes.values()) or 1
    return {
        "summary": split,
        "classes": [
            {
                "name": printable(shortened(name, 80)),
                "count": count,
                "width": 100 * count / top,
                "colour": "#{:02x}{:02x}{:02x}".format(*colour_of(label)),
            }
            for label, name, count in shown
        ],
        "more_classes": len(split.per_class) - len(shown),
        "sizes": [
            {"name": name, "count": count, "width": 100 * count / objects}
            for name, count in split.sizes.items()
        ],
        "pictures": [
            {"data": data, "caption": printable(table.file(i))}
            for i in _choose(table)
            if (data := _image(table, i))
        ],
    }


def _choose(table: Table) -> list[int]:
    """The image with most objects, one with the smallest object, an empty one, others evenly."""
    if not len(table):
        return []
    counts = np.diff(table.starts)
    chosen = [int(counts.argmax())]
    if len(table.boxes):
        chosen.append(int(table.owners()[table.boxes[:, 2:].prod(axis=1).argmin()]))
    chosen += np.flatnonzero(counts == 0)[:1].tolist()
    chosen += np.linspace(0, len(table) - 1, IMAGES).astype(int).tolist()
    return list(dict.fromkeys(chosen))[:IMAGES]


def _image(table: Table, i: int, marked: Box | None = None) -> str:
    """Image i with its boxes as a data URL, one box marked; empty if it cannot be read."""
    from PIL import Image

    try:
        pixels = table.picture(i)
    except UserError:
        return ""
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    scale = min(1.0, THUMB_WIDTH / image.width)
    rows = slice(int(table.starts[i]), int(table.starts[i + 1]))
    corners = clamped_corners(table.boxes[rows], image.height, image.width)[:500] * scale
    colours = [colour_of(label) for label in table.labels[rows][:500].tolist()]
    small = image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))),
        Image.Resampling.BILINEAR,
        reducing_gap=2.0,
    )
    small = draw_boxes(small, corners.tolist(), [""] * len(colours), colours)
    if marked is not None:
        small = _with_mark(small, marked, scale)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def _with_mark(image: Image.Image, box: Box, scale: float) -> Image.Image:
    """A box in red, with a ring around it if it is small.

    A box outside of the image is marked at the nearest place inside.
    """
    from PIL import ImageDraw

    x, y, w, h = np.nan_to_num(box).tolist()
    edges = np.sort(np.array([[x, y], [x + w, y + h]]) * scale, axis=0)
    low, high = np.clip(edges, 0, np.array(image.size) - 1)
    image = draw_boxes(image, [[*low.tolist(), *high.tolist()]], [""], [_MARK])
    if (high - low).min() < _MARKED:
        middle, radius = (low + high) / 2, (high - low).max() / 2 + _MARKED
        ring = (*(middle - radius).tolist(), *(middle + radius).tolist())
        ImageDraw.Draw(image).ellipse(ring, outline=_MARK, width=2)
    return image
