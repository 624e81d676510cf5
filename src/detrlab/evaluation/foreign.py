"""Read another tool's detections from COCO json, and check them before they are judged."""

from __future__ import annotations

import codecs
import reprlib
from collections import Counter
from collections.abc import Hashable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

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
from detrlab.errors import UserError
from detrlab.evaluation.coco import as_ground_truth
from detrlab.evaluation.records import Detected, GroundTruth, ImageId

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
    records = _read(Path(path))
    image_ids = [record["image_id"] for record in records]
    images, note = _image_indices(dict.fromkeys(image_ids), truth, path)
    category_ids = [record["category_id"] for record in records]
    labels = _label_indices(set(category_ids), truth, categories, path)
    detected = Detected(
        image=np.array([images[each] for each in image_ids], dtype=np.int64),
        label=np.array([labels[each] for each in category_ids], dtype=np.int64),
        boxes=np.array([r["bbox"] for r in records], dtype=np.float64).reshape(-1, 4),
        score=np.array([record["score"] for record in records], dtype=np.float64),
    )
    detected = detected.select(np.argsort(detected.image, kind="stable"))
    if not trust:
        _check_boxes(detected, truth, path)
    return Foreign(detected, (*note, *_notes(detected, truth)))


def _read(path: Path) -> list[_Record]:
    try:
        return _RECORDS.validate_json(files.read_bytes(path).removeprefix(codecs.BOM_UTF8))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        mistake = error.errors(include_url=False)[0]
    place = mistake["loc"]
    if not place:
        raise UserError(
            f"{path} is no COCO results file, a json list of records like {_SHAPE}: "
            f"{mistake['msg']}"
        )
    keys = ".".join(str(key) for key in place[1:] if key not in ("int", "str"))
    raise UserError(
        f"{path}, record {int(place[0]) + 1}: {keys} {reprlib.repr(mistake['input'])}: "
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
    centers = detected.boxes[:, :2] + detected.boxes[:, 2:] / 2
    sizes = truth.sizes[detected.image][:, ::-1]  # width, height
    known = (sizes > 0).all(axis=1)
    outside = int(((centers < 0) | (centers > sizes))[known].any(axis=1).sum())
    if outside > known.sum() / 4:
        raise UserError(
            f"{path}: the centers of {outside} of {known.sum()} boxes lie outside their image: "
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
    rows = np.column_stack([detected.image, detected.label, detected.boxes, detected.score])
    repeated = len(rows) - len(np.unique(rows, axis=0))
    if repeated:
        yield f"{repeated} detections are in the file more than once; all of them count"
    groups = detected.image * truth.num_classes + detected.label
    if np.unique(groups, return_counts=True)[1].max() > 100:
        yield "of each class in an image, only the 100 best detections count"
