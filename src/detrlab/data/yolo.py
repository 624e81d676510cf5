"""Reader of YOLO's text files: with a ``data.yaml``, or only folders ``images`` and ``labels``."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from detrlab.data.findings import Findings
from detrlab.data.locate import is_image, links_note, split_of
from detrlab.data.raw import RawSplit
from detrlab.data.store import Store, within
from detrlab.errors import UserError, excerpt
from detrlab.files import MAX_YAML, parse_yaml

MAX_LABELS = 64 << 20

_SPLIT_KEYS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_CLASS_FILES = ("classes.txt", "obj.names", "_darknet.labels", "names.txt")
_NO_LABELS = (
    *_CLASS_FILES, "readme.txt", "readme.dataset.txt", "readme.roboflow.txt", "train.txt",
    "val.txt", "test.txt", "requirements.txt", "license.txt",
)  # fmt: skip


class _Layout(NamedTuple):
    """The class names, and the image files of each split."""

    source: str
    names: dict[int, str]
    splits: dict[str, list[str]]


def yolo_yaml(store: Store) -> str | None:
    """The file that describes a YOLO data set, if there is one."""
    candidates = sorted(
        (name.count("/"), name.lower() != "data.yaml", name)
        for name in store.names
        if name.lower().endswith((".yaml", ".yml")) and name.count("/") <= 2
    )
    for _, _, name in candidates:
        try:
            document = _read_yaml(store, name)
        except UserError:
            if posixpath.basename(name) == "data.yaml":
                raise
            continue
        if isinstance(document, dict) and "names" in document and "train" in document:
            return name
    return None


def yolo_folders(store: Store) -> bool:
    """Whether the store looks like YOLO without a yaml: text files beside images."""
    return any(_label_of(name) in store.names for name in store.names if is_image(name))


def read_yolo(store: Store, yaml_name: str | None) -> list[RawSplit]:
    """All splits.

    Raises:
        UserError: the yaml is broken or names no images.
    """
    layout = _from_yaml(store, yaml_name) if yaml_name else _from_folders(store)
    every_image = sorted({name for names in layout.splits.values() for name in names})
    numbers = {name: i for i, name in enumerate(every_image, start=1)}
    splits = [
        _read_split(store, layout, split, sorted(names), numbers)
        for split, names in layout.splits.items()
    ]
    expected = set(map(_label_of, every_image))
    folders = set(map(posixpath.dirname, expected))
    for name in sorted(store.names - expected):
        is_label = name.endswith(".txt") and posixpath.basename(name).lower() not in _NO_LABELS
        if is_label and posixpath.dirname(name) in folders:
            splits[0].findings.add("label-orphan", "", name)
    if not layout.names:  # nothing names the classes: their numbers do
        used = np.unique(np.concatenate([split.category_ids for split in splits])).tolist()
        layout.names.update({k: str(k) for k in used if 0 <= k < 10_000})
    return splits


def _read_yaml(store: Store, name: str) -> Any:
    return parse_yaml(store.read(name, MAX_YAML), str(store.root / name), as_text=True)


def _from_yaml(store: Store, name: str) -> _Layout:
    where = str(store.root / name)
    document = _read_yaml(store, name)
    if not isinstance(document, dict):
        raise UserError(f"{where} should hold 'train:', 'val:' and 'names:'")
    names = _class_names(document.get("names"), where)
    here = posixpath.dirname(name)
    folders = [here]
    if isinstance(base := document.get("path"), str):
        folders = [*filter(None, [within(here, base.strip())]), here]
    splits: dict[str, list[str]] = {}
    for split, keys in _SPLIT_KEYS.items():
        entry = next((document[key] for key in keys if document.get(key)), None)
        entries = entry if isinstance(entry, list) else [entry]
        images = [image for part in entries for image in _resolve(store, folders, part)]
        if images:
            splits[split] = list(dict.fromkeys(images))
        elif split == "train" and entry is not None:
            advice = links_note(store) or (
                "write the folder relative to the yaml, which has to be in the data's own folder"
            )
            raise UserError(f"{where}: no images at train: {excerpt(entry)}; {advice}")
    if not splits:
        raise UserError(f"{where} names no images: write 'train: images/train'")
    return _Layout(where, names, splits)


def _class_names(value: Any, where: str) -> dict[int, str]:
    """Class names by number, from a list or a mapping."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict) or not value:
        raise UserError(f"{where}: names should be a list of class names, not {excerpt(value)}")
    for key, name in value.items():
        if not re.fullmatch(r"-?\d{1,18}", str(key)) or not isinstance(name, str):
            raise UserError(f"{where}: names has an entry {excerpt(key)}: {excerpt(name)}")
    return dict(sorted((int(key), name.strip()) for key, name in value.items()))


