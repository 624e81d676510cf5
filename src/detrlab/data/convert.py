"""Data sets from one format to another, and what gets lost on the way."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from detrlab.data.findings import Findings
from detrlab.data.images import Header, decode
from detrlab.data.raw import Cleaned, RawSplit, Vocabulary, clean, read_headers, vocabulary
from detrlab.data.shapes import shapes
from detrlab.data.sources import RawData, read_raw
from detrlab.data.store import MAX_MEMBER, Store
from detrlab.data.table import Table
from detrlab.data.writers import Output, new_folder, unique_names, writer
from detrlab.errors import UserError

Progress = Callable[[int, int], None]
"""Told how many images of how many have been written."""


class Conversion(NamedTuple):
    """What was written.

    Attributes:
        folder: where.
        format: ``coco``, ``yolo`` or ``voc``.
        images: how many.
        boxes: how many.
        losses: what the new format does not hold, or what could not be taken over; one
            sentence each, empty when nothing was lost.
        notes: what else is worth knowing.
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
    """Write a data set in another format; the original stays as it is.

    Images are copied byte for byte. Only where a picture is turned by an EXIF tag, the tag is
    settled, because formats disagree about it.

    Args:
        source: what ``open_data`` takes.
        to: ``coco``, ``yolo`` or ``voc``.
        output: a folder that does not exist yet.
        progress: told how many images have been written.

    Raises:
        UserError: nothing to convert, an unknown format, or a folder that is taken.
    """
    write = writer(to)
    folder = Path(output)
    if str(source) == "shapes":
        return _convert_generated(to, folder, progress)
    data = read_raw(source)
    refuse_inside(data, folder)
    words = vocabulary(data.splits, Findings())
    headers = [read_headers(split) for split in data.splits]
    cleaned = [
        clean(split, split.name or "train", words, k, headers[k])
        for k, split in enumerate(data.splits)
    ]
    outputs = outputs_of(data.splits, cleaned, headers)
    losses = [*_unusable(cleaned), *_losses(data, words, cleaned, to), *_turned(cleaned, headers)]
    with new_folder(folder) as temporary:
        write(temporary, outputs, ticker(outputs, progress))
    return _conversion(folder, to, outputs, losses, data.notes)


def refuse_inside(data: RawData, folder: Path) -> None:
    """The original is never touched: nothing is written below it."""
    root = data.splits[0].store.root.resolve()
    target = folder.resolve()
    if target == root or root in target.parents:
        raise UserError(f"{folder} lies inside of the original {root}: choose another --output")


def ticker(outputs: Sequence[Output], progress: Progress | None) -> Callable[[], None]:
    """Counts written images for ``progress``."""
    total = sum(len(output.names) for output in outputs)
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return tick


def outputs_of(
    splits: Sequence[RawSplit],
    cleaned: Sequence[Cleaned],
    headers: Sequence[Sequence[Header | str]],
    image: Callable[[Store, str, Header], bytes] | None = None,
    name: Callable[[str, Header], str] | None = None,
) -> list[Output]:
    """What the writers need, with names that no two images share.

    Args:
        splits: as they lie.
        cleaned: what of them is written.
        headers: of their image files.
        image: the bytes to write for a file; None settles its orientation and copies.
        name: what to call it, from its name and header; None keeps the name.
    """
    members = [
        [(split.members[i] or "", header) for i in part.images.tolist()
         if not isinstance(header := headers[k][i], str)]
        for k, (split, part) in enumerate(zip(splits, cleaned, strict=True))
    ]  # fmt: skip
    files = [name(m, h) if name else m for part in members for m, h in part]
    names = iter(unique_names(files))
    outputs = []
    for split, part, listed in zip(splits, cleaned, members, strict=True):
        assert len(listed) == len(part.table)
        sizes = part.table.sizes

        def read(
            i: int, store: Store = split.store, listed: list[tuple[str, Header]] = listed,
            sizes: np.ndarray = sizes,
        ) -> bytes:  # fmt: skip
            member, header = listed[i]
            if image is not None:
                return image(store, member, header)
            return settled(store, member, header, (int(sizes[i, 0]), int(sizes[i, 1])))

        outputs.append(Output(part.table, [next(names) for _ in listed], read))
    return outputs


def settled(store: Store, member: str, header: Header, size: tuple[int, int]) -> bytes:
    """The file's bytes; re-written upright or without its tag where EXIF turns it.

    Whoever reads the copy sees the picture that the boxes were drawn on, whatever it thinks
    of EXIF.
    """
    data = store.read(member, MAX_MEMBER)
    if header.orientation == 1:
        return data
    if header.format in ("JPEG", "MPO") and not header.applies_exif(size):
        return without_exif(data)
    return encode(data, member, header, size)


