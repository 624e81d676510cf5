"""Copies of data sets in COCO's, YOLO's or Pascal VOC's format, and what a copy loses."""

from __future__ import annotations

import io
import posixpath
from collections import Counter
from collections.abc import Callable, Container, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from detrlab.data.findings import Findings
from detrlab.data.images import ENDINGS_OF, Header, decode
from detrlab.data.measure import Measured, measure, read_headers
from detrlab.data.raw import vocabulary
from detrlab.data.reading import Progress, RawData, read_raw
from detrlab.data.shapes import shapes
from detrlab.data.sources import broken
from detrlab.data.store import MAX_MEMBER
from detrlab.data.table import Table
from detrlab.data.writers import Output, unique_names, write
from detrlab.errors import UserError


class Conversion(NamedTuple):
    """What was written.

    Attributes:
        folder: the copy.
        format: ``coco``, ``yolo`` or ``voc``.
        images: how many.
        boxes: how many.
        losses: what was unusable or what the new format cannot hold; one sentence each, empty
            if nothing was lost.
        notes: what was decided while opening the data.
    """

    folder: Path
    format: str
    images: int
    boxes: int
    losses: tuple[str, ...]
    notes: tuple[str, ...]


def convert(
    source: str | Path, to: str, output: str | Path, *, progress: Progress | None = None
) -> Conversion:
    """Write a data set in another format; the original is not changed.

    Images are copied byte for byte, except for those with an EXIF rotation tag: programs
    disagree about its meaning, so that the copy has no such tag.

    Args:
        source: as for ``open_data``.
        to: ``coco``, ``yolo`` or ``voc``.
        output: a folder that does not exist yet.
        progress: called with images written and in all.

    Raises:
        UserError: nothing to convert, an unknown format, or a folder that exists.
    """
    folder = Path(output)
    losses: list[str] = []
    notes: tuple[str, ...] = ()
    if str(source) == "shapes":
        outputs = [
            Output(table, [table.file(i) for i in range(len(table))], _as_png(table))
            for table in shapes()
        ]
    else:
        data = read_raw(source)
        refuse_inside(data, folder)
        words = vocabulary(data.splits, Findings())
        parts = []
        for k, split in enumerate(data.splits):
            measured = measure(split, read_headers(split), words.labels[k])
            parts.append(Part(measured, *measured.clean(split.name or "train", words, k)))
            left_out = [note for note in broken(measured) if note.endswith("left out")]
            losses += [f"{split.name or 'train'}: {note}" for note in left_out]
        outputs = outputs_of(parts)
        losses, notes = extras_lost(data) + losses, data.notes
        if turned := sum(part.upright(row) for part in parts for row in range(len(part.table))):
            losses.append(f"{turned:,} images with an EXIF rotation tag are re-encoded upright")
    crowd = sum(int(output.table.crowd.sum()) for output in outputs)
    if to == "yolo" and crowd:
        losses.append(f"{crowd:,} crowd or difficult regions are left out: YOLO has none")
    write(to, folder, outputs, progress)
    return Conversion(
        folder=folder,
        format=to,
        images=sum(len(output.table) for output in outputs),
        boxes=sum(len(output.table.boxes) for output in outputs) - crowd * (to == "yolo"),
        losses=tuple(losses),
        notes=notes,
    )


def refuse_inside(data: RawData, folder: Path) -> None:
    """Refuse to write below the original, which is never changed."""
    root = data.splits[0].store.root.resolve()
    if folder.resolve().is_relative_to(root):
        raise UserError(f"{folder} lies inside of the original {root}: choose another --output")


class Part(NamedTuple):
    """The images of one split that are copied.

    Attributes:
        measured: the split, with headers.
        table: what of it is copied.
        images: position of each of the table's images in the split.
        recoded: of the split's images, those to encode anew as 8-bit RGB.
    """

    measured: Measured
    table: Table
    images: np.ndarray
    recoded: Container[int] = ()

    def _file(self, row: int) -> tuple[str, Header]:
        i = int(self.images[row])
        assert self.measured.headers is not None
        member, header = self.measured.split.members[i], self.measured.headers[i]
        assert member is not None
        assert not isinstance(header, str)
        return member, header

    def upright(self, row: int) -> bool:
        """Whether the boxes belong to the image after its EXIF rotation."""
        height, width = self.table.sizes[row].tolist()
        return self._file(row)[1].applies_exif((height, width))

    def name(self, row: int) -> str:
        """The file's name; its extension fits the contents if any image is encoded anew."""
        member, header = self._file(row)
        anew = int(self.images[row]) in self.recoded
        fitting = ENDINGS_OF["PNG" if anew and header.format == "GIF" else header.format]
        root, extension = posixpath.splitext(member)
        return member if extension.lower() in fitting else root + fitting[0]

    def read(self, row: int) -> bytes:
        """The bytes of the file for the copy, without an EXIF rotation tag."""
        member, header = self._file(row)
        anew = int(self.images[row]) in self.recoded
        data = self.measured.split.store.read(member, MAX_MEMBER)
        if not anew and header.orientation == 1:
            return data
        is_jpeg = header.format in ("JPEG", "MPO")
        if not anew and is_jpeg and not self.upright(row):
            return without_exif(data)
        from PIL import Image

        height, width = self.table.sizes[row].tolist()
        pixels = decode(io.BytesIO(data), member, (height, width)).permute(1, 2, 0).numpy()
        stream = io.BytesIO()
        if is_jpeg:
            Image.fromarray(pixels).save(stream, "JPEG", quality=95, subsampling=0)
        else:
            kept = header.format if header.format in ("BMP", "TIFF", "PPM", "WEBP") else "PNG"
            options = {"lossless": True} if kept == "WEBP" else {}
            Image.fromarray(pixels).save(stream, kept, **options)
        return stream.getvalue()


def outputs_of(parts: Sequence[Part]) -> list[Output]:
    """Tables and image files for the writers, with names that no two images share."""
    names = iter(unique_names([part.name(row) for part in parts for row in range(len(part.table))]))
    return [Output(part.table, list(islice(names, len(part.table))), part.read) for part in parts]


def without_exif(data: bytes) -> bytes:
    """A JPEG file without its EXIF segments; the encoded pixels are not changed."""
    kept, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if not (data[at + 1] == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0"):
            kept.append(data[at:end])
        at = end
    return b"".join([*kept, data[at:]])


def extras_lost(data: RawData) -> list[str]:
    """What annotations contain beside boxes, which no copy has."""
    extras: Counter[str] = Counter()
    for split in data.splits:
        extras.update(split.extras)
    return [f"{count:,} annotations lose their {key}" for key, count in extras.items()]


def _as_png(table: Table) -> Callable[[int], bytes]:
    from PIL import Image

    def png(i: int) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(table.picture(i).permute(1, 2, 0).numpy()).save(stream, "PNG")
        return stream.getvalue()

    return png
