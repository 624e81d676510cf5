"""Reader of Pascal VOC's xml files."""

from __future__ import annotations

import posixpath
from collections import Counter
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from detrlab.data.columns import number as as_number
from detrlab.data.findings import Findings
from detrlab.data.locate import is_image, split_of
from detrlab.data.raw import RawSplit
from detrlab.data.store import Store
from detrlab.errors import UserError

MAX_XML = 16 << 20
_LISTS = ("train", "val", "test")


class _Object(NamedTuple):
    name: str
    corners: tuple[float, float, float, float]
    difficult: bool
    place: str
    extras: tuple[str, ...]
    """What it carries that nobody else's format holds."""


class _Page(NamedTuple):
    """One xml file."""

    file: str
    size: tuple[int, int]
    objects: list[_Object]


def voc_files(store: Store) -> list[str]:
    """The xml files of a store."""
    return sorted(name for name in store.names if name.lower().endswith(".xml"))


def read_voc(store: Store) -> list[RawSplit]:
    """All splits: as ``ImageSets/Main`` lists them, else as the folders are called.

    Objects marked ``difficult`` are kept for evaluation only, like COCO's crowds.

    Raises:
        UserError: no xml file is an annotation, or several data sets lie in one folder.
    """
    findings = Findings()
    pages = {name: page for name in voc_files(store) if (page := _read_page(store, name, findings))}
    if not pages:
        raise UserError(f"{store.root} holds xml files, but none is a Pascal VOC annotation")
    folders = {posixpath.dirname(name) for name in pages if "Annotations" in name.split("/")}
    if len(folders) > 1:
        raise UserError(
            f"{store.root} holds several VOC data sets ({', '.join(sorted(folders))}): name one"
        )
    members = _images_of(store, pages)
    splits = _listed_splits(store, pages, findings) or _folder_splits(pages)
    used = {name for names in splits.values() for name in names}
    numbers = {name: i for i, name in enumerate(sorted(pages), start=1)}
    words = sorted({thing.name for name in used for thing in pages[name].objects})
    shift = _first_pixel(pages)
    first = next(iter(splits))
    return [
        _split(
            store, split, names, pages, members, numbers, words, shift,
            findings if split == first else Findings(),
        )
        for split, names in splits.items()
    ]  # fmt: skip


def _read_page(store: Store, name: str, findings: Findings) -> _Page | None:
    try:
        root = _parse(store.read(name, MAX_XML))
    except UserError as error:
        findings.add("file-broken", "", name, None, None, str(error))
        return None
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
        findings.add("file-broken", "", name, None, None, f"not valid xml: {error}")
        return None
    if root.tag != "annotation":
        if "Annotations" in name.split("/"):
            detail = f"it holds <{root.tag[:40]}>, not <annotation>"
            findings.add("file-broken", "", name, None, None, detail)
        return None
    height, width = (_integer(root.findtext(f"size/{key}")) for key in ("height", "width"))
    objects = []
    for i, element in enumerate(root.findall("object"), start=1):
        thing = _object(element, name, i, findings)
        if thing is not None:
            objects.append(thing)
    return _Page((root.findtext("filename") or "").strip(), (height, width), objects)


def _parse(data: bytes) -> ElementTree.Element:
    """An xml document without a document type: entities are how xml files attack."""
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("it declares a document type, which annotations never need")
    return ElementTree.fromstring(text)


def _integer(text: str | None) -> int:
    value, _ = as_number((text or "").strip())
    if value is None or not np.isfinite(value) or not 0 < value <= 10_000_000:
        return 0
    return int(value)


