"""Reader of COCO's JSON format."""

from __future__ import annotations

import gc
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import chain, islice
from operator import itemgetter
from typing import IO, Any, NamedTuple

import numpy as np

from detrlab.data.findings import Finding, Findings
from detrlab.data.locate import locate_images
from detrlab.data.pieces import Pieces, in_pieces
from detrlab.data.raw import RawSplit
from detrlab.data.store import Store
from detrlab.errors import UserError, excerpt

OTHER_TASKS = re.compile(r"captions|keypoints|panoptic|stuff|image_info|densepose", re.I)
"""Names of the official files that are for other tasks than detection."""

LARGE = 50_000_000
"""Bytes from which a file is read in pieces."""
MAX_JSON = 64 << 30
"""Bytes of the largest file that is read."""

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
    try:
        with _without_collector(), store.open(name, MAX_JSON) as stream:
            document = _read_json(stream, str(store.root / name))
            if isinstance(document, dict) and {"images", "annotations"} <= document.keys():
                return from_document(document, store, name, split)
    except OSError as error:
        raise UserError(f"{store.root / name} cannot be read: {error.strerror}") from None
    if not required:
        return None
    raise UserError(
        f"{store.root / name} is not in COCO's format: it should hold an object with "
        "'images', 'annotations' and 'categories'"
    )


def from_document(document: dict[str, Any], store: Store, name: str, split: str) -> RawSplit:
    """The contents of an annotation file, as ``read_coco``; the document is emptied.

    Raises:
        UserError: a part is no list, or no categories are declared.
    """
    reader = _Reader(store, name, split)
    images = reader.pieces(document.pop("images"), "images")
    annotations = reader.pieces(document.pop("annotations"), "annotations")
    categories, groups = reader.categories(document.get("categories") or [])
    image_ids, files, declared = reader.images(images)
    columns, extras = reader.annotations(annotations, image_ids, files)
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
        extras=extras,
        licences=_licences(document.get("licenses")),
        **columns,
    )


def _read_json(stream: IO[bytes], where: str) -> Any:
    """The document; the lists of images and annotations of a large one are ``Pieces``."""
    # From pydantic, which is a dependency anyway: several times faster than the standard library
    # on documents of hundreds of megabytes, and bounded in depth.
    from pydantic_core import from_json

    def parse(text: bytes, start: int = 0) -> Any:
        try:
            return from_json(text.removeprefix(b"\xef\xbb\xbf"))
        except (ValueError, RecursionError, MemoryError, OverflowError) as error:
            reason = str(error) or type(error).__name__
            raise broken(reason + f", counted from byte {start:,}" * bool(start)) from None

    def broken(reason: str) -> UserError:
        return UserError(f"{where} is not valid JSON ({reason}): export it again")

    if stream.seek(0, io.SEEK_END) >= LARGE:
        try:
            return in_pieces(stream, ("images", "annotations"), parse)
        except ValueError as error:
            raise broken(str(error)) from None
    stream.seek(0)
    text = stream.read()
    if not text.removeprefix(b"\xef\xbb\xbf").strip():
        raise broken("it is empty")
    return parse(text)


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

    def pieces(self, values: Any, key: str) -> _Lists:
        """The values of a list in one or several lists."""
        if isinstance(values, Pieces):
            return _Lists(values, values.count)
        if not isinstance(values, list):
            found = type(values).__name__
            raise UserError(f"{self.where}: {key!r} should be a list, not {found}")
        return _Lists([values], len(values))

    def records(self, pieces: _Lists, key: str) -> Iterator[list[dict[str, Any]]]:
        """The objects among the values; others are findings."""
        before = 0
        for values in pieces.lists:
            records = _objects(values)
            for i, value in enumerate(values if len(records) < len(values) else (), before):
                if not isinstance(value, dict):
                    self._add("record-broken", f"{key}[{i}] is {excerpt(value)}, not an object")
            before += len(values)
            yield records

    def categories(self, values: Any) -> tuple[dict[int, str], dict[int, str]]:
        """Names and supercategories by id, in the order of the ids."""
        names: dict[int, str] = {}
        groups: dict[int, str] = {}
        pieces = self.pieces(values, "categories")
        for record in chain.from_iterable(self.records(pieces, "categories")):
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

    def images(self, pieces: _Lists) -> tuple[list[int | str], list[str], np.ndarray]:
        """Ids, file names and declared sizes."""
        found: dict[int | str, tuple[str, Any, Any]] = {}
        ambiguous = set()
        for i, record in enumerate(chain.from_iterable(self.records(pieces, "images"))):
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
        self, pieces: _Lists, image_ids: list[int | str], files: list[str]
    ) -> tuple[dict[str, Any], dict[str, int]]:
        """The annotation columns of a ``RawSplit``, and its extras."""
        owners = _Owners(image_ids)

        def finding(rule: str, key: str, row: int, record: dict[str, Any]) -> Finding:
            owner, number = owners([record.get("image_id")])[0][0], _number(record.get("id"), True)
            file, image = (files[owner], image_ids[owner]) if owner >= 0 else (self.where, None)
            known = number[0] is not None and number[0] >= 0
            place = number[0] if known else f"annotations[{row}]"
            detail = f"{key} is {excerpt(record.get(key))}"
            return Finding(rule, self.split, file, image, place, detail)

        extras: Counter[str] = Counter()
        table: dict[str, np.ndarray] = {}
        before = 0
        for records in self.records(pieces, "annotations"):
            columns, found = _columns(records, owners)
            for rule, key, mask in found:
                rows = np.flatnonzero(mask).tolist()
                listed = (finding(rule, key, before + row, records[row]) for row in rows)
                self.findings.extend(rule, len(rows), listed)
            for name, column in columns.items():
                if name not in table:  # of the final size: parts of it would leave holes in memory
                    table[name] = np.empty((pieces.most, *column.shape[1:]), column.dtype)
                table[name][before : before + len(column)] = column
            extras.update(_extras(records))
            before += len(records)
        table = {name: column[:before] for name, column in table.items()}
        ids, keep = table["annotation_ids"], table.pop("keep")
        repeated = ids < 0
        if not (ids[1:] > ids[:-1]).all():
            again = np.ones(len(ids), dtype=bool)
            again[np.unique(ids, return_index=True)[1]] = False
            repeated |= again
        if repeated.any():
            listed = (
                finding("annotation-id-duplicate", "id", row, record)
                for row, record in enumerate(chain.from_iterable(map(_objects, pieces.lists)))
                if repeated[row]
            )
            count = int(repeated.sum())
            self.findings.extend("annotation-id-duplicate", count, islice(listed, count))
        if not keep.all():
            table = {name: column[keep] for name, column in table.items()}
        return table, {key: extras[key] for key in _EXTRAS if extras[key]}


