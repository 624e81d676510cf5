"""From what people have, a folder, a file, an archive or a name, to tables."""

from __future__ import annotations

import difflib
import os
import posixpath
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from detrlab.data.check_boxes import looks_like_corners, placed
from detrlab.data.coco import OTHER_TASKS, read_coco
from detrlab.data.findings import Findings, Rule
from detrlab.data.locate import is_image, split_of
from detrlab.data.pictures import Header
from detrlab.data.raw import (
    RawSplit,
    clean,
    misfits,
    pixel_boxes,
    read_headers,
    shown_sizes,
    vocabulary,
)
from detrlab.data.shapes import STYLES, shapes
from detrlab.data.split import VAL_SHARE, stratified_split
from detrlab.data.store import Archive, Folder, Store
from detrlab.data.table import Table
from detrlab.data.voc import read_voc, voc_files
from detrlab.data.yolo import read_yolo, yolo_folders, yolo_yaml
from detrlab.errors import UserError

BUILT_IN = (*STYLES, "cppe5")

MAX_LEFT_OUT = 0.1
"""Share of a split's images or boxes that may be unusable before training refuses."""

MAX_MEASURED = 20_000
"""Images whose headers are read when a data set is opened: about two seconds' worth."""

_NOT_READ = (
    ".csv",
    ".tsv",
    ".parquet",
    ".tfrecord",
    ".tfrecords",
    ".mat",
    ".heic",
    ".heif",
    ".avif",
)
"""Endings that people have and that would be silently passed over."""

MAX_JSON_FILES = 20
"""With more of them, only those named like COCO's are opened."""

_COCO_NAME = re.compile(r"coco|instances|annotations|train|val|test|labels|result", re.I)

