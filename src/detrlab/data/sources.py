"""From a name, a folder, a file or an archive to the tables of a data set."""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, pairwise
from pathlib import Path

import numpy as np

from detrlab.data.findings import LEFT_OUT, RULES, Findings
from detrlab.data.keyed import keyed
from detrlab.data.locate import links_note
from detrlab.data.measure import Measured, measure, read_headers
from detrlab.data.raw import vocabulary
from detrlab.data.reading import Progress, RawData, find
from detrlab.data.remembered import place, recall, remember
from detrlab.data.shapes import STYLES, shapes
from detrlab.data.table import Table
from detrlab.errors import UserError

VAL_SHARE = 0.2
"""Share of the images that is split off for validation if the data has no split for it."""

MAX_LEFT_OUT = 0.1
"""Share of a split's images or boxes that may be unusable before training refuses."""

MAX_MEASURED = 20_000
"""Up to this many images, headers are read when a data set is opened: about two seconds."""


@dataclass(frozen=True)
class DataSet:
    """A data set, ready for training and evaluation.

    Attributes:
        name: for reports.
        train: the training split.
        val: the split for evaluation during and after training.
        test: further held-out images, if the data has a third split.
        notes: what was decided or repaired on the way, one sentence each.
        licences: of the images, as the annotations state them.
        split_off: whether ``val`` was split off from the training images.
    """

    name: str
    train: Table
    val: Table
    test: Table | None = None
    notes: tuple[str, ...] = ()
    licences: tuple[str, ...] = ()
    split_off: bool = False


def open_data(source: str | Path, *, seed: int = 0, progress: Progress | None = None) -> DataSet:
    """A data set from a folder, a file, an archive or the name of a built-in one.

    Args:
        source: a path, or the name of a built-in set, such as ``shapes``. The format is detected.
        seed: of the validation split, if the data has none of its own.
        progress: called with bytes done and in all while a built-in set is downloaded.

    Raises:
        UserError: nothing usable is there, or so much is broken that the result would be
            meaningless; the message says what to do.
    """
    if style := STYLES.get(str(source)):
        return DataSet(style.name, *shapes(style=style), notes=_folder_of_that_name(style.name))
    return _opened(source, lambda read: _with_splits(read(), seed), f"seed {seed}", progress)


def _with_splits(data: RawData, seed: int) -> tuple[DataSet, bool]:
    """The data set, and whether it depends on nothing but annotations."""
    name, names = data.name, [split.name for split in data.splits]
    licences = tuple(dict.fromkeys(chain(*(split.licences for split in data.splits))))
    tables, notes, lasting = _tables(data)
    del data  # as much memory as the tables
    roles, role_notes = split_roles(names)
    notes += role_notes
    if "train" not in roles:
        found = " and ".join(map(repr, tables))
        raise UserError(f"{name} has no training split: only {found} was found")
    chosen = {role: tables[split] for role, split in roles.items()}
    split_off = "val" not in chosen
    if split_off:
        whole = chosen["train"]
        chosen["train"], chosen["val"] = stratified_split(whole, seed=seed)
        if not (len(chosen["train"]) and len(chosen["val"])):
            raise UserError(
                f"{name} has no validation split and only {len(whole)} image(s), too few to "
                "split: add images, or a val split"
            )
        notes[-1] += f" ({len(chosen['val']):,} of {len(whole):,} images, seed {seed})"
    return (
        DataSet(name=name, notes=tuple(notes), licences=licences, split_off=split_off, **chosen),
        lasting,
    )


def _folder_of_that_name(name: str) -> tuple[str, ...]:
    """A note, where the name of a built-in set is also that of something here."""
    if not Path(name).exists():
        return ()
    return (f"{name} is the built-in set; for the folder of that name here, write ./{name}",)


def open_whole(source: str | Path, *, progress: Progress | None = None) -> DataSet:
    """A data set without splits: ``train`` and ``val`` are both all of its images.

    For evaluating a detector on images that no training has used.

    Raises:
        UserError: as ``open_data``, or the data has splits.
    """
    if str(source) in STYLES:
        raise UserError(f"{source} has the splits train and val: name one of them")
    return _opened(source, lambda read: _without_splits(read()), "whole", progress)


