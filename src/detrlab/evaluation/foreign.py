"""Read another tool's detections from COCO json, and check them before they are judged."""

from __future__ import annotations

import codecs
import reprlib
from collections import Counter
from collections.abc import Hashable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import (
    ConfigDict,
    FailFast,
    Field,
    FiniteFloat,
    TypeAdapter,
    ValidationError,
    with_config,
)  # fmt: skip
from typing_extensions import TypedDict

from detrlab import files
from detrlab.data.coco import LARGE
from detrlab.data.mapped import in_blocks
from detrlab.data.pieces import list_in_pieces
from detrlab.errors import UserError
from detrlab.evaluation.coco import as_ground_truth
from detrlab.evaluation.records import Detected, GroundTruth, ImageId, shortage

if TYPE_CHECKING:
    from detrlab.data.table import Table

Categories = Literal["ids", "from-0", "from-1"]
"""How ``category_id`` is meant: the data set's own id, or a position counted from 0 or 1."""

_Size = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@with_config(ConfigDict(strict=True))
class _Record(TypedDict):
    image_id: int | str
    category_id: int
    bbox: tuple[FiniteFloat, FiniteFloat, _Size, _Size]
    score: FiniteFloat


_RECORDS = TypeAdapter(Annotated[list[_Record], FailFast()])
BYTES = 150
"""Of memory for each detection that is read and judged."""
_SHAPE = '{"image_id": 7, "category_id": 1, "bbox": [x, y, width, height], "score": 0.9}'


