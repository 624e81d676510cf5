"""Another tool's detections in COCO json: read strictly, so that they are judged correctly.

A wrong convention does not fail by itself: it gives a low AP that looks like a bad detector.
So every record is checked, and the whole is held against the ground truth under the usual
misreadings; where one of them fits far better, that is an error with the remedy in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TextIO

import numpy as np

from detrlab.errors import UserError
from detrlab.evaluation.analysis import box_overlaps
from detrlab.evaluation.coco import as_ground_truth
from detrlab.evaluation.records import Detected, Floats, GroundTruth, Ints

if TYPE_CHECKING:
    from detrlab.data.table import Table

Categories = Literal["ids", "from-0", "from-1"]
"""How ``category_id`` is meant: the data set's own id, or a position counted from 0 or 1."""

_CHUNK = 1 << 20  # characters read at a time
_LONGEST_RECORD = 1 << 24
_SHAPE = '{"image_id": 7, "category_id": 1, "bbox": [x, y, width, height], "score": 0.9}'


class Foreign(NamedTuple):
    """Another tool's detections, ready to be judged.

    Attributes:
        detected: the detections; pass them to ``Evaluator.extend`` or ``analyse``.
        notes: what a person should know about how the file was read.
    """

    detected: Detected
    notes: tuple[str, ...]


def load_predictions(
    path: str | Path,
    ground_truth: dict[str, Any] | Table | GroundTruth,
    *,
    categories: Categories = "ids",
    trust: bool = False,
) -> Foreign:
    """Read COCO result records: a list of image_id, category_id, bbox (xywh pixels), score.

    Image ids may also be file names or their stems, as YOLO tools write them. The file is read
    piece by piece, so its size does not matter.

    Args:
        path: the json file.
        ground_truth: what it is to be judged against.
        categories: how ``category_id`` is meant.
        trust: do not hold the boxes and classes against the ground truth.

    Raises:
        UserError: the file or a record is broken, an id is unknown, or the numbers fit the
            ground truth far better under another convention; the message holds the remedy.
    """
    truth = as_ground_truth(ground_truth)
    columns = _Columns()
    with _open(Path(path)) as file:
        for number, record in enumerate(_records(file, path), start=1):
            columns.add(record, f"{path}, record {number}")
    images, notes = _image_indices(columns.image_ids, truth, path)
    labels = _labels(columns.category_ids, truth, categories, path)
    detected = Detected.join([columns.detected(images, labels)])
    if not trust:
        _check_pixels(detected, truth, path)
        _check_reading(detected, truth, categories, path)
    return Foreign(detected, (*notes, *_notes(detected, truth)))


class _Columns:
    """Records as they come, checked one by one."""

    def __init__(self) -> None:
        self.image_ids: dict[Any, int] = {}
        self.category_ids: dict[int, int] = {}
        self._images: list[int] = []
        self._categories: list[int] = []
        self._numbers: list[tuple[float, ...]] = []
        self._parts: list[tuple[Ints, Ints, Floats]] = []

    def add(self, record: Any, where: str) -> None:
        try:
            image_id, category_id = record["image_id"], record["category_id"]
            numbers = (*record["bbox"], record["score"])
        except (TypeError, KeyError):
            raise UserError(f"{where}: {_what_is_missing(record)}") from None
        mistake = _mistake(image_id, category_id, numbers)
        if mistake:
            raise UserError(f"{where}: {mistake}")
        self._images.append(self.image_ids.setdefault(image_id, len(self.image_ids)))
        self._categories.append(
            self.category_ids.setdefault(int(category_id), len(self.category_ids))
        )
        self._numbers.append(numbers)
        if len(self._numbers) == 100_000:
            self._pack()

    def detected(self, images: Ints, labels: Ints) -> Detected:
        """The table, with each id replaced by the index found for it."""
        self._pack()
        image = np.concatenate([part[0] for part in self._parts])
        category = np.concatenate([part[1] for part in self._parts])
        numbers = np.concatenate([part[2] for part in self._parts])
        return Detected(images[image], labels[category], numbers[:, :4].copy(), numbers[:, 4])

    def _pack(self) -> None:
        """Move the rows gathered so far into arrays, a tenth of the size."""
        self._parts.append(
            (
                np.array(self._images, dtype=np.int64),
                np.array(self._categories, dtype=np.int64),
                np.array(self._numbers, dtype=np.float64).reshape(-1, 5),
            )
        )
        self._images, self._categories, self._numbers = [], [], []


