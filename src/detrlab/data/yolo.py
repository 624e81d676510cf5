"""Reader of YOLO's text files: a ``data.yaml``, or folders ``images`` and ``labels`` alone."""

from __future__ import annotations

import posixpath
import re
from typing import Any, NamedTuple

import numpy as np

from detrlab.data.columns import integer
from detrlab.data.findings import Findings
from detrlab.data.locate import is_image, split_of
from detrlab.data.raw import RawSplit
from detrlab.data.store import Store, within
from detrlab.errors import UserError

MAX_YAML = 1 << 20
MAX_LABELS = 64 << 20

_SPLIT_KEYS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_CLASS_FILES = ("classes.txt", "obj.names", "_darknet.labels", "names.txt")


class _Layout(NamedTuple):
    """What a YOLO data set says of itself."""

    source: str
    names: dict[int, str]
    splits: dict[str, list[str]]
    """Image files of each split."""


def yolo_yaml(store: Store) -> str | None:
    """The file that describes a YOLO data set, if there is one."""
    candidates = sorted(
        (name.count("/"), name.lower() != "data.yaml", name)
        for name in store.names
        if name.lower().endswith((".yaml", ".yml")) and name.count("/") <= 2
    )
    for _, _, name in candidates:
        document = _parse_yaml(store, name, strict=posixpath.basename(name) == "data.yaml")
        if isinstance(document, dict) and "names" in document and "train" in document:
            return name
    return None


def yolo_folders(store: Store) -> bool:
    """Whether the store looks like YOLO without a yaml: text files beside images."""
    labels = {_stem(name) for name in store.names if _is_label(name)}
    images = [name for name in store.names if is_image(name)]
    return bool(labels) and any(_stem(_label_of(name)) in labels for name in images)


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
    _report_orphans(store, every_image, splits)
    if not layout.names:
        splits = [_numbered_classes(split, splits) for split in splits]
    return splits


def _parse_yaml(store: Store, name: str, *, strict: bool) -> Any:
    """A yaml document; broken ones are errors only where the name says they matter."""
    import yaml

    where = store.root / name
    try:
        text = store.read(name, MAX_YAML).decode("utf-8-sig")
        return yaml.safe_load(text)
    except UserError:
        if strict:
            raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if strict:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{where} is not valid yaml ({reason}): correct it") from None
    return None


def _from_yaml(store: Store, name: str) -> _Layout:
    where = str(store.root / name)
    document = _parse_yaml(store, name, strict=True)
    if not isinstance(document, dict):
        raise UserError(f"{where} should hold 'train:', 'val:' and 'names:'")
    names = _class_names(_as_written(store, name, document.get("names")), where)
    here = posixpath.dirname(name)
    base = document.get("path")
    splits: dict[str, list[str]] = {}
    for split, keys in _SPLIT_KEYS.items():
        entry = next((document[key] for key in keys if document.get(key)), None)
        if entry is None:
            continue
        entries = entry if isinstance(entry, list) else [entry]
        images = [image for part in entries for image in _resolve(store, here, base, part)]
        if images:
            splits[split] = list(dict.fromkeys(images))
        elif split == "train":
            raise UserError(
                f"{where}: no images at train: {entry!r}; write the folder relative to the yaml, "
                "which has to lie in the data's own folder"
            )
    if not splits:
        raise UserError(f"{where} names no images: write 'train: images/train'")
    return _Layout(where, names, splits)


def _as_written(store: Store, name: str, names: Any) -> Any:
    """Class names as text where yaml makes something else of them: no, null, 1.10, dates."""
    import yaml

    listed = list(names.values()) if isinstance(names, dict) else names
    if not isinstance(listed, list) or all(isinstance(each, str) for each in listed):
        return names
    text = store.read(name, MAX_YAML).decode("utf-8-sig")
    try:
        return yaml.load(text, yaml.BaseLoader)["names"]  # builds nothing but text
    except (yaml.YAMLError, RecursionError):  # lists that hold themselves
        return names


