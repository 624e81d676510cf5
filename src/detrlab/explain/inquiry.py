"""One picture file explained into a folder: what ``detrlab explain`` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from detrlab.errors import UserError
from detrlab.explain.explanation import explain_image
from detrlab.explain.missed import sentence
from detrlab.explain.pictures import draw_query_use, save, write
from detrlab.explain.queries import query_use_over

if TYPE_CHECKING:
    from detrlab.api import Detector
    from detrlab.data import DataSet
    from detrlab.structures import Target


class Answer(NamedTuple):
    """What an inquiry found.

    Attributes:
        files: pictures, and ``explanation.json`` last.
        detections: how many score at least the threshold.
        sentences: what became of each annotated object; empty without annotations.
    """

    files: list[Path]
    detections: int
    sentences: list[str]


def explain_file(
    detector: Detector,
    image: str | Path,
    folder: str | Path,
    *,
    queries: Sequence[int] | None = None,
    points: Sequence[tuple[float, float]] | None = None,
    layer: int = -1,
    threshold: float = 0.3,
    data: DataSet | None = None,
    statistics: bool = False,
    image_format: str = "png",
) -> Answer:
    """Explain what a detector does with one picture file.

    Args:
        detector: what ``detrlab.load`` returns.
        image: file of the picture.
        folder: for the answer; made if it does not exist.
        queries: to look at closely; those of the best detections if not given.
        points: (x, y) as fractions to look from in the encoder; the centers of the best
            detections if not given.
        layer: of the encoder and decoder, from 0, or from the last if negative.
        threshold: score from which a detection counts.
        data: where the picture's annotations are looked up by its file name, to say why an
            object was missed.
        statistics: also draw where each query puts its boxes over the validation images of
            ``data``; takes a pass over up to 1000 of them.
        image_format: of the pictures: png, svg, jpg, webp or pdf.

    Raises:
        UserError: the picture cannot be read or is not in ``data``; there is no such query,
            layer or point; the folder cannot be written.
    """
    if statistics and data is None:
        raise UserError("statistics over a data set need one: give --data")
    image = Path(image)
    target = None if data is None else find_target(data, image)
    explanation = explain_image(detector, image, target)
    files = save(
        explanation,
        folder,
        queries=queries,
        points=points,
        layer=layer,
        threshold=threshold,
        image_format=image_format,
    )
    if statistics:
        assert data is not None
        figure = draw_query_use(query_use_over(detector, data.val))
        files.insert(-1, write(figure, Path(folder) / f"queries.{image_format}"))
    verdicts = [] if target is None else explanation.verdicts(threshold)
    return Answer(
        files=files,
        detections=sum(each.score >= threshold for each in explanation.detections()),
        sentences=[sentence(each, explanation.classes, threshold) for each in verdicts],
    )


def find_target(data: DataSet, image: Path) -> Target:
    """The annotated objects of a picture, by its file name.

    Raises:
        UserError: no split has a picture of that name.
    """
    tables = [table for table in (data.val, data.test, data.train) if table is not None]
    for table in tables:
        for index in range(len(table)):
            if Path(table.file(index)).name == image.name:
                return table.targets(index)
    splits = ", ".join(f"{table.name} ({len(table)})" for table in tables)
    raise UserError(f"{image.name} is not among the pictures of {data.name}: {splits}")


def read_point(text: str) -> tuple[float, float]:
    """A point written ``x,y`` as fractions of the image.

    Raises:
        UserError: it is written otherwise, or lies outside.
    """
    parts = text.split(",")
    try:
        x, y = (float(part) for part in parts)
    except ValueError:
        x = y = -1.0
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise UserError(f"--point {text}: write x,y as fractions of the image, such as 0.5,0.25")
    return x, y
