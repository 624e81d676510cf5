"""What the annotations hold: counts by class and size, and what may surprise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from detrlab.data.table import Table

SMALL, LARGE = 32**2, 96**2
"""Bounds of COCO's object sizes, in square pixels."""


@dataclass(frozen=True)
class Health:
    """One split in numbers.

    Attributes:
        name: of the split.
        rows: (class, objects, small, medium, large, images that have one).
        remarks: sentences.
    """

    name: str
    rows: tuple[tuple[str, int, int, int, int, int], ...]
    remarks: tuple[str, ...]


def describe(tables: Sequence[Table]) -> tuple[Health, ...]:
    """Count what the splits hold."""
    return tuple(_describe(table) for table in tables)


def _describe(table: Table) -> Health:
    objects = ~table.crowd
    owner = np.repeat(np.arange(len(table)), np.diff(table.starts))
    small, large = table.areas < SMALL, table.areas >= LARGE
    rows = []
    for label, name in enumerate(table.classes):
        mine = objects & (table.labels == label)
        rows.append(
            (
                name,
                int(mine.sum()),
                int((mine & small).sum()),
                int((mine & ~small & ~large).sum()),
                int((mine & large).sum()),
                len(np.unique(owner[mine])),
            )
        )
    return Health(table.name, tuple(rows), tuple(_remarks(table, objects, owner)))


def _remarks(table: Table, objects: np.ndarray, owner: np.ndarray) -> list[str]:
    counts = np.bincount(owner[objects], minlength=len(table))
    told = [f"{len(table):,} images, {int(counts.sum()):,} objects"]
    if empty := int((counts == 0).sum()):
        told.append(f"{empty:,} images without objects")
    if crowds := int(table.crowd.sum()):
        told.append(f"{crowds:,} crowd regions, judged leniently and never trained on")
    if counts.sum():
        sides = np.sqrt(table.boxes[objects, 2] * table.boxes[objects, 3])
        told.append(
            f"at most {int(counts.max()):,} objects in an image; half of the objects are smaller "
            f"than {np.median(sides):.0f} pixels (square root of the area)"
        )
    present = np.bincount(table.labels[objects], minlength=table.num_classes) > 0
    told += [f"no object of class {table.classes[k]}" for k in np.flatnonzero(~present)]
    return told
