"""``check --fix``: a cleaned copy of a data set, and a list of every change."""

from __future__ import annotations

import posixpath
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from detrlab.config import DataConfig
from detrlab.data.check import Examined, examine
from detrlab.data.check_boxes import box_masks, looks_like_corners
from detrlab.data.check_report import Report, describe, printable
from detrlab.data.convert import Progress, encode, outputs_of, refuse_inside, ticker
from detrlab.data.images import ENDINGS_OF, Header, Inspection
from detrlab.data.raw import (
    Cleaned,
    RawSplit,
    clean,
    misfits,
    pixel_boxes,
    scaled_to_file,
    shown_sizes,
)
from detrlab.data.sources import read_raw
from detrlab.data.store import MAX_MEMBER, Store
from detrlab.data.table import clamped_corners
from detrlab.data.writers import new_folder, writer
from detrlab.errors import UserError

_RECODED = ("CMYK", "YCCK", "RGBA", "LA", "PA", "RGBa", "La")


class Repair(NamedTuple):
    """What was repaired.

    Attributes:
        folder: the cleaned copy; ``changes.txt`` in it lists the changes.
        changes: one line each.
        report: what the check of the original found.
        images: images in the copy.
        boxes: boxes in the copy.
    """

    folder: Path
    changes: tuple[str, ...]
    report: Report
    images: int
    boxes: int


def fix(
    source: str | Path,
    output: str | Path,
    config: DataConfig | None = None,
    *,
    progress: Progress | None = None,
) -> Repair:
    """Write a cleaned copy in the data's own format; the original stays as it is.

    Args:
        source: what ``open_data`` takes.
        output: a folder that does not exist yet.
        config: the size that training will use.
        progress: told how many images have been looked at or written.

    Raises:
        UserError: there is nothing to repair in generated data, nothing usable is left, or the
            folder is taken.
    """
    if str(source) == "shapes":
        raise UserError("shapes is generated and has nothing to repair")
    data = read_raw(source)
    folder = Path(output)
    refuse_inside(data, folder)
    examined = examine(
        data, str(source), config or DataConfig(), num_queries=None, progress=progress
    )
    changes = _changes(examined)
    dropped = _superfluous(examined)
    splits, cleaned = [], []
    for k, split in enumerate(data.splits):
        repaired, lines = _repaired(split, examined, k, dropped)
        changes += lines
        part = clean(repaired, split.name or "train", examined.words, k, examined.headers[k])
        splits.append(repaired)
        cleaned.append(_numbered(part, examined.words.category_ids[0]))
    if not any(len(part.table) for part in cleaned):
        raise UserError(f"{data.name}: nothing usable would be left")
    kept = [k for k, part in enumerate(cleaned) if len(part.table)]
    headers = [examined.headers[k] for k in kept]
    recoder = _Recoder(examined)
    outputs = outputs_of(
        [splits[k] for k in kept],
        [cleaned[k] for k in kept],
        headers,
        recoder.image,
        recoder.name,
    )
    with new_folder(folder) as temporary:
        writer(data.splits[0].format)(temporary, outputs, ticker(outputs, progress))
        text = "".join(f"{line}\n" for line in changes) or "nothing had to be changed\n"
        (temporary / "changes.txt").write_text(text, encoding="utf-8")
    return Repair(
        folder=folder,
        changes=tuple(changes),
        report=examined.report,
        images=sum(len(output.table) for output in outputs),
        boxes=sum(len(output.table.boxes) for output in outputs),
    )


# Rules whose repair changes numbers: their lines say from what to what.
_MOVED = ("box-over-edge", "box-scale", "box-corners", "image-size")


def _changes(examined: Examined) -> list[str]:
    """A line for every finding that the copy no longer has, except moved boxes."""
    lines = []
    for rule, count, listed in examined.report.findings.by_rule():
        if not rule.repair or rule.key in _MOVED:
            continue
        lines += [f"{rule.key}: {describe(finding)} -> {rule.repair}" for finding in listed]
        if count > len(listed):
            lines.append(f"{rule.key}: and {count - len(listed):,} more -> {rule.repair}")
    extras: dict[str, int] = {}
    for split in examined.data.splits:
        for key, number in split.extras.items():
            extras[key] = extras.get(key, 0) + number
    lines += [f"{number:,} annotations lose their {key}" for key, number in extras.items()]
    return lines


def _superfluous(examined: Examined) -> set[tuple[int, int]]:
    """Pictures that the copy does without: exact repetitions, and training's leaks."""
    splits = examined.data.splits
    dropped: set[tuple[int, int]] = set()
    for first, second, exact in examined.pairs:
        if first[0] == second[0]:
            if exact and first not in dropped:
                dropped.add(second)
        elif splits[second[0]].name == "train":
            dropped.add(second)
        else:
            dropped.add(first)
    return dropped