class _Lists(NamedTuple):
    """A list in parts, which can be read again, and how many values it has at most."""

    lists: Iterable[list[Any]]
    most: int


def _objects(values: list[Any]) -> list[dict[str, Any]]:
    if set(map(type, values)) <= {dict}:
        return values
    return [value for value in values if isinstance(value, dict)]


def _columns(
    records: list[dict[str, Any]], owners: _Owners
) -> tuple[dict[str, np.ndarray], list[tuple[str, str, np.ndarray]]]:
    """Columns of annotations, and which break a rule: (rule, key, mask).

    The column ``keep`` tells which annotations can be used.
    """
    ids, _, _ = _column(_values(records, "id"), -1)
    owner, image_text = owners(_values(records, "image_id"))
    category_ids, category_broken, category_text = _column(_values(records, "category_id"), 0)
    boxes = _values(records, "bbox")
    lists = [v if isinstance(v, list) and len(v) == 4 else [None] * 4 for v in boxes]
    sides, *states = _column(list(chain.from_iterable(lists)), np.nan)
    box_broken, box_text = (state.reshape(-1, 4).any(1) for state in states)
    keep = ~(box_broken | category_broken)
    columns = {
        "keep": keep,
        "annotation_ids": ids,
        "owners": owner,
        "boxes": sides.reshape(-1, 4),
        "category_ids": category_ids,
        "crowd": _column(_values(records, "iscrowd"), 0)[0] == 1,
        "areas": _column(_values(records, "area"), np.nan)[0],
    }
    found = [
        ("record-broken", "bbox", box_broken),
        ("record-broken", "category_id", category_broken & ~box_broken),
        ("value-text", "bbox", keep & box_text),
        ("value-text", "category_id", keep & category_text),
        ("value-text", "image_id", keep & image_text),
        ("image-unknown", "image_id", keep & (owner < 0)),
    ]
    return columns, found


class _Owners:
    """Finds the images of annotations by their ids."""

    def __init__(self, image_ids: list[int | str]) -> None:
        self._position: dict[Any, int] = {image_id: i for i, image_id in enumerate(image_ids)}

    @cached_property
    def _as_text(self) -> dict[str, int]:
        return {str(image_id): i for image_id, i in self._position.items()}

    def __call__(self, values: list[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Position of each annotation's image, -1 if unlisted; whether only the text is equal."""
        position = self._position
        texts = np.zeros(len(values), dtype=bool)
        if not set(map(type, values)) <= {int, str, float}:
            values = [v if type(v) in (int, str, float) else None for v in values]
        owners = np.fromiter((position.get(v, -1) for v in values), np.int32, len(values))
        for row in np.flatnonzero(owners < 0).tolist():
            owners[row] = self._as_text.get(str(values[row]), -1)
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
    return {key: sum(map(bool, _values(records, key))) for key in _EXTRAS if key in present}


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