Progress = Callable[[int, int], None]
"""Told how many bytes of how many have been downloaded."""

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
        licences: of the images, as the annotations state them.
        split_off: whether ``val`` was taken from the training images, for want of a split.
    """

    name: str
    train: Table
    val: Table
    test: Table | None = None
    notes: tuple[str, ...] = ()
    licences: tuple[str, ...] = ()
    split_off: bool = False


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


def open_data(source: str | Path, *, seed: int = 0, progress: Progress | None = None) -> DataSet:
    """A data set from a folder, a file, an archive or the name of a built-in one.

    Args:
        source: ``shapes``, ``cppe5``, or a path. The format is worked out.
        seed: key of the validation split, where the data has none of its own.
        progress: told the bytes while a built-in set is downloaded.

    Raises:
        UserError: nothing usable is there, or so much of it is broken that the result would
            be spoilt; the message says what to do.
    """
    if str(source) in STYLES:
        train, val = shapes(style=STYLES[str(source)])
        return DataSet(str(source), train, val)
    return from_raw(read_raw(source, progress=progress), seed=seed)


def open_whole(source: str | Path, *, progress: Progress | None = None) -> DataSet:
    """A data set without splits, nothing split off: ``train`` and ``val`` are all its images.

    For judging a detector on photographs that it has never seen.

    Raises:
        UserError: as ``open_data``, or the data has splits.
    """
    if str(source) in STYLES:
        raise UserError(f"{source} has the splits train and val: name one of them")
    data = read_raw(source, progress=progress)
    if len(data.splits) > 1:
        names = " and ".join(repr(split.name) for split in data.splits)
        raise UserError(f"{data.name} has the splits {names}: name one of them")
    tables, notes = _tables(data)
    return DataSet(data.name, tables["train"], tables["train"], None, tuple(notes))


def from_raw(data: RawData, *, seed: int = 0) -> DataSet:
    """Tables from a data set as it lies."""
    tables, notes = _tables(data)
    if "train" not in tables:
        raise UserError(
            f"{data.name} has no training split: only "
            f"{' and '.join(repr(name) for name in tables)} was found"
        )
    train, val, test = tables["train"], tables.get("val"), tables.get("test")
    if val is None and test is not None:
        val, test = test, None
        notes.append("there is no validation split: the test split is used for evaluation")
    split_off = val is None
    if val is None:
        train, val = _split_off(train, data.name, seed)
        notes.append(
            f"there is no validation split: {len(val):,} of {len(train) + len(val):,} images "
            f"({VAL_SHARE:.0%}, stratified by class, seed {seed}) were split off"
        )
    notes += _shared(data.splits)
    licences = dict.fromkeys(licence for split in data.splits for licence in split.licences)
    return DataSet(data.name, train, val, test, tuple(notes), tuple(licences), split_off)


def _tables(data: RawData) -> tuple[dict[str, Table], list[str]]:
    """The splits as tables, and what was decided or repaired."""
    findings = Findings()
    words = vocabulary(data.splits, findings)
    if not words.names:
        raise UserError(f"{data.name}: no classes are declared")
    notes = list(data.notes)
    for rule, count, listed in findings.by_rule():
        notes.append(f"{rule.title} ({count}), such as {listed[0].detail}: used by name")
    images = sum(len(split) for split in data.splits)
    measured = images <= MAX_MEASURED
    if not measured:
        notes.append(
            f"the declared sizes of {images:,} images are taken on trust: detrlab check reads them"
        )
    tables: dict[str, Table] = {}
    for position, split in enumerate(data.splits):
        name = split.name or "train"
        if len(data.splits) == 1 and name != "train":
            notes.append(f"the only split is called {name}: it is used as a whole")
            name = "train"
        headers = read_headers(split) if measured or (split.declared <= 0).any() else None
        table, _, _, left_out, adjusted = clean(split, name, words, position, headers)
        notes += [f"{name}: {note}" for note in _judged_boxes(split, headers)]
        notes += [f"{name}: {rule.title} ({count:,})" for rule, count in _read_differently(split)]
        notes += [f"{name}: left out {count:,} {reason}" for reason, count in left_out.items()]
        notes += [f"{name}: {count:,} {reason}" for reason, count in adjusted.items() if count]
        _refuse_ruins(split, table, left_out)
        tables[name] = table
    for finding in data.findings:
        # A broken test split does no harm where there is a validation split.
        if finding.rule == "file-broken" and "val" not in tables:
            raise UserError(finding.detail)
        if finding.rule == "file-broken":
            notes.append(finding.detail)
    return tables, notes


def _read_differently(split: RawSplit) -> list[tuple[Rule, int]]:
    """What the reader had to leave out or read differently, beyond what is counted later."""
    counted = {"image-unknown"}
    if split.format == "coco":
        counted |= {"file-missing", "file-unsafe", "file-link"}
    return [
        (rule, count)
        for rule, count, _ in split.findings.by_rule()
        if rule.severity != "note" and rule.key not in counted
    ]


def _judged_boxes(split: RawSplit, headers: Sequence[Header | str] | None) -> list[str]:
    """The part of ``check`` that costs nothing and that a training must not skip.

    Raises:
        UserError: the boxes are not what they are taken for: corners, fractions, or drawn on
            pictures of another size.
    """
    sizes = split.declared if headers is None else shown_sizes(split, headers)
    boxes = pixel_boxes(split, np.where(sizes > 0, sizes, split.declared))
    if split.format == "coco" and looks_like_corners(boxes, split.owners, sizes):
        raise UserError(
            f"{split.source}: the boxes look like x0 y0 x1 y1, where COCO has x y width height; "
            f"{_fixing(split)} converts them"
        )
    drawn = [i for i, on_declared in misfits(split, sizes).items() if on_declared]
    frame = sizes.copy()
    frame[drawn] = split.declared[drawn]
    at = placed(boxes, split.owners, frame)
    scale, off, over = (int(mask.sum()) for mask in (at.scale, at.off_image, at.over_edge))
    bound = MAX_LEFT_OUT * len(boxes)
    if scale > bound:
        raise UserError(
            f"{split.source}: {scale:,} of {len(boxes):,} boxes look like fractions of the image, "
            f"where {split.format} has pixels; {_fixing(split)} multiplies them"
        )
    if off > bound:
        written = "fractions of the image" if split.fractions is not None else "pixels"
        raise UserError(
            f"{split.source}: {off:,} of {len(boxes):,} boxes lie outside of their images: do they "
            f"count {written}, of these images, at this size? Look: detrlab check "
            f"{split.store.root}"
        )
    said = {
        "boxes look like fractions of the image": scale,
        "boxes lie outside of their images and do not train": off,
        "boxes run over the edge and are clamped in training": over,
    }
    return [f"{count:,} {reason}" for reason, count in said.items() if count]


def _fixing(split: RawSplit) -> str:
    return f"detrlab check {split.store.root} --fix FOLDER"


def _shared(splits: Sequence[RawSplit]) -> list[str]:
    """A word about files that stand in two splits."""
    notes = []
    for k, one in enumerate(splits):
        for other in splits[k + 1 :]:
            both = {*one.members} & {*other.members} - {None}
            if both:
                notes.append(
                    f"{len(both):,} images are in {one.name} and in {other.name}: scores on them "
                    "tell what was learnt by heart"
                )
    return notes


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
    broken = split.findings.count("record-broken") + split.findings.count("line-broken")
    images, boxes = len(split), len(split.owners) + broken
    if broken:
        lost = "; ".join([*lost.split("; "), f"{broken:,} entries that cannot be read"]).strip("; ")
    if len(table) < (1 - MAX_LEFT_OUT) * images or len(table.boxes) < (1 - MAX_LEFT_OUT) * boxes:
        raise UserError(
            f"{split.source}: too much would be left out to trust the result ({lost}); "
            f"{advice}, and --fix writes a cleaned copy"
        )
    if table.name == "train" and not len(table.boxes):
        raise UserError(f"{split.source} has no boxes to learn from: annotate the images first")


def read_raw(source: str | Path, *, progress: Progress | None = None) -> RawData:
    """A data set as it lies on disk, whatever its format.

    Raises:
        UserError: there is none.
    """
    if str(source) == "cppe5":
        from detrlab.data.catalog import CPPE5, fetch

        folder = fetch(CPPE5, progress=progress)
        return _read_store(Folder.scan(folder), "cppe5")
    if not str(source).strip():
        raise UserError("no data is named: give a folder, a file, a zip, shapes or cppe5")
    path = Path(source).expanduser()
    if not path.exists():
        raise UserError(
            f"no data at {str(source)!r}: there is no such folder, file or built-in set"
            f"{_nearest(path)}"
        )
    if path.is_file():
        return _read_file(path)
    if not path.is_dir():
        raise UserError(f"{path} is neither a folder nor a file")
    store = Folder.scan(path, follow_links=follow_links())
    name = path.resolve().name
    holds_images = any(is_image(member) for member in store.names)
    if name.lower() in _ANNOTATION_FOLDERS and not holds_images:
        # The folder of annotation files was named, where the one around it was meant.
        parent = path.resolve().parent
        store, name = Folder.scan(parent, follow_links=follow_links()), parent.name
    return _read_store(store, name)


def _nearest(path: Path) -> str:
    """What a mistyped path may have meant."""
    parent = path.parent
    while not parent.is_dir():
        path, parent = parent, parent.parent
    try:
        near = [entry.name for entry in parent.iterdir() if not entry.name.startswith(".")]
    except OSError:
        near = []
    names = [*near, *BUILT_IN] if path.parent == Path() else near
    close = difflib.get_close_matches(path.name, names, n=1)
    if close:
        return f", did you mean {str(path.parent / close[0])!r}?"
    if path.parent == Path():
        return f"; built in: {', '.join(BUILT_IN)}"
    return f"; {str(parent)!r} has no {path.name!r}"


def follow_links() -> bool:
    """Whether links that leave the data folder are trusted (``DETRLAB_LINKS=follow``)."""
    return os.environ.get("DETRLAB_LINKS", "") == "follow"


def _read_file(path: Path) -> RawData:
    ending = path.suffix.lower()
    if ending == ".zip":
        return _read_store(Archive.scan(path), path.stem)
    root = path.parent
    if ending == ".json":
        if root.name.lower() in _ANNOTATION_FOLDERS:
            root = root.parent
        store = Folder.scan(root, follow_links=follow_links())
        name = _listed_name(store, path, root)
        split = read_coco(store, name, "")
        assert split is not None
        return RawData(path.stem, (split,))
    if ending in (".yaml", ".yml"):
        store = Folder.scan(root, follow_links=follow_links())
        splits = read_yolo(store, _listed_name(store, path, root))
        return RawData(root.resolve().name, tuple(splits))
    if ending in (".gz", ".tgz", ".tar", ".rar", ".7z", ".xz"):
        hint = "unpack it first"
    elif ending in (".xml", ".txt") or is_image(path.name):
        hint = f"give the folder of the whole data set, such as {str(path.parent)!r}"
    else:
        hint = "give a folder, a COCO .json, a YOLO data.yaml or a .zip"
    raise UserError(f"{path} is not a kind of file that holds a data set: {hint}")


def _listed_name(store: Store, path: Path, root: Path) -> str:
    name = path.relative_to(root).as_posix()
    if name not in store.names:
        raise UserError(f"{path} is a link that leaves its folder, or a hidden file: copy it")
    return name


def _read_store(store: Store, name: str) -> RawData:
    """The first format that fits: COCO, YOLO with a yaml, Pascal VOC, YOLO's bare folders."""
    findings = Findings()
    splits, notes = _coco_splits(store, findings)
    pages = voc_files(store)
    if splits:
        if pages:
            notes.append(
                f"the COCO json is read; {len(pages):,} xml files beside it are not, such as "
                f"{pages[0]}"
            )
    else:
        description = yolo_yaml(store)
        if description is not None:
            splits = read_yolo(store, description)
        elif pages:
            splits = read_voc(store)
        elif yolo_folders(store):
            splits = read_yolo(store, None)
    if not splits:
        raise UserError(_nothing_found(store))
    return RawData(name, tuple(splits), findings, tuple(notes))


