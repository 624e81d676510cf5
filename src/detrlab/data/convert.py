"""Copies of data sets in COCO's, YOLO's or Pascal VOC's format, and what a copy loses."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from detrlab.data.findings import Findings
from detrlab.data.measure import measure, read_headers
from detrlab.data.pictures import Header, decode
from detrlab.data.raw import vocabulary
from detrlab.data.reading import Progress, RawData, read_raw
from detrlab.data.shapes import shapes
from detrlab.data.sources import broken
from detrlab.data.store import MAX_MEMBER, Store
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
        outputs = [Output(table, _numbered(table), _as_png(table)) for table in shapes()]
    else:
        data = read_raw(source)
        refuse_inside(data, folder)
        words = vocabulary(data.splits, Findings())
        headers = [read_headers(split) for split in data.splits]
        cleaned = []
        for k, split in enumerate(data.splits):
            measured = measure(split, headers[k], words.labels[k])
            cleaned.append(measured.clean(split.name or "train", words, k))
            losses += [
                f"{split.name or 'train'}: {note}"
                for note in broken(measured)
                if note.endswith("left out")
            ]
        outputs = outputs_of(data, cleaned, headers)
        losses, notes = extras_lost(data) + losses, data.notes
        turned = sum(
            header.applies_exif((size[0], size[1]))
            for (table, images), listed in zip(cleaned, headers, strict=True)
            for i, size in zip(images.tolist(), table.sizes.tolist(), strict=True)
            if not isinstance(header := listed[i], str)
        )
        if turned:
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


def outputs_of(
    data: RawData,
    cleaned: Sequence[tuple[Table, np.ndarray]],
    headers: Sequence[Sequence[Header | str]],
    name: Callable[[int, int], str] | None = None,
    recode: Callable[[int, int], bool] | None = None,
) -> list[Output]:
    """Tables and image files for the writers, with names that no two images share.

    Args:
        data: as annotated.
        cleaned: the table of each split, and the positions of its images in the split.
        headers: of the image files of each split.
        name: the file name of an image, by the positions of the split and of the image; None
            keeps the name.
        recode: whether an image is written anew; None never.
    """
    members = [[member or "" for member in split.members] for split in data.splits]

    def image(k: int, i: int, size: tuple[int, int]) -> bytes:
        header = headers[k][i]
        assert not isinstance(header, str)
        anew = recode is not None and recode(k, i)
        return image_bytes(data.splits[k].store, members[k][i], header, size, recode=anew)

    places = [[(k, i) for i in images.tolist()] for k, (_, images) in enumerate(cleaned)]
    named = [name(k, i) if name else members[k][i] for place in places for k, i in place]
    names = iter(unique_names(named))
    outputs = []
    for (table, _), place in zip(cleaned, places, strict=True):
        sizes = [(height, width) for height, width in table.sizes.tolist()]
        arguments = [(k, i, size) for (k, i), size in zip(place, sizes, strict=True)]

        def read(row: int, arguments: list[tuple[int, int, tuple[int, int]]] = arguments) -> bytes:
            return image(*arguments[row])

        outputs.append(Output(table, [next(names) for _ in place], read))
    return outputs


def image_bytes(
    store: Store, member: str, header: Header, size: tuple[int, int], *, recode: bool
) -> bytes:
    """The bytes of an image file for a copy, without an EXIF rotation tag.

    Args:
        store: the files.
        member: the file.
        header: of the file.
        size: (height, width) of the image that the boxes were drawn on: stored or upright.
        recode: encode it anew as 8-bit RGB in any case.
    """
    data = store.read(member, MAX_MEMBER)
    if not recode and header.orientation == 1:
        return data
    if not recode and header.format in ("JPEG", "MPO") and not header.applies_exif(size):
        return without_exif(data)
    from PIL import Image

    pixels = decode(io.BytesIO(data), member, size).permute(1, 2, 0).numpy()
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    if header.format in ("JPEG", "MPO"):
        image.save(stream, "JPEG", quality=95, subsampling=0)
    else:
        kept = header.format if header.format in ("BMP", "TIFF", "PPM", "WEBP") else "PNG"
        image.save(stream, kept, **({"lossless": True} if kept == "WEBP" else {}))
    return stream.getvalue()


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


def _numbered(table: Table) -> list[str]:
    return [f"{table.image_id(i):06d}.png" for i in range(len(table))]


def _as_png(table: Table) -> Callable[[int], bytes]:
    from PIL import Image

    def png(i: int) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(table.picture(i).permute(1, 2, 0).numpy()).save(stream, "PNG")
        return stream.getvalue()

    return png
