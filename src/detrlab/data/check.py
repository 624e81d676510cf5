"""``detrlab check``: what is in a data set, and what is wrong with it."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from detrlab.config import DataConfig
from detrlab.data.check_boxes import check_boxes
from detrlab.data.check_report import CheckReport, summarize
from detrlab.data.duplicates import THUMB, near_pairs
from detrlab.data.findings import Finding, Findings
from detrlab.data.images import ENDINGS_OF, MAX_PIXELS, Header, Inspection, inspect
from detrlab.data.locate import is_image
from detrlab.data.measure import Measured, measure, read_headers
from detrlab.data.raw import RawSplit, Vocabulary, vocabulary
from detrlab.data.reading import Progress, RawData, read_raw
from detrlab.data.shapes import shapes
from detrlab.data.sources import split_roles
from detrlab.data.store import Store
from detrlab.data.table import Table
from detrlab.errors import UserError

RARE_BOXES = 10
RARE_SHARE = 0.01
"""A class is rare below this many boxes, or below this share of the most frequent class's."""

MAX_IMAGE_BYTES = 3 * MAX_PIXELS
"""Larger image files are not read: the largest image that is decoded needs no more."""

Entry = tuple[int, int]
"""Positions of a split and of an image in it."""


def check(
    source: str | Path,
    config: DataConfig | None = None,
    *,
    num_queries: int | None = 100,
    quick: bool = False,
    progress: Progress | None = None,
) -> CheckReport:
    """Check everything in a data set.

    Args:
        source: as for ``open_data``.
        config: the size that training will use; None takes DETR's.
        num_queries: objects that a detector can find in one image; None does not compare.
        quick: do not read pixels: no truncated files, no duplicates, no leaks are found.
        progress: called with images done and in all.

    Raises:
        UserError: there is no data set at all.
    """
    config = config or DataConfig()
    if str(source) != "shapes":
        data = read_raw(source)
        return examine(
            data, str(source), config, num_queries=num_queries, quick=quick, progress=progress
        ).report
    tables = shapes()  # generated: there are no files to check
    findings = Findings()
    _check_counts(tables, num_queries, findings)
    splits = tuple(map(summarize, tables))
    return CheckReport("shapes", "shapes", "generated", splits, findings, tables=tables)


class SameImage(NamedTuple):
    """Two entries that show the same image."""

    first: Entry
    second: Entry
    exact: bool


class Examined(NamedTuple):
    """A report together with its inputs, for the repair.

    Attributes:
        report: what was found.
        data: as annotated.
        words: its classes.
        measured: of each split.
        inspections: of each split, of each image; empty after a quick check.
        pairs: entries that show the same image.
    """

    report: CheckReport
    data: RawData
    words: Vocabulary
    measured: list[Measured]
    inspections: list[list[Inspection | None]]
    pairs: list[SameImage]


def examine(
    data: RawData,
    source: str,
    config: DataConfig,
    *,
    num_queries: int | None,
    quick: bool = False,
    progress: Progress | None = None,
) -> Examined:
    """All findings about a data set; arguments as for ``check``."""
    findings = Findings()
    for found in (data.findings, *(split.findings for split in data.splits)):
        findings.merge(found)
    words = vocabulary(data.splits, findings)
    inspections = [] if quick else _inspect_all(data, progress)
    headers = [[_header_of(look) for look in looks] for looks in inspections]
    headers = headers or [read_headers(split) for split in data.splits]
    measured, tables = [], []
    for k, split in enumerate(data.splits):
        measured.append(measure(split, headers[k], words.labels[k]))
        looks = inspections[k] if inspections else [None] * len(split)
        _check_files(split, headers[k], looks, findings)
        _check_sizes(measured[k], findings)
        check_boxes(measured[k], config, findings)
        tables.append(measured[k].clean(split.name or "train", words, k)[0])
    _check_unlisted(data, findings)
    _check_counts(tables, num_queries, findings)
    pairs = _same_images(data, inspections)
    _report_pairs(data, pairs, findings)
    report = CheckReport(
        name=data.name,
        source=source,
        format=data.splits[0].format,
        splits=tuple(map(summarize, tables)),
        findings=findings,
        notes=(*data.notes, *split_roles([split.name for split in data.splits])[1]),
        quick=quick,
        tables=tuple(tables),
        licences=tuple(dict.fromkeys(each for split in data.splits for each in split.licences)),
    )
    return Examined(report, data, words, measured, inspections, pairs)


# Files -----------------------------------------------------------------------------------------


def _inspect_all(data: RawData, progress: Progress | None) -> list[list[Inspection | None]]:
    total = sum(len(split) for split in data.splits)
    results: list[list[Inspection | None]] = []
    done = 0
    with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 2)) as pool:
        for split in data.splits:
            stores = [split.store] * len(split)
            results.append([])
            for inspection in pool.map(_inspect, stores, split.members):
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
    headers: Sequence[Header | str],
    inspections: Sequence[Inspection | None],
    findings: Findings,
) -> None:
    """Findings about each image file alone."""
    first_entry: dict[str, int | str] = {}
    for i, header in enumerate(headers):
        member, image_id = split.members[i], split.image_ids[i]
        if member is None:
            continue
        if member in first_entry:
            detail = f"also image {first_entry[member]}"
            findings.add("file-shared", split.name, member, image_id, None, detail)
        first_entry.setdefault(member, image_id)
        for rule, detail in _file_defects(member, header, inspections[i]):
            findings.add(rule, split.name, member, image_id, None, detail)


