"""Reader of COCO's json, in the layouts people have it."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from operator import itemgetter
from typing import Any

import numpy as np

from detrlab.data.columns import boxes_column, integer, integers, numbers
from detrlab.data.findings import Finding, Findings
from detrlab.data.locate import locate_images
from detrlab.data.raw import RawSplit
from detrlab.data.store import Store
from detrlab.errors import UserError

OTHER_TASKS = re.compile(r"captions|keypoints|panoptic|stuff|image_info|densepose", re.I)
"""Names of the official files that are about something else than boxes."""


def looks_like_coco(document: Any) -> bool:
    """Whether a json document is meant to be COCO's detection format."""
    return isinstance(document, dict) and "images" in document and "annotations" in document


def read_json(store: Store, name: str) -> Any:
    """A json document of any size.

    Raises:
        UserError: it is not valid json; the message says where.
    """
    # From pydantic, which is here anyway: several times faster than the standard library on
    # documents of hundreds of megabytes, and bounded in depth.
    from pydantic_core import from_json

    where = store.root / name
    text = store.read(name)
    if text[:3] == b"\xef\xbb\xbf":
        text = text[3:]
    if not text.strip():
        raise UserError(f"{where} is empty: export the annotations again")
    try:
        return from_json(text)
    except ValueError as error:
        raise UserError(
            f"{where} is not valid json ({error}): export the annotations again"
        ) from None
    except (RecursionError, MemoryError, OverflowError) as error:
        raise UserError(
            f"{where} cannot be read as json ({type(error).__name__}): export the annotations again"
        ) from None


