"""``detrlab predict``: find objects in images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from detrlab.errors import UserError


@dataclass(frozen=True)
class Options:
    """Find objects in images, and draw them."""

    images: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Image files, or folders of them."""
    model: Annotated[str, tyro.conf.arg(aliases=["--weights"])] = "deimv2-femto"
    """A checkpoint, or a detector with published weights. The default comes with detrlab and finds
    the 80 classes of COCO; shapes is a small one for generated pictures."""
    conf: float | None = None
    """Leave out detections that score less; by default the checkpoint's own suggestion, or 0.3."""
    imgsz: int | None = None
    """Another image size than the checkpoint was trained with: a larger one for small objects."""
    output: str = "runs/predict"
    """Folder for the pictures and predictions.json; nothing in it is overwritten."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ..."""
    json: bool = False
    """Print the detections as COCO json instead of drawing pictures."""


def run(options: Options) -> int:
    """Predict; returns the exit code."""
    from detrlab.cli.common import fresh_folder, open_detector, printable

    paths = list(find_images(options.images))
    detector = open_detector(options.model, options.device, options.imgsz)
    threshold = next(t for t in (options.conf, detector.threshold, 0.3) if t is not None)
    folder = None if options.json else fresh_folder(options.output)
    records: list[dict] = []
    for number, found in enumerate(detector.predict_each(paths, threshold=threshold)):
        path = paths[number]
        records += [{**record, "image_id": str(path)} for record in found.to_coco()]
        if folder is not None:
            target = (
                folder / f"{path.stem}.{number}.jpg"
                if len(paths) > 1
                else folder / (path.stem + ".jpg")
            )
            found.save(target, threshold)
            counts = ", ".join(f"{found.names.count(n)} {n}" for n in dict.fromkeys(found.names))
            print(printable(f"{path}: {counts or 'nothing'}  ->  {target}"))
    if folder is None:
        print(json.dumps(records))
    else:
        (folder / "predictions.json").write_text(json.dumps(records), encoding="utf-8")
        told = f"{len(records)} detections of at least {threshold:.3g}"
        print(f"{told} in {len(paths)} images: {folder}")
    return 0


def find_images(arguments: Sequence[str]) -> Iterator[Path]:
    """The image files named by the arguments; folders are searched with all their subfolders.

    Raises:
        UserError: something does not exist, or a folder holds no image.
    """
    from detrlab.data.images import ENDINGS

    if not arguments:
        raise UserError("name at least one image: detrlab predict photo.jpg --model CHECKPOINT")
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in ENDINGS)
            if not inside:
                raise UserError(f"no image in the folder {path} ({', '.join(ENDINGS)})")
            yield from inside
        elif path.exists():
            yield path
        else:
            raise UserError(f"{path} does not exist")
