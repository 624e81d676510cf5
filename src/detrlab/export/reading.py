"""How a file's input and outputs are meant: recognised from the graph, or said in a YAML beside it.

Recognised are the common outputs of detectors:

* ``detections``: ``labels``, ``boxes`` (xyxy in pixels of the original image), ``scores``, and an
  input ``orig_target_sizes`` of (width, height): RT-DETR, D-FINE, DEIM, and what detrlab exports;
* ``queries``: class logits (B, Q, K) and boxes (B, Q, 4), cxcywh fractions: RF-DETR's ``dets`` and
  ``labels``, transformers' ``logits`` and ``pred_boxes``;
* ``yolo``: one tensor (B, 4 + K, N), cxcywh in pixels of the input and probabilities, before
  non-maximum suppression: YOLOv8 and later;
* ``yolo-end-to-end``: one tensor (B, N, 6), xyxy in pixels of the input, score, class: YOLOv10.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from detrlab.config import Record
from detrlab.errors import UserError
from detrlab.export.sessions import KEY, Port, Session
from detrlab.files import read_yaml

SIZES = "orig_target_sizes"
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MAX_CLASSES = 10_000

_Side = Annotated[int, Field(ge=16, le=8192)]
_Positive = Annotated[float, Field(gt=0)]
Layout = Literal["detections", "queries", "yolo", "yolo-end-to-end"]


class Reading(Record):
    """How an exported detector is fed and understood."""

    layout: Layout
    size: tuple[_Side, _Side] = (640, 640)
    """(height, width) of the input in pixels; of ``short_side`` the short side and the bound of
    the long one."""
    resize: Literal["stretch", "letterbox", "short_side"] = "stretch"
    """``letterbox`` keeps the proportions and fills with grey on both sides."""
    range: Literal[1, 255] = 1
    """Of the pixels before mean and standard deviation."""
    channels: Literal["rgb", "bgr"] = "rgb"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[_Positive, _Positive, _Positive] = (1.0, 1.0, 1.0)
    classes: tuple[str, ...] = Field((), max_length=MAX_CLASSES)
    category_ids: tuple[int, ...] = ()
    scores: Literal["sigmoid", "softmax"] = "sigmoid"
    """``queries``: how the logits are read; ``softmax`` has no object as its last class."""
    iou: float = Field(0.7, gt=0, le=1)
    """``yolo``: of two boxes of a class that overlap more, the better one stays."""
    threshold: float | None = Field(None, ge=0, le=1)
    rename: dict[str, str] = Field(default_factory=dict)
    """The data's name of a class by the file's name of it."""

    @model_validator(mode="after")
    def _one_id_each(self) -> Self:
        if self.category_ids and len(self.category_ids) != len(self.classes):
            raise ValueError(
                f"{len(self.category_ids)} category_ids for {len(self.classes)} classes: "
                "give one for each"
            )
        return self

    def describe(self) -> str:
        """In one line, for reports."""
        height, width = self.size
        shape = {
            "stretch": f"stretched to {width} x {height}",
            "letterbox": f"letterboxed to {width} x {height}",
            "short_side": f"short side {height}, long side at most {width}",
        }[self.resize]
        plain = not any(self.mean) and set(self.std) == {1.0}
        numbers = "as they are" if plain else f"minus {self.mean}, by {self.std}"
        names = ", ".join(self.classes[:3]) + (", ..." if len(self.classes) > 3 else "")
        return (
            f"images {shape}, {self.channels.upper()} in 0..{self.range} {numbers}; outputs read "
            f"as {self.layout}; {len(self.classes)} classes ({names})"
        )


def reading_of(path: Path, session: Session) -> tuple[Reading, tuple[str, ...]]:
    """How a file is meant, and what of it was assumed.

    A file that detrlab exported describes itself. A ``NAME.yaml`` beside ``NAME.onnx`` overrides
    whatever is recognised.

    Raises:
        UserError: the outputs are of no known layout, or the YAML is not valid.
    """
    if KEY in session.metadata:
        try:
            return Reading.parse(json.loads(session.metadata[KEY]), f"{path}"), ()
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{path}: its description is damaged ({error})") from None
    said = _said(path.with_suffix(".yaml"))
    found, notes = _recognised(path, session, said.get("layout"))
    names, note = _names(session, found)
    if names:
        found["classes"] = names
    reading = Reading.parse({**found, **said}, str(path))
    if note and "classes" not in said:
        notes.append(note)
    if not reading.classes:
        raise UserError(
            f"{path} names no classes: write {path.with_suffix('.yaml').name} beside it with a "
            "line such as: classes: [person, bicycle, car]"
        )
    assumed = [f"{path.name}: {note}" for note in notes if note.split()[0] not in said]
    return reading, tuple(assumed)


def _said(path: Path) -> dict[str, Any]:
    values = read_yaml(path) if path.is_file() else {}
    if values.get("classes") == "coco":
        values["classes"] = _coco80()
    return values


def _recognised(
    path: Path, session: Session, layout: str | None
) -> tuple[dict[str, Any], list[str]]:
    """Settings by the graph; the notes begin with the setting that they are about."""
    outputs = {each.name.rsplit("/")[-1]: each for each in session.outputs}
    height, width = image_port(path, session).shape[-2:]
    size = (height or 640, width or 640)
    found: dict[str, Any] = {"size": size}
    notes = [] if height and width else ["size is not fixed in the file: 640 x 640 is assumed"]
    plain = "range 0..1 without mean and standard deviation is assumed"
    if layout == "detections" or {"labels", "boxes", "scores"} <= outputs.keys():
        return {**found, "layout": "detections"}, [*notes, plain]
    if layout == "queries" or _pair(outputs) is not None:
        found |= {"layout": "queries", "mean": _IMAGENET[0], "std": _IMAGENET[1]}
        notes.append("mean and standard deviation of ImageNet are assumed")
        if "dets" not in outputs:
            notes.append("scores are assumed to be sigmoids of the logits")
        return found, notes
    shape = session.outputs[0].shape if len(session.outputs) == 1 else ()
    if layout in ("yolo", "yolo-end-to-end") or len(shape) == 3:
        last = layout == "yolo-end-to-end" or (layout is None and shape[-1] == 6)
        kind = "yolo-end-to-end" if last else "yolo"
        found |= {"layout": kind, "resize": "letterbox"}
        return found, [*notes, "resize by letterboxing is assumed", plain]
    shown = ", ".join(f"{each.name} {each.shape}" for each in session.outputs)
    raise UserError(
        f"{path}: the outputs ({shown}) are of no known layout: write "
        f"{path.with_suffix('.yaml').name} beside it with a line layout: detections, queries, yolo "
        "or yolo-end-to-end"
    )


def image_port(path: Path, session: Session) -> Port:
    """The input that takes the picture, (B, 3, H, W).

    Raises:
        UserError: there is none.
    """
    for port in session.inputs:
        if len(port.shape) == 4 and port.shape[1] in (3, None) and port.shape[0] in (1, None):
            return port
    shown = ", ".join(f"{each.name} {each.shape}" for each in session.inputs)
    raise UserError(f"{path}: no input takes one picture, (1, 3, height, width); it has {shown}")


def _pair(outputs: Mapping[str, Port]) -> tuple[str, str] | None:
    """Names of the outputs of logits and boxes."""
    for logits, boxes in (
        ("labels", "dets"),
        ("logits", "pred_boxes"),
        ("pred_logits", "pred_boxes"),
    ):
        if {logits, boxes} <= outputs.keys():
            return logits, boxes
    return None


def query_ports(outputs: Sequence[Port]) -> tuple[str, str] | None:
    """Full names of the outputs of logits and boxes; None where they are called otherwise."""
    by_name = {each.name.rsplit("/")[-1]: each for each in outputs}
    pair = _pair(by_name)
    return None if pair is None else (by_name[pair[0]].name, by_name[pair[1]].name)


def _names(session: Session, found: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
    """Class names that the file holds, or COCO's where the number fits; and a note."""
    text = session.metadata.get("names", "")
    if text and len(text) < 1 << 20:
        try:  # a Python literal, as Ultralytics writes it
            names = ast.literal_eval(text)
            values = [names[key] for key in sorted(names)] if isinstance(names, dict) else names
            return tuple(map(str, values)), ""
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            pass
    count = None
    if found["layout"] == "yolo":
        count = session.outputs[0].shape[1]
        count = None if count is None else count - 4
    elif found["layout"] == "queries" and (pair := query_ports(session.outputs)):
        count = next(each.shape[-1] for each in session.outputs if each.name == pair[0])
    elif found["layout"] in ("detections", "yolo-end-to-end"):
        count = 80
    if count == 80:
        return _coco80(), "classes are assumed to be COCO's 80, in the order of their ids"
    if count in (91, 92):
        from detrlab.checkpoints.coco import CLASSES

        return CLASSES[:91], "classes are assumed to be COCO's, by their category ids"
    return (), ""


def _coco80() -> tuple[str, ...]:
    from detrlab.checkpoints.coco import BY_ID

    return tuple(BY_ID.values())