def _open(path: Path) -> TextIO:
    try:
        return path.open(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _records(file: TextIO, path: str | Path) -> Iterator[Any]:
    """The members of a json list, one at a time."""
    decoder = json.JSONDecoder()
    text = _read(file, path)
    start = text.lstrip()[:1]
    if start != "[":
        kind = "an object" if start == "{" else "no json list"
        raise UserError(
            f"{path} holds {kind}; COCO results are a list of records like {_SHAPE} "
            "(from a data set file, take the list of its annotations that carry scores)"
        )
    at = text.index("[") + 1
    while True:
        at = _skip(text, at)
        if at < len(text) and text[at] == "]":
            return
        try:
            record, at = decoder.raw_decode(text, at)
            # A bare number may go on in the next piece; a record ends with its bracket.
            if isinstance(record, int | float) and at == len(text):
                raise json.JSONDecodeError("", text, at)
        except json.JSONDecodeError as error:
            more = _read(file, path)
            if not more or len(text) - at > _LONGEST_RECORD:
                raise UserError(
                    f"{path} is broken json after {text[max(0, at - 30) : at + 30]!r} "
                    f"({error.msg or 'it ends too early'}): was it written to the end?"
                ) from None
            text, at = text[at:] + more, 0
            continue
        yield record


def _read(file: TextIO, path: str | Path) -> str:
    try:
        return file.read(_CHUNK)
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text: it should be COCO json") from None


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n,":
        at += 1
    return at


def _what_is_missing(record: Any) -> str:
    if not isinstance(record, dict):
        return f"{record!r:.60} is no record; it should look like {_SHAPE}"
    missing = [key for key in ("image_id", "category_id", "bbox", "score") if key not in record]
    if missing == ["bbox"] and "segmentation" in record:
        return "it has a segmentation but no bbox: detrlab judges boxes"
    if missing:
        return f"it has no {', '.join(missing)}; a record should look like {_SHAPE}"
    return f"bbox {record['bbox']!r:.60} should be four numbers [x, y, width, height]"


def _mistake(image_id: Any, category_id: Any, numbers: tuple[Any, ...]) -> str | None:
    """What is wrong with the values of one record; None when nothing is."""
    *box, score = numbers
    if type(image_id) not in (int, str, float):
        return f"image_id {image_id!r:.60} should be a number or a text"
    if not _is_number(category_id) or category_id != int(category_id):
        return f"category_id {category_id!r:.60} should be a whole number, the category's id"
    if len(box) != 4 or not all(map(_is_number, box)):
        return f"bbox {box!r:.80} should be four finite numbers [x, y, width, height]"
    if not _is_number(score):
        return f"score {score!r:.60} should be a finite number"
    if box[2] < 0 or box[3] < 0:
        return (
            f"bbox {box!r:.80} has a negative width or height: it should be [x, y, width, height]"
        )
    return None


def _is_number(value: Any) -> bool:
    """A finite number; True and False are none."""
    return type(value) in (int, float) and abs(value) < float("inf")


def _image_indices(
    ids: dict[Any, int], truth: GroundTruth, path: str | Path
) -> tuple[Ints, tuple[str, ...]]:
    """Index of each image id, read as an id or, failing that, as a file name."""
    readings: tuple[tuple[str, Callable[[Any], int | None]], ...] = (
        ("", lambda identity: truth.image_index.get(identity)),
        *_other_image_readings(truth),
    )
    for note, reading in readings:
        indices = [reading(identity) for identity in ids]
        if None not in indices:
            return np.array(indices, dtype=np.int64), (note,) if note else ()
    unknown = [identity for identity in ids if identity not in truth.image_index]
    examples = ", ".join(repr(identity) for identity in unknown[:3])
    known = ", ".join(repr(identity) for identity in truth.image_ids[:3])
    raise UserError(
        f"{path}: {len(unknown)} of {len(ids)} image ids are not in the ground truth, such as "
        f"{examples} (the ground truth has {known}, ...): were these predictions made on other "
        "images or another split?"
    )


def _other_image_readings(
    truth: GroundTruth,
) -> Iterator[tuple[str, Callable[[Any], int | None]]]:
    by_text = _unique({str(identity): i for identity, i in truth.image_index.items()}.items())
    yield "image ids were read as text", lambda identity: by_text.get(str(identity))
    names = list(enumerate(truth.file_names))
    for what, key in (
        ("file names", lambda name: name),
        ("file names", lambda name: PurePosixPath(name.replace("\\", "/")).name),
        ("file names without their ending", lambda name: _stem(name)),
    ):
        index = _unique((key(name), i) for i, name in names if name)
        yield (
            f"image ids were read as {what}",
            lambda identity, index=index, key=key: index.get(key(str(identity))),  # type: ignore[misc]
        )
    numbers = _unique((int(_stem(name)), i) for i, name in names if _stem(name).isdecimal())
    yield "image ids were read as the numbers in the file names", numbers.get


def _stem(name: str) -> str:
    base = PurePosixPath(name.replace("\\", "/")).name
    return base.rsplit(".", 1)[0] if PurePosixPath(base).suffix[1:].isalpha() else base


def _unique(pairs: Any) -> dict[Any, int]:
    """A dict of those keys that stand for one image only."""
    found: dict[Any, int] = {}
    doubled = set()
    for key, index in pairs:
        if key in found:
            doubled.add(key)
        found[key] = index
    return {key: index for key, index in found.items() if key not in doubled}


def _labels(
    ids: dict[int, int], truth: GroundTruth, categories: Categories, path: str | Path
) -> Ints:
    """Class index of each category id."""
    known = _category_reading(truth, categories)
    unknown = sorted(identity for identity in ids if identity not in known)
    if not unknown:
        return np.array([known[identity] for identity in ids], dtype=np.int64)
    advice = ""
    for other in ("ids", "from-1", "from-0"):
        if other != categories and all(
            identity in _category_reading(truth, other) for identity in ids
        ):
            advice = f"; they would all fit if read {_explain_categories(other)}"
            break
    raise UserError(
        f"{path}: category_id {_few(unknown)} {'is' if len(unknown) == 1 else 'are'} unknown; "
        f"the file uses {_few(sorted(ids))}, the ground truth has {_few(sorted(known))}{advice}"
    )


def _category_reading(truth: GroundTruth, categories: str) -> dict[int, int]:
    if categories == "ids":
        return truth.label_index
    first = {"from-0": 0, "from-1": 1}.get(categories)
    if first is None:
        raise UserError(f"categories {categories!r} is unknown: use 'ids', 'from-0' or 'from-1'")
    return {first + index: index for index in range(truth.num_classes)}


def _explain_categories(categories: str) -> str:
    meaning = {
        "ids": "as the data set's own ids",
        "from-0": "as positions in the list of classes, counted from 0",
        "from-1": "as positions in the list of classes, counted from 1",
    }[categories]
    return f"{meaning} (categories={categories!r}, --categories {categories})"


def _few(values: list[int]) -> str:
    shown = [str(value) for value in values[:6]]
    return ", ".join(shown) + (", ..." if len(values) > 6 else "")


def _check_pixels(detected: Detected, truth: GroundTruth, path: str | Path) -> None:
    if len(detected) and detected.boxes.max() <= 1.5 and truth.boxes.max(initial=0.0) > 15:
        raise UserError(
            f"{path}: no box reaches beyond {detected.boxes.max():.3g}: these look like fractions "
            "of the image; multiply x and width by the image's width, y and height by its height"
        )


def _check_reading(
    detected: Detected, truth: GroundTruth, categories: Categories, path: str | Path
) -> None:
    """Refuse when the objects are found far more often under another convention."""
    sample = _sample(detected, truth)
    objects = np.flatnonzero(~truth.crowd & np.isin(truth.image, sample.image))
    if len(objects) < 10:
        return
    as_read = _hits(sample, truth, objects)
    for remedy, other in _misreadings(sample, truth, categories):
        hits = _hits(other, truth, objects)
        if hits > 2 * as_read + 0.1 * len(objects):
            raise UserError(
                f"{path}: of {len(objects)} objects, the best detections find {as_read} as they "
                f"stand, but {hits} {remedy}. If the file is right as it is, load it with "
                "trust=True (--trust)"
            )


def _sample(detected: Detected, truth: GroundTruth, images: int = 500) -> Detected:
    """The best detections, two for each object, of up to so many images spread over the set."""
    with_objects = np.unique(truth.image[~truth.crowd])
    chosen = with_objects[:: max(1, len(with_objects) // images)]
    objects = np.bincount(truth.image[~truth.crowd], minlength=truth.num_images)
    mine = detected.select(np.isin(detected.image, chosen))
    order = np.lexsort((-mine.score, mine.image))
    first = np.searchsorted(mine.image[order], mine.image[order])
    rank = np.arange(len(order)) - first
    return mine.select(order[rank < 2 * objects[mine.image[order]]])


def _hits(detected: Detected, truth: GroundTruth, objects: Ints) -> int:
    """How many objects some detection of their class overlaps by half."""
    hits = 0
    rows = objects[np.argsort(truth.image[objects], kind="stable")]
    for i in np.unique(truth.image[rows]).tolist():
        mine = rows[slice(*np.searchsorted(truth.image[rows], [i, i + 1]))]
        theirs = slice(*np.searchsorted(detected.image, [i, i + 1]))
        overlaps = box_overlaps(truth.boxes[mine], detected.boxes[theirs])
        same = truth.label[mine][:, None] == detected.label[theirs][None]
        hits += int(((overlaps >= 0.5) & same).any(axis=1).sum())
    return hits


def _misreadings(
    detected: Detected, truth: GroundTruth, categories: Categories
) -> Iterator[tuple[str, Detected]]:
    """What the file may really hold, each with the words for the remedy."""
    boxes = detected.boxes
    corner, rest = boxes[:, :2], boxes[:, 2:]

    def with_boxes(new: Floats) -> Detected:
        return Detected(detected.image, detected.label, new, detected.score)

    if (rest > corner).mean() > 0.9:
        yield (
            "if bbox is [x1, y1, x2, y2]: write [x1, y1, x2 - x1, y2 - y1]",
            with_boxes(np.hstack([corner, np.clip(rest - corner, 0, None)])),
        )
    yield (
        "if bbox is [center x, center y, width, height]: subtract half the size",
        with_boxes(np.hstack([corner - rest / 2, rest])),
    )
    yield (
        "if bbox is [y, x, height, width]: swap x with y and width with height",
        with_boxes(boxes[:, [1, 0, 3, 2]]),
    )
    raw = np.array(list(_category_reading(truth, categories)))[detected.label]
    for other in ("ids", "from-0", "from-1"):
        reading = _category_reading(truth, other)
        if other != categories and np.isin(raw, list(reading)).all():
            labels = np.array([reading[identity] for identity in raw.tolist()], dtype=np.int64)
            yield (
                f"if category_id is read {_explain_categories(other)}",
                Detected(detected.image, labels, boxes, detected.score),
            )


def _notes(detected: Detected, truth: GroundTruth) -> Iterator[str]:
    if not len(detected):
        yield "the file holds no detections: every metric is 0"
        return
    silent = truth.num_images - len(np.unique(detected.image))
    if silent:
        yield f"{silent} of {truth.num_images} images have no detections"
    if detected.score.min() < 0 or detected.score.max() > 1:
        yield (
            f"scores range from {detected.score.min():.3g} to {detected.score.max():.3g}: AP only "
            "needs their order, but calibration and thresholds mean little"
        )
    doubled = _doubled(detected)
    if doubled:
        yield f"{doubled} detections stand in the file more than once; all of them count"
    pairs = np.unique(detected.image * truth.num_classes + detected.label, return_counts=True)[1]
    if pairs.max() > 100:
        yield "of each class in an image, only the 100 best detections count"


def _doubled(detected: Detected) -> int:
    """How many detections are equal to an earlier one in everything."""
    columns = [*detected.boxes.T, detected.label, detected.score, detected.image]
    order = np.lexsort(columns)
    same = np.ones(max(0, len(order) - 1), dtype=bool)
    for column in columns:
        same &= column[order][1:] == column[order][:-1]
    return int(same.sum())
