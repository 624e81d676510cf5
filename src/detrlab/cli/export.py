"""``detrlab export``: a detector for ONNX Runtime, OpenVINO or torch.export, with a certificate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from detrlab.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from detrlab.data import DataSet
    from detrlab.export.exporting import Pictures


@dataclass(frozen=True)
class Options:
    """Export a detector, and certify that the file computes what PyTorch does.

    Exit code 0: the file is accepted; 1: it is refused, and only its certificate is kept.
    """

    model: Annotated[str, tyro.conf.Positional] = "deimv2-femto"
    """A checkpoint, or a detector with published weights."""
    format: Literal["onnx", "openvino", "torch"] = "onnx"
    """torch writes a torch.export program."""
    precision: Literal["float32", "float16", "int8"] = "float32"
    """Of backbone and encoder; heads, boxes and sampling keep float32."""
    data: str | None = None
    """Annotated images of your own: AP before and after. float16 and int8 need them; int8 is
    calibrated on the training part."""
    images: str | None = None
    """A folder of images to compare the detections on; by default those of --data, or generated
    ones."""
    imgsz: int | None = None
    """Another image size than the checkpoint was trained with."""
    output: str = "runs/export"
    """Folder of the file and its certificate; nothing in it is overwritten."""
    json: bool = False
    """Print the certificate as JSON."""


def run(options: Options) -> int:
    """Export; returns the exit code."""
    from detrlab.cli.common import fresh_folder, open_detector, say, show
    from detrlab.data import open_data
    from detrlab.export.exporting import export

    if options.format == "torch" and options.precision != "float32":
        raise UserError(
            f"--format torch --precision {options.precision}: a torch.export program keeps "
            "float32; take --format onnx or openvino"
        )
    if options.precision != "float32" and options.data is None:
        raise UserError(
            f"--precision {options.precision} needs --data: fewer bits are judged by AP on images "
            "of yours"
        )
    detector = open_detector(options.model, "cpu", options.imgsz)
    data = None if options.data is None else open_data(options.data)
    pictures = _pictures(options, data)
    stem = Path(options.model.rstrip("/")).stem
    name = "-".join(
        [stem.replace(":", "-"), *[options.precision] * (options.precision != "float32")]
    )
    with fresh_folder(options.output) as folder:
        certificate = export(
            detector,
            folder,
            name,
            source=Path(options.model).name,
            form=options.format,
            precision=options.precision,
            pictures=pictures,
            data=data,
            say=say,
        )
        if options.json:
            print((folder / f"{name}.certificate.json").read_text(encoding="utf-8"))
        else:
            show(certificate.page())
        if not certificate.accepted:
            say(f"refused, the file was not kept: {folder / name}.certificate.md says why")
            return 1
        say(f"written to {folder / certificate.file}")
        return 0


def _pictures(options: Options, data: DataSet | None) -> Pictures:
    """What to compare and to calibrate on."""
    from detrlab.data import open_data
    from detrlab.data.images import ENDINGS
    from detrlab.export.exporting import CALIBRATED, COMPARED, Pictures
    from detrlab.images import read_picture

    calibration: list[Tensor] = []
    if data is not None and options.precision == "int8":
        rows = range(0, len(data.train), -(-len(data.train) // CALIBRATED))
        calibration = [data.train.picture(row) for row in rows]
    if options.images is not None:
        folder = Path(options.images)
        paths = [each for each in sorted(folder.rglob("*")) if each.suffix.lower() in ENDINGS]
        if not paths:
            raise UserError(f"--images {folder}: no image in this folder ({', '.join(ENDINGS)})")
        found = [read_picture(each) for each in paths[:COMPARED]]
        return Pictures(folder.name, found, calibration)
    known = open_data("shapes") if data is None else data
    found = [known.val.picture(row) for row in range(min(COMPARED, len(known.val)))]
    return Pictures("generated" if data is None else known.name, found, calibration)
