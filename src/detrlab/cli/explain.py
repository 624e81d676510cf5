"""``detrlab explain``: see what a detector does with a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Options:
    """See where a detector looks, how its boxes move, and why an object was missed."""

    image: Annotated[str, tyro.conf.Positional]
    """A picture file."""
    model: Annotated[str, tyro.conf.arg(aliases=["--weights"])]
    """A checkpoint; or shapes, a small detector of generated pictures that comes with detrlab."""
    query: tuple[int, ...] = ()
    """Object queries to look at closely; by default those of the best detections."""
    point: tuple[str, ...] = ()
    """Points x,y (fractions) to look from in the encoder; by default the best detections."""
    layer: int = -1
    """Encoder and decoder layer to look at, from 0, or from the last if negative."""
    data: str | None = None
    """The data set the picture belongs to: says why annotated objects were missed."""
    statistics: bool = False
    """Also draw where each query puts its boxes over the validation images of --data."""
    conf: float | None = None
    """Score from which a detection counts; by default the checkpoint's suggestion, or 0.3."""
    imgsz: int | None = None
    """Another image size than the checkpoint was trained with: a larger one for small objects."""
    output: str = "runs/explain"
    """Folder for the pictures and explanation.json; nothing in it is overwritten."""
    format: str = "png"
    """Of the pictures: png, svg, jpg, webp or pdf."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ..."""


def run(options: Options) -> int:
    """Explain one picture; returns the exit code."""
    from detrlab.cli.common import fresh_folder, open_detector
    from detrlab.data import open_data
    from detrlab.explain.inquiry import explain_file, read_point

    points = [read_point(text) for text in options.point]
    detector = open_detector(options.model, options.device, options.imgsz)
    threshold = next(t for t in (options.conf, detector.threshold, 0.3) if t is not None)
    answer = explain_file(
        detector,
        options.image,
        fresh_folder(options.output),
        queries=options.query or None,
        points=points or None,
        layer=options.layer,
        threshold=threshold,
        data=None if options.data is None else open_data(options.data),
        statistics=options.statistics,
        image_format=options.format,
    )
    print(f"{answer.detections} detections of at least {threshold:.3g}")
    for line in answer.sentences:
        print(line)
    for path in answer.files:
        print(path)
    return 0