def _file_defects(
    member: str, header: Header | str, inspection: Inspection | None
) -> Iterable[tuple[str, str]]:
    if isinstance(header, str):
        cut = inspection is not None and inspection.cut_short
        yield "image-truncated" if cut else "image-unreadable", header
        return
    extension = posixpath.splitext(member)[1].lower()
    if extension not in ENDINGS_OF.get(header.format, (extension,)):
        yield "image-mislabelled", f"has the extension {extension} and is {header.format}"
    if header.orientation != 1:
        yield "image-orientation", f"EXIF orientation {header.orientation}"
    if rule := mode_rule(header.mode):
        yield rule, f"mode {header.mode}"
    if inspection is not None and inspection.animated:
        yield "image-animated", header.format


def mode_rule(mode: str) -> str:
    """The rule that an image of this Pillow mode breaks; empty if there is none."""
    if mode.startswith(("I", "F")):
        return "image-16bit"
    if mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        return "image-alpha"
    return "image-cmyk" if mode in ("CMYK", "YCCK") else ""


def _check_sizes(measured: Measured, findings: Findings) -> None:
    split, fits_declared = measured.split, set(measured.drawn_on_declared)
    for i in measured.mismatched:
        height, width = split.declared[i].tolist()
        real_height, real_width = measured.sizes[i].tolist()
        detail = f"declared {width} x {height}, the file has {real_width} x {real_height}"
        detail += "; its boxes fit the declared size" * (i in fits_declared)
        member = split.members[i] or ""
        findings.add("image-size", split.name, member, split.image_ids[i], None, detail)


def _check_unlisted(data: RawData, findings: Findings) -> None:
    """Images in the folders of listed ones that no split lists."""
    listed = {member for split in data.splits for member in split.members if member}
    folders = {posixpath.dirname(member) for member in listed}
    for name in sorted(data.splits[0].store.names - listed):
        if posixpath.dirname(name) in folders and is_image(name):
            findings.add("file-unlisted", "", name)


# Classes and counts ----------------------------------------------------------------------------


def _check_counts(tables: Sequence[Table], num_queries: int | None, findings: Findings) -> None:
    """Images with too many objects, classes that a split lacks, and classes with few boxes."""
    classes = tables[0].classes
    counts = {}
    for table in tables:
        objects = np.bincount(table.owners()[~table.crowd], minlength=len(table))
        for i in np.flatnonzero(objects > num_queries).tolist() if num_queries is not None else ():
            detail = f"{objects[i]:,} objects, {num_queries:,} queries"
            findings.add(
                "too-many-objects", table.name, table.file(i), table.image_id(i), None, detail
            )
        counts[table.name] = np.bincount(table.labels[~table.crowd], minlength=len(classes))
    total = np.sum(list(counts.values()), axis=0)
    for name, of_split in counts.items():
        for label in np.flatnonzero((of_split == 0) & ((total > 0) | (len(counts) == 1))).tolist():
            findings.add("class-missing", name, "", None, None, classes[label])
    for label in np.flatnonzero((total == 0) & (len(counts) > 1)).tolist():
        findings.add("class-missing", "", "", None, None, f"{classes[label]}: in no split")
    first = counts.get("train", total)
    most = int(first.max(initial=0))
    enough = max(RARE_BOXES, round(RARE_SHARE * most))
    for label in np.flatnonzero((first > 0) & (first < enough)).tolist():
        detail = f"{classes[label]}: {first[label]} boxes, the most frequent class has {most:,}"
        findings.add("class-rare", "train", "", None, None, detail)


# Duplicates ------------------------------------------------------------------------------------


def _same_images(data: RawData, inspections: list[list[Inspection | None]]) -> list[SameImage]:
    """All pairs of entries whose files show the same image."""
    pairs: list[SameImage] = []
    # For the contents of each file: its thumbnail, and the first entry in every split.
    files: dict[bytes, tuple[np.ndarray, dict[int, int]]] = {}
    for k, looks in enumerate(inspections):
        for i, look in enumerate(looks):
            if look is None or look.thumb is None:
                continue
            _, entries = files.setdefault(look.digest, (look.thumb, {}))
            if entries:
                split = k if k in entries else next(iter(entries))
                before = (split, entries[split])
                # Entries of one split that name the same file are another finding.
                members = data.splits[k].members
                if split != k or members[before[1]] != members[i]:
                    pairs.append(SameImage(before, (k, i), exact=True))
            entries.setdefault(k, i)
    distinct = [entries for _, entries in files.values()]
    if len(distinct) > 1:
        for first, second in near_pairs(np.stack([thumb for thumb, _ in files.values()])):
            pairs += [
                SameImage(min(a, b), max(a, b), exact=False)
                for a in distinct[first].items()
                for b in distinct[second].items()
            ]
    return pairs


def _report_pairs(data: RawData, pairs: list[SameImage], findings: Findings) -> None:
    for first, second, exact in pairs:
        across = first[0] != second[0]
        rule = ("leak-" if across else "duplicate-") + ("exact" if exact else "near")
        # A leak is reported for the training image, which is the one to remove.
        swap = across and data.splits[first[0]].name == "train"
        (k, i), (other, j) = (first, second) if swap else (second, first)
        split, partner = data.splits[k], data.splits[other]
        finding = Finding(
            rule,
            split.name,
            split.members[i] or "",
            split.image_ids[i],
            detail=f"as {f'{partner.name}: ' * bool(partner.name)}{partner.members[j]}",
            other=(partner.name, partner.image_ids[j]),
        )
        findings.extend(rule, 1, [finding])