def _resolve(store: Store, folders: list[str], entry: Any) -> list[str]:
    """The images of a ``train:`` entry: in a folder, or listed in a text file.

    A yaml often has paths of the machine that wrote it. The longest ending of the path that
    exists below one of the folders counts; nothing outside of the store is looked at.
    """
    if not isinstance(entry, str) or not entry.strip():
        return []
    for place in _endings(entry, folders):
        if place in store.names and place.lower().endswith(".txt"):
            beside = [posixpath.dirname(place), *folders]
            lines = store.read(place, MAX_LABELS).decode("utf-8", "replace").splitlines()
            found = (next(filter(store.names.__contains__, _endings(line, beside)), "")
                     for line in lines)  # fmt: skip
            return [image for image in found if is_image(image)]
        folder = "" if place == "." else place + "/"
        images = [n for n in store.names if n.startswith(folder) and is_image(n)]
        if images:
            return images
    return []


def _endings(path: str, folders: list[str]) -> Iterable[str]:
    """All endings of a path, the longest first, below each of the folders."""
    parts = [part for part in re.split(r"[\\/]+", path.strip()) if part not in ("", ".", "..")]
    for start in range(max(len(parts), 1)):
        for folder in folders:
            if place := within(folder, "/".join(parts[start:]) or "."):
                yield place


def _from_folders(store: Store) -> _Layout:
    """``images/train`` beside ``labels/train``, and class names from a text file if any."""
    images = [name for name in store.names if is_image(name)]
    # In a folder that has labels at all, images without a label show no objects.
    folders = {posixpath.dirname(name) for name in images if _label_of(name) in store.names}
    splits: dict[str, list[str]] = {}
    for name in images:
        if posixpath.dirname(name) in folders:
            splits.setdefault(split_of(posixpath.dirname(name) + "/x"), []).append(name)
    names: dict[int, str] = {}
    files = [n for n in store.names if posixpath.basename(n).lower() in _CLASS_FILES]
    if files:
        text = store.read(min(files, key=lambda n: (n.count("/"), n)), MAX_YAML)
        lines = text.decode("utf-8", "replace").splitlines()
        names = {i: line.strip() for i, line in enumerate(lines) if line.strip()}
    return _Layout(str(store.root), names, splits)


def _label_of(image: str) -> str:
    """The label file of an image: the last folder ``images`` becomes ``labels``."""
    folder, slash, rest = ("/" + image).rpartition("/images/")
    path = f"{folder}/labels/{rest}" if slash else "/" + image
    return posixpath.splitext(path[1:])[0] + ".txt"


def _behind_link(label: str, refused: frozenset[str]) -> bool:
    """Whether a label file is, or is behind, a link that leaves the data folder."""
    parts = label.split("/")
    return any("/".join(parts[:end]) in refused for end in range(1, len(parts) + 1))


def _read_split(
    store: Store, layout: _Layout, split: str, images: list[str], numbers: dict[str, int]
) -> RawSplit:
    findings = Findings()
    rows: list[list[float]] = []
    owners: list[int] = []
    places: list[str] = []
    kept: list[str] = []
    refused = frozenset(store.refused)
    for image in images:
        label, number = _label_of(image), numbers[image]
        if label in store.names:
            read = _read_labels(store, label, split, number, findings)
            if read is None:
                continue  # what the image shows is unknown
            rows += read.values()
            owners += [len(kept)] * len(read)
            places += read
        elif refused and _behind_link(label, refused):
            findings.add("file-link", split, label, number, None, label)
            continue
        kept.append(image)  # without a label file, an image shows no objects
    values = np.array(rows, dtype=np.float64).reshape(-1, 5)
    return RawSplit(
        name=split,
        source=layout.source,
        store=store,
        format="yolo",
        categories=layout.names,
        image_ids=[numbers[image] for image in kept],
        files=kept,
        members=list(kept),
        declared=np.zeros((len(kept), 2), dtype=np.int64),
        owners=np.array(owners, dtype=np.int64),
        boxes=values[:, 1:],
        category_ids=values[:, 0].astype(np.int64),
        crowd=np.zeros(len(values), dtype=bool),
        areas=np.full(len(values), np.nan),
        annotation_ids=np.arange(1, len(values) + 1),
        fractions=True,
        places=places,
        findings=findings,
    )


def _read_labels(
    store: Store, name: str, split: str, image: int, findings: Findings
) -> dict[str, list[float]] | None:
    """Class, center and size by line; broken lines are findings."""
    try:
        text = store.read(name, MAX_LABELS).decode("utf-8-sig")
    except (UserError, UnicodeDecodeError) as error:
        reason = str(error) if isinstance(error, UserError) else "not text in UTF-8"
        findings.add("file-broken", split, name, image, None, reason)
        return None
    rows: dict[str, list[float]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        tokens = line.split()
        if not tokens:
            continue
        try:
            values = [float(token) for token in tokens]
        except ValueError:
            values = []
        place = f"{name} line {number}"
        if len(values) >= 7 and len(values) % 2:  # a polygon; its bounding box is used
            findings.add("polygon", split, name, image, place, f"{len(values) // 2} points")
            x, y = values[1::2], values[2::2]
            low, high = (min(x), min(y)), (max(x), max(y))
            centers = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
            values = [values[0], *centers, high[0] - low[0], high[1] - low[1]]
        if len(values) != 5 or not (values[0].is_integer() and abs(values[0]) < 2**53):
            findings.add("line-broken", split, name, image, place, excerpt(line, 60))
            continue
        rows[place] = values
    return rows
