"""The page of ``check``: one self-contained HTML file with images."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np

from detrlab.data.check_report import CheckReport
from detrlab.data.findings import Finding
from detrlab.data.table import Table, clamped_corners
from detrlab.drawing import draw_boxes
from detrlab.errors import UserError, printable
from detrlab.files import write_text
from detrlab.palette import PAGE, PAGE_ON_DARK, colour_of, css, to_hex

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
_MARGIN = 3
"""Pixels around a marked box, so that it is seen if it is tiny or hidden by the box itself."""

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
    environment.filters["colour"] = lambda label: to_hex(colour_of(label))
    page = environment.get_template("check.html.j2").render(
        report=report,
        light=css(PAGE),
        dark=css(PAGE_ON_DARK),
        listed=LISTED,
        most_classes=MOST_CLASSES,
        rules=[(*entry, _examples(report, entry[2])) for entry in report.findings.by_rule()],
        splits=[
            (split, [_picture(table, i, table.file(i)) for i in _choose(table)])
            for split, table in zip(report.splits, report.tables, strict=True)
        ],
    )
    write_text(path, page)


def _examples(report: CheckReport, listed: list[Finding]) -> list[tuple[str, str]]:
    """The images of the first findings that are about images in the tables."""
    tables = {table.name: table for table in report.tables}
    examples: list[tuple[str, str]] = []
    for finding in listed:
        about = [(finding.split, finding.image, finding.box, finding.describe())]
        if finding.other is not None:
            partner, other = finding.other
            about.append((partner, other, None, f"{partner or 'train'}: image {other}"))
        for split, image, box, caption in about:
            table = tables.get(split or "train")
            if table is not None:
                found = np.flatnonzero(table.image_ids == image)[:1].tolist()
                examples += [_picture(table, i, caption, box) for i in found]
        if len(examples) >= EXAMPLES:
            break
    return examples


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


def _picture(table: Table, i: int, caption: str, marked: Box | None = None) -> tuple[str, str]:
    """Image i with its boxes as a data URL, one box marked in red; and its printable caption."""
    from PIL import Image

    try:
        pixels = table.picture(i)
    except UserError:
        return "", printable(caption)
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
        # A box outside of the image is marked at the nearest place inside.
        x, y, w, h = np.nan_to_num(marked).tolist()
        edges = np.sort(np.array([[x, y], [x + w, y + h]]) * scale, axis=0)
        low, high = np.clip(edges, 0, np.array(small.size) - 1)
        mark = [*(low - _MARGIN).tolist(), *(high + _MARGIN).tolist()]
        small = draw_boxes(small, [mark], [""], [_MARK])
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=82)
    url = "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
    return url, printable(caption)