def _class_names(value: Any, where: str) -> dict[int, str]:
    """Class names by number, from a list or a mapping."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict) or not value:
        raise UserError(f"{where}: names should be a list of class names, not {value!r:.60}")
    names = {}
    for key, name in value.items():
        number, _ = integer(key)
        if number is None or isinstance(name, dict | list):
            raise UserError(f"{where}: names has an entry {key!r:.40}: {name!r:.40}")
        names[number] = str(name).strip()
    return dict(sorted(names.items()))


def _resolve(store: Store, here: str, base: Any, entry: Any) -> list[str]:
    """The images that a ``train:`` entry means: below a folder, or listed in a text file.

    Yamls are full of paths of the machine that wrote them. Whatever the path, its longest
    ending that exists below the yaml's own folder is taken; nothing outside is looked at.
    """
    if not isinstance(entry, str) or not entry.strip():
        return []
    parts = [part for part in re.split(r"[\\/]+", entry.strip()) if part not in ("", ".", "..")]
    prefixes = [here]
    if isinstance(base, str):
        inner = within(here, base.strip())
        prefixes = ([inner] if inner is not None else []) + prefixes
    for start in range(len(parts) + 1):
        ending = "/".join(parts[start:])
        if not ending and parts:
            break
        for prefix in prefixes:
            place = within(prefix, ending or ".")
            if place is None:
                continue
            if place in store.names and place.lower().endswith(".txt"):
                return _listed(store, place, prefix)
            folder = "" if place == "." else place + "/"
            images = [n for n in store.names if n.startswith(folder) and is_image(n)]
            if images:
                return images
    return []


def _listed(store: Store, name: str, prefix: str) -> list[str]:
    """Images named by the lines of a text file."""
    lines = store.read(name, MAX_LABELS).decode("utf-8", "replace").splitlines()
    images = []
    for line in lines:
        parts = [part for part in re.split(r"[\\/]+", line.strip()) if part not in ("", ".", "..")]
        endings = ["/".join(parts[start:]) for start in range(len(parts))]
        places = [within(folder, end) for end in endings
                  for folder in (posixpath.dirname(name), prefix)]  # fmt: skip
        found = next((place for place in places if place in store.names), None)
        if found is not None and is_image(found):
            images.append(found)
    return images


def _from_folders(store: Store) -> _Layout:
    """``images/train`` beside ``labels/train``, and class names in a text file if there is one."""
    labels = {_stem(name) for name in store.names if _is_label(name)}
    images = [name for name in store.names if is_image(name)]
    # Folders that hold labels at all: their images without a label show no objects.
    folders = {posixpath.dirname(name) for name in images if _stem(_label_of(name)) in labels}
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


def _is_label(name: str) -> bool:
    return name.endswith(".txt") and posixpath.basename(name).lower() not in (
        *_CLASS_FILES, "readme.txt", "readme.dataset.txt", "readme.roboflow.txt",
        "train.txt", "val.txt", "test.txt", "requirements.txt", "license.txt",
    )  # fmt: skip


def _stem(name: str) -> str:
    return posixpath.splitext(name)[0]


def _label_of(image: str) -> str:
    """The label file that belongs to an image: the last folder ``images`` becomes ``labels``."""
    folder, slash, rest = ("/" + image).rpartition("/images/")
    path = f"{folder}/labels/{rest}" if slash else "/" + image
    return _stem(path[1:]) + ".txt"


def _is_refused(label: str, refused: frozenset[str]) -> bool:
    """Whether a label file is, or lies behind, a link that leaves the data folder."""
    if not refused:
        return False
    parts = label.split("/")
    return any("/".join(parts[:end]) in refused for end in range(1, len(parts) + 1))


class _Lines(NamedTuple):
    classes: np.ndarray
    fractions: np.ndarray
    numbers: list[int]


_NO_LINES = _Lines(np.zeros(0, dtype=np.int64), np.zeros((0, 4)), [])


def _read_split(
    store: Store, layout: _Layout, split: str, images: list[str], numbers: dict[str, int]
) -> RawSplit:
    findings = Findings()
    parts: list[_Lines] = []
    owners: list[np.ndarray] = []
    places: list[str] = []
    kept: list[str] = []
    refused = frozenset(store.refused)
    for image in images:
        label = _label_of(image)
        # An image without a label file shows no objects.
        lines = _NO_LINES
        if _is_refused(label, refused):
            findings.add("file-link", split, label, numbers[image], None, label)
            continue
        if label in store.names:
            read = _read_labels(store, label, split, numbers[image], findings)
            if read is None:
                continue  # nobody knows what it shows
            lines = read
        parts.append(lines)
        owners.append(np.full(len(lines.classes), len(kept)))
        places += [f"{label} line {number}" for number in lines.numbers]
        kept.append(image)
    images = kept
    boxes = sum(len(part.classes) for part in parts)
    return RawSplit(
        name=split,
        source=layout.source,
        store=store,
        format="yolo",
        categories=layout.names,
        groups={},
        image_ids=[numbers[image] for image in images],
        files=images,
        members=list(images),
        declared=np.zeros((len(images), 2), dtype=np.int64),
        owners=np.concatenate([np.zeros(0, np.int64), *owners]),
        boxes=np.zeros((boxes, 4)),
        category_ids=np.concatenate([np.zeros(0, np.int64), *(part.classes for part in parts)]),
        crowd=np.zeros(boxes, dtype=bool),
        areas=np.full(boxes, np.nan),
        annotation_ids=np.arange(1, boxes + 1),
        fractions=np.concatenate([np.zeros((0, 4)), *(part.fractions for part in parts)]),
        places=places,
        findings=findings,
    )


def _read_labels(
    store: Store, name: str, split: str, image: int, findings: Findings
) -> _Lines | None:
    """The lines of one label file; those that are no boxes are reported."""
    try:
        text = store.read(name, MAX_LABELS).decode("utf-8-sig")
    except UserError as error:
        findings.add("file-broken", split, name, image, None, str(error))
        return None
    except UnicodeDecodeError:
        findings.add("file-broken", split, name, image, None, "not text in UTF-8")
        return None
    rows = [(number, line.split()) for number, line in enumerate(text.splitlines(), start=1)]
    rows = [(number, tokens) for number, tokens in rows if tokens]
    try:
        values = np.array([tokens for _, tokens in rows], dtype=np.float64).reshape(-1, 5)
        whole = (values[:, 0] == np.floor(values[:, 0])) & (np.abs(values[:, 0]) < 2**53)
        if len(values) == len(rows) and whole.all():
            classes = values[:, 0].astype(np.int64)
            return _Lines(classes, values[:, 1:], [number for number, _ in rows])
    except ValueError:
        pass
    found = [
        (number, parsed)
        for number, tokens in rows
        if (parsed := _parse_line(tokens, name, number, split, image, findings)) is not None
    ]
    values = np.array([parsed for _, parsed in found], dtype=np.float64).reshape(-1, 5)
    classes = values[:, 0].astype(np.int64)
    return _Lines(classes, values[:, 1:], [number for number, _ in found])


def _parse_line(
    tokens: list[str], name: str, number: int, split: str, image: int, findings: Findings
) -> list[float] | None:
    """Class, center and size; a polygon gives its extent."""
    shown = " ".join(tokens)[:60]
    place = f"{name} line {number}"
    try:
        values = [float(token) for token in tokens]
    except ValueError:
        values = []
    if values and not (values[0].is_integer() and abs(values[0]) < 2**31):
        values = []
    if len(values) == 5:
        return values
    if len(values) >= 7 and len(values) % 2 == 1:
        x, y = values[1::2], values[2::2]
        findings.add("polygon", split, name, image, place, f"{len(x)} points")
        low_x, high_x, low_y, high_y = min(x), max(x), min(y), max(y)
        return [
            values[0], (low_x + high_x) / 2, (low_y + high_y) / 2, high_x - low_x, high_y - low_y
        ]  # fmt: skip
    findings.add("line-broken", split, name, image, place, repr(shown))
    return None


def _report_orphans(store: Store, images: list[str], splits: list[RawSplit]) -> None:
    """Label files in the same folders that no image belongs to."""
    expected = {_label_of(image) for image in images}
    folders = {posixpath.dirname(label) for label in expected}
    for name in sorted(store.names):
        if _is_label(name) and posixpath.dirname(name) in folders and name not in expected:
            splits[0].findings.add("label-orphan", "", name)


def _numbered_classes(split: RawSplit, splits: list[RawSplit]) -> RawSplit:
    """Classes named by their numbers, where nothing names them."""
    from dataclasses import replace

    used = np.unique(np.concatenate([part.category_ids for part in splits])).tolist()
    return replace(split, categories={k: str(k) for k in used if 0 <= k < 10_000})