def _nothing_found(store: Store) -> str:
    """What to say when no format fits, as precisely as what is there allows."""
    looked = "COCO json, YOLO's data.yaml or labels, and Pascal VOC xml"
    images = sum(map(is_image, store.names))
    others = sorted(name for name in store.names if name.lower().endswith(_NOT_READ))
    if not store.names:
        reason = "is empty"
    elif images:
        reason = f"holds {images:,} images and no annotations that are understood"
    else:
        reason = "holds no data set that is understood"
    if others:
        reason += f" ({len(others):,} files such as {others[0]} are not read)"
    elif images:
        looked += "; name the folder that holds both images and annotations"
    refused = f"; {len(store.refused):,} links that leave it were not followed" * bool(
        store.refused
    )
    return f"{store.root} {reason}: looked for {looked}{refused}"


def _coco_splits(store: Store, findings: Findings) -> tuple[list[RawSplit], list[str]]:
    """All COCO files of a store, one a split, and what was decided about them.

    A broken file that a split is called after is a finding; another one only a note.
    """
    names = sorted(name for name in store.names if name.lower().endswith(".json"))
    names = [name for name in names if not OTHER_TASKS.search(posixpath.basename(name))]
    if len(names) > MAX_JSON_FILES:
        # One json an image (LabelMe and others): only names that speak of a split can be COCO's.
        names = [name for name in names if _COCO_NAME.search(posixpath.basename(name))]
        names = names[:MAX_JSON_FILES]
    claims: dict[str, list[tuple[str, RawSplit]]] = {}
    broken: list[UserError] = []
    missing: list[tuple[str, str, str]] = []
    for name in names:
        split = split_of(name)
        try:
            raw = read_coco(store, name, split, required=False)
        except UserError as error:
            broken.append(error)
            missing.append((split, name, str(error)))
            continue
        if raw is not None:
            claims.setdefault(split, []).append((name, raw))
    if not claims and broken:
        raise broken[0]
    notes = []
    for split, name, message in missing:
        if split and split not in claims:
            findings.add("file-broken", split, name, None, None, message)
        else:
            notes.append(message)
    if list(claims) == [""] and len(claims[""]) > 1:
        raise UserError(
            f"{store.root} holds several COCO files and none is called train or val: "
            f"{', '.join(name for name, _ in claims[''][:5])}; name one of them"
        )
    splits = []
    for split, found in claims.items():
        if not split and len(claims) > 1:
            notes.append(f"not used, its name speaks of no split: {found[0][0]}")
            continue
        splits.append(_preferred(store, split, found))
    return splits, notes


def _preferred(store: Store, split: str, found: list[tuple[str, RawSplit]]) -> RawSplit:
    """The one file of a split; the official name wins."""
    if len(found) > 1:
        official = [raw for name, raw in found if "instances" in posixpath.basename(name)]
        if len(official) != 1:
            raise UserError(
                f"{store.root} holds several files for {split!r}: "
                f"{', '.join(name for name, _ in found)}; keep one of them there"
            )
        return official[0]
    return found[0][1]
