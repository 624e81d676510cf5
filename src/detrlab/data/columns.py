"""Data sets whose rows hold an image and a column of objects, as on the Hugging Face Hub.

The column has many spellings, and its boxes several meanings: both are recognised and said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from detrlab.errors import UserError, excerpt

BOX_FORMATS = ("xywh", "xyxy", "cxcywh")

_OBJECTS = ("objects", "annotations", "annotation", "faces", "labels")
_BOXES = ("bbox", "bboxes", "boxes", "box")
_CATEGORIES = (
    "category", "categories", "category_id", "category_ids", "label", "labels", "class",
    "classes", "class_label", "class_id", "id_category", "name", "names",
)  # fmt: skip
_FITTING = 0.99
"""Share of the boxes that must lie inside their images for a format to fit."""


class Columns:
    """Collects the rows of a split, and gives them as a COCO document.

    Args:
        where: names the data in messages.
        boxes: how boxes are meant, one of ``BOX_FORMATS``; None recognises it.
    """

    def __init__(self, where: str, boxes: str | None = None) -> None:
        if boxes is not None and boxes not in BOX_FORMATS:
            raise UserError(f"{where}: boxes={boxes!r} should be one of {', '.join(BOX_FORMATS)}")
        self.where = where
        self._format = boxes
        self._images: list[dict[str, Any]] = []
        self._boxes: list[Sequence[float]] = []
        self._owners: list[int] = []
        self._categories: list[Any] = []
        self._keys: tuple[str, str, str] | None = None

    def add(self, file: str, size: tuple[int, int], row: Mapping[str, Any]) -> None:
        """Take a row.

        Args:
            file: of its image.
            size: (height, width) of the image; zeros where it cannot be read.
            row: the other columns.

        Raises:
            UserError: no column of objects is recognised.
        """
        number = len(self._images) + 1
        self._images.append({"id": number, "file_name": file, "height": size[0], "width": size[1]})
        column, box_key, category_key = self._keys = self._keys or self._recognise(row)
        objects = row if not column else row.get(column)
        if isinstance(objects, Mapping):
            boxes, categories = objects.get(box_key) or [], objects.get(category_key) or []
        else:
            if objects is not None and not _is_list(objects):
                raise UserError(
                    f"{self.where}: {file} has {excerpt(objects)} as {column}: it should be a list"
                )
            entries = [each for each in objects or [] if isinstance(each, Mapping)]
            boxes = [each.get(box_key) for each in entries]
            categories = [each.get(category_key) for each in entries]
        if not (_is_list(boxes) and _is_list(categories)):
            raise UserError(
                f"{self.where}: {file} has {excerpt(boxes)} as boxes and {excerpt(categories)} as "
                "categories: both should be lists"
            )
        if len(boxes) != len(categories):
            raise UserError(
                f"{self.where}: {file} has {len(boxes)} boxes and {len(categories)} categories: "
                "give one category for each box"
            )
        for box, category in zip(boxes, categories, strict=True):
            self._boxes.append(_four_numbers(box))
            self._owners.append(number)
            self._categories.append(category)

    def _recognise(self, row: Mapping[str, Any]) -> tuple[str, str, str]:
        """The column of objects ("" for the row itself), and the keys of boxes and categories."""
        places = [(name, row.get(name)) for name in _OBJECTS if name in row] + [("", row)]
        for column, objects in places:
            example: Any = objects
            if isinstance(objects, Sequence) and objects and not isinstance(objects, str):
                example = objects[0]
            if isinstance(example, Mapping):
                box = next((key for key in _BOXES if key in example), None)
                category = next((key for key in _CATEGORIES if key in example), None)
                if box and category:
                    return column, box, category
            elif objects == [] and column:
                return column, _BOXES[0], _CATEGORIES[0]
        raise UserError(
            f"{self.where}: no column of objects is recognised among {', '.join(row)}; wanted is "
            "'objects' with 'bbox' and 'category'"
        )

    def document(self, names: Sequence[str] | None = None) -> tuple[dict[str, Any], str]:
        """The rows as a COCO document, and one sentence about how they were read.

        Args:
            names: of the classes, where categories are numbers and the data declares them.

        Raises:
            UserError: there are no boxes, or their format cannot be told.
        """
        if not self._boxes or self._keys is None:
            raise UserError(f"{self.where} holds no boxes")
        boxes = np.array(self._boxes, dtype=np.float64)
        sizes = np.array([(each["height"], each["width"]) for each in self._images])
        sides = sizes[np.array(self._owners) - 1][:, ::-1]
        known = (sides > 0).all(1) & np.isfinite(boxes).all(1)
        kind, fractions, share = recognise(boxes[known], sides[known], self._format, self.where)
        boxes = to_xywh(boxes * (np.tile(sides, 2) if fractions else 1), kind)
        numbers, classes, told = _classes(self._categories, names, self.where)
        records = zip(self._owners, numbers, boxes.tolist(), strict=True)
        document = {
            "images": self._images,
            "annotations": [
                {"id": i, "image_id": owner, "category_id": category, "bbox": box}
                for i, (owner, category, box) in enumerate(records, start=1)
            ],
            "categories": [{"id": i, "name": name} for i, name in enumerate(classes)],
        }
        column, box_key, category_key = self._keys
        path = f"{column}.{box_key}" if column else box_key
        unit = "fractions of the image" if fractions else "pixels"
        how = "as given" if self._format else f"{share:.1%} of the boxes fit"
        note = f"{path} is read as {kind} in {unit} ({how}), {category_key} as {told}"
        return document, note


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes)


def _four_numbers(box: Any) -> list[float]:
    """A box as floats; NaN, which is counted and left out, for anything else."""
    if _is_list(box) and len(box) == 4:
        with suppress(TypeError, ValueError, OverflowError):
            return [float(side) for side in box]
    return [np.nan] * 4


def to_xywh(boxes: np.ndarray, kind: str) -> np.ndarray:
    """(N, 4) boxes of one of ``BOX_FORMATS`` as left, top, width, height."""
    first, second = boxes[:, :2], boxes[:, 2:]
    if kind == "xyxy":
        return np.hstack([first, second - first])
    return np.hstack([first - second / 2, second]) if kind == "cxcywh" else boxes


def recognise(
    boxes: np.ndarray, sides: np.ndarray, given: str | None, where: str
) -> tuple[str, bool, float]:
    """The format of boxes, whether they are fractions of the image, and the share that fits.

    Both COCO's format and corners may fit: COCO's is taken then, as the Hub's own guide has it.

    Args:
        boxes: (N, 4), finite.
        sides: (N, 2) width and height of the image of each box.
        given: what the user said; only the unit is recognised then.
        where: for messages.

    Raises:
        UserError: no format fits.
    """
    fractions = bool(len(boxes)) and float((boxes.max(1) <= 1.01).mean()) >= _FITTING
    extent = np.ones_like(sides) if fractions else sides
    shares = {}
    for kind in BOX_FORMATS if given is None else (given,):
        box = to_xywh(boxes, kind)
        slack = 0.01 * extent + (0 if fractions else 1)
        inside = (box[:, :2] >= -slack) & (box[:, :2] + box[:, 2:] <= extent + slack)
        shares[kind] = float((inside & (box[:, 2:] > 0)).all(1).mean()) if len(boxes) else 1.0
        if shares[kind] >= _FITTING or given:
            return kind, fractions, shares[kind]
    fits = ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items())
    raise UserError(
        f"{where}: it cannot be told how the boxes are meant (inside their images: {fits}); say "
        "it with ?boxes=xyxy behind the name, or xywh or cxcywh"
    )


def _classes(
    categories: Iterable[Any], names: Sequence[str] | None, where: str
) -> tuple[list[int], list[str], str]:
    """A number for each object, the classes by number, and how they were named."""
    values = list(categories)
    if all(isinstance(value, str) for value in values):
        classes = sorted(set(values))
        index = {name: i for i, name in enumerate(classes)}
        return [index[value] for value in values], classes, "class names"
    if not all(isinstance(value, int) and value >= 0 for value in values):
        odd = next(v for v in values if not isinstance(v, int) or v < 0)
        raise UserError(f"{where}: a category is {odd!r}, neither a name nor a number")
    count = max(values) + 1
    if names is not None and len(names) >= count:
        return values, list(names), "numbers of the declared names"
    if count > 100_000:
        raise UserError(f"{where}: a category is {count - 1}, too large for a class number")
    return values, [f"class {i}" for i in range(count)], "numbers without names"
