"""Reader of COCO's JSON format."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from operator import itemgetter
from typing import Any

import numpy as np

from detrlab.data.columns import BROKEN, TEXT, boxes_column, integer, integers, numbers
from detrlab.data.findings import Finding, Findings, excerpt
from detrlab.data.locate import locate_images
from detrlab.data.raw import RawSplit
from detrlab.data.store import Store
from detrlab.errors import UserError

OTHER_TASKS = re.compile(r"captions|keypoints|panoptic|stuff|image_info|densepose", re.I)
"""Names of the official files that are for other tasks than detection."""

_MAX_SIDE = 10_000_000


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
        reader = _Reader(store, name, split)
        document = _read_json(store, name)
        if not (isinstance(document, dict) and {"images", "annotations"} <= document.keys()):
            if not required:
                return None
            raise UserError(
                f"{reader.where} is not in COCO's format: it should hold an object with 'images', "
                "'annotations' and 'categories'"
            )
        images = reader.records(document["images"], "images")
        annotations = reader.records(document["annotations"], "annotations")
        categories, groups = reader.categories(document.get("categories") or [])
        image_ids, files, declared = reader.images(images)
        members = locate_images(store, files, name, split, reader.findings)
        columns = reader.annotations(annotations, image_ids, files)
        extras = _extras(annotations)
        licences = _licences(document.get("licenses"))
        # Freed before the garbage collector is enabled and would traverse millions of dicts.
        del document, images, annotations
    return RawSplit(
        name=split,
        source=reader.where,
        store=store,
        format="coco",
        categories=categories,
        groups=groups,
        image_ids=image_ids,
        files=files,
        members=members,
        declared=declared,
        findings=reader.findings,
        extras=extras,
        licences=licences,
        **columns,
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
            category, text = integer(record.get("id"))
            name = record.get("name")
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
            group = record.get("supercategory")
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
        ambiguous: dict[int | str, None] = {}
        for i, record in enumerate(records):
            image_id, file = record.get("id"), record.get("file_name")
            if isinstance(image_id, float) and image_id.is_integer():
                image_id = int(image_id)
            if isinstance(image_id, bool) or not isinstance(image_id, int | str):
                self._add("record-broken", f"images[{i}] has the id {excerpt(image_id)}")
            elif not isinstance(file, str) or not file:
                self._add("record-broken", f"file_name is {excerpt(file)}", image_id)
            else:
                if isinstance(image_id, int) and not -(2**63) <= image_id < 2**63:
                    image_id = str(image_id)
                if image_id not in found:
                    found[image_id] = file, record.get("height"), record.get("width")
                elif file == found[image_id][0]:
                    self._add("image-repeated", file, image_id)
                else:
                    ambiguous[image_id] = None
                    detail = f"{excerpt(found[image_id][0])} and {excerpt(file)}"
                    self._add("image-id-duplicate", detail, image_id)
        for image_id in ambiguous:
            del found[image_id]
        texts = [each for each in found if isinstance(each, str)]
        if texts:
            example = Finding("image-id-text", self.split, self.where, texts[0])
            self.findings.extend("image-id-text", len(texts), [example])
        declared = self._declared(found)
        return list(found), [file for file, _, _ in found.values()], declared

    def _declared(self, found: dict[int | str, tuple[str, Any, Any]]) -> np.ndarray:
        """(N, 2) int64 (height, width), 0 if nothing usable is declared."""
        sides = [side for _, height, width in found.values() for side in (height, width)]
        declared, states = (column.reshape(-1, 2) for column in integers(sides))
        bad = (states == BROKEN) | (declared <= 0) | (declared > _MAX_SIDE)
        declared[bad.any(axis=1)] = 0
        entries = list(found.items())
        for i in np.flatnonzero((bad | (states == TEXT)).any(axis=1)).tolist():
            image_id, (file, height, width) = entries[i]
            if (height, width) != (None, None):
                rule = "record-broken" if bad[i].any() else "value-text"
                detail = f"height {excerpt(height)}, width {excerpt(width)}"
                self.findings.add(rule, self.split, file, image_id, None, detail)
        return declared

    def annotations(
        self, records: list[dict[str, Any]], image_ids: list[int | str], files: list[str]
    ) -> dict[str, Any]:
        """The annotation columns of a ``RawSplit``."""
        ids, _ = integers(_column(records, "id", -1), default=-1)
        images = _column(records, "image_id")
        owners, image_text = _owners(images, image_ids)
        values = _column(records, "bbox")
        boxes, box_state = boxes_column(values)
        categories = _column(records, "category_id")
        category_ids, category_state = integers(categories)
        keep = (box_state != BROKEN) & (category_state != BROKEN)

        def place(rule: str, row: int, detail: str) -> Finding:
            owner = int(owners[row])
            return Finding(
                rule,
                self.split,
                files[owner] if owner >= 0 else self.where,
                image_ids[owner] if owner >= 0 else None,
                int(ids[row]) if ids[row] >= 0 else f"annotations[{row}]",
                detail,
            )

        def report(rule: str, mask: np.ndarray, key: str, found: list[Any]) -> None:
            rows = np.flatnonzero(mask)
            details = ((row, f"{key} is {excerpt(found[row])}") for row in rows.tolist())
            self.findings.extend(rule, len(rows), (place(rule, *each) for each in details))

        report("record-broken", box_state == BROKEN, "bbox", values)
        report("record-broken", (category_state == BROKEN) & (box_state != BROKEN),
               "category_id", categories)  # fmt: skip
        report("value-text", keep & (box_state == TEXT), "bbox", values)
        report("value-text", keep & (category_state == TEXT), "category_id", categories)
        report("value-text", keep & image_text, "image_id", images)
        report("image-unknown", keep & (owners < 0), "image_id", images)
        again = np.ones(len(ids), dtype=bool)
        again[np.unique(ids, return_index=True)[1]] = False
        report("annotation-id-duplicate", again | (ids < 0), "id", _column(records, "id"))
        columns = {
            "owners": owners,
            "boxes": boxes,
            "category_ids": category_ids,
            "crowd": integers(_column(records, "iscrowd", 0))[0] == 1,
            "areas": numbers(_column(records, "area"))[0],
            "annotation_ids": ids,
        }
        return {name: column[keep] for name, column in columns.items()}


def _owners(values: list[Any], image_ids: list[int | str]) -> tuple[np.ndarray, np.ndarray]:
    """Position of each annotation's image, -1 if unlisted; and whether only the text is equal."""
    position: dict[Any, int] = {image_id: i for i, image_id in enumerate(image_ids)}
    texts = np.zeros(len(values), dtype=bool)
    hashable: Iterable[Any] = values
    if not set(map(type, values)) <= {int, str, float}:
        hashable = [v if type(v) in (int, str, float) else None for v in values]
    owners = np.fromiter((position.get(v, -1) for v in hashable), np.int64, len(values))
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
    keys = [key for key in ("segmentation", "keypoints", "caption", "attributes") if key in present]
    counts = {key: sum(map(bool, _column(records, key))) for key in keys}
    return {key: count for key, count in counts.items() if count}


def _column(records: list[dict[str, Any]], key: str, default: Any = None) -> list[Any]:
    try:
        return list(map(itemgetter(key), records))
    except KeyError:
        return [record.get(key, default) for record in records]
