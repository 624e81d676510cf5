"""Export a detector, check the file against PyTorch, and write what was found."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from detrlab import files
from detrlab.benchmark.cost import machine
from detrlab.benchmark.timing import in_turn
from detrlab.evaluation.predictor import common_classes, judge
from detrlab.export import deploy, lowered
from detrlab.export.agreement import Agreement, agreement, first_difference
from detrlab.export.certificate import AP_LOSS, TOLERANCE, Certificate, Precision, versions
from detrlab.export.detector import ExportedDetector, load
from detrlab.export.sessions import KEY, Port
from detrlab.models.prepare import plain
from detrlab.ops.allocation import require

if TYPE_CHECKING:
    from detrlab.api import Detector
    from detrlab.data import DataSet
    from detrlab.detections import Detections

Format = Literal["onnx", "openvino", "torch"]
SUFFIX = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
COMPARED = 16
"""Images whose detections are compared."""
CALIBRATED = 128
"""Images that decide the ranges of 8 bits."""
ROUNDS = 15
TRACING = 512 << 20
"""Bytes of address space that it takes beside the weights; 290 MiB of them data of the smallest."""
COPIES = 6
"""Of the weights: traced, written, loaded, and in double precision."""
_LAST_BIT = torch.finfo(torch.float32).eps

Say = Callable[[str], None]


@dataclass(frozen=True)
class Pictures:
    """Real images to check with: what they are, and a few of them as (3, H, W) uint8."""

    origin: str
    compared: Sequence[Tensor]
    calibration: Sequence[Tensor]


def export(
    detector: Detector,
    folder: Path,
    name: str,
    *,
    source: str,
    form: Format,
    precision: Precision,
    pictures: Pictures,
    data: DataSet | None,
    say: Say,
) -> Certificate:
    """Write a detector's file and its certificate into a folder.

    A file that is not accepted is not kept; its certificate is.

    Args:
        detector: what is exported.
        folder: that exists.
        name: of the files, without suffix.
        source: what the detector was loaded from.
        form: of the file.
        precision: of backbone and encoder.
        pictures: that the detections are compared on.
        data: judged with before and after; fewer bits need it.
        say: takes lines about the progress.

    Raises:
        UserError: it cannot be exported, or knows none of the data's classes.
    """
    if data is not None:
        common_classes(detector.classes, data.val.classes, {})  # at once, not after minutes
    require(TRACING + COPIES * sum(each.nbytes for each in detector.network.parameters()))
    with tempfile.TemporaryDirectory(dir=folder, prefix=files.UNFINISHED) as temporary:
        made = Path(temporary) / f"{name}{SUFFIX[form]}"
        say(f"tracing {source}")
        module = deploy.deployed(detector)
        reading = deploy.reading_for(detector)
        metadata = {KEY: json.dumps(reading.to_dict())}
        program = deploy.trace(
            deploy.deployed(detector, plain(detector.network)), _typical(detector, pictures)
        )
        first_file = Path(temporary) / "plain.onnx"
        if form == "torch":
            deploy.write_program(program, made, metadata)
            session = _Program(made)
            exported = ExportedDetector(session, reading, made)
        else:
            say("writing ONNX")
            program = deploy.write_onnx(program, first_file, metadata)
            lower = _lowered(first_file, precision, pictures, say)
            if form == "openvino":
                deploy.write_openvino(lower, made, metadata)
            else:
                lower.rename(made)
            exported = load(made)
        say(f"comparing with PyTorch on {len(pictures.compared)} images ({pictures.origin})")
        asked: dict[str, Any] = {"threshold": None, "limit": deploy.LIMIT, "keep_image": False}
        first = list(detector.predict_each(pictures.compared, **asked))
        second = list(exported.predict_each(pictures.compared, **asked))
        rounded = None if precision in AP_LOSS else _Rounded(module, exported, pictures.compared)
        found = agreement(first, second, TOLERANCE, rounded)
        ap = None if data is None else _ap(detector, exported, data, say)
        reasons = tuple(_reasons(precision, found, ap))
        where = None
        if reasons and form == "onnx" and precision == "float32":
            image, _ = exported.prepare(pictures.compared[0])
            sizes = torch.tensor([[image.shape[3], image.shape[2]]])
            where = first_difference(program, made, image, sizes)
        say("measuring the speed of both in turn")
        speed = _speed(module, exported, pictures.compared[0], f"{form} {precision}")
        kept = sorted(each for each in made.parent.glob(f"{name}.*") if each != first_file)
        certificate = Certificate(
            source=source,
            file=made.name,
            format=form,
            precision=precision,
            sha256={each.name: files.sha256(each) for each in kept},
            bytes=sum(each.stat().st_size for each in kept),
            input=f"{deploy.INPUTS[0]} (B, 3, H, W) uint8 and {deploy.INPUTS[1]} (B, 2) int64, "
            f"(width, height); {reading.describe()}",
            images=pictures.origin,
            agreement=found,
            reasons=reasons,
            first_difference=where,
            ap=ap,
            speed=speed,
            versions=versions(),
            machine=machine(),
        )
        # The certificate first: whatever happens then, no file stands there without one.
        written = certificate.write(Path(temporary), name)
        files.move_into(folder, written + kept * certificate.accepted)
    return certificate


def _typical(detector: Detector, pictures: Pictures) -> tuple[int, int]:
    """(height, width) of what the network sees."""
    prepared = detector.prepare(pictures.compared[0]).pixels
    return prepared.shape[2], prepared.shape[3]


def _lowered(source: Path, precision: Precision, pictures: Pictures, say: Say) -> Path:
    """The ONNX file in the precision that was asked for."""
    if precision == "float32":
        return source
    path = source.with_name("lowered.onnx")
    say(f"lowering backbone and encoder to {precision}")
    if precision == "float16":
        lowered.to_float16(source, path)
        return path
    exported = load(source)
    feeds = []
    for each in pictures.calibration:
        image, _ = exported.prepare(each)
        feeds.append(exported.feeds(image, (each.shape[1], each.shape[2])))
    lowered.to_int8(source, path, feeds)
    return path


def _ap(detector: Detector, exported: ExportedDetector, data: DataSet, say: Say) -> dict[str, Any]:
    values: dict[str, Any] = {"data": data.name, "images": len(data.val)}
    for name, each in (("before", detector), ("after", exported)):
        say(f"AP {name}, on {len(data.val)} images of {data.name}")
        metrics = judge(each, data.val)[0].metrics()
        values[name] = metrics.ap
        values[f"{name}_metrics"] = metrics.to_dict()
    return values


def _reasons(precision: Precision, found: Agreement, ap: Mapping[str, Any] | None) -> list[str]:
    """Why a file is not accepted."""
    reasons = []
    box, score = TOLERANCE
    if precision in AP_LOSS:
        assert ap is not None
        before, after, allowed = ap["before"] or 0.0, ap["after"] or 0.0, AP_LOSS[precision]
        if not before or before - after > allowed:
            reasons.append(
                f"AP falls from {100 * before:.2f} to {100 * after:.2f}, and may fall by "
                f"{100 * allowed:g}"
            )
        return reasons
    if found.lost:
        reasons.append(f"{found.lost} of {found.compared} detections have no counterpart")
    if found.box > box:
        reasons.append(f"a box differs by {found.box:.3f} px of 640, and may by {box:g}")
    if found.score > score:
        reasons.append(f"a score differs by {found.score:.6f}, and may by {score:g}")
    return reasons


@torch.inference_mode()
def _speed(
    module: deploy.Deployed, exported: ExportedDetector, picture: Tensor, name: str
) -> dict[str, Any]:
    """From pixels to detections in both, in one alternating run."""
    image, _ = exported.prepare(picture)
    feeds = exported.feeds(image, (picture.shape[1], picture.shape[2]))
    inputs = list(feeds.values())
    calls = {"PyTorch": lambda: module(*inputs), name: lambda: exported.session.run(feeds)}
    times = in_turn(calls, ROUNDS)
    return {
        "size": list(image.shape[2:]),
        "threads": torch.get_num_threads(),
        "rounds": ROUNDS,
        "rows": {key: each.to_dict() for key, each in times.items()},
    }


class _Rounded:
    """PyTorch's detections in double precision, and with pixels changed in their last bits."""

    def __init__(
        self, module: deploy.Deployed, exported: ExportedDetector, pictures: Sequence[Tensor]
    ) -> None:
        self.modules = [copy.deepcopy(module).double()]
        for bits in (-2, -1, 1, 2):
            other = copy.copy(module)
            moved = module.get_buffer("std") * (1 + bits * _LAST_BIT)
            other._buffers = module._buffers | {"std": moved}
            self.modules.append(other)
        self.exported = exported
        self.pictures = pictures

    @torch.no_grad()
    def __call__(self, index: int) -> list[Detections]:
        """Of one picture."""
        picture = self.pictures[index]
        size = (picture.shape[1], picture.shape[2])
        image, _ = self.exported.prepare(picture)
        feeds = self.exported.feeds(image, size).values()
        every = []
        for module in self.modules:
            labels, boxes, scores = (each[0] for each in module(*feeds))
            every.append(self.exported.found(boxes, scores, labels, size))
        return every


class _Program:
    """A saved ``torch.export`` program as a session; only for files that this process wrote."""

    def __init__(self, path: Path) -> None:
        self._run = torch.export.load(path).module()
        self.inputs = (
            Port(deploy.INPUTS[0], (None, 3, None, None), "uint8"),
            Port(deploy.INPUTS[1], (None, 2), "int64"),
        )
        self.outputs = tuple(Port(each, (None,), "") for each in deploy.OUTPUTS)
        self.metadata: dict[str, str] = {}
        self.parameters = 0

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One inference."""
        with torch.inference_mode():
            found = self._run(*feeds.values())
        return dict(zip(deploy.OUTPUTS, found, strict=True))
