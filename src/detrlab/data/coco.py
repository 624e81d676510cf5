"""Reader of COCO's JSON format."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np

from detrlab.data.findings import Finding, Findings, excerpt
from detrlab.data.locate import locate_images
from detrlab.data.raw import RawSplit
from detrlab.data.store import Store
from detrlab.errors import UserError

OTHER_TASKS = re.compile(r"captions|keypoints|panoptic|stuff|image_info|densepose", re.I)
"""Names of the official files that are for other tasks than detection."""

_EXTRAS = ("segmentation", "keypoints", "caption", "attributes")
_MAX_SIDE = 10_000_000
_INT64 = 2**63


def read_coco(store: Store, name: str, split: str, *, required: bool = True) -> RawSplit | None:
    """One annotation file.

    Args:
        store: the files.
        name: the annotation file.
        split: ``train``, ``val``, ``test`` or empty.
        required: whether JSON of another kind is an error; otherwise it gives None.

    Raises:
        UserError: it is not valid JSON, or not COCO's format.
    """
    with _without_collector():
        document = _read_json(store, name)
        if not (isinstance(document, dict) and {"images", "annotations"} <= document.keys()):
            if not required:
                return None
            raise UserError(
                f"{store.root / name} is not in COCO's format: it should hold an object with "
                "'images', 'annotations' and 'categories'"
            )
        return from_document(document, store, name, split)


def from_document(document: dict[str, Any], store: Store, name: str, split: str) -> RawSplit:
    """The contents of an annotation file, as ``read_coco``; the document is emptied.

    Raises:
        UserError: a part is no list, or no categories are declared.
    """
    reader = _Reader(store, name, split)
    images = reader.records(document.pop("images"), "images")
    annotations = reader.records(document.pop("annotations"), "annotations")
    categories, groups = reader.categories(document.get("categories") or [])
    image_ids, files, declared = reader.images(images)
    return RawSplit(
        name=split,
        source=reader.where,
        store=store,
        format="coco",
        categories=categories,
        groups=groups,
        image_ids=image_ids,
        files=files,
        members=locate_images(store, files, name, split, reader.findings),
        declared=declared,
        findings=reader.findings,
        extras=_extras(annotations),
        licences=_licences(document.get("licenses")),
        **reader.annotations(annotations, image_ids, files),
    )


def _read_json(store: Store, name: str) -> Any:
    # From pydantic, which is a dependency anyway: several times faster than the standard library
    # on documents of hundreds of megabytes, and bounded in depth.
    from pydantic_core import from_json

    text = store.read(name).removeprefix(b"\xef\xbb\xbf")
    reason = "it is empty"
    if text.strip():
        try:
            return from_json(text)
        except (ValueError, RecursionError, MemoryError, OverflowError) as error:
            reason = str(error) or type(error).__name__
    raise UserError(f"{store.root / name} is not valid JSON ({reason}): export it again")


@contextmanager
def _without_collector() -> Iterator[None]:
    """No garbage collection: it would take half of the time while millions of dicts are made."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Reader:
    """Turns the parts of a document into columns; entries that cannot be used are findings."""

    def __init__(self, store: Store, name: str, split: str) -> None:
        self.where = str(store.root / name)
        self.split = split
        self.findings = Findings()

    def _add(self, rule: str, detail: str, image: int | str | None = None) -> None:
        self.findings.add(rule, self.split, self.where, image, None, detail)

    def records(self, values: Any, key: str) -> list[dict[str, Any]]:
        """The objects of a list."""
        if not isinstance(values, list):
            found = type(values).__name__
            raise UserError(f"{self.where}: {key!r} should be a list, not {found}")
        if set(map(type, values)) <= {dict}:
            return values
        for i, value in enumerate(values):
            if not isinstance(value, dict):
                self._add("record-broken", f"{key}[{i}] is {excerpt(value)}, not an object")
        return [value for value in values if isinstance(value, dict)]

    def categories(self, values: Any) -> tuple[dict[int, str], dict[int, str]]:
        """Names and supercategories by id, in the order of the ids."""
        names: dict[int, str] = {}
        groups: dict[int, str] = {}
        for record in self.records(values, "categories"):
            category, text = _number(record.get("id"), whole=True)
            name, group = record.get("name"), record.get("supercategory")
            if category is None or text:
                rule = "value-text" if text else "record-broken"
                self._add(rule, f"category id is {excerpt(record.get('id'))}")
            if category is None:
                continue
            if not isinstance(name, str) or not name.strip():
                self._add("record-broken", f"category {category} has the name {excerpt(name)}")
                name = str(category)
            if category in names:
                both = f"{excerpt(names[category])} and {excerpt(name)}"
                self._add("record-broken", f"category id {category} is declared as {both}")
                continue
            names[category] = name.strip()
            groups[category] = group if isinstance(group, str) else ""
        if not names:
            raise UserError(
                f"{self.where} declares no categories: list them as "
                '"categories": [{"id": 1, "name": "..."}]'
            )
        return dict(sorted(names.items())), groups

    def images(
        self, records: list[dict[str, Any]]
    ) -> tuple[list[int | str], list[str], np.ndarray]:
        """Ids, file names and declared sizes."""
        found: dict[int | str, tuple[str, Any, Any]] = {}
        ambiguous = set()
        for i, record in enumerate(records):
            image_id, file = record.get("id"), record.get("file_name")
            if isinstance(image_id, float) and image_id.is_integer():
                image_id = int(image_id)
            if isinstance(image_id, bool) or not isinstance(image_id, int | str):
                self._add("record-broken", f"images[{i}] has the id {excerpt(image_id)}")
                continue
            if not isinstance(file, str) or not file:
                self._add("record-broken", f"file_name is {excerpt(file)}", image_id)
                continue
            if isinstance(image_id, int) and not -_INT64 <= image_id < _INT64:
                image_id = str(image_id)
            if image_id not in found:
                found[image_id] = file, record.get("height"), record.get("width")
            elif file == found[image_id][0]:
                self._add("image-repeated", file, image_id)
            else:
                ambiguous.add(image_id)
                detail = f"{excerpt(found[image_id][0])} and {excerpt(file)}"
                self._add("image-id-duplicate", detail, image_id)
        found = {image_id: entry for image_id, entry in found.items() if image_id not in ambiguous}
        texts = [each for each in found if isinstance(each, str)]
        if texts:
            example = Finding("image-id-text", self.split, self.where, texts[0])
            self.findings.extend("image-id-text", len(texts), [example])
        return list(found), [file for file, _, _ in found.values()], self._declared(found)

    def _declared(self, found: dict[int | str, tuple[str, Any, Any]]) -> np.ndarray:
        """(N, 2) int64 (height, width), 0 if nothing usable is declared."""
        sides = [side for _, height, width in found.values() for side in (height, width)]
        declared, broken, text = (column.reshape(-1, 2) for column in _column(sides, 0))
        broken |= (declared <= 0) | (declared > _MAX_SIDE)
        declared[broken.any(axis=1)] = 0
        entries = list(found.items())
        for i in np.flatnonzero((broken | text).any(axis=1)).tolist():
            image_id, (file, height, width) = entries[i]
            if (height, width) != (None, None):
                rule = "record-broken" if broken[i].any() else "value-text"
                detail = f"height {excerpt(height)}, width {excerpt(width)}"
                self.findings.add(rule, self.split, file, image_id, None, detail)
        return declared

    def annotations(
        self, records: list[dict[str, Any]], image_ids: list[int | str], files: list[str]
    ) -> dict[str, Any]:
        """The annotation columns of a ``RawSplit``."""
        raw = {key: _values(records, key) for key in ("id", "image_id", "category_id", "bbox")}
        ids, _, _ = _column(raw["id"], -1)
        owners, image_text = _owners(raw["image_id"], image_ids)
        category_ids, category_broken, category_text = _column(raw["category_id"], 0)
        lists = [v if isinstance(v, list) and len(v) == 4 else [None] * 4 for v in raw["bbox"]]
        sides, *states = _column(list(chain.from_iterable(lists)), np.nan)
        boxes, (box_broken, box_text) = (
            sides.reshape(-1, 4),
            (s.reshape(-1, 4).any(1) for s in states),
        )
        keep = ~(box_broken | category_broken)
        again = np.ones(len(ids), dtype=bool)
        again[np.unique(ids, return_index=True)[1]] = False

        def finding(rule: str, row: int, key: str) -> Finding:
            owner = int(owners[row])
            file, image = (files[owner], image_ids[owner]) if owner >= 0 else (self.where, None)
            place = int(ids[row]) if ids[row] >= 0 else f"annotations[{row}]"
            detail = f"{key} is {excerpt(raw[key][row])}"
            return Finding(rule, self.split, file, image, place, detail)

        for rule, key, mask in (
            ("record-broken", "bbox", box_broken),
            ("record-broken", "category_id", category_broken & ~box_broken),
            ("value-text", "bbox", keep & box_text),
            ("value-text", "category_id", keep & category_text),
            ("value-text", "image_id", keep & image_text),
            ("image-unknown", "image_id", keep & (owners < 0)),
            ("annotation-id-duplicate", "id", again | (ids < 0)),
        ):
            rows = np.flatnonzero(mask).tolist()
            self.findings.extend(rule, len(rows), (finding(rule, row, key) for row in rows))
        columns = {
            "owners": owners,
            "boxes": boxes,
            "category_ids": category_ids,
            "crowd": _column(_values(records, "iscrowd"), 0)[0] == 1,
            "areas": _column(_values(records, "area"), np.nan)[0],
            "annotation_ids": ids,
        }
        return {name: column[keep] for name, column in columns.items()}


