"""The result of ``check``, as values, as JSON and as lines of text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from detrlab.data.findings import Findings, printable, shortened
from detrlab.data.table import Table, by_size

MOST_CLASSES = 100
"""Classes that are printed; if there are more, the most frequent ones."""


class Summary(NamedTuple):
    """What is in one split.

    Attributes:
        name: of the split.
        images: how many.
        empty: images without objects.
        boxes: objects for training.
        crowd: regions for evaluation only.
        per_class: objects of each class, by name.
        sizes: objects that are small, medium and large, by COCO's rule.
        most: the largest number of objects in one image.
        mean: mean number of objects per image.
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

    def lines(self) -> Iterable[str]:
        """The summary as text."""
        small, medium, large = self.sizes.values()
        yield (
            f"{self.name}: {self.images:,} images ({self.smallest[1]} x {self.smallest[0]} to "
            f"{self.largest[1]} x {self.largest[0]}), {self.empty:,} without objects"
        )
        crowd = f"; {self.crowd:,} crowd regions" * bool(self.crowd)
        yield (
            f"  {self.boxes:,} objects, {self.mean:.1f} per image, at most {self.most:,}; "
            f"{small:,} small, {medium:,} medium, {large:,} large{crowd}"
        )
        shown = most_frequent(self.per_class, MOST_CLASSES)
        classes = [f"{printable(shortened(name, 80))} {count:,}" for _, name, count in shown]
        if len(self.per_class) > len(shown):
            classes.append(f"and {len(self.per_class) - len(shown):,} less frequent classes")
        yield f"  {', '.join(classes)}"


def most_frequent(per_class: dict[str, int], limit: int) -> list[tuple[int, str, int]]:
    """Index, name and count of at most ``limit`` classes, in the order of their indices."""
    rows = [(label, name, count) for label, (name, count) in enumerate(per_class.items())]
    return sorted(sorted(rows, key=lambda row: -row[2])[:limit])


def summarize(table: Table) -> Summary:
    """What is in a table."""
    plain = ~table.crowd
    counts = np.bincount(table.owners()[plain], minlength=len(table))
    per_class = np.bincount(table.labels[plain], minlength=table.num_classes).tolist()
    sizes = {name: int((mask & plain).sum()) for name, mask in by_size(table.areas).items()}
    shapes: list[tuple[int, int]] = [(h, w) for h, w in table.sizes.tolist()] or [(0, 0)]
    return Summary(
        name=table.name,
        images=len(table),
        empty=int((counts == 0).sum()),
        boxes=int(plain.sum()),
        crowd=int(table.crowd.sum()),
        per_class=dict(zip(table.classes, per_class, strict=True)),
        sizes=sizes,
        most=int(counts.max(initial=0)),
        mean=float(counts.mean()) if len(table) else 0.0,
        smallest=min(shapes, key=lambda shape: shape[0] * shape[1]),
        largest=max(shapes, key=lambda shape: shape[0] * shape[1]),
    )


@dataclass(frozen=True, eq=False)
class CheckReport:
    """What ``check`` found.

    Attributes:
        name: of the data set.
        source: its path or name.
        format: ``coco``, ``yolo``, ``voc`` or ``generated``.
        splits: what is in each split.
        findings: what is wrong.
        notes: what was decided while opening it.
        quick: whether pixels were not read.
        tables: the splits as training would see them, for the images of the page.
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
        """Whether there are no errors; warnings and notes may exist."""
        return not self.findings.severities()["error"]

    @property
    def exit_code(self) -> int:
        """0, or 1 if there are errors."""
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
            "findings": [finding.to_dict() for finding in self.findings],
        }

    def lines(self, examples: int = 3) -> list[str]:
        """The report as lines of text; each rule with a few of its findings."""
        lines = [f"{printable(self.name)} ({self.format}): {printable(self.source)}"]
        lines += [f"  {line}" for split in self.splits for line in split.lines()]
        lines += [f"  {printable(shortened(note))}" for note in self.notes]
        if self.licences:
            lines.append(f"  licence as stated: {printable('; '.join(self.licences))}")
        for rule, count, listed in self.findings.by_rule():
            lines += ["", f"{rule.severity}: {rule.title} ({count:,})  [{rule.key}]"]
            lines += [f"    {finding.describe()}" for finding in listed[:examples]]
            if count > examples:
                lines.append(f"    ... and {count - min(examples, len(listed)):,} more")
            lines.append(f"    -> {rule.remedy}" + f"; --fix {rule.repair}" * bool(rule.repair))
        return [*lines, "", self.verdict()]

    def verdict(self) -> str:
        """The result in one sentence."""
        counts = self.findings.severities()
        found = [f"{count:,} {kind}{'s' * (count != 1)}" for kind, count in counts.items() if count]
        if not found:
            return "No problems found."
        fixable = any(
            rule.repair and rule.severity != "note" for rule, _, _ in self.findings.by_rule()
        )
        advice = "; --fix FOLDER writes a cleaned copy" if fixable else ""
        opening = "No errors" if self.ok else "Problems found"
        return f"{opening}: {', '.join(found)}{advice}."
