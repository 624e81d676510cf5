"""From what people have, a folder, a file, an archive or a name, to tables."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detrlab.data.coco import OTHER_TASKS, looks_like_coco, read_coco, read_json
from detrlab.data.findings import Findings
from detrlab.data.locate import split_of
from detrlab.data.raw import RawSplit, clean, vocabulary
from detrlab.data.shapes import shapes
from detrlab.data.split import VAL_SHARE, stratified_split
from detrlab.data.store import Folder, Store
from detrlab.data.table import Table
from detrlab.errors import UserError, did_you_mean

BUILT_IN = ("shapes", "cppe5")

MAX_LEFT_OUT = 0.1
"""Share of a split's images or boxes that may be unusable before training refuses."""

_ANNOTATION_FOLDERS = {"annotations", "annotation", "labels", "json", "coco"}


@dataclass(frozen=True)
class DataSet:
    """A data set, ready for training and evaluation.

    Attributes:
        name: what it is called in reports.
        train: what detectors learn from.
        val: what they are evaluated on while and after training.
        test: further held-out images, if the data has a third split.
        notes: what was decided or repaired on the way, one sentence each.
    """

    name: str
    train: Table
    val: Table
    test: Table | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RawData:
    """A data set as it lies on disk.

    Attributes:
        name: what it is called in reports.
        splits: as found; their names are ``train``, ``val``, ``test`` or empty.
        findings: what the readers could not take over, beyond each split's own.
        notes: what was decided while finding the files.
    """

    name: str
    splits: tuple[RawSplit, ...]
    findings: Findings = field(default_factory=Findings)
    notes: tuple[str, ...] = ()


def open_data(source: str | Path, *, seed: int = 0) -> DataSet:
    """A data set from a folder, a file, an archive or the name of a built-in one.

    Args:
        source: ``shapes``, ``cppe5``, or a path. The format is worked out.
        seed: key of the validation split, where the data has none of its own.

    Raises:
        UserError: nothing usable is there, or so much of it is broken that the result would
            be spoilt; the message says what to do.
    """
    if str(source) == "shapes":
        train, val = shapes()
        return DataSet("shapes", train, val)
    return from_raw(read_raw(source), seed=seed)


def from_raw(data: RawData, *, seed: int = 0) -> DataSet:
    """Tables from a data set as it lies."""
    findings = Findings()
    words = vocabulary(data.splits, findings)
    if not words.names:
        raise UserError(f"{data.name}: no classes are declared")
    notes = list(data.notes)
    for rule, count, listed in findings.by_rule():
        notes.append(f"{rule.title} ({count}), such as {listed[0].detail}: used by name")
    tables: dict[str, Table] = {}
    for position, split in enumerate(data.splits):
        name = split.name or "train"
        table, left_out = clean(split, name, words, position)
        notes += [f"{name}: left out {count:,} {reason}" for reason, count in left_out.items()]
        _refuse_ruins(split, table, left_out)
        tables[name] = table
    if "train" not in tables:
        raise UserError(
            f"{data.name} has no training split: only "
            f"{' and '.join(repr(name) for name in tables)} was found"
        )
    train, val, test = tables["train"], tables.get("val"), tables.get("test")
    if val is None and test is not None:
        val, test = test, None
        notes.append("there is no validation split: the test split is used for evaluation")
    if val is None:
        train, val = _split_off(train, data.name, seed)
        notes.append(
            f"there is no validation split: {len(val):,} of {len(train) + len(val):,} images "
            f"({VAL_SHARE:.0%}, stratified by class, seed {seed}) were split off"
        )
    return DataSet(data.name, train, val, test, tuple(notes))


def _split_off(table: Table, name: str, seed: int) -> tuple[Table, Table]:
    train, val = stratified_split(table, seed=seed)
    if not len(train) or not len(val):
        raise UserError(
            f"{name} has no validation split and only {len(table)} image(s), too few to split: "
            "add images, or a val split"
        )
    return train, val


def _refuse_ruins(split: RawSplit, table: Table, left_out: dict[str, int]) -> None:
    """Refuse a split of which too much is unusable to give a meaningful result."""
    advice = f"run: detrlab check {split.store.root}"
    lost = "; ".join(f"{count:,} {reason}" for reason, count in left_out.items())
    if not len(table):
        reason = lost or "it lists none"
        raise UserError(f"{split.source} has no usable images ({reason}); {advice}")
    images, boxes = len(split), len(split.owners)
    if len(table) < (1 - MAX_LEFT_OUT) * images or len(table.boxes) < (1 - MAX_LEFT_OUT) * boxes:
        raise UserError(
            f"{split.source}: too much would be left out to trust the result ({lost}); "
            f"{advice}, and --fix writes a cleaned copy"
        )


def read_raw(source: str | Path) -> RawData:
    """A data set as it lies on disk, whatever its format."""
    path = Path(source).expanduser()
    if not path.exists():
        text = str(source)
        hint = did_you_mean(text, BUILT_IN) if "/" not in text and "." not in text else ""
        raise UserError(f"no data at {text!r}: there is no such folder, file or built-in set{hint}")
    if path.is_file():
        return _read_file(path)
    store = Folder.scan(path, follow_links=_follow_links())
    return _read_store(store, path.resolve().name)


def _follow_links() -> bool:
    return os.environ.get("DETRLAB_LINKS", "") == "follow"


def _read_file(path: Path) -> RawData:
    ending = path.suffix.lower()
    if ending == ".json":
        root = path.parent
        if root.name.lower() in _ANNOTATION_FOLDERS:
            root = root.parent
        store = Folder.scan(root, follow_links=_follow_links())
        name = path.relative_to(root).as_posix()
        return RawData(path.stem, (read_coco(store, name, ""),))
    raise UserError(
        f"{path} is not a kind of file that holds a data set: give a folder, a COCO .json, "
        "a YOLO data.yaml or a .zip"
    )


def _read_store(store: Store, name: str) -> RawData:
    readers: list[Callable[[Store], list[RawSplit]]] = [_coco_splits]
    for reader in readers:
        splits = reader(store)
        if splits:
            return RawData(name, tuple(splits))
    raise UserError(
        f"{store.root} holds no data set that is understood: looked for COCO json, a YOLO "
        "data.yaml and Pascal VOC xml below it"
    )


def _coco_splits(store: Store) -> list[RawSplit]:
    """All COCO files of a store, one a split."""
    names = sorted(name for name in store.names if name.lower().endswith(".json"))
    names = [name for name in names if not OTHER_TASKS.search(posixpath.basename(name))]
    documents: dict[str, tuple[str, Any]] = {}
    for name in names:
        document = read_json(store, name)
        if not looks_like_coco(document):
            continue
        split = split_of(name)
        documents[split] = (name, document)
    return [
        read_coco(store, name, split, document) for split, (name, document) in documents.items()
    ]
