"""``check --fix``: a cleaned copy of a data set, and a list of all changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from detrlab.config import DataConfig
from detrlab.data.check import Entry, Examined, examine, mode_rule
from detrlab.data.check_boxes import repeated
from detrlab.data.check_report import CheckReport
from detrlab.data.convert import Part, extras_lost, outputs_of, refuse_inside
from detrlab.data.findings import printable
from detrlab.data.measure import Measured, misplaced
from detrlab.data.raw import RawSplit
from detrlab.data.reading import Progress, read_raw
from detrlab.data.table import Table, clamped_corners
from detrlab.data.writers import write
from detrlab.errors import UserError

_MOVED = ("box-over-edge", "box-scale", "box-corners", "image-size")
"""Rules whose repair changes numbers: the changes list old and new numbers of each box."""


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
    report: CheckReport
    images: int
    boxes: int


def fix(
    source: str | Path,
    output: str | Path,
    config: DataConfig | None = None,
    *,
    progress: Progress | None = None,
) -> Repair:
    """Write a cleaned copy in the data's own format; the original is not changed.

    Args:
        source: as for ``open_data``.
        output: a folder that does not exist yet.
        config: the size that training will use.
        progress: called with images checked, then written, and in all.

    Raises:
        UserError: the data is generated, nothing usable is left, or the folder exists.
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
    parts = []
    for k, split in enumerate(data.splits):
        repaired, lines = _repaired(examined.measured[k], k, dropped)
        changes += lines
        table, images = repaired.clean(split.name or "train", examined.words, k)
        if len(table):
            table = _numbered(table, examined.words.category_ids[0])
            parts.append(Part(repaired, table, images, _recoded(examined, k)))
    if not parts:
        raise UserError(f"{data.name}: nothing usable would be left")
    outputs = outputs_of(parts)
    text = "".join(f"{line}\n" for line in changes) or "nothing had to be changed\n"
    write(data.splits[0].format, folder, outputs, progress, {"changes.txt": text})
    return Repair(
        folder=folder,
        changes=tuple(changes),
        report=examined.report,
        images=sum(len(output.table) for output in outputs),
        boxes=sum(len(output.table.boxes) for output in outputs),
    )


def _changes(examined: Examined) -> list[str]:
    """A line for every finding that the copy no longer has, except moved boxes."""
    lines = []
    for rule, count, listed in examined.report.findings.by_rule():
        if not rule.repair or rule.key in _MOVED:
            continue
        lines += [f"{rule.key}: {finding.describe()} -> {rule.repair}" for finding in listed]
        if count > len(listed):
            lines.append(f"{rule.key}: and {count - len(listed):,} more -> {rule.repair}")
    return lines + extras_lost(examined.data)


def _superfluous(examined: Examined) -> set[Entry]:
    """Images that the copy leaves out: exact repetitions, and training images in other splits."""
    splits = examined.data.splits
    dropped: set[Entry] = set()
    for first, second, exact in examined.pairs:
        if first[0] == second[0]:
            if exact and first not in dropped:
                dropped.add(second)
        else:
            dropped.add(second if splits[second[0]].name == "train" else first)
    return dropped


def _repaired(measured: Measured, k: int, dropped: set[Entry]) -> tuple[Measured, list[str]]:
    """The split without superfluous images, its boxes in the image files, and what moved."""
    split = measured.split
    if not len(split):
        return measured, []
    original = split.boxes if measured.masks["box-corners"].any() else measured.boxes
    split = _merged(split)
    boxes = measured.in_files(split.owners).copy()
    frame = measured.sizes[np.maximum(split.owners, 0)]
    scale = misplaced(boxes, split.owners, measured.sizes)["box-scale"]
    boxes[scale] *= np.tile(frame[scale, ::-1], 2)
    over = misplaced(boxes, split.owners, measured.sizes)["box-over-edge"]
    for row in np.flatnonzero(over).tolist():
        corners = clamped_corners(boxes[row : row + 1], *frame[row].tolist())[0]
        boxes[row] = [*corners[:2], *(corners[2:] - corners[:2])]
    # Clamped boxes may be equal now that were not before.
    keep = ~misplaced(boxes, split.owners, measured.sizes)["box-off-image"]
    keep &= ~repeated(split, boxes)["box-duplicate"]
    with np.errstate(invalid="ignore"):
        moved = (boxes != original).any(axis=1)
    lines = []
    for row in np.flatnonzero(moved & np.isfinite(original).all(axis=1)).tolist():
        old, new = (" ".join(f"{v:g}" for v in box[row].tolist()) for box in (original, boxes))
        place = f"{split.file_of(row)} {split.place(row)}"
        lines.append(printable(f"box: {split.name}: {place}: {old} -> {new}"))
    repaired = replace(
        split,
        members=[None if (k, i) in dropped else member for i, member in enumerate(split.members)],
        owners=split.owners[keep],
        boxes=boxes[keep],
        category_ids=split.category_ids[keep],
        crowd=split.crowd[keep],
        areas=np.where(moved, np.nan, split.areas)[keep],
        annotation_ids=split.annotation_ids[keep],
    )
    sizes = measured.sizes
    return Measured(repaired, measured.headers, sizes, sizes, boxes[keep], {}, [], []), lines


def _recoded(examined: Examined, k: int) -> set[int]:
    """Images that are not 8-bit RGB or grey, or are animated."""
    looks = enumerate(examined.inspections[k])
    return {
        i
        for i, look in looks
        if look and look.header and (look.animated or mode_rule(look.header.mode))
    }


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


def _numbered(table: Table, category_ids: tuple[int, ...]) -> Table:
    """The same list of categories in every split, and image ids as numbers if any was text."""
    ids = table.image_ids
    if ids.dtype.kind not in "iu":
        ids = np.arange(1, len(ids) + 1, dtype=np.int64)
    return replace(table, image_ids=ids, category_ids=category_ids)
