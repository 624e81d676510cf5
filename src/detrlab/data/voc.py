"""Reader of Pascal VOC's XML files."""

from __future__ import annotations

import posixpath
from collections import Counter
from functools import partial
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from detrlab.data.findings import Findings
from detrlab.data.locate import is_image, missing_rule, split_of, stem
from detrlab.data.raw import RawSplit
from detrlab.data.store import Store
from detrlab.errors import UserError, excerpt

MAX_XML = 16 << 20


class _Object(NamedTuple):
    """One object; ``extras`` are what the other formats cannot hold."""

    name: str
    corners: list[float]
    difficult: bool
    place: str
    extras: list[str]


class _Page(NamedTuple):
    """One XML file."""

    file: str
    size: tuple[int, int]
    objects: list[_Object]


def voc_files(store: Store) -> list[str]:
    """The XML files of a store."""
    return sorted(name for name in store.names if name.lower().endswith(".xml"))


def read_voc(store: Store) -> list[RawSplit]:
    """All splits: as ``ImageSets/Main`` lists them, otherwise by the names of the folders.

    Objects marked ``difficult`` are used by the evaluation only, like COCO's crowd regions.

    Raises:
        UserError: no XML file is an annotation, or several data sets are in one folder.
    """
    findings = Findings()
    pages = {name: page for name in voc_files(store) if (page := _read_page(store, name, findings))}
    if not pages:
        raise UserError(f"{store.root} holds XML files, but none is a Pascal VOC annotation")
    folders = {posixpath.dirname(name) for name in pages if "Annotations" in name.split("/")}
    if len(folders) > 1:
        raise UserError(
            f"{store.root} holds several VOC data sets ({', '.join(sorted(folders))}): name one"
        )
    splits = _listed_splits(store, pages, findings)
    if not splits:
        for name in pages:
            splits.setdefault(split_of(posixpath.dirname(name) + "/x"), []).append(name)
    used = {name for names in splits.values() for name in names}
    words = sorted({thing.name for name in used for thing in pages[name].objects})
    ids = {word: i for i, word in enumerate(words, start=1)}
    corners = [thing.corners[:2] for page in pages.values() for thing in page.objects]
    lowest = min((min(pair) for pair in corners if np.isfinite(pair).all()), default=1.0)
    # VOC counts pixels from 1, unless some box starts at 0.
    first_pixel = 0 if 0 <= lowest < 1 else 1
    members = _images_of(store, pages)
    numbers = {name: i for i, name in enumerate(sorted(pages), start=1)}
    raw = []
    for split, names in splits.items():
        found = Findings()
        for name in names:
            if members[name] is None:
                rule = missing_rule(store, pages[name].file)
                found.add(rule, split, name, numbers[name], None, pages[name].file)
        owned = [(i, thing) for i, name in enumerate(names) for thing in pages[name].objects]
        things = [thing for _, thing in owned]
        declared = [pages[name].size for name in names]
        raw.append(RawSplit(
            name=split,
            source=str(store.root),
            store=store,
            format="voc",
            categories={i: word for word, i in ids.items()},
            image_ids=[numbers[name] for name in names],
            files=[posixpath.basename(members[name] or pages[name].file) for name in names],
            members=[members[name] for name in names],
            declared=np.array(declared, dtype=np.int64).reshape(-1, 2),
            owners=np.array([i for i, _ in owned], dtype=np.int64),
            boxes=_boxes(things, first_pixel),
            category_ids=np.array([ids[thing.name] for thing in things], dtype=np.int64),
            crowd=np.array([thing.difficult for thing in things], dtype=bool),
            areas=np.full(len(things), np.nan),
            annotation_ids=np.arange(1, len(things) + 1),
            places=[thing.place for thing in things],
            findings=found,
            extras=dict(Counter(extra for thing in things for extra in thing.extras)),
        ))  # fmt: skip
    raw[0].findings.merge(findings)
    return raw


def _boxes(things: list[_Object], first_pixel: int) -> np.ndarray:
    """(M, 4) xywh. Both corner pixels belong to the box, if they are counted from 1.

    A box whose corners are the same pixel is a misclick: it gets no area, so that it is reported
    as an empty box. Corners and sizes differ by rounding errors below a millionth of a pixel.
    """
    corners = np.array([thing.corners for thing in things], dtype=np.float64).reshape(-1, 4)
    sides = corners[:, 2:] - corners[:, :2]
    empty = (sides <= 0).all(axis=1, keepdims=True) | (sides < 0)
    sides = np.where(empty, sides, sides + first_pixel)
    return np.round(np.concatenate([corners[:, :2] - first_pixel, sides], axis=1), 6)