class Foreign(NamedTuple):
    """Another tool's detections, for ``Evaluator.extend``, and notes on how they were read."""

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

    Image ids may also be file names or their stems, as YOLO tools write them.

    Args:
        path: the json file.
        ground_truth: the annotations that the detections will be compared with.
        categories: how ``category_id`` is meant.
        trust: do not check whether the boxes lie in their images.

    Raises:
        UserError: the file or a record is invalid, an id is unknown, or the boxes cannot be
            [x, y, width, height] in pixels of these images.
    """
    truth = as_ground_truth(ground_truth)
    image_ids: dict[ImageId, int] = {}
    category_ids: dict[int, int] = {}
    parts = []
    for records in _read(Path(path)):
        # Each id is a number of its own, in the order in which they appear.
        images = [image_ids.setdefault(each["image_id"], len(image_ids)) for each in records]
        labels = [category_ids.setdefault(r["category_id"], len(category_ids)) for r in records]
        parts.append(
            (
                np.array(images, dtype=np.int64),
                np.array(labels, dtype=np.int64),
                np.array([r["bbox"] for r in records], dtype=np.float64).reshape(-1, 4),
                np.array([record["score"] for record in records], dtype=np.float64),
            )
        )
    image, label, boxes, score = (np.concatenate(column) for column in zip(*parts, strict=True))
    del parts
    indices, note = _image_indices(dict.fromkeys(image_ids), truth, path)
    classes = _label_indices(set(category_ids), truth, categories, path)
    detected = Detected(
        image=np.array([indices[each] for each in image_ids], dtype=np.int64)[image],
        label=np.array([classes[each] for each in category_ids], dtype=np.int64)[label],
        boxes=boxes,
        score=score,
    )
    if (detected.image[1:] < detected.image[:-1]).any():
        detected = detected.select(np.argsort(detected.image, kind="stable"))
    if not trust:
        _check_boxes(detected, truth, path)
    return Foreign(detected, (*note, *_notes(detected, truth)))


def _read(path: Path) -> Iterator[list[_Record]]:
    """The records; of a large file, some at a time."""
    before = 0

    def parse(text: bytes, _start: int) -> list[_Record]:
        nonlocal before
        records = _checked(text, path, before)
        before += len(records)
        return records

    try:
        if path.is_file() and path.stat().st_size >= LARGE:
            with path.open("rb") as stream:
                _require_memory(path, stream)
                yield from list_in_pieces(stream, parse)
        else:
            yield parse(files.read_bytes(path).removeprefix(codecs.BOM_UTF8), 0)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(_no_results(path, str(error))) from None


def _require_memory(path: Path, stream: IO[bytes]) -> None:
    """Refuse a file that would not fit, before it is read: its beginning tells how many it has."""
    start = stream.read(1 << 20)
    count = start.count(b'"score"') * path.stat().st_size / max(len(start), 1)
    if missing := shortage(count, BYTES):
        raise UserError(
            f"{path} was not read: {missing}; split the data set, or write fewer detections (of "
            "each class in an image, only the 100 best count)"
        )


def _no_results(path: Path, reason: str) -> str:
    return f"{path} is no COCO results file, a json list of records like {_SHAPE}: {reason}"


def _checked(text: bytes, path: Path, before: int) -> list[_Record]:
    """The records of a list, of which ``before`` stand earlier in the file."""
    try:
        return _RECORDS.validate_json(text)
    except ValidationError as error:
        mistake = error.errors(include_url=False)[0]
    place = mistake["loc"]
    if not place:
        raise UserError(_no_results(path, mistake["msg"]))
    keys = ".".join(str(key) for key in place[1:] if key not in ("int", "str"))
    raise UserError(
        f"{path}, record {before + int(place[0]) + 1}: {keys} {reprlib.repr(mistake['input'])}: "
        f"{mistake['msg']}; a record should look like {_SHAPE}"
    )


def _image_indices(
    ids: dict[ImageId, None], truth: GroundTruth, path: str | Path
) -> tuple[dict[ImageId, int], tuple[str, ...]]:
    """Index of each image id, read as an id or, failing that, as a file name."""
    for what, names, key in (
        ("", truth.image_ids, _same),
        ("text", truth.image_ids, str),
        ("file names", truth.file_names, str),
        ("file names without folder and extension", truth.file_names, _stem),
    ):
        keys = [key(name) for name in names]
        counts = Counter(keys)
        index = {each: i for i, each in enumerate(keys) if counts[each] == 1}
        indices = {each: index[key(each)] for each in ids if key(each) in index}
        if len(indices) == len(ids):
            return indices, (f"image ids were read as {what}",) if what else ()
    unknown = [identity for identity in ids if identity not in truth.image_index]
    examples = ", ".join(map(reprlib.repr, unknown[:3]))
    known = ", ".join(map(reprlib.repr, truth.image_ids[:3]))
    raise UserError(
        f"{path}: {len(unknown)} of {len(ids)} image ids are not in the ground truth, such as "
        f"{examples} (the ground truth has {known}, ...): were these predictions made on other "
        "images or another split?"
    )


def _same(image_id: Any) -> Hashable:
    return image_id


def _stem(name: Any) -> Hashable:
    """The stem of a file name; YOLO tools write it as a number where it is one."""
    path = PurePosixPath(str(name).replace("\\", "/"))
    stem = path.stem if path.suffix[1:].isalpha() else path.name
    return int(stem) if stem.isdecimal() and len(stem) < 20 else stem


def _label_indices(
    ids: set[int], truth: GroundTruth, categories: Categories, path: str | Path
) -> dict[int, int]:
    """Class index by category id."""
    positions = range(truth.num_classes)
    readings = {
        "ids": truth.label_index,
        "from-0": {k: k for k in positions},
        "from-1": {k + 1: k for k in positions},
    }
    known = readings[categories]
    unknown = sorted(ids - known.keys())
    if not unknown:
        return known
    fitting = [other for other, index in readings.items() if ids <= index.keys()]
    advice = f"; all of them are valid with --categories {fitting[0]}" if fitting else ""
    raise UserError(
        f"{path}: unknown category_id {_few(unknown)}; the file uses {_few(sorted(ids))}, "
        f"the ground truth has {_few(sorted(known))}{advice}"
    )


def _few(values: list[int]) -> str:
    return ", ".join(map(reprlib.repr, values[:6])) + (", ..." if len(values) > 6 else "")


def _check_boxes(detected: Detected, truth: GroundTruth, path: str | Path) -> None:
    """Refuse boxes that are fractions, or that mostly lie outside their images."""
    if not len(detected):
        return
    largest = detected.boxes.max()
    if largest <= 1.5:
        raise UserError(
            f"{path}: no box coordinate exceeds {largest:.3g}: these look like fractions of the "
            "image; multiply x and width by the image's width, y and height by its height"
        )

    def judged(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        centers = boxes[:, :2] + boxes[:, 2:] / 2
        sizes = truth.sizes[image][:, ::-1]  # width, height
        known = (sizes > 0).all(axis=1)
        return np.stack([known, known & ((centers < 0) | (centers > sizes)).any(axis=1)], axis=1)

    known, outside = in_blocks(judged, detected.image, detected.boxes).sum(axis=0).tolist()
    if outside > known / 4:
        raise UserError(
            f"{path}: the centers of {outside} of {known} boxes lie outside their image: "
            "bbox should be [x, y, width, height] in pixels of the original image, not corners "
            "[x1, y1, x2, y2]. To evaluate the file as it is, use trust=True (--trust)"
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
    repeated, most = 0, 0
    # Detections of different images are never equal: a thousand images at a time are compared.
    for i in range(0, truth.num_images, 1000):
        first, last = np.searchsorted(detected.image, [i, i + 1000])
        some = detected.select(slice(first, last))
        rows = np.column_stack([some.image, some.label, some.boxes, some.score])
        repeated += len(rows) - len(np.unique(rows, axis=0))
        groups = some.image * truth.num_classes + some.label
        most = max(most, np.unique(groups, return_counts=True)[1].max(initial=0))
    if repeated:
        yield f"{repeated} detections are in the file more than once; all of them count"
    if most > 100:
        yield "of each class in an image, only the 100 best detections count"
