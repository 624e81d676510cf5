"""The result of ``check``, as values, as JSON and as lines of text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from detrlab.data.findings import Findings
from detrlab.data.table import Table, by_size
from detrlab.errors import printable, shortened

MOST_CLASSES = 100
"""Classes that are printed; if there are more, the most frequent ones."""


class Summary(NamedTuple):
    """What is in one split: counts of images, objects and crowd regions.

    ``empty`` are images without objects; ``most`` and ``mean`` are objects in one image;
    ``sizes`` has the objects that are small, medium and large by COCO's rule; ``smallest`` and
    ``largest`` are (height, width) of an image.
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

    def counts(self) -> tuple[str, str]:
        """What is in the split: its images, its objects."""
        low, high = (f"{width} x {height}" for height, width in (self.smallest, self.largest))
        sizes = ", ".join(f"{count:,} {size}" for size, count in self.sizes.items())
        crowd = f"; {self.crowd:,} crowd regions" * bool(self.crowd)
        return (
            f"{self.images:,} images ({low} to {high}), {self.empty:,} without objects",
            f"{self.boxes:,} objects, {self.mean:.1f} per image, at most {self.most:,}; "
            f"{sizes}{crowd}",
        )

    def classes(self, limit: int = MOST_CLASSES) -> Iterable[tuple[int, str, int]]:
        """Index, printable name and count of the most frequent classes, in the classes' order."""
        rows = [(label, *entry) for label, entry in enumerate(self.per_class.items())]
        for label, name, count in sorted(sorted(rows, key=lambda row: -row[2])[:limit]):
            yield label, printable(shortened(name, 80)), count

    def lines(self) -> list[str]:
        """The summary as text."""
        images, objects = self.counts()
        classes = [f"{name} {count:,}" for _, name, count in self.classes()]
        if (more := len(self.per_class) - len(classes)) > 0:
            classes.append(f"and {more:,} less frequent classes")
        return [f"{self.name}: {images}", f"  {objects}", f"  {', '.join(classes)}"]


def summarize(table: Table) -> Summary:
    """What is in a table."""
    plain = ~table.crowd
    counts = np.bincount(table.owners()[plain], minlength=len(table))
    per_class = np.bincount(table.labels[plain], minlength=table.num_classes).tolist()
    shapes = sorted(((h, w) for h, w in table.sizes.tolist()), key=lambda s: s[0] * s[1]) or [
        (0, 0)
    ]
    return Summary(
        name=table.name,
        images=len(table),
        empty=int((counts == 0).sum()),
        boxes=int(plain.sum()),
        crowd=int(table.crowd.sum()),
        per_class=dict(zip(table.classes, per_class, strict=True)),
        sizes={name: int((mask & plain).sum()) for name, mask in by_size(table.areas).items()},
        most=int(counts.max(initial=0)),
        mean=float(counts.mean()) if len(table) else 0.0,
        smallest=shapes[0],
        largest=shapes[-1],
    )


@dataclass(frozen=True, eq=False)
class CheckReport:
    """What ``check`` found in the data set of this name and source.

    Attributes:
        format: ``coco``, ``yolo``, ``voc`` or ``generated``.
        tables: the splits as training would see them.
        notes: what was decided while opening it.
        quick: whether pixels were not read.
        licences: of the images, as the annotations state them.
    """

    name: str
    source: str
    format: str
    tables: tuple[Table, ...]
    findings: Findings
    notes: tuple[str, ...] = ()
    quick: bool = False
    licences: tuple[str, ...] = ()

    @cached_property
    def splits(self) -> tuple[Summary, ...]:
        """What is in each split."""
        return tuple(map(summarize, self.tables))

    @property
    def exit_code(self) -> int:
        """0, or 1 if there are errors; warnings and notes do not count."""
        return int(self.findings.severities()["error"] > 0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "source": printable(self.source),
            "format": self.format,
            "ok": self.exit_code == 0,
            "quick": self.quick,
            "notes": [printable(note) for note in self.notes],
            "licences": [printable(licence) for licence in self.licences],
            "splits": [split._asdict() for split in self.splits],
            "counts": self.findings.severities(),
            "rules": [
                {"rule": rule.key, **rule._asdict(), "count": count}
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
        rules = [rule for rule, _, _ in self.findings.by_rule()]
        fixable = any(rule.repair and rule.severity != "note" for rule in rules)
        opening = "Problems found" if self.exit_code else "No errors"
        return f"{opening}: {', '.join(found)}{'; --fix FOLDER writes a cleaned copy' * fixable}."