def without_exif(data: bytes) -> bytes:
    """A JPEG file without its EXIF segments; the pixels stay byte for byte."""
    kept, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if not (data[at + 1] == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0"):
            kept.append(data[at:end])
        at = end
    return b"".join([*kept, data[at:]])


def encode(data: bytes, member: str, header: Header, size: tuple[int, int]) -> bytes:
    """The picture as training sees it, RGB, in the format of its file where that can hold it."""
    from PIL import Image

    pixels = decode(io.BytesIO(data), member, size).permute(1, 2, 0).numpy()
    stream = io.BytesIO()
    picture = Image.fromarray(pixels)
    if header.format in ("JPEG", "MPO"):
        picture.save(stream, "JPEG", quality=95, subsampling=0)
    else:
        kept = header.format if header.format in ("BMP", "TIFF", "PPM", "WEBP") else "PNG"
        picture.save(stream, kept, **({"lossless": True} if kept == "WEBP" else {}))
    return stream.getvalue()


def _convert_generated(to: str, folder: Path, progress: Progress | None) -> Conversion:
    """The built-in set as files, for tools that read nothing else."""
    from PIL import Image

    outputs = []
    for table in shapes():

        def png(i: int, table: Table = table) -> bytes:
            stream = io.BytesIO()
            Image.fromarray(table.picture(i).permute(1, 2, 0).numpy()).save(stream, "PNG")
            return stream.getvalue()

        names = [f"{table.image_id(i):06d}.png" for i in range(len(table))]
        outputs.append(Output(table, names, png))
    with new_folder(folder) as temporary:
        writer(to)(temporary, outputs, ticker(outputs, progress))
    return _conversion(folder, to, outputs, [], ())


def _conversion(
    folder: Path, to: str, outputs: Sequence[Output], losses: list[str], notes: Sequence[str]
) -> Conversion:
    crowd = sum(int(output.table.crowd.sum()) for output in outputs) if to == "yolo" else 0
    return Conversion(
        folder=folder,
        format=to,
        images=sum(len(output.table) for output in outputs),
        boxes=sum(len(output.table.boxes) for output in outputs) - crowd,
        losses=tuple(losses),
        notes=tuple(notes),
    )


def _unusable(cleaned: Sequence[Cleaned]) -> list[str]:
    """What was broken, and is not in the copy."""
    return [
        f"{part.table.name}: {count:,} {reason} were left out"
        for part in cleaned
        for reason, count in part.left_out.items()
    ]


def _turned(cleaned: Sequence[Cleaned], headers: Sequence[Sequence[Header | str]]) -> list[str]:
    """Pictures whose pixels are not copied but written anew."""
    count = 0
    for part, listed in zip(cleaned, headers, strict=True):
        for i, size in zip(part.images.tolist(), part.table.sizes.tolist(), strict=True):
            header = listed[i]
            assert not isinstance(header, str)
            count += header.applies_exif((size[0], size[1]))
    return [f"{count:,} pictures that an EXIF tag turns are written upright, anew"] * bool(count)


def _losses(data: RawData, words: Vocabulary, cleaned: Sequence[Cleaned], to: str) -> list[str]:
    """What the new format cannot hold."""
    losses = []
    tables = [part.table for part in cleaned]
    extras: dict[str, int] = {}
    for split in data.splits:
        for key, count in split.extras.items():
            extras[key] = extras.get(key, 0) + count
    losses += [f"{count:,} annotations lose their {key}" for key, count in extras.items()]
    if to == data.splits[0].format:
        return losses
    boxes = np.concatenate([table.boxes for table in tables])
    areas = np.concatenate([table.areas for table in tables])
    crowd = sum(int(table.crowd.sum()) for table in tables)
    if data.splits[0].format == "coco":
        losses.append("image ids and annotation ids are numbered anew by whoever reads the copy")
        own_areas = int((np.abs(areas - boxes[:, 2] * boxes[:, 3]) > 0.5).sum())
        if own_areas:
            losses.append(f"{own_areas:,} areas that are not width times height are forgotten")
    if to == "yolo" and crowd:
        losses.append(f"{crowd:,} crowd or difficult regions are left out: YOLO has none")
    if to == "voc":
        losses += _voc_losses(boxes, words, tables, crowd, data.splits[0].format)
    ids = words.category_ids[0]
    first = 0 if to == "yolo" else 1
    if (
        to != "coco"
        and data.splits[0].format == "coco"
        and ids != tuple(range(first, first + len(ids)))
    ):
        losses.append(f"category ids become {first}..{first + len(ids) - 1}, in the same order")
    return losses


def _voc_losses(
    boxes: np.ndarray, words: Vocabulary, tables: Sequence[Table], crowd: int, source: str
) -> list[str]:
    losses = []
    fractional = int((boxes != np.round(boxes)).any(axis=1).sum())
    if fractional:
        losses.append(
            f"{fractional:,} boxes keep fractions of pixels, which readers that expect whole "
            "numbers will cut off"
        )
    if crowd and source != "voc":
        losses.append(f"{crowd:,} crowd regions become difficult objects")
    used = {int(label) for table in tables for label in np.unique(table.labels)}
    unused = [name for k, name in enumerate(words.names) if k not in used]
    if unused:
        losses.append(f"classes without boxes are forgotten: {', '.join(unused)}")
    if list(words.names) != sorted(words.names):
        losses.append("classes are read back in alphabetical order")
    return losses
