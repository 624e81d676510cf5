"""What ``check`` tells: the report, as lines, as JSON and as a page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from detrlab.data.findings import Finding, Findings
from detrlab.data.table import Table
from detrlab.files import write_json

MOST_CLASSES = 100
"""Classes on the terminal; the commonest of more."""
SMALL, LARGE = 32**2, 96**2
"""COCO's bounds of small and large, in square pixels."""


class Summary(NamedTuple):
    """What is in one split.

    Attributes:
        name: of the split.
        images: how many.
        empty: images without objects.
        boxes: objects that train.
        crowd: regions kept for evaluation only.
        per_class: objects of each class, by name.
        sizes: objects that are small, medium and large, by COCO's bounds.
        most: the largest number of objects in one image.
        mean: objects an image.
        smallest: (height, width) of the smallest image.
        largest: (height, width) of the largest image.
    """

    name: str
    images: int
    empty: int
    boxes: int
    crowd: int
    per_class: dict[str, int]
    sizes: dict[str, int]
    most: int
    mean: float
    smallest: tuple[int, int]
    largest: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Report:
    """What ``check`` found.

    Attributes:
        name: of the data set.
        source: where it lies.
        format: ``coco``, ``yolo``, ``voc`` or ``generated``.
        splits: what is in each split.
        findings: what is wrong.
        notes: what was decided while opening it.
        quick: whether pixels were left unread.
        tables: the splits as training would see them, for pictures.
        licences: of the images, as the annotations state them.
    """

    name: str
    source: str
    format: str
    splits: tuple[Summary, ...]
    findings: Findings
    notes: tuple[str, ...] = ()
    quick: bool = False
    tables: tuple[Table, ...] = field(default=(), repr=False)
    licences: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing was found that would spoil training or evaluation."""
        return not self.findings.severities()["error"]

    @property
    def exit_code(self) -> int:
        """0, or 1 if there are errors; warnings and notes are for people."""
        return 0 if self.ok else 1

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "source": printable(self.source),
            "format": self.format,
            "ok": self.ok,
            "quick": self.quick,
            "notes": [printable(note) for note in self.notes],
            "licences": [printable(licence) for licence in self.licences],
            "splits": [split._asdict() for split in self.splits],
            "counts": self.findings.severities(),
            "rules": [
                {
                    "rule": rule.key,
                    "severity": rule.severity,
                    "title": rule.title,
                    "remedy": rule.remedy,
                    "repair": rule.repair,
                    "count": count,
                }
                for rule, count, _ in self.findings.by_rule()
            ],
            "findings": [
                {
                    key: printable(value) if isinstance(value, str) else value
                    for key, value in finding.to_dict().items()
                }
                for finding in self.findings
            ],
        }

    def lines(self, examples: int = 3) -> list[str]:
        """The report as lines of text; each rule with a few of its findings."""
        lines = [f"{self.name} ({self.format}): {printable(self.source)}"]
        lines += [f"  {line}" for split in self.splits for line in _summary_lines(split)]
        lines += [f"  {printable(shortened(note))}" for note in self.notes]
        if self.licences:
            lines.append(f"  licence as stated: {printable('; '.join(self.licences))}")
        for rule, count, listed in self.findings.by_rule():
            lines += ["", f"{rule.severity}: {rule.title} ({count:,})  [{rule.key}]"]
            lines += [f"    {describe(finding)}" for finding in listed[:examples]]
            if count > examples:
                lines.append(f"    ... and {count - min(examples, len(listed)):,} more")
            lines.append(f"    -> {rule.remedy}" + f"; --fix {rule.repair}" * bool(rule.repair))
        return [*lines, "", self.verdict()]

    def verdict(self) -> str:
        """One sentence."""
        counts = self.findings.severities()
        found = [f"{count:,} {kind}{'s' * (count != 1)}" for kind, count in counts.items() if count]
        if not found:
            return "Nothing is wrong that could be found."
        fixable = any(
            rule.repair and rule.severity != "note" for rule, _, _ in self.findings.by_rule()
        )
        advice = "; --fix FOLDER writes a cleaned copy" if fixable else ""
        opening = "No errors" if self.ok else "Something is wrong"
        return f"{opening}: {', '.join(found)}{advice}."

    def write_json(self, path: str | Path) -> None:
        """Write ``to_dict()``."""
        write_json(path, self.to_dict())

    def write_html(self, path: str | Path) -> None:
        """Write a self-contained page with pictures."""
        from detrlab.data.check_page import write_page

        write_page(self, Path(path))


def describe(finding: Finding) -> str:
    """One line: file, annotation, values."""
    parts = [finding.file]
    if finding.image is not None:
        parts.append(f"image {finding.image}")
    if finding.annotation is not None:
        place = str(finding.annotation)
        parts.append(place if not place.isdigit() else f"annotation {place}")
    if finding.split:
        parts.insert(0, f"{finding.split}:")
    parts = [shortened(part) for part in parts]
    detail = f": {shortened(finding.detail)}" if finding.detail else ""
    return printable(" ".join(parts) + detail)


def shortened(text: str, length: int = 300) -> str:
    """Text of strangers may have megabytes; its ends tell what it is."""
    return text if len(text) <= length else f"{text[: length - 60]} ... {text[-50:]}"


def printable(text: str) -> str:
    """Text from strangers' files without control characters or broken encodings."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def summarize(table: Table) -> Summary:
    """What is in a table."""
    plain = ~table.crowd
    owners = np.repeat(np.arange(len(table)), np.diff(table.starts))
    counts = np.bincount(owners[plain], minlength=len(table))
    per_class = np.bincount(table.labels[plain], minlength=table.num_classes)
    areas = table.boxes[plain, 2] * table.boxes[plain, 3]
    surfaces = table.sizes.astype(np.int64).prod(axis=1)
    few = len(table) == 0
    return Summary(
        name=table.name,
        images=len(table),
        empty=int((counts == 0).sum()),
        boxes=int(plain.sum()),
        crowd=int(table.crowd.sum()),
        per_class=dict(zip(table.classes, per_class.tolist(), strict=True)),
        sizes={
            "small": int((areas < SMALL).sum()),
            "medium": int(((areas >= SMALL) & (areas <= LARGE)).sum()),
            "large": int((areas > LARGE).sum()),
        },
        most=0 if few else int(counts.max()),
        mean=0.0 if few else float(counts.mean()),
        smallest=(0, 0) if few else _pair(table.sizes[surfaces.argmin()]),
        largest=(0, 0) if few else _pair(table.sizes[surfaces.argmax()]),
    )


def _pair(size: np.ndarray) -> tuple[int, int]:
    return int(size[0]), int(size[1])


def _summary_lines(split: Summary) -> Iterable[str]:
    small, medium, large = split.sizes.values()
    yield (
        f"{split.name}: {split.images:,} images ({split.smallest[1]} x {split.smallest[0]} to "
        f"{split.largest[1]} x {split.largest[0]}), {split.empty:,} without objects"
    )
    yield (
        f"  {split.boxes:,} objects, {split.mean:.1f} an image, at most {split.most:,}; "
        f"{small:,} small, {medium:,} medium, {large:,} large"
        + f"; {split.crowd:,} crowd regions"
        * bool(split.crowd)
    )
    counts = list(split.per_class.items())
    shown = sorted(range(len(counts)), key=lambda k: -counts[k][1])[:MOST_CLASSES]
    classes = [f"{printable(shortened(counts[k][0], 80))} {counts[k][1]:,}" for k in sorted(shown)]
    if len(counts) > MOST_CLASSES:
        classes.append(f"and {len(counts) - MOST_CLASSES:,} classes with fewer")
    yield f"  {', '.join(classes)}"
