"""Reader of Pascal VOC's XML files."""

from __future__ import annotations

import posixpath
from collections import Counter
from functools import partial
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from detrlab.data.columns import number as as_number
from detrlab.data.findings import Findings, excerpt
from detrlab.data.locate import is_image, missing_rule, split_of, stem
from detrlab.data.raw import RawSplit
from detrlab.data.store import Store
from detrlab.errors import UserError

MAX_XML = 16 << 20
_NO_DOCUMENT_TYPE = "it declares a document type, which annotations never need"


class _Object(NamedTuple):
    name: str
    corners: list[float]
    difficult: bool
    place: str
    extras: list[str]
    """What the other formats cannot hold."""


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
    corners = [thing.corners[:2] for page in pages.values() for thing in page.objects]
    lowest = min((min(pair) for pair in corners if np.isfinite(pair).all()), default=1.0)
    numbers = {name: i for i, name in enumerate(sorted(pages), start=1)}
    members = _images_of(store, pages)
    # VOC counts pixels from 1, unless some box starts at 0.
    first_pixel = 0 if 0 <= lowest < 1 else 1
    raw = [
        _split(
            store, split, {name: pages[name] for name in names}, numbers, members, words,
            first_pixel,
        )
        for split, names in splits.items()
    ]  # fmt: skip
    raw[0].findings.merge(findings)
    return raw


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
    height, width = (_side(_text(root, f"size/{key}")) for key in ("height", "width"))
    objects = [
        thing
        for i, element in enumerate(root.findall("object"), start=1)
        if (thing := _object(element, name, i, findings))
    ]
    return _Page(_text(root, "filename"), (height, width), objects)


def _parse(data: bytes) -> ElementTree.Element:
    """An XML document without a document type: entities are how XML files attack."""
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError(_NO_DOCUMENT_TYPE)
    return ElementTree.fromstring(text)


def _text(element: ElementTree.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _side(text: str) -> int:
    value, _ = as_number(text)
    return int(value) if value is not None and 0 < value <= 10_000_000 else 0


def _object(element: ElementTree.Element, name: str, i: int, findings: Findings) -> _Object | None:
    place = f"{name} object {i}"
    label = _text(element, "name")
    texts = [_text(element, f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
    corners = [value for text in texts if (value := as_number(text)[0]) is not None]
    if not label or len(corners) < 4:
        detail = f"bndbox is {excerpt(texts, 80)}" if label else "no name"
        findings.add("record-broken", "", name, None, place, detail)
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
    for name in sorted(store.names):
        if is_image(name):
            by_stem.setdefault(stem(name), []).append(name)
    found: dict[str, str | None] = {}
    for name, page in pages.items():
        images = by_stem.get(stem(name)) or by_stem.get(stem(page.file.replace("\\", "/"))) or []
        folder = posixpath.dirname(name)
        found[name] = min(images, key=partial(_distance, folder), default=None)
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
    for split in ("train", "val", "test"):
        if split not in lists:
            continue
        lines = store.read(lists[split], MAX_XML).decode("utf-8", "replace").splitlines()
        stems = [line.split()[0] for line in lines if line.strip()]
        for each in stems:
            if each not in by_stem:
                findings.add("file-missing", split, lists[split], None, None, f"{each}.xml")
        names = [by_stem[each] for each in dict.fromkeys(stems) if each in by_stem]
        if names:
            splits[split] = names
    return splits


def _split(
    store: Store,
    split: str,
    pages: dict[str, _Page],
    numbers: dict[str, int],
    members: dict[str, str | None],
    words: list[str],
    first_pixel: int,
) -> RawSplit:
    findings = Findings()
    for name, page in pages.items():
        if members[name] is None:
            rule = missing_rule(store, page.file)
            findings.add(rule, split, name, numbers[name], None, page.file)
    owned = [(i, thing) for i, page in enumerate(pages.values()) for thing in page.objects]
    things = [thing for _, thing in owned]
    corners = np.array([thing.corners for thing in things], dtype=np.float64).reshape(-1, 4)
    low = corners[:, :2] - first_pixel
    sides = corners[:, 2:] - corners[:, :2]
    # Both corner pixels belong to the box, if they are counted from 1. A box whose corners are
    # the same pixel is a misclick: it gets no area, so that it is reported as an empty box.
    empty = (sides <= 0).all(axis=1, keepdims=True) | (sides < 0)
    sides = np.where(empty, sides, sides + first_pixel)
    ids = {word: i for i, word in enumerate(words, start=1)}
    return RawSplit(
        name=split,
        source=str(store.root),
        store=store,
        format="voc",
        categories={i: word for word, i in ids.items()},
        image_ids=[numbers[name] for name in pages],
        files=[posixpath.basename(members[name] or page.file) for name, page in pages.items()],
        members=[members[name] for name in pages],
        declared=np.array([page.size for page in pages.values()], dtype=np.int64).reshape(-1, 2),
        owners=np.array([i for i, _ in owned], dtype=np.int64),
        # A millionth of a pixel: corners and sizes differ by rounding errors.
        boxes=np.round(np.concatenate([low, sides], axis=1), 6),
        category_ids=np.array([ids[thing.name] for thing in things], dtype=np.int64),
        crowd=np.array([thing.difficult for thing in things], dtype=bool),
        areas=np.full(len(things), np.nan),
        annotation_ids=np.arange(1, len(things) + 1),
        places=[thing.place for thing in things],
        findings=findings,
        extras=dict(Counter(extra for thing in things for extra in thing.extras)),
    )
