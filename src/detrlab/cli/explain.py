"""``detrlab explain``: see what a detector does with an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from detrlab.errors import UserError

if TYPE_CHECKING:
    from detrlab.data import DataSet, Table
    from detrlab.structures import Target


@dataclass(frozen=True)
class Options:
    """See where a detector looks, how its boxes move, and why an object was missed."""

    image: Annotated[str, tyro.conf.Positional]
    """An image file."""
    model: Annotated[str, tyro.conf.arg(aliases=["--weights"])]
    """A checkpoint, or a detector with published weights; deimv2-femto comes with detrlab."""
    query: tuple[int, ...] = ()
    """Object queries to draw head by head; by default those of the best detections."""
    point: tuple[str, ...] = ()
    """Points x,y (fractions) to look from in the encoder; by default the best detections."""
    layer: int = -1
    """Encoder and decoder layer to draw, from 0, or from the last if negative."""
    data: str | None = None
    """The data set that the image belongs to: says why annotated objects were missed."""
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
    """Explain one image; returns the exit code."""
    from detrlab.cli.common import fresh_folder, open_detector, show
    from detrlab.data import open_data
    from detrlab.explain import plots
    from detrlab.explain.missed import sentence
    from detrlab.explain.quality import qualities, words
    from detrlab.explain.query_use import query_use
    from detrlab.figures import save_figure

    points = [read_point(text) for text in options.point]
    if options.statistics and options.data is None:
        raise UserError("--statistics needs a data set: add --data")
    detector = open_detector(options.model, options.device, options.imgsz)
    threshold = next(t for t in (options.conf, detector.threshold, 0.3) if t is not None)
    data = None if options.data is None else open_data(options.data)
    target = None if data is None else find_target(data, options.image, detector.classes)
    explanation = detector.explain(options.image, target)
    with fresh_folder(options.output) as folder:
        files = explanation.save(
            folder,
            queries=options.query or None,
            points=points or None,
            layer=options.layer,
            threshold=threshold,
            image_format=options.format,
        )
        if options.statistics and data is not None:
            figure = plots.draw_query_use(query_use(detector, data.val))
            files.insert(-1, save_figure(figure, folder / f"queries.{options.format}"))
    count = sum(each.score >= threshold for each in explanation.detections())
    print(f"{count} detections of at least {threshold:.3g}")
    for verdict in [] if target is None else explanation.verdicts(threshold):
        show(sentence(verdict, explanation.classes, threshold))
    for name, quality in qualities(explanation).items():
        print(f"queries {words(name, quality)}")
    show("\n".join(map(str, files)))
    return 0


def find_target(data: DataSet, image: str | Path, classes: Sequence[str]) -> Target:
    """The annotated objects of an image, by its file name.

    Args:
        data: with that image in one of its splits.
        image: its file.
        classes: those that the labels count.

    Raises:
        UserError: no split has an image of that name, or it shows other classes.
    """
    name = Path(image).name
    tables = [table for table in (data.val, data.test, data.train) if table is not None]
    for table in tables:
        for index in range(len(table)):
            if Path(table.file(index)).name == name:
                return _in_words(table.select([index]), classes, data.name).targets(0)
    splits = ", ".join(f"{table.name} ({len(table)})" for table in tables)
    raise UserError(f"{name} is not among the images of {data.name}: {splits}")


def _in_words(table: Table, classes: Sequence[str], name: str) -> Table:
    try:
        return table.with_classes(classes)
    except UserError:
        known = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
        raise UserError(
            f"{name} has {', '.join(table.classes)}, the checkpoint knows {known}: leave out "
            "--data, or take a checkpoint that was trained on such data"
        ) from None


def read_point(text: str) -> tuple[float, float]:
    """A point written ``x,y`` as fractions of the image.

    Raises:
        UserError: it is written otherwise, or lies outside.
    """
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        x = y = -1.0
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise UserError(f"--point {text}: write x,y as fractions of the image, such as 0.5,0.25")
    return x, y
