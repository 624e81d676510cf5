"""``detrlab check``: what is in a data set, and what is wrong with it."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from detrlab.config import DataConfig
from detrlab.data.check_boxes import check_boxes, check_small
from detrlab.data.check_report import Report, summarize
from detrlab.data.duplicates import THUMB, near_pairs
from detrlab.data.findings import Finding, Findings
from detrlab.data.images import ENDINGS_OF, Header, Inspection, inspect
from detrlab.data.locate import is_image
from detrlab.data.raw import (
    RawSplit,
    Vocabulary,
    clean,
    misfits,
    read_headers,
    shown_sizes,
    vocabulary,
)
from detrlab.data.shapes import shapes
from detrlab.data.sources import RawData, read_raw
from detrlab.data.split import VAL_SHARE
from detrlab.data.table import Table
from detrlab.errors import UserError

RARE_BOXES = 10
RARE_SHARE = 0.01
"""A class with fewer boxes than this, or than this share of the commonest class's, is rare."""

Progress = Callable[[int, int], None]
"""Told how many images of how many have been looked at."""


def check(
    source: str | Path,
    config: DataConfig | None = None,
    *,
    num_queries: int | None = 100,
    quick: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Look at everything in a data set.

    Args:
        source: what ``open_data`` takes.
        config: the size that training will use; None takes DETR's.
        num_queries: objects that a detector can find in one image; None does not compare.
        quick: leave the pixels unread: no truncated files, no duplicates, no leaks.
        progress: told how many images have been looked at.

    Raises:
        UserError: there is no data set at all.
    """
    config = config or DataConfig()
    if str(source) == "shapes":
        return _generated(config, num_queries)
    return examine(
        read_raw(source), str(source), config, num_queries=num_queries, quick=quick,
        progress=progress,
    ).report  # fmt: skip


class Examined(NamedTuple):
    """A report together with what it was made from, for the repair.

    Attributes:
        report: what was found.
        data: as it lies.
        words: its classes.
        headers: of each split, of each image.
        inspections: of each split, of each image; None after a quick look.
        pairs: same pictures: positions ``(split, image)`` of both, and whether exactly the same.
    """

    report: Report
    data: RawData
    words: Vocabulary
    headers: list[list[Header | str]]
    inspections: list[list[Inspection | None]] | None
    pairs: list[SamePicture]


def _missing_split(data: RawData) -> list[str]:
    """What training will do where no split is there to judge by."""
    names = {split.name for split in data.splits}
    if "val" in names and len(names) > 1:
        return []
    if "test" in names and len(names) > 1:
        return ["there is no validation split: training will judge by the test split"]
    return [f"there is no validation split: training will split off {VAL_SHARE:.0%} of the images"]


class SamePicture(NamedTuple):
    """Two entries that show the same picture."""

    first: tuple[int, int]
    second: tuple[int, int]
    exact: bool


def examine(
    data: RawData,
    source: str,
    config: DataConfig,
    *,
    num_queries: int | None,
    quick: bool = False,
    progress: Progress | None = None,
) -> Examined:
    """All findings about a data set as it lies."""
    findings = Findings()
    findings.merge(data.findings)
    for split in data.splits:
        findings.merge(split.findings)
    words = vocabulary(data.splits, findings)
    if not words.names:
        raise UserError(f"{data.name}: no classes are declared")
    inspections = None
    if quick:
        headers = [read_headers(split) for split in data.splits]
    else:
        inspections = _inspect_all(data, progress)
        headers = [
            [_header_of(inspection) for inspection in split_inspections]
            for split_inspections in inspections
        ]
    tables = []
    for position, split in enumerate(data.splits):
        sizes = shown_sizes(split, headers[position])
        looks = inspections[position] if inspections else None
        _check_files(split, headers[position], looks, findings)
        _check_sizes(split, sizes, findings)
        check_boxes(split, words.labels[position], sizes, config, findings)
        name = split.name or "train"
        table = clean(split, name, words, position, headers[position]).table
        _check_counts(split.name, table, num_queries, findings)
        tables.append(table)
    _check_unlisted(data, findings)
    _check_classes(tables, findings)
    pairs = _same_pictures(data, inspections) if inspections else []
    _report_pairs(data, pairs, findings)
    report = Report(
        name=data.name,
        source=source,
        format=data.splits[0].format,
        splits=tuple(summarize(table) for table in tables),
        findings=findings,
        notes=(*data.notes, *_missing_split(data)),
        quick=quick,
        tables=tuple(tables),
        licences=tuple(dict.fromkeys(each for split in data.splits for each in split.licences)),
    )
    return Examined(report, data, words, headers, inspections, pairs)


def _generated(config: DataConfig, num_queries: int | None) -> Report:
    """The built-in set has no files; what can be said of its tables is."""
    tables = shapes()
    findings = Findings()
    _check_classes(tables, findings)
    for table in tables:
        check_small(table.name, table, config, findings)
        _check_counts(table.name, table, num_queries, findings)
    return Report(
        name="shapes",
        source="shapes",
        format="generated",
        splits=tuple(summarize(table) for table in tables),
        findings=findings,
        tables=tables,
    )


# Files -----------------------------------------------------------------------------------------


def _inspect_all(data: RawData, progress: Progress | None) -> list[list[Inspection | None]]:
    total = sum(len(split) for split in data.splits)
    done = 0
    results = []
    with ThreadPoolExecutor(min(8, (os.cpu_count() or 1) + 2)) as pool:
        for split in data.splits:
            inspections: list[Inspection | None] = []
            for inspection in pool.map(_inspector(split), range(len(split)), chunksize=1):
                inspections.append(inspection)
                done += 1
                if progress is not None:
                    progress(done, total)
            results.append(inspections)
    return results


def _inspector(split: RawSplit) -> Callable[[int], Inspection | None]:
    def look(i: int) -> Inspection | None:
        member = split.members[i]
        if member is None:
            return None
        try:
            with split.store.open(member) as stream:
                data = stream.read()
        except (UserError, OSError, MemoryError) as error:
            return Inspection(None, str(error), False, False, b"", None)
        return inspect(data, member, THUMB)

    return look


def _header_of(inspection: Inspection | None) -> Header | str:
    """The header of a file that can be decoded, else why it cannot."""
    if inspection is None:
        return "missing"
    return inspection.header if inspection.header and not inspection.problem else inspection.problem


def _check_files(
    split: RawSplit,
    headers: Sequence[Header | str],
    inspections: Sequence[Inspection | None] | None,
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
        inspection = inspections[i] if inspections else None
        if isinstance(header, str):
            cut = inspection is not None and inspection.cut_short
            rule = "image-truncated" if cut else "image-unreadable"
            findings.add(rule, split.name, member, image_id, None, header)
            continue
        for rule, detail in _file_defects(member, header, inspection):
            findings.add(rule, split.name, member, image_id, None, detail)


def _file_defects(
    member: str, header: Header, inspection: Inspection | None
) -> Iterable[tuple[str, str]]:
    ending = posixpath.splitext(member)[1].lower()
    if ending not in ENDINGS_OF.get(header.format, (ending,)):
        yield "image-mislabelled", f"ends in {ending} and is {header.format}"
    if header.orientation != 1:
        yield "image-orientation", f"EXIF orientation {header.orientation}"
    if header.mode in ("CMYK", "YCCK"):
        yield "image-cmyk", header.mode
    if header.mode.startswith(("I", "F")):
        yield "image-16bit", f"mode {header.mode}"
    if header.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        yield "image-alpha", header.mode
    if inspection is not None and inspection.animated:
        yield "image-animated", header.format


def _check_sizes(split: RawSplit, sizes: np.ndarray, findings: Findings) -> None:
    for i, scaled in misfits(split, sizes).items():
        height, width = split.declared[i].tolist()
        real_height, real_width = sizes[i].tolist()
        detail = f"declared {width} x {height}, the file has {real_width} x {real_height}"
        detail += "; its boxes fit the declared size" * scaled
        member = split.members[i] or ""
        findings.add("image-size", split.name, member, split.image_ids[i], None, detail)


def _check_unlisted(data: RawData, findings: Findings) -> None:
    """Images beside the listed ones that no split mentions."""
    listed = {member for split in data.splits for member in split.members if member}
    folders = {posixpath.dirname(member) for member in listed}
    store = data.splits[0].store
    others = sorted(
        name
        for name in store.names - listed
        if posixpath.dirname(name) in folders and is_image(name)
    )
    findings.extend(
        "file-unlisted", len(others), (Finding("file-unlisted", "", name) for name in others)
    )


# Classes and counts ----------------------------------------------------------------------------


def _check_counts(split: str, table: Table, num_queries: int | None, findings: Findings) -> None:
    if num_queries is None:
        return
    owners = np.repeat(np.arange(len(table)), np.diff(table.starts))
    counts = np.bincount(owners[~table.crowd], minlength=len(table))
    for i in np.flatnonzero(counts > num_queries).tolist():
        findings.add(
            "too-many-objects", split, table.file(i), table.image_id(i), None,
            f"{counts[i]:,} objects, {num_queries:,} queries",
        )  # fmt: skip


def _check_classes(tables: Sequence[Table], findings: Findings) -> None:
    """Classes that a split lacks, and classes with few boxes."""
    counts = {
        table.name: np.bincount(table.labels[~table.crowd], minlength=table.num_classes)
        for table in tables
    }
    total = np.sum(list(counts.values()), axis=0)
    classes = tables[0].classes
    for name, of_split in counts.items():
        for label in np.flatnonzero((of_split == 0) & ((total > 0) | (len(counts) == 1))).tolist():
            findings.add("class-missing", name, "", None, None, classes[label])
    first = counts.get("train", total)
    enough = max(RARE_BOXES, round(RARE_SHARE * int(first.max(initial=0))))
    for label in np.flatnonzero((first > 0) & (first < enough)).tolist():
        detail = f"{classes[label]}: {first[label]} boxes, the commonest class has {first.max():,}"
        findings.add("class-rare", "train", "", None, None, detail)
    if len(counts) > 1:
        for label in np.flatnonzero(total == 0).tolist():
            findings.add("class-missing", "", "", None, None, f"{classes[label]}: in no split")


# The same picture ------------------------------------------------------------------------------


def _same_pictures(data: RawData, inspections: list[list[Inspection | None]]) -> list[SamePicture]:
    """All pairs of entries whose files show the same picture."""
    where = [(k, i) for k, split in enumerate(data.splits) for i in range(len(split))]
    looks = [inspections[k][i] for k, i in where]
    usable = [n for n, look in enumerate(looks) if look is not None and look.thumb is not None]
    pairs = []
    # Of each file's contents, the first entry in every split.
    entries: dict[bytes, dict[int, int]] = {}
    for n in usable:
        look = looks[n]
        assert look is not None
        known = entries.setdefault(look.digest, {})
        before = known.get(where[n][0], next(iter(known.values()), n))
        if before != n and not _one_entry_file(data, where[before], where[n]):
            pairs.append(SamePicture(where[before], where[n], exact=True))
        known.setdefault(where[n][0], n)
    distinct = list(entries.values())
    thumbs = [looks[next(iter(known.values()))].thumb for known in distinct]  # type: ignore[union-attr]
    if len(distinct) > 1:
        for pair in near_pairs(np.stack(thumbs)):  # type: ignore[arg-type]
            pairs += [
                SamePicture(where[min(a, b)], where[max(a, b)], exact=False)
                for a in distinct[pair.first].values()
                for b in distinct[pair.second].values()
            ]
    return pairs


def _one_entry_file(data: RawData, a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether two entries of one split name the same file, which is another finding."""
    return a[0] == b[0] and data.splits[a[0]].members[a[1]] == data.splits[b[0]].members[b[1]]


def _report_pairs(data: RawData, pairs: list[SamePicture], findings: Findings) -> None:
    for first, second, exact in pairs:
        across = first[0] != second[0]
        rule = ("leak-" if across else "duplicate-") + ("exact" if exact else "near")
        # A leak is told of the training picture, which is the one to remove.
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