def _read_page(store: Store, name: str, findings: Findings) -> _Page | None:
    try:
        root = _parse(store.read(name, MAX_XML))
    except (UserError, ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
        prefix = "" if isinstance(error, UserError) else "not valid XML: "
        findings.add("file-broken", "", name, None, None, f"{prefix}{error}")
        return None
    if root.tag != "annotation":
        if "Annotations" in name.split("/"):
            detail = f"it holds <{root.tag[:40]}>, not <annotation>"
            findings.add("file-broken", "", name, None, None, detail)
        return None
    sides = [_number(_text(root, f"size/{key}")) for key in ("height", "width")]
    height, width = (int(side) if side and 0 < side <= 10_000_000 else 0 for side in sides)
    elements = enumerate(root.findall("object"), start=1)
    objects = [_object(element, name, f"{name} object {i}", findings) for i, element in elements]
    return _Page(_text(root, "filename"), (height, width), [*filter(None, objects)])


def _parse(data: bytes) -> ElementTree.Element:
    """An XML document without a document type: entities are how XML files attack."""
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("it declares a document type, which annotations never need")
    return ElementTree.fromstring(text)


def _text(element: ElementTree.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _number(text: str) -> float | None:
    try:
        return float(text) if len(text) <= 40 else None
    except ValueError:
        return None


def _object(
    element: ElementTree.Element, file: str, place: str, findings: Findings
) -> _Object | None:
    label = _text(element, "name")
    texts = [_text(element, f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
    corners = [value for value in map(_number, texts) if value is not None]
    if not label or len(corners) < 4:
        detail = f"bndbox is {excerpt(texts, 80)}" if label else "no name"
        findings.add("record-broken", "", file, None, place, detail)
        return None
    carried = {
        "pose": _text(element, "pose").lower() not in ("", "unspecified"),
        "truncated mark": _text(element, "truncated") not in ("", "0"),
        "parts": element.find("part") is not None,
    }
    extras = [extra for extra, present in carried.items() if present]
    return _Object(label, corners, _text(element, "difficult") == "1", place, extras)


def _images_of(store: Store, pages: dict[str, _Page]) -> dict[str, str | None]:
    """The image of each XML file: the one of the same name, otherwise the one that it names."""
    by_stem: dict[str, list[str]] = {}
    for name in sorted(filter(is_image, store.names)):
        by_stem.setdefault(stem(name), []).append(name)
    found: dict[str, str | None] = {}
    for name, page in pages.items():
        images = by_stem.get(stem(name)) or by_stem.get(stem(page.file.replace("\\", "/"))) or []
        found[name] = min(images, key=partial(_distance, posixpath.dirname(name)), default=None)
    return found


def _distance(folder: str, image: str) -> int:
    """0 for an image in this folder, 1 in a folder beside it, 2 elsewhere."""
    other = posixpath.dirname(image)
    return 0 if other == folder else 1 + (posixpath.dirname(other) != posixpath.dirname(folder))


def _listed_splits(
    store: Store, pages: dict[str, _Page], findings: Findings
) -> dict[str, list[str]]:
    """The splits of ``ImageSets/Main``; empty if there are none."""
    by_stem = {stem(name): name for name in pages}
    lists = {
        stem(name): name
        for name in sorted(store.names)
        if "ImageSets" in name.split("/")[:-1] and name.endswith(".txt")
    }
    if "trainval" in lists:
        lists.setdefault("train", lists["trainval"])
    splits: dict[str, list[str]] = {}
    for split in filter(lists.__contains__, ("train", "val", "test")):
        lines = store.read(lists[split], MAX_XML).decode("utf-8", "replace").splitlines()
        stems = [line.split()[0] for line in lines if line.strip()]
        for each in stems:
            if each not in by_stem:
                findings.add("file-missing", split, lists[split], None, None, f"{each}.xml")
        names = [by_stem[each] for each in dict.fromkeys(stems) if each in by_stem]
        if names:
            splits[split] = names
    return splits
