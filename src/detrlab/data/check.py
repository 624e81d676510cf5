"""``detrlab check``: what is in a data set, and what is wrong with it."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np

from detrlab.config import DataConfig
from detrlab.data.check_report import CheckReport
from detrlab.data.duplicates import THUMB, near_pairs
from detrlab.data.findings import Finding, Findings
from detrlab.data.images import ENDINGS_OF, MAX_PIXELS, Header, Inspection, inspect
from detrlab.data.locate import is_image
from detrlab.data.mapped import in_blocks
from detrlab.data.measure import Measured, measure, read_headers, sound
from detrlab.data.raw import RawSplit, Vocabulary, vocabulary
from detrlab.data.reading import Progress, RawData, read_raw
from detrlab.data.shapes import STYLES, shapes
from detrlab.data.sources import split_roles
from detrlab.data.store import Store
from detrlab.data.table import Table
from detrlab.data.transforms import evaluation_size
from detrlab.errors import UserError

RARE_BOXES = 10
RARE_SHARE = 0.01
"""A class is rare below this many boxes, or below this share of the most frequent class's."""

_PART = 1 << 20
"""Boxes that are compared with each other at a time."""

VANISHED = 2.0
"""Pixels below which an object is too small to be learned."""

MAX_IMAGE_BYTES = 3 * MAX_PIXELS
"""Larger image files are not read: the largest image that is decoded needs no more."""

Entry = tuple[int, int]
"""Positions of a split and of an image in it."""
Pair = tuple[Entry, Entry, bool]
"""Two entries that show the same image; whether their files are equal."""


class Examined(NamedTuple):
    """A report together with its inputs, for the repair.

    ``measured`` has one entry for each split, ``inspections`` one for each image of each split,
    or none after a quick check.
    """

    report: CheckReport
    data: RawData
    words: Vocabulary
    measured: list[Measured]
    inspections: list[list[Inspection | None]]
    pairs: list[Pair]


def check(
    source: str | Path,
    config: DataConfig | None = None,
    *,
    num_queries: int | None = 100,
    quick: bool = False,
    no_images: bool = False,
    progress: Progress | None = None,
) -> CheckReport:
    """Check everything in a data set.

    Args:
        source: as for ``open_data``.
        config: the size that training will use; None takes DETR's.
        num_queries: objects that a detector can find in one image; None does not compare.
        quick: do not read pixels: no truncated files, no duplicates, no leaks are found.
        no_images: do not even open image files: declared sizes are trusted, too.
        progress: called with images done and in all.

    Raises:
        UserError: there is no data set at all.
    """
    config = config or DataConfig()
    if style := STYLES.get(str(source)):  # generated: there are no files to check
        tables, findings = shapes(style=style), Findings()
        _check_counts(tables, num_queries, findings)
        return CheckReport(style.name, style.name, "generated", tables, findings)
    return examine(
        read_raw(source), str(source), config, num_queries=num_queries, quick=quick,
        no_images=no_images, progress=progress,
    ).report  # fmt: skip


def examine(
    data: RawData,
    source: str,
    config: DataConfig,
    *,
    num_queries: int | None,
    quick: bool = False,
    no_images: bool = False,
    progress: Progress | None = None,
) -> Examined:
    """All findings about a data set; arguments as for ``check``."""
    findings = Findings()
    for found in (data.findings, *(split.findings for split in data.splits)):
        findings.merge(found)
    words = vocabulary(data.splits, findings)
    quick = quick or no_images
    inspections = [] if quick else _inspect_all(data, progress)
    measured, tables = [], []
    for k, split in enumerate(data.splits):
        looks = inspections[k] if inspections else [None] * len(split)
        headers: Sequence[Header | str] | None = None
        if not no_images:
            headers = list(map(_header_of, looks)) if inspections else read_headers(split)
        measured.append(measure(split, headers, words.labels[k]))
        _check_files(split, headers, looks, findings)
        _check_sizes(measured[k], findings)
        _check_boxes(measured[k], config, findings)
        tables.append(measured[k].clean(split.name or "train", words, k)[0])
    _check_unlisted(data, findings)
    _check_counts(tables, num_queries, findings)
    pairs = _same_images(data, inspections)
    _report_pairs(data, pairs, findings)
    report = CheckReport(
        name=data.name,
        source=source,
        format=data.splits[0].format,
        tables=tuple(tables),
        findings=findings,
        notes=(*data.notes, *split_roles([split.name for split in data.splits])[1]),
        quick=quick,
        licences=tuple(dict.fromkeys(chain(*(split.licences for split in data.splits)))),
    )
    return Examined(report, data, words, measured, inspections, pairs)


# Files -----------------------------------------------------------------------------------------


def _inspect_all(data: RawData, progress: Progress | None) -> list[list[Inspection | None]]:
    total, done = sum(len(split) for split in data.splits), 0
    results: list[list[Inspection | None]] = []
    with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 2)) as pool:
        for split in data.splits:
            results.append([])
            for inspection in pool.map(_inspect, [split.store] * len(split), split.members):
                results[-1].append(inspection)
                done += 1
                if progress is not None:
                    progress(done, total)
    return results


