"""Copies of data sets: in another format, or cleaned by ``check --fix``."""

from __future__ import annotations

import io
import posixpath
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from detrlab.config import DataConfig
from detrlab.data.check import Examined, examine, mode_rule, repeated
from detrlab.data.findings import Findings
from detrlab.data.images import ENDINGS_OF, Header, decode
from detrlab.data.measure import Measured, measure, misplaced, read_headers
from detrlab.data.raw import RawSplit, vocabulary
from detrlab.data.reading import Progress, RawData, read_raw
from detrlab.data.shapes import STYLES, shapes
from detrlab.data.sources import broken
from detrlab.data.store import MAX_MEMBER
from detrlab.data.table import Table, clamped_corners
from detrlab.data.writers import Output, unique_names, write
from detrlab.errors import UserError, printable

_MOVED = ("box-over-edge", "box-scale", "box-corners", "image-size")
"""Rules whose repair changes numbers: the changes list old and new numbers of each box."""
_PER_BOX = ("owners", "boxes", "category_ids", "crowd", "areas", "annotation_ids")


class Copy(NamedTuple):
    """What was written.

    Attributes:
        folder: the copy.
        images: how many.
        boxes: how many.
        changes: what was repaired, or what was lost because it was unusable or because the new
            format cannot hold it; one line each.
        notes: what was decided while opening the data.
    """

    folder: Path
    images: int
    boxes: int
    changes: tuple[str, ...]
    notes: tuple[str, ...] = ()


def convert(
    source: str | Path, to: str, output: str | Path, *, progress: Progress | None = None
) -> Copy:
    """Write a data set in another format; the original is not changed.

    Images are copied byte for byte, except for those with an EXIF rotation tag: programs
    disagree about its meaning, so that the copy has no such tag.

    Args:
        source: as for ``open_data``.
        to: ``coco``, ``yolo``, ``voc`` or ``shards``.
        output: a folder that does not exist yet.
        progress: called with images written and in all.

    Raises:
        UserError: nothing to convert, an unknown format, or a folder that exists.
    """
    folder = Path(output)
    losses: list[str] = []
    notes: tuple[str, ...] = ()
    if style := STYLES.get(str(source)):
        outputs = [
            Output(table, list(map(table.file, range(len(table)))), partial(_png, table))
            for table in shapes(style=style)
        ]
    else:
        data = _read(source, folder)
        losses, notes = _extras_lost(data), data.notes
        words = vocabulary(data.splits, Findings())
        parts = []
        for k, split in enumerate(data.splits):
            measured = measure(split, read_headers(split), words.labels[k])
            parts.append(_Part(measured, *measured.clean(split.name or "train", words, k)))
            left_out = [note for note in broken(measured) if note.endswith("left out")]
            losses += [f"{split.name or 'train'}: {note}" for note in left_out]
        outputs = _outputs(parts)
        if turned := sum(part.upright(row) for part in parts for row in range(len(part.table))):
            losses.append(f"{turned:,} images with an EXIF rotation tag are re-encoded upright")
    crowd = sum(int(output.table.crowd.sum()) for output in outputs)
    if to == "yolo" and crowd:
        losses.append(f"{crowd:,} crowd or difficult regions are left out: YOLO has none")
    write(to, folder, outputs, progress)
    return _copy(folder, outputs, losses, notes, left_out=crowd if to == "yolo" else 0)