def _owners(values: list[Any], image_ids: list[int | str]) -> tuple[np.ndarray, np.ndarray]:
    """Position of each annotation's image, -1 if unlisted; and whether only the text is equal."""
    position: dict[Any, int] = {image_id: i for i, image_id in enumerate(image_ids)}
    texts = np.zeros(len(values), dtype=bool)
    if not set(map(type, values)) <= {int, str, float}:
        values = [v if type(v) in (int, str, float) else None for v in values]
    owners = np.fromiter((position.get(v, -1) for v in values), np.int64, len(values))
    missing = np.flatnonzero(owners < 0).tolist()
    as_text = {str(image_id): i for image_id, i in position.items()} if missing else {}
    for row in missing:
        owners[row] = as_text.get(str(values[row]), -1)
        texts[row] = owners[row] >= 0
    return owners, texts


def _licences(values: Any) -> tuple[str, ...]:
    """The names of the licences with their URLs; malformed entries are ignored."""
    found = []
    for value in values if isinstance(values, list) else []:
        if isinstance(value, dict) and isinstance(value.get("name"), str) and value["name"].strip():
            url = value.get("url")
            place = f" ({url})" if isinstance(url, str) and url else ""
            found.append(f"{value['name'].strip()}{place}"[:200])
    return tuple(dict.fromkeys(found))[:20]