def _inspect(store: Store, member: str | None) -> Inspection | None:
    if member is None:
        return None
    try:
        data = store.read(member, MAX_IMAGE_BYTES)
    except (UserError, OSError, MemoryError) as error:
        return Inspection(None, str(error), False, False, b"", None)
    return inspect(data, member, THUMB)


def _header_of(inspection: Inspection | None) -> Header | str:
    """The header of a file that can be decoded, or why it cannot."""
    if inspection is None:
        return "missing"
    return inspection.header if inspection.header and not inspection.problem else inspection.problem


def _check_files(
    split: RawSplit,
    headers: Sequence[Header | str] | None,
    inspections: Sequence[Inspection | None],
    findings: Findings,
) -> None:
    """Findings about each image file alone."""
    first_entry: dict[str, int | str] = {}
    for member, image, header, look in zip(
        split.members,
        split.image_ids,
        headers if headers is not None else repeat(None, len(split)),
        inspections,
        strict=True,
    ):
        if member is None:
            continue
        if first_entry.setdefault(member, image) != image:
            detail = f"also image {first_entry[member]}"
            findings.add("file-shared", split.name, member, image, None, detail)
        if header is None:
            continue
        for rule, detail in _file_defects(member, header, look):
            findings.add(rule, split.name, member, image, None, detail)


def _file_defects(
    member: str, header: Header | str, look: Inspection | None
) -> Iterable[tuple[str, str]]:
    if isinstance(header, str):
        yield "image-truncated" if look and look.cut_short else "image-unreadable", header
        return
    extension = posixpath.splitext(member)[1].lower()
    if extension not in ENDINGS_OF.get(header.format, (extension,)):
        yield "image-mislabelled", f"has the extension {extension} and is {header.format}"
    if header.orientation != 1:
        yield "image-orientation", f"EXIF orientation {header.orientation}"
    if rule := mode_rule(header.mode):
        yield rule, f"mode {header.mode}"
    if look and look.animated:
        yield "image-animated", header.format


def mode_rule(mode: str) -> str:
    """The rule that an image of this Pillow mode breaks; empty if there is none."""
    if mode.startswith(("I", "F")):
        return "image-16bit"
    if mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        return "image-alpha"
    return "image-cmyk" if mode in ("CMYK", "YCCK") else ""


def _check_sizes(measured: Measured, findings: Findings) -> None:
    split = measured.split
    for i in measured.mismatched:
        (height, width), (real_height, real_width) = split.declared[i], measured.sizes[i]
        detail = f"declared {width} x {height}, the file has {real_width} x {real_height}"
        detail += "; its boxes fit the declared size" * (i in measured.drawn_on_declared)
        member = split.members[i] or ""
        findings.add("image-size", split.name, member, split.image_ids[i], None, detail)


def _check_unlisted(data: RawData, findings: Findings) -> None:
    """Images in the folders of listed ones that no split lists."""
    listed = {member for split in data.splits for member in split.members if member}
    folders = {posixpath.dirname(member) for member in listed}
    for name in sorted(data.splits[0].store.names - listed):
        if posixpath.dirname(name) in folders and is_image(name):
            findings.add("file-unlisted", "", name)


# Boxes -----------------------------------------------------------------------------------------