def fix(
    source: str | Path,
    output: str | Path,
    config: DataConfig | None = None,
    *,
    progress: Progress | None = None,
) -> Copy:
    """Write a cleaned copy in the data's own format; the original is not changed.

    ``changes.txt`` in the copy lists the changes.

    Args:
        source: as for ``open_data``.
        output: a folder that does not exist yet.
        config: the size that training will use.
        progress: called with images checked, then written, and in all.

    Raises:
        UserError: the data is generated, nothing usable is left, or the folder exists.
    """
    if str(source) in STYLES:
        raise UserError(f"{source} is generated and has nothing to repair")
    folder = Path(output)
    data = _read(source, folder)
    examined = examine(
        data, str(source), config or DataConfig(), num_queries=None, progress=progress
    )
    changes = _changes(examined) + _extras_lost(data)
    dropped = _superfluous(examined)
    parts = []
    for k, split in enumerate(data.splits):
        repaired, lines = _repaired(examined.measured[k], dropped[k])
        changes += lines
        table, images = repaired.clean(split.name or "train", examined.words, k)
        if len(table):
            recoded = {i for i, look in enumerate(examined.inspections[k]) if look and look.header
                       and (look.animated or mode_rule(look.header.mode))}  # fmt: skip
            # Every split gets the same categories, and numbers if any image id is text.
            ids = table.image_ids
            ids = ids if ids.dtype.kind in "iu" else np.arange(1, len(ids) + 1)
            table = replace(table, image_ids=ids, category_ids=examined.words.category_ids[0])
            parts.append(_Part(repaired, table, images, recoded))
    if not parts:
        raise UserError(f"{data.name}: nothing usable would be left")
    outputs = _outputs(parts)
    text = "".join(f"{line}\n" for line in changes) or "nothing had to be changed\n"
    write(data.splits[0].format, folder, outputs, progress, {"changes.txt": text})
    return _copy(folder, outputs, changes)


def _copy(
    folder: Path,
    outputs: list[Output],
    changes: list[str],
    notes: tuple[str, ...] = (),
    left_out: int = 0,
) -> Copy:
    tables = [output.table for output in outputs]
    boxes = sum(len(table.boxes) for table in tables) - left_out
    return Copy(folder, sum(map(len, tables)), boxes, tuple(changes), notes)


def _read(source: str | Path, folder: Path) -> RawData:
    """The data; refuses to write below the original, which is never changed."""
    data = read_raw(source)
    root = data.splits[0].store.root.resolve()
    if folder.resolve().is_relative_to(root):
        raise UserError(f"{folder} lies inside of the original {root}: choose another --output")
    return data


def _extras_lost(data: RawData) -> list[str]:
    """What annotations contain beside boxes, which no copy has."""
    extras = sum((Counter(split.extras) for split in data.splits), Counter[str]())
    return [f"{count:,} annotations lose their {key}" for key, count in extras.items()]


# Repairs ---------------------------------------------------------------------------------------


def _changes(examined: Examined) -> list[str]:
    """A line for every finding that the copy no longer has, except moved boxes."""
    lines = []
    for rule, count, listed in examined.report.findings.by_rule():
        if rule.repair and rule.key not in _MOVED:
            lines += [f"{rule.key}: {finding.describe()} -> {rule.repair}" for finding in listed]
            if count > len(listed):
                lines.append(f"{rule.key}: and {count - len(listed):,} more -> {rule.repair}")
    return lines


def _superfluous(examined: Examined) -> list[set[int]]:
    """Images of each split to leave out: exact repetitions, training images in other splits."""
    splits = examined.data.splits
    dropped: list[set[int]] = [set() for _ in splits]
    for (k, i), (other, j), exact in examined.pairs:
        if k != other and splits[other].name != "train":
            dropped[k].add(i)
        elif k != other or (exact and i not in dropped[k]):
            dropped[other].add(j)
    return dropped


