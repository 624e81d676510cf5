"""The page of ``check``: one HTML file with everything in it, pictures included."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detrlab.data.check_report import Report, describe, printable, shortened
from detrlab.data.findings import Finding
from detrlab.data.table import Table, clamped_corners
from detrlab.errors import UserError
from detrlab.files import write_text

if TYPE_CHECKING:
    from PIL import Image

PICTURES = 8
"""Pictures shown of each split."""
EXAMPLES = 2
"""Pictures shown for a rule."""
THUMB_WIDTH = 320
MOST_CLASSES = 200
"""Classes in a table; the commonest of more."""
LISTED = 20
"""Findings listed for a rule; the JSON has more."""

_SEEN = 8
"""Pixels below which a marked box needs a ring to be found."""

Box = tuple[float, float, float, float]

_COLOURS = (
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#b8a800", "#7a5195",
    "#ef5675", "#2f9e9e",
)  # fmt: skip


def write_page(report: Report, path: Path) -> None:
    """Write the page.

    Raises:
        UserError: it cannot be written.
    """
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("detrlab.data", "."), autoescape=True, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template("check.html.j2").render(
        report=report,
        source=printable(report.source),
        notes=[printable(note) for note in report.notes],
        licences=[printable(licence) for licence in report.licences],
        verdict=report.verdict(),
        counts=report.findings.severities(),
        rules=[_rule(report, *entry) for entry in report.findings.by_rule()],
        splits=[_split(report, k) for k in range(len(report.splits))],
        colours=_COLOURS,
    )
    write_text(path, page)


def colour(label: int) -> str:
    """The colour of a class, the same in every picture and bar."""
    return _COLOURS[label % len(_COLOURS)]


def _rule(report: Report, rule: Any, count: int, listed: list[Finding]) -> dict[str, Any]:
    return {
        "rule": rule,
        "count": count,
        "lines": [describe(finding) for finding in listed[:LISTED]],
        "more": count - min(LISTED, len(listed)),
        "examples": _examples(report, listed),
    }


def _examples(report: Report, listed: list[Finding]) -> list[dict[str, str]]:
    """Pictures of the first findings that are about images of the tables."""
    tables = {table.name: table for table in report.tables}
    examples: list[dict[str, str]] = []
    shown = 0
    for finding in listed:
        if shown == EXAMPLES:
            break
        about: list[tuple[str, int | str | None, Box | None, str]] = [
            (finding.split, finding.image, finding.box, describe(finding))
        ]
        if finding.other is not None:
            partner, other = finding.other
            about.append((partner, other, None, printable(f"{partner or 'train'}: image {other}")))
        found = []
        for split, image, box, caption in about:
            table = tables.get(split or "train")
            if table is None or not (table.image_ids == image).any():
                continue
            position = int(np.flatnonzero(table.image_ids == image)[0])
            if data := _picture(table, position, box):
                found.append({"data": data, "caption": caption})
        examples += found
        shown += bool(found)
    return examples


def _split(report: Report, k: int) -> dict[str, Any]:
    split, table = report.splits[k], report.tables[k]
    top = max(split.per_class.values(), default=0) or 1
    classes = [(label, *pair) for label, pair in enumerate(split.per_class.items())]
    shown = sorted(sorted(classes, key=lambda row: -row[2])[:MOST_CLASSES])
    sizes = sum(split.sizes.values()) or 1
    return {
        "summary": split,
        "classes": [
            {
                "name": printable(shortened(name, 80)),
                "count": count,
                "width": 100 * count / top,
                "colour": colour(label),
            }
            for label, name, count in shown
        ],
        "more_classes": len(split.per_class) - len(shown),
        "sizes": [
            {"name": name, "count": count, "width": 100 * count / sizes}
            for name, count in split.sizes.items()
        ],
        "sides": _histogram(np.sqrt(table.boxes[:, 2] * table.boxes[:, 3])),
        "crowding": _histogram(np.diff(table.starts).astype(np.float64)),
        "pictures": [
            {"data": data, "caption": printable(table.file(i))}
            for i in _choose(table)
            if (data := _picture(table, i))
        ],
    }


def _histogram(values: np.ndarray, bins: int = 20) -> dict[str, Any]:
    """Heights of equal bins in percent of the highest, and the ends of the axis."""
    values = values[np.isfinite(values)]
    if not len(values):
        return {"bars": [], "low": 0, "high": 0}
    low, high = 0.0, float(values.max()) or 1.0
    whole = bool((values == np.round(values)).all()) and high < bins
    edges = np.arange(-0.5, high + 1) if whole else np.linspace(low, high, bins + 1)
    counts = np.histogram(values, edges)[0]
    return {
        "bars": (100 * counts / counts.max()).tolist(),
        "low": 0,
        "high": round(high),
    }


def _choose(table: Table) -> list[int]:
    """A few images: the fullest, one with the smallest object, an empty one, others evenly."""
    counts = np.diff(table.starts)
    if not len(table):
        return []
    owners = np.repeat(np.arange(len(table)), counts)
    chosen = [int(counts.argmax())]
    if len(table.boxes):
        chosen.append(int(owners[(table.boxes[:, 2] * table.boxes[:, 3]).argmin()]))
    chosen += np.flatnonzero(counts == 0)[:1].tolist()
    chosen += np.linspace(0, len(table) - 1, PICTURES).astype(int).tolist()
    return list(dict.fromkeys(chosen))[:PICTURES]


def _picture(table: Table, i: int, marked: Box | None = None) -> str:
    """Image i with its boxes as a data URL, and one marked; empty if it cannot be read."""
    from PIL import Image

    try:
        pixels = table.picture(i)
    except UserError:
        return ""
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    scale = min(1.0, THUMB_WIDTH / picture.width)
    small = picture.resize(
        (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))),
        Image.Resampling.BILINEAR,
        reducing_gap=2.0,
    )
    _draw(small, table, i, scale, picture.size)
    if marked is not None:
        _mark(small, marked, scale)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def _draw(
    picture: Image.Image,
    table: Table,
    i: int,
    scale: float,
    size: tuple[int, int],
) -> None:
    """Boxes in the colours of their classes."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(picture)
    rows = slice(int(table.starts[i]), int(table.starts[i + 1]))
    corners = clamped_corners(table.boxes[rows], size[1], size[0]) * scale
    for (x0, y0, x1, y1), label in zip(
        corners[:500].tolist(), table.labels[rows][:500].tolist(), strict=True
    ):
        x1, y1 = max(x1 - 1, x0), max(y1 - 1, y0)
        thick = 2 if min(x1 - x0, y1 - y0) > 24 else 1
        draw.rectangle((x0, y0, x1, y1), outline=colour(label), width=thick)


def _mark(picture: Image.Image, box: Box, scale: float) -> None:
    """A box in red and thick, and a ring around it where it is too small to be seen.

    What lies outside of the picture is marked where it comes closest.
    """
    from PIL import ImageDraw

    x, y, w, h = (float(np.nan_to_num(value)) for value in box)
    edges = np.array([[x, y], [x + w, y + h]]) * scale
    (x0, y0), (x1, y1) = np.clip(np.sort(edges, axis=0), 0, np.array(picture.size) - 1).tolist()
    draw = ImageDraw.Draw(picture)
    draw.rectangle((x0, y0, x1, y1), outline="#ff0030", width=3)
    if min(x1 - x0, y1 - y0) < _SEEN:
        cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
        radius = max(x1 - x0, y1 - y0) / 2 + _SEEN
        draw.ellipse(
            (cx - radius, cy - radius, cx + radius, cy + radius), outline="#ff0030", width=2
        )