def _check_boxes(measured: Measured, config: DataConfig, findings: Findings) -> None:
    """Findings about boxes; ``config`` says at which size the split will be trained."""
    split, boxes = measured.split, measured.boxes
    masks = {**measured.masks, **repeated(split, boxes)}
    masks["box-whole-image"] = masks["box-whole-image"] & ~split.crowd
    # Boxes that break other rules are not reported again for being small.
    other = masks["box-not-finite"] | masks["box-empty"] | masks["box-scale"]
    other |= masks["box-off-image"] | split.crowd | (split.owners < 0)
    frame = measured.frame
    trained = [evaluation_size(h, w, config) if h * w else (1, 1) for h, w in frame.tolist()]
    ratios = (np.array(trained).reshape(-1, 2) / np.maximum(frame, 1))[:, ::-1]

    def small(boxes: np.ndarray, owners: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", over="ignore"):
            sides = boxes[:, 2:] * ratios[np.maximum(owners, 0)] if len(frame) else boxes[:, 2:]
        return np.asarray((sides < VANISHED).any(axis=1))

    masks["box-vanishes"] = ~other & in_blocks(small, boxes, split.owners)

    def finding(rule: str, row: int) -> Finding:
        owner, box = int(split.owners[row]), boxes[row].tolist()
        detail = "x {:g}, y {:g}, w {:g}, h {:g}".format(*box)
        if rule == "category-unknown":
            detail = f"category {int(split.category_ids[row])}"
        image = split.image_ids[owner] if owner >= 0 else None
        place = (split.name, split.file_of(row), image, split.place(row))
        return Finding(rule, *place, detail, box=tuple(box))

    for rule, mask in masks.items():
        rows = np.flatnonzero(mask).tolist()
        findings.extend(rule, len(rows), (finding(rule, row) for row in rows))


def repeated(split: RawSplit, boxes: np.ndarray) -> dict[str, np.ndarray]:
    """Which boxes an image has had before, with the same category or another: (M,) bool by rule."""
    masks = {
        rule: np.zeros(len(boxes), dtype=bool) for rule in ("box-duplicate", "box-two-classes")
    }
    owners, categories = split.owners, split.category_ids
    rows = np.flatnonzero(in_blocks(lambda some: sound(some)[1], boxes) & (owners >= 0))
    rows = rows[~split.crowd[rows]]
    for some in _image_after_image(rows, owners):
        order = some[np.lexsort((categories[some], *boxes[some].T[::-1], owners[some]))]
        one, other = order[:-1], order[1:]
        same_box = (owners[other] == owners[one]) & (boxes[other] == boxes[one]).all(axis=1)
        same_category = categories[other] == categories[one]
        masks["box-duplicate"][other] = same_box & same_category
        masks["box-two-classes"][other] = same_box & ~same_category
    return masks


def _image_after_image(rows: np.ndarray, owners: np.ndarray) -> list[np.ndarray]:
    """The rows by image, in parts of about a million; no image is in two of them."""
    rows = rows[np.argsort(owners[rows], kind="stable")]
    changes = np.flatnonzero(np.diff(owners[rows])) + 1
    cuts = np.searchsorted(changes, np.arange(_PART, len(rows), _PART))
    return np.split(rows, np.unique(changes[cuts[cuts < len(changes)]]))


# Classes and counts ----------------------------------------------------------------------------


def _check_counts(tables: Sequence[Table], num_queries: int | None, findings: Findings) -> None:
    """Images with too many objects, classes that a split lacks, and classes with few boxes."""
    classes = tables[0].classes
    counts = {}
    for table in tables:
        objects = np.bincount(table.owners()[~table.crowd], minlength=len(table))
        for i in np.flatnonzero(objects > num_queries).tolist() if num_queries is not None else ():
            detail = f"{objects[i]:,} objects, {num_queries:,} queries"
            place = (table.name, table.file(i), table.image_id(i), None)
            findings.add("too-many-objects", *place, detail)
        counts[table.name] = np.bincount(table.labels[~table.crowd], minlength=len(classes))
    total = np.sum(list(counts.values()), axis=0)
    alone = len(counts) == 1
    for name, of_split in counts.items():
        for label in np.flatnonzero((of_split == 0) & ((total > 0) | alone)).tolist():
            findings.add("class-missing", name, "", detail=classes[label])
    for label in np.flatnonzero(total == 0).tolist() if not alone else ():
        findings.add("class-missing", "", "", detail=f"{classes[label]}: in no split")
    first = counts.get("train", total)
    most = int(first.max(initial=0))
    enough = max(RARE_BOXES, round(RARE_SHARE * most))
    for label in np.flatnonzero((first > 0) & (first < enough)).tolist():
        detail = f"{classes[label]}: {first[label]} boxes, the most frequent class has {most:,}"
        findings.add("class-rare", "train", "", detail=detail)


# Duplicates ------------------------------------------------------------------------------------


def _same_images(data: RawData, inspections: list[list[Inspection | None]]) -> list[Pair]:
    """All pairs of entries whose files show the same image."""
    pairs: list[Pair] = []
    # For the contents of each file: its thumbnail, and the first entry in every split.
    files: dict[bytes, tuple[np.ndarray, dict[int, int]]] = {}
    for k, looks in enumerate(inspections):
        members = data.splits[k].members
        for i, look in enumerate(looks):
            if look is None or look.thumb is None:
                continue
            _, entries = files.setdefault(look.digest, (look.thumb, {}))
            if entries:
                split = k if k in entries else next(iter(entries))
                # Entries of one split that name the same file are another finding.
                if split != k or members[entries[k]] != members[i]:
                    pairs.append(((split, entries[split]), (k, i), True))
            entries.setdefault(k, i)
    distinct = [entries for _, entries in files.values()]
    if len(distinct) > 1:
        for first, second in near_pairs(np.stack([thumb for thumb, _ in files.values()])):
            for a in distinct[first].items():
                pairs += [(min(a, b), max(a, b), False) for b in distinct[second].items()]
    return pairs


def _report_pairs(data: RawData, pairs: list[Pair], findings: Findings) -> None:
    for first, second, exact in pairs:
        across = first[0] != second[0]
        rule = ("leak-" if across else "duplicate-") + ("exact" if exact else "near")
        # A leak is reported for the training image, which is the one to remove.
        swap = across and data.splits[first[0]].name == "train"
        (k, i), (other, j) = (first, second) if swap else (second, first)
        split, partner = data.splits[k], data.splits[other]
        findings.add(
            rule, split.name, split.members[i] or "", split.image_ids[i],
            detail=f"as {f'{partner.name}: ' * bool(partner.name)}{partner.members[j]}",
            other=(partner.name, partner.image_ids[j]),
        )  # fmt: skip