def _repaired(
    split: RawSplit, examined: Examined, k: int, dropped: set[tuple[int, int]]
) -> tuple[RawSplit, list[str]]:
    """The split with its boxes put right and superfluous pictures taken out."""
    if not len(split):
        return split, []
    split = _merged(split)
    sizes = shown_sizes(split, examined.headers[k])
    original = pixel_boxes(split, np.where(sizes > 0, sizes, split.declared))
    boxes = original.copy()
    if split.format == "coco" and looks_like_corners(boxes, split.owners, sizes):
        boxes[:, 2:] -= boxes[:, :2]
    drawn = [i for i, on_declared in misfits(split, sizes).items() if on_declared]
    boxes = scaled_to_file(split, boxes, sizes, drawn)
    masks = box_masks(boxes, split.owners, split.category_ids, split.crowd, sizes)
    frame = sizes[np.where(split.owners >= 0, split.owners, 0)]
    boxes[masks.scale] *= np.tile(frame[masks.scale, ::-1], 2)
    masks = box_masks(boxes, split.owners, split.category_ids, split.crowd, sizes)
    for row in np.flatnonzero(masks.over_edge).tolist():
        height, width = frame[row].tolist()
        corners = clamped_corners(boxes[row : row + 1], height, width)[0]
        boxes[row] = [*corners[:2], *(corners[2:] - corners[:2])]
    lines = _moved(split, original, boxes)
    # Once clamped, boxes may coincide that did not before.
    masks = box_masks(boxes, split.owners, split.category_ids, split.crowd, sizes)
    keep = ~masks.off_image & ~masks.duplicate
    members = [None if (k, i) in dropped else member for i, member in enumerate(split.members)]
    moved = (boxes != original).any(axis=1)
    return replace(
        split,
        members=members,
        declared=sizes,
        owners=split.owners[keep],
        boxes=boxes[keep],
        category_ids=split.category_ids[keep],
        crowd=split.crowd[keep],
        areas=np.where(moved, np.nan, split.areas)[keep],
        annotation_ids=split.annotation_ids[keep],
        fractions=None,
        places=None,
    ), lines


def _merged(split: RawSplit) -> RawSplit:
    """Entries of the same file as one: the boxes of the later ones go to the first."""
    first: dict[str, int] = {}
    target = np.arange(len(split) + 1)  # the last one stands for -1, unlisted
    target[-1] = -1
    members = list(split.members)
    for i, member in enumerate(split.members):
        if member is not None and first.setdefault(member, i) != i:
            target[i], members[i] = first[member], None
    return replace(split, members=members, owners=target[split.owners])


def _moved(split: RawSplit, before: np.ndarray, after: np.ndarray) -> list[str]:
    """A line for every box whose numbers changed."""
    lines = []
    with np.errstate(invalid="ignore"):
        changed = (before != after).any(axis=1) & np.isfinite(before).all(axis=1)
    for row in np.flatnonzero(changed).tolist():
        owner = int(split.owners[row])
        file = (split.members[owner] or split.files[owner]) if owner >= 0 else split.source
        old, new = (" ".join(f"{v:g}" for v in box[row].tolist()) for box in (before, after))
        lines.append(printable(f"box: {split.name}: {file} {split.place(row)}: {old} -> {new}"))
    return lines


def _numbered(part: Cleaned, category_ids: tuple[int, ...]) -> Cleaned:
    """One list of categories in every split, and image ids as numbers where any was text."""
    ids = part.table.image_ids
    if ids.dtype.kind not in "iu":
        ids = np.arange(1, len(ids) + 1, dtype=np.int64)
    return part._replace(table=replace(part.table, image_ids=ids, category_ids=category_ids))


class _Recoder:
    """Decides what bytes are written for each file, and under which name."""

    def __init__(self, examined: Examined) -> None:
        self._known: dict[str, tuple[Inspection, tuple[int, int]]] = {}
        assert examined.inspections is not None
        for split, looks in zip(examined.data.splits, examined.inspections, strict=True):
            for i, look in enumerate(looks):
                member = split.members[i]
                if look is not None and member is not None:
                    height, width = split.declared[i].tolist()
                    self._known[member] = look, (height, width)

    def _changes(self, member: str, header: Header) -> bool:
        return (
            header.orientation != 1
            or header.mode in _RECODED
            or header.mode.startswith(("I", "F"))
            or self._known[member][0].animated
        )

    def name(self, member: str, header: Header) -> str:
        """The file's name with the ending that its contents will have."""
        written = header.format
        if written == "GIF" and self._changes(member, header):
            written = "PNG"
        endings = ENDINGS_OF[written]
        stem, ending = posixpath.splitext(member)
        return member if ending.lower() in endings else stem + endings[0]

    def image(self, store: Store, member: str, header: Header) -> bytes:
        """The file's bytes; the picture upright, in RGB and 8 bits where it is not."""
        data = store.read(member, MAX_MEMBER)
        if not self._changes(member, header):
            return data
        return encode(data, member, header, header.shown(self._known[member][1]))