def _extras(records: list[dict[str, Any]]) -> dict[str, int]:
    """What annotations contain beside boxes, and how many do."""
    present = set().union(*records)
    counts = {key: sum(map(bool, _values(records, key))) for key in _EXTRAS if key in present}
    return {key: count for key, count in counts.items() if count}


# Columns of numbers from arbitrary JSON values; fast when every value is a number --------------


def _values(records: list[dict[str, Any]], key: str) -> list[Any]:
    try:
        return list(map(itemgetter(key), records))
    except KeyError:
        return [record.get(key) for record in records]


def _column(values: list[Any], default: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N,) numbers of the default's type; (N,) bool, which are none and which are text."""
    column = np.full(len(values), default)
    broken, text = np.zeros((2, len(values)), dtype=bool)
    whole = isinstance(default, int)
    if set(map(type, values)) <= ({int} if whole else {int, float}):
        with suppress(OverflowError):
            return np.array(values, dtype=column.dtype), broken, text
    for i, value in enumerate(values):
        found, text[i] = _number(value, whole)
        broken[i] = found is None
        column[i] = default if found is None else found
    return column, broken, text


def _number(value: Any, whole: bool) -> tuple[Any, bool]:
    """A float, or a whole number of 64 bits; or None. And whether it was written as text."""
    text = isinstance(value, str) and len(value) <= 40
    if isinstance(value, bool) or not (text or isinstance(value, int | float)):
        return None, False
    try:
        if not whole:
            return float(value), text
        number = int(value)
    except (ValueError, OverflowError) as error:
        return (float("inf") if isinstance(error, OverflowError) and not whole else None), False
    fits = -_INT64 <= number < _INT64 and (text or number == value)
    return (number, text) if fits else (None, False)