def _without_splits(data: RawData) -> tuple[DataSet, bool]:
    if len(data.splits) > 1:
        names = " and ".join(repr(split.name) for split in data.splits)
        raise UserError(f"{data.name} has the splits {names}: name one of them")
    name = data.name
    tables, notes, lasting = _tables(data)
    (table,) = tables.values()
    return DataSet(name, table, table, None, tuple(notes)), lasting


def _opened(
    source: str | Path,
    make: Callable[[Callable[[], RawData]], tuple[DataSet, bool]],
    variant: str,
    progress: Progress | None,
) -> DataSet:
    """A data set as it was opened last, if that was kept and nothing has changed."""
    found = find(source, progress=progress)
    path = place(found.store, str(source), variant)
    if path is not None and (fields := recall(path, found.store)):
        return DataSet(**fields)
    data, lasting = make(found.read)
    if path is not None and lasting:
        remember(path, data)
        # The mapped columns replace those in memory.
        data = DataSet(**fields) if (fields := recall(path, found.store)) else data
    return data


def split_roles(names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Which split serves as ``train``, ``val`` and ``test``: (split by role, notes).

    Without a role ``val``, a part of ``train`` has to be split off.
    """
    roles, notes = {name: name for name in names}, []
    if len(names) == 1 and names[0] != "train":
        roles = {"train": names[0]}
        if names[0]:
            notes = [f"the only split is called {names[0]}: all of its images are used"]
    if "val" not in roles and "test" in roles:
        roles["val"] = roles.pop("test")
        notes.append("there is no validation split: the test split is used for evaluation")
    elif "val" not in roles:
        notes.append(
            f"there is no validation split: {VAL_SHARE:.0%} of the images are split off for it, "
            "stratified by class"
        )
    return roles, notes


def stratified_split(table: Table, share: float = VAL_SHARE, *, seed: int) -> tuple[Table, Table]:
    """A training and a validation table, with about the same proportion of every class.

    Classes are split from the rarest to the most frequent, each over the images that are not
    assigned yet; images without objects come last. The same seed and data give the same split.
    """
    group = _versions(table)
    count = int(group.max(initial=-1)) + 1
    in_val = np.full(count, -1, dtype=np.int8)  # -1 undecided, 0 train, 1 val
    rank = np.argsort(keyed("split", seed, count).permutation(count))
    owners = group[table.owners()]
    # One sort for all classes; a search for each class alone would read all boxes each time.
    pairs = table.labels * count
    pairs += owners
    pairs.sort()
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]
    bounds = np.searchsorted(pairs, np.arange(table.num_classes + 1) * count)
    with_class = [pairs[i:j] % count for i, j in pairwise(bounds.tolist())]
    occupied = sorted((members for members in with_class if len(members)), key=len)
    for members in [*occupied, np.flatnonzero(np.bincount(owners, minlength=count) == 0)]:
        free = members[in_val[members] < 0]
        free = free[np.argsort(rank[free])]
        already = int((in_val[members] == 1).sum())
        wanted = round(share * len(members)) - already
        if len(members) > 1 and not already:
            wanted = max(wanted, 1)  # a class of two or more images is in both splits
        wanted = max(wanted, 0)
        in_val[free[:wanted]] = 1
        in_val[free[wanted:]] = 0
    chosen = in_val[group] == 1
    return (
        table.select(np.flatnonzero(~chosen), "train"),
        table.select(np.flatnonzero(chosen), "val"),
    )


def _versions(table: Table) -> np.ndarray:
    """(N,) a number for each image; augmented versions of one image have the same number.

    Roboflow writes several versions of an image as ``NAME.rf.HASH.jpg``: splitting them would
    leak validation images into training.
    """
    numbers: dict[str, int] = {}
    groups = []
    for i in range(len(table)):
        stem, mark, _ = posixpath.basename(table.file(i)).partition(".rf.")
        groups.append(numbers.setdefault(stem if mark else table.file(i), len(numbers)))
    return np.array(groups, dtype=np.int64)


def fingerprint(data: DataSet) -> str:
    """SHA-256 of the classes, image ids, file names, sizes and annotations of both splits.

    Folders do not count: a copy of the data on another machine has the same fingerprint.
    """
    digest = hashlib.sha256()
    for table in (data.train, data.val):
        names = [Path(table.file(i)).name for i in range(len(table))]
        words = [table.classes, table.category_ids, table.image_ids.tolist(), names]
        digest.update(json.dumps(words, ensure_ascii=False).encode())
        columns = (table.sizes, table.starts, table.boxes, table.labels, table.crowd, table.areas)
        for column in columns:
            digest.update(np.ascontiguousarray(column).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _tables(data: RawData) -> tuple[dict[str, Table], list[str], bool]:
    """The splits as tables by name, and what was decided or repaired.

    And whether they depend on nothing but annotations: no image file was opened.
    """
    findings = Findings()
    words = vocabulary(data.splits, findings)
    notes = list(data.notes)
    for rule, count, listed in findings.by_rule():
        notes.append(f"{rule.title} ({count}), such as {listed[0].detail}: matched by name")
    images = sum(len(split) for split in data.splits)
    measured_all = images <= MAX_MEASURED
    if not measured_all:
        notes.append(
            f"the declared sizes of {images:,} images were not compared with the files: detrlab "
            "check does that"
        )
    tables: dict[str, Table] = {}
    lasting = True
    for position, split in enumerate(data.splits):
        name = split.name if len(data.splits) > 1 else "train"
        needed = measured_all or (split.declared <= 0).any()
        headers = read_headers(split) if needed else None
        lasting = lasting and not needed
        measured = measure(split, headers, words.labels[position])
        _refuse_wrong_units(measured)
        tables[split.name], _ = measured.clean(name, words, position)
        _refuse_unusable(measured, tables[split.name])
        notes += [f"{name}: {note}" for note in broken(measured)]
        if drawn := len(measured.drawn_on_declared):
            notes.append(f"{name}: boxes of {drawn:,} images fit the declared size and are scaled")
    for finding in data.findings:
        # A broken test split does no harm if there is a validation split.
        if "val" not in tables:
            raise UserError(finding.detail)
        notes.append(finding.detail)
    for one, other in combinations(data.splits, 2):
        if both := {*one.members} & {*other.members} - {None}:
            notes.append(
                f"{len(both):,} images are in {one.name} and in {other.name}: scores on them "
                "reward memorized images"
            )
    return tables, notes, lasting


def broken(measured: Measured) -> list[str]:
    """The rules that a split breaks, and how often; a line each."""
    counts = measured.counts()
    return [
        f"{rule.title} ({counts[key]:,})" + "; left out" * (rule.repair == LEFT_OUT)
        for key, rule in RULES.items()
        if key in counts and rule.severity != "note" and key != "box-whole-image"
    ]


def _refuse_wrong_units(measured: Measured) -> None:
    """Refuse boxes that have another meaning than the format says."""
    split, total = measured.split, len(measured.boxes)
    count = {rule: int(mask.sum()) for rule, mask in measured.masks.items()}
    root = split.store.root
    if count["box-corners"]:
        raise UserError(
            f"{split.source}: the boxes look like x0 y0 x1 y1, but COCO has x y width height; "
            f"detrlab check {root} --fix FOLDER converts them"
        )
    if (found := count["box-scale"]) > MAX_LEFT_OUT * total:
        raise UserError(
            f"{split.source}: {found:,} of {total:,} boxes look like fractions of the image, but "
            f"{split.format} has pixels; detrlab check {root} --fix FOLDER multiplies them"
        )
    if (found := count["box-off-image"]) > MAX_LEFT_OUT * total:
        unit = "fractions of the image" if split.fractions else "pixels of these image files"
        raise UserError(
            f"{split.source}: {found:,} of {total:,} boxes lie outside of their images; they "
            f"should be {unit}: see detrlab check {root}"
        )


def _refuse_unusable(measured: Measured, table: Table) -> None:
    """Refuse a split of which too much is unusable for a meaningful result."""
    split, root = measured.split, measured.split.store.root
    reasons = "; ".join(broken(measured)) or "it lists none"
    advice = links_note(split.store) or f"run: detrlab check {root}"
    if not len(table):
        raise UserError(f"{split.source} has no usable images ({reasons}); {advice}")
    unread = split.findings.count("record-broken") + split.findings.count("line-broken")
    images, boxes = len(split), len(split.owners) + unread
    if len(table) < (1 - MAX_LEFT_OUT) * images or len(table.boxes) < (1 - MAX_LEFT_OUT) * boxes:
        raise UserError(
            f"{split.source}: too much would be left out for a meaningful result ({reasons}); "
            f"{advice}; detrlab check {root} --fix FOLDER writes a cleaned copy"
        )
    if table.name == "train" and not len(table.boxes):
        raise UserError(f"{split.source} has no boxes to train on: annotate the images first")