def _object(element: ElementTree.Element, name: str, i: int, findings: Findings) -> _Object | None:
    place = f"{name} object {i}"
    label = (element.findtext("name") or "").strip()
    texts = [element.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
    values = [as_number((text or "").strip())[0] for text in texts]
    if not label or any(value is None for value in values):
        detail = "no name" if not label else f"bndbox is {texts}"[:80]
        findings.add("record-broken", "", name, None, place, detail)
        return None
    x0, y0, x1, y1 = (float(value) for value in values if value is not None)
    difficult = (element.findtext("difficult") or "0").strip() == "1"
    return _Object(label, (x0, y0, x1, y1), difficult, place, _extras(element))


def _extras(element: ElementTree.Element) -> tuple[str, ...]:
    pose = (element.findtext("pose") or "").strip().lower()
    carried = {
        "pose": pose not in ("", "unspecified"),
        "truncated mark": (element.findtext("truncated") or "").strip() not in ("", "0"),
        "parts": element.find("part") is not None,
    }
    return tuple(name for name, present in carried.items() if present)


def _first_pixel(pages: dict[str, _Page]) -> int:
    """1 if pixels are counted from 1, as VOC does; 0 if any box starts at 0."""
    corners = [thing.corners[:2] for page in pages.values() for thing in page.objects]
    lowest = min((min(pair) for pair in corners if np.isfinite(pair).all()), default=1.0)
    return 0 if 0 <= lowest < 1 else 1


def _images_of(store: Store, pages: dict[str, _Page]) -> dict[str, str | None]:
    """The image of each xml file: the one of the same name, else the one it names."""
    by_stem: dict[str, list[str]] = {}
    for name in sorted(store.names):
        if is_image(name):
            by_stem.setdefault(posixpath.splitext(posixpath.basename(name))[0], []).append(name)
    found: dict[str, str | None] = {}
    for name, page in pages.items():
        named = posixpath.splitext(posixpath.basename(page.file.replace("\\", "/")))[0]
        stem = posixpath.splitext(posixpath.basename(name))[0]
        candidates = by_stem.get(stem) or by_stem.get(named) or []
        here = posixpath.dirname(name)
        above = posixpath.dirname(here)
        beside = [c for c in candidates if posixpath.dirname(c) == here]
        near = [c for c in candidates if posixpath.dirname(posixpath.dirname(c)) == above]
        found[name] = next(iter(beside or near or candidates), None)
    return found


def _listed_splits(
    store: Store, pages: dict[str, _Page], findings: Findings
) -> dict[str, list[str]]:
    """The splits of ``ImageSets/Main``; empty when there are none."""
    by_stem = {posixpath.splitext(posixpath.basename(name))[0]: name for name in pages}
    lists = {
        posixpath.splitext(posixpath.basename(name))[0]: name
        for name in sorted(store.names)
        if "ImageSets" in name.split("/")[:-1] and name.endswith(".txt")
    }
    if "train" not in lists and "trainval" in lists:
        lists["train"] = lists["trainval"]
    splits: dict[str, list[str]] = {}
    for split in _LISTS:
        if split not in lists:
            continue
        lines = store.read(lists[split], MAX_XML).decode("utf-8", "replace").splitlines()
        stems = [line.split()[0] for line in lines if line.strip()]
        for stem in stems:
            if stem not in by_stem:
                findings.add("file-missing", split, lists[split], None, None, f"{stem}.xml")
        names = [by_stem[stem] for stem in dict.fromkeys(stems) if stem in by_stem]
        if names:
            splits[split] = names
    return splits


def _folder_splits(pages: dict[str, _Page]) -> dict[str, list[str]]:
    splits: dict[str, list[str]] = {}
    for name in pages:
        splits.setdefault(split_of(posixpath.dirname(name) + "/x"), []).append(name)
    return splits


def _split(
    store: Store,
    split: str,
    names: list[str],
    pages: dict[str, _Page],
    members: dict[str, str | None],
    numbers: dict[str, int],
    words: list[str],
    shift: int,
    findings: Findings,
) -> RawSplit:
    for name in names:
        if members[name] is None:
            findings.add("file-missing", split, name, numbers[name], None, pages[name].file)
    things = [(i, thing) for i, name in enumerate(names) for thing in pages[name].objects]
    corners = np.array([thing.corners for _, thing in things], dtype=np.float64).reshape(-1, 4)
    # Both corner pixels belong to the box, counted from 1. Where both corners are one pixel,
    # that is a slip of the hand and no object: it stays without area and is found as such.
    low = corners[:, :2] - shift
    sides = corners[:, 2:] - corners[:, :2]
    slip = (sides <= 0).all(axis=1, keepdims=True) | (sides < 0)
    sides = np.where(slip, sides, sides + shift)
    ids = {word: i for i, word in enumerate(words, start=1)}
    return RawSplit(
        name=split,
        source=str(store.root),
        store=store,
        format="voc",
        categories={i: word for word, i in ids.items()},
        groups={},
        image_ids=[numbers[name] for name in names],
        files=[posixpath.basename(members[name] or pages[name].file) for name in names],
        members=[members[name] for name in names],
        declared=np.array([pages[name].size for name in names], dtype=np.int64).reshape(-1, 2),
        owners=np.array([i for i, _ in things], dtype=np.int64),
        # Corners and sizes differ by a rounding error: a millionth of a pixel is none.
        boxes=np.round(np.concatenate([low, sides], axis=1), 6),
        category_ids=np.array([ids[thing.name] for _, thing in things], dtype=np.int64),
        crowd=np.array([thing.difficult for _, thing in things], dtype=bool),
        areas=np.full(len(things), np.nan),
        annotation_ids=np.arange(1, len(things) + 1),
        places=[thing.place for _, thing in things],
        findings=findings,
        extras=dict(Counter(extra for _, thing in things for extra in thing.extras)),
    )