@contextmanager
def _without_collector() -> Iterator[None]:
    """Millions of new dicts make the cyclic collector run in vain; it costs half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def read_coco(store: Store, name: str, split: str, *, required: bool = True) -> RawSplit | None:
    """One annotation file.

    Args:
        store: where it lies.
        name: the file.
        split: ``train``, ``val``, ``test`` or empty.
        required: whether another kind of json is an error; it gives None otherwise.

    Raises:
        UserError: it is not valid json, or not COCO's format.
    """
    where = str(store.root / name)
    with _without_collector():
        document = read_json(store, name)
        if not looks_like_coco(document):
            if not required:
                return None
            raise UserError(
                f"{where} is not in COCO's format: it should hold an object with 'images', "
                "'annotations' and 'categories'"
            )
        findings = Findings()
        images = _records(document["images"], "images", where, split, findings)
        annotations = _records(document["annotations"], "annotations", where, split, findings)
        categories, groups = _categories(document.get("categories"), where, split, findings)
        if not categories:
            raise UserError(
                f"{where} declares no categories: list them as "
                '"categories": [{"id": 1, "name": "..."}]'
            )
        image_ids, files, declared = _images(images, where, split, findings)
        members = locate_images(store, files, name, split, findings)
        columns = _annotations(annotations, image_ids, files, where, split, findings)
        extras = _extras(annotations)
        licences = _licences(document.get("licenses"))
        # Gone before the collector wakes up and looks at millions of them.
        del document, images, annotations
    return RawSplit(
        name=split,
        source=where,
        store=store,
        format="coco",
        categories=categories,
        groups=groups,
        image_ids=image_ids,
        files=files,
        members=members,
        declared=declared,
        findings=findings,
        extras=extras,
        licences=licences,
        **columns,
    )


def _licences(values: Any) -> tuple[str, ...]:
    """The names of the licences with their addresses; what is not well-formed is left out."""
    found = []
    for value in values if isinstance(values, list) else []:
        if isinstance(value, dict) and isinstance(value.get("name"), str) and value["name"].strip():
            address = value.get("url")
            place = f" ({address})" if isinstance(address, str) and address else ""
            found.append(f"{value['name'].strip()}{place}"[:200])
    return tuple(dict.fromkeys(found))[:20]


def _records(
    values: Any, key: str, where: str, split: str, findings: Findings
) -> list[dict[str, Any]]:
    """The objects of a list; whatever else is in it is reported."""
    if not isinstance(values, list):
        raise UserError(f"{where}: {key!r} should be a list, not {type(values).__name__}")
    if set(map(type, values)) <= {dict}:
        return values
    for i, value in enumerate(values):
        if not isinstance(value, dict):
            detail = f"{key}[{i}] is {_short(value)}, not an object"
            findings.add("record-broken", split, where, None, None, detail)
    return [value for value in values if isinstance(value, dict)]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _categories(
    values: Any, where: str, split: str, findings: Findings
) -> tuple[dict[int, str], dict[int, str]]:
    """Names and supercategories by id, in the order of the ids."""
    names: dict[int, str] = {}
    groups: dict[int, str] = {}
    for record in _records([] if values is None else values, "categories", where, split, findings):
        category, text = integer(record.get("id"))
        name = record.get("name")
        if category is None:
            detail = f"category id {_short(record.get('id'))} is not a number"
            findings.add("record-broken", split, where, None, None, detail)
            continue
        if text:
            detail = f"category id {_short(record.get('id'))}"
            findings.add("value-text", split, where, None, None, detail)
        if not isinstance(name, str) or not name.strip():
            detail = f"category {category} has the name {_short(name)}"
            findings.add("record-broken", split, where, None, None, detail)
            name = str(category)
        if category in names:
            detail = f"category id {category} is declared as {names[category]!r} and {name!r}"
            findings.add("record-broken", split, where, None, None, detail)
            continue
        names[category] = name.strip()
        group = record.get("supercategory")
        groups[category] = group if isinstance(group, str) else ""
    return dict(sorted(names.items())), groups


def _images(
    records: list[dict[str, Any]], where: str, split: str, findings: Findings
) -> tuple[list[int | str], list[str], np.ndarray]:
    """Ids, file names and declared sizes; entries that cannot be used are reported."""
    ids: list[int | str] = []
    files: list[str] = []
    sizes: list[tuple[Any, Any]] = []
    texts = 0
    for i, record in enumerate(records):
        image_id, file = record.get("id"), record.get("file_name")
        if isinstance(image_id, float) and image_id.is_integer():
            image_id = int(image_id)
        if isinstance(image_id, bool) or not isinstance(image_id, int | str):
            detail = f"images[{i}] has the id {_short(image_id)}"
            findings.add("record-broken", split, where, None, None, detail)
            continue
        if not isinstance(file, str) or not file:
            detail = f"file_name is {_short(file)}"
            findings.add("record-broken", split, where, image_id, None, detail)
            continue
        if isinstance(image_id, int) and not -(2**63) <= image_id < 2**63:
            image_id = str(image_id)
        texts += isinstance(image_id, str)
        ids.append(image_id)
        files.append(file)
        sizes.append((record.get("height"), record.get("width")))
    if texts:
        first = next(value for value in ids if isinstance(value, str))
        detail = f"such as {_short(first)}"
        findings.extend("image-id-text", texts, [Finding("image-id-text", split, where, first,
                                                          None, detail)])  # fmt: skip
    ids, files, sizes = _distinct(ids, files, sizes, where, split, findings)
    return ids, files, _declared(sizes, ids, files, split, findings)


def _distinct(
    ids: list[int | str],
    files: list[str],
    sizes: list[tuple[Any, Any]],
    where: str,
    split: str,
    findings: Findings,
) -> tuple[list[int | str], list[str], list[tuple[Any, Any]]]:
    """One entry an id: repeated entries once, and none of an id that several files claim."""
    first: dict[int | str, int] = {}
    ambiguous: dict[int | str, list[str]] = {}
    for i, image_id in enumerate(ids):
        if image_id not in first:
            first[image_id] = i
        elif files[i] == files[first[image_id]]:
            findings.add("image-repeated", split, where, image_id, None, files[i])
        else:
            ambiguous.setdefault(image_id, [files[first[image_id]]]).append(files[i])
    if len(first) == len(ids):
        return ids, files, sizes
    for image_id, names in ambiguous.items():
        detail = ", ".join(islice(names, 4))
        findings.add("image-id-duplicate", split, where, image_id, None, detail)
    keep = [i for image_id, i in first.items() if image_id not in ambiguous]
    return [ids[i] for i in keep], [files[i] for i in keep], [sizes[i] for i in keep]


def _declared(
    sizes: list[tuple[Any, Any]],
    ids: list[int | str],
    files: list[str],
    split: str,
    findings: Findings,
) -> np.ndarray:
    """(N, 2) int64 (height, width), 0 where nothing usable is declared."""
    heights, height_state = integers([height for height, _ in sizes])
    widths, width_state = integers([width for _, width in sizes])
    declared = np.stack([heights, widths], axis=1).reshape(-1, 2)
    odd = (np.maximum(height_state, width_state) > 0) | (declared <= 0).any(axis=1)
    odd |= (declared > 10_000_000).any(axis=1)
    for i in np.flatnonzero(odd).tolist():
        missing = sizes[i] == (None, None)
        usable = height_state[i] <= 1 and width_state[i] <= 1 and (declared[i] > 0).all()
        usable = usable and (declared[i] <= 10_000_000).all()
        if not usable:
            declared[i] = 0
        if not missing:
            detail = f"height {_short(sizes[i][0])}, width {_short(sizes[i][1])}"
            rule = "value-text" if usable else "record-broken"
            findings.add(rule, split, files[i], ids[i], None, detail)
    return declared


def _annotations(
    records: list[dict[str, Any]],
    image_ids: list[int | str],
    files: list[str],
    where: str,
    split: str,
    findings: Findings,
) -> dict[str, Any]:
    """The annotation columns of a ``RawSplit``; entries that cannot be used are reported."""
    ids, _ = integers(_column(records, "id", -1), default=-1)
    owners, texts = _owners(_column(records, "image_id"), image_ids)
    values = _column(records, "bbox")
    boxes, box_state = boxes_column(values)
    categories = _column(records, "category_id")
    category_ids, category_state = integers(categories)
    crowd, _ = integers(_column(records, "iscrowd", 0))
    areas = numbers(_column(records, "area"))

    broken = (box_state == 2) | (category_state == 2)

    def report(rule: str, mask: np.ndarray, detail: Any) -> None:
        rows = np.flatnonzero(mask)
        findings.extend(rule, len(rows), _found(rule, rows, detail))

    def _found(rule: str, rows: np.ndarray, detail: Any) -> Iterable[Finding]:
        for row in rows.tolist():
            owner = int(owners[row])
            yield Finding(
                rule,
                split,
                files[owner] if owner >= 0 else where,
                image_ids[owner] if owner >= 0 else None,
                int(ids[row]) if ids[row] >= 0 else f"annotations[{row}]",
                detail(row),
            )

    report("record-broken", box_state == 2, lambda row: f"bbox is {_short(values[row])}")
    report("record-broken", (category_state == 2) & (box_state != 2),
           lambda row: f"category_id is {_short(categories[row])}")  # fmt: skip
    report("value-text", (box_state == 1) & ~broken, lambda row: f"bbox is {_short(values[row])}")
    report("value-text", (category_state == 1) & ~broken,
           lambda row: f"category_id is {_short(categories[row])}")  # fmt: skip
    report("value-text", texts & ~broken,
           lambda row: f"image_id is {_short(records[row].get('image_id'))}")  # fmt: skip
    report("image-unknown", (owners < 0) & ~broken,
           lambda row: f"image_id is {_short(records[row].get('image_id'))}")  # fmt: skip
    duplicates = _repeated(ids)
    report(
        "annotation-id-duplicate", duplicates, lambda row: f"id {_short(records[row].get('id'))}"
    )

    keep = ~broken
    return {
        "owners": owners[keep],
        "boxes": boxes[keep],
        "category_ids": category_ids[keep],
        "crowd": crowd[keep] == 1,
        "areas": areas[keep],
        "annotation_ids": ids[keep],
    }


def _extras(records: list[dict[str, Any]]) -> dict[str, int]:
    """What annotations carry beside boxes, and how many do."""
    present = set().union(*records)
    keys = [key for key in ("segmentation", "keypoints", "caption", "attributes") if key in present]
    counts = {key: sum(map(bool, _column(records, key))) for key in keys}
    return {key: count for key, count in counts.items() if count}


def _column(records: list[dict[str, Any]], key: str, default: Any = None) -> list[Any]:
    try:
        return list(map(itemgetter(key), records))
    except KeyError:
        return [record.get(key, default) for record in records]


def _repeated(ids: np.ndarray) -> np.ndarray:
    """Which ids are missing or have been seen before."""
    repeated = np.ones(len(ids), dtype=bool)
    repeated[np.unique(ids, return_index=True)[1]] = False
    return repeated | (ids < 0)


def _owners(values: list[Any], image_ids: list[int | str]) -> tuple[np.ndarray, np.ndarray]:
    """Position of each annotation's image, -1 if unlisted; and where text had to be read."""
    if image_ids and set(map(type, values)) <= {int} and set(map(type, image_ids)) <= {int}:
        ids = np.array(image_ids, dtype=np.int64)
        order = np.argsort(ids)
        try:
            wanted = np.array(values, dtype=np.int64)
        except OverflowError:
            pass
        else:
            slots = np.searchsorted(ids[order], wanted).clip(max=len(ids) - 1)
            owners = order[slots]
            return np.where(ids[owners] == wanted, owners, -1), np.zeros(len(values), dtype=bool)
    position: dict[Any, int] = {image_id: i for i, image_id in enumerate(image_ids)}
    texts = np.zeros(len(values), dtype=bool)
    try:
        owners = np.fromiter(
            (position.get(value, -1) for value in values), dtype=np.int64, count=len(values)
        )
    except TypeError:  # a list or an object as an id
        values = [value if isinstance(value, int | str | float) else None for value in values]
        owners = np.fromiter(
            (position.get(value, -1) for value in values), dtype=np.int64, count=len(values)
        )
    for row in np.flatnonzero(owners < 0).tolist():
        number, text = integer(values[row])
        for candidate in (number, str(values[row])):
            if candidate in position and not isinstance(values[row], bool):
                owners[row], texts[row] = position[candidate], text or candidate != number
                break
    return owners, texts