def _repaired(measured: Measured, dropped: set[int]) -> tuple[Measured, list[str]]:
    """The split without superfluous images, its boxes in the image files, and what moved."""
    if not len(measured.split):
        return measured, []
    split, sizes = _merged(measured.split), measured.sizes
    original = split.boxes if measured.masks["box-corners"].any() else measured.boxes
    boxes = measured.in_files.copy()
    frame = sizes[np.maximum(split.owners, 0)]
    scale = misplaced(boxes, split.owners, sizes)["box-scale"]
    boxes[scale] *= np.tile(frame[scale, ::-1], 2)
    over = misplaced(boxes, split.owners, sizes)["box-over-edge"]
    for row in np.flatnonzero(over).tolist():
        corners = clamped_corners(boxes[row : row + 1], *frame[row].tolist())[0]
        boxes[row] = [*corners[:2], *(corners[2:] - corners[:2])]
    # Clamped boxes may be equal now that were not before.
    keep = ~misplaced(boxes, split.owners, sizes)["box-off-image"]
    keep &= ~repeated(split, boxes)["box-duplicate"]
    with np.errstate(invalid="ignore"):
        moved = (boxes != original).any(axis=1)
    lines = []
    for row in np.flatnonzero(moved & np.isfinite(original).all(axis=1)).tolist():
        old, new = (" ".join(f"{v:g}" for v in box[row].tolist()) for box in (original, boxes))
        place = f"{split.file_of(row)} {split.place(row)}"
        lines.append(printable(f"box: {split.name}: {place}: {old} -> {new}"))
    members = [None if i in dropped else member for i, member in enumerate(split.members)]
    split = replace(split, boxes=boxes, areas=np.where(moved, np.nan, split.areas))
    kept = {name: getattr(split, name)[keep] for name in _PER_BOX}
    split = replace(split, members=members, **kept)
    boxes = boxes[keep]
    return Measured(split, measured.headers, sizes, sizes, boxes, boxes, {}, [], []), lines


def _merged(split: RawSplit) -> RawSplit:
    """Entries of the same file as one: the boxes of later entries move to the first."""
    first: dict[str, int] = {}
    target = np.arange(len(split) + 1)  # the last one is for -1, unlisted images
    target[-1] = -1
    members = list(split.members)
    for i, member in enumerate(split.members):
        if member is not None and first.setdefault(member, i) != i:
            target[i], members[i] = first[member], None
    return replace(split, members=members, owners=target[split.owners])


# Image files -----------------------------------------------------------------------------------


class _Part(NamedTuple):
    """The images of one split that are copied, and their positions in it.

    ``recoded`` are positions of images to encode anew as 8-bit RGB.
    """

    measured: Measured
    table: Table
    images: np.ndarray
    recoded: Container[int] = ()

    def _file(self, row: int) -> tuple[str, Header, bool]:
        i = int(self.images[row])
        member, header = self.measured.split.members[i], (self.measured.headers or ())[i]
        assert member is not None
        assert not isinstance(header, str)
        return member, header, i in self.recoded

    def upright(self, row: int) -> bool:
        """Whether the boxes belong to the image after its EXIF rotation."""
        height, width = self.table.sizes[row].tolist()
        return self._file(row)[1].applies_exif((height, width))

    def _encoding(self, row: int) -> str:
        """The format to encode the image in; empty if its pixels stay as they are."""
        _, header, anew = self._file(row)
        is_jpeg = header.format in ("JPEG", "MPO")
        turned = header.orientation != 1 and (self.upright(row) or not is_jpeg)
        return ("JPEG" if is_jpeg else "PNG") if anew or turned else ""

    def name(self, row: int) -> str:
        """The file's name with an extension that fits the contents."""
        member, header, _ = self._file(row)
        fitting = ENDINGS_OF[self._encoding(row) or header.format]
        root, extension = posixpath.splitext(member)
        return member if extension.lower() in fitting else root + fitting[0]

    def read(self, row: int) -> bytes:
        """The bytes of the file for the copy, without an EXIF rotation tag."""
        member, header, _ = self._file(row)
        data = self.measured.split.store.read(member, MAX_MEMBER)
        if kind := self._encoding(row):
            height, width = self.table.sizes[row].tolist()
            return _encoded(decode(io.BytesIO(data), member, (height, width)), kind)
        return data if header.orientation == 1 else without_exif(data)


def _outputs(parts: Sequence[_Part]) -> list[Output]:
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


def _encoded(pixels: torch.Tensor, kind: str = "PNG") -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(stream, kind, **options)
    return stream.getvalue()


def _png(table: Table, i: int) -> bytes:
    return _encoded(table.picture(i))
