"""Explain one image: what the detector did with it, the questions this answers, and figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from detrlab.errors import UserError
from detrlab.explain.capture import Call, Recording, record
from detrlab.explain.denoising import Restored, restore
from detrlab.explain.looks import Look, Paths, Proposals, cell_at, look, paths, proposals
from detrlab.explain.missed import Verdict, explain_objects, sentence
from detrlab.explain.quality import qualities
from detrlab.figures import save_figure
from detrlab.files import write_text
from detrlab.losses.criterion import Criterion
from detrlab.models.attention import DeformableAttention
from detrlab.models.network import Network
from detrlab.scoring import Scoring
from detrlab.structures import ImageBatch, Target

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("png", "svg", "jpg", "webp", "pdf")
DIGITS = 4
"""Decimals in ``explanation.json``."""


class Found(NamedTuple):
    """One detection: its query, class index, score and box (cxcywh fractions)."""

    query: int
    label: int
    score: float
    box: tuple[float, ...]


class Step(NamedTuple):
    """What a query predicted in one layer, in cxcywh fractions, and where it looked from.

    A reference has 2 numbers where it is a point; it is None where there is none (DETR).
    """

    box: list[float]
    score: float
    reference: list[float] | None


@dataclass(frozen=True)
class Explanation:
    """What a detector did with one image.

    Layers are counted from 0; negative numbers count from the last, as in a list.

    Attributes:
        recording: of the forward pass.
        criterion: of the training: how logits are read, how queries are matched.
        classes: name of every class, by class index.
        size: (height, width) in pixels of the image that was given.
        picture: that image, if it was kept.
        target: its annotated objects, if they are known.
        name: of the detector, for titles.
        restored: what it made of denoising queries, if it is trained with them.
    """

    recording: Recording
    criterion: Criterion
    classes: tuple[str, ...]
    size: tuple[int, int]
    picture: Image.Image | None = field(default=None, repr=False)
    target: Target | None = None
    name: str = ""
    restored: Restored | None = None

    @property
    def scoring(self) -> Scoring:
        """How the class logits are read."""
        return self.criterion.scoring

    @property
    def deformable(self) -> bool:
        """Whether the decoder samples points of the memory instead of weighing every cell."""
        return isinstance(self.recording.decoder[-1].attention, DeformableAttention)

    @cached_property
    def paths(self) -> Paths:
        """Boxes, scores and references of every query, layer by layer."""
        return paths(self.recording, self.scoring)

    @cached_property
    def proposals(self) -> Proposals | None:
        """Where the queries of a two-stage detector come from."""
        return proposals(self.recording)

    def steps(self, query: int, label: int) -> list[Step]:
        """The path of one query through the layers, with its scores for one class."""
        path = self.paths
        references = [
            None if each is None else torch.cat([part[query] for part in each if part is not None])
            for each in path.references
        ]
        return [
            Step(box, score, None if reference is None else reference.tolist())
            for box, score, reference in zip(
                path.boxes[:, query].tolist(),
                path.scores[:, query, label].tolist(),
                references,
                strict=True,
            )
        ]

    def detections(self, limit: int = 100) -> list[Found]:
        """The detector's answer, best first."""
        final = self.recording.layers[-1]
        decoded = self.scoring.decode(final.logits[:1].float(), limit)
        rows = zip(*(part[0].tolist() for part in decoded), strict=True)
        return [
            Found(query, label, score, tuple(final.boxes[0, query].tolist()))
            for score, label, query in rows
        ]

    def look(self, query: int, layer: int = -1) -> Look:
        """Where an object query looks in the cross-attention of one decoder layer."""
        _require(query, self.recording.layers[-1].boxes.shape[1], "query", "queries")
        return look(_call(self.recording.decoder, layer, "decoder"), query)

    def look_from(self, point: tuple[float, float], layer: int = -1, level: int = 0) -> Look:
        """Where the memory's cell at a point looks in one encoder layer; level 0 is the finest.

        Raises:
            UserError: the point lies outside, or there is no such layer or level.
        """
        if not all(0 <= coordinate <= 1 for coordinate in point):
            raise UserError(
                f"point {point[0]:g},{point[1]:g} lies outside the image: give x,y as fractions, "
                "such as 0.5,0.5 for its middle"
            )
        call = _call(self.recording.encoder, layer, "encoder")
        _require(level, len(call.memory.level_shapes), "level", "levels")
        return look(call, cell_at(call.memory, point, level))

    def verdicts(self, threshold: float = 0.3) -> list[Verdict]:
        """What became of every annotated object, and why."""
        if self.target is None:
            raise UserError("no annotated objects to compare with: explain the image with target=")
        return explain_objects(
            self.recording.layers, self.target, self.scoring, self.criterion.matcher, threshold
        )

    def to_dict(self, *, top: int = 20, threshold: float = 0.3) -> dict[str, Any]:
        """Plain values for JSON.

        Boxes are cxcywh and points x, y, both as fractions of the image; layers, queries and
        objects are counted from 0.

        Args:
            top: the best detections, so many, are followed through the layers.
            threshold: score from which a detection counts, for the verdicts on annotated objects.
        """
        objects = [] if self.target is None else self.verdicts(threshold)
        return {
            "model": self.name,
            "classes": self.classes,
            "size": self.size,
            "threshold": threshold,
            "detections": [
                _plain(each) | {"path": _plain(self.steps(each.query, each.label))}
                for each in self.detections()[:top]
            ],
            "rank_correlations": {
                name: _plain(each.correlation) for name, each in qualities(self).items()
            },
            "objects": [
                _plain(asdict(each)) | {"sentence": sentence(each, self.classes, threshold)}
                for each in objects
            ],
        }

    def save(
        self,
        folder: str | Path,
        *,
        threshold: float = 0.3,
        image_format: str = "png",
        dpi: int = 110,
        **options: Any,
    ) -> list[Path]:
        """Write figures and ``explanation.json``.

        Args:
            folder: created if it does not exist; files of the same names are replaced.
            threshold: score from which a detection is drawn and counts.
            image_format: one of ``FORMATS``.
            dpi: pixels per inch.
            **options: ``queries`` to draw and ``points`` (x, y) as fractions to look from in
                the encoder, by default of the three best detections; ``layer`` of the encoder
                and decoder to draw, from 0, or from the last if negative.

        Returns:
            The files, ``explanation.json`` last.

        Raises:
            UserError: unknown format, query, layer or point; the folder cannot be written.
        """
        from detrlab.explain.plots import draw_all

        if image_format not in FORMATS:
            raise UserError(f"unknown image format {image_format!r}: one of {', '.join(FORMATS)}")
        figures = draw_all(self, threshold=threshold, **options)
        files = [
            save_figure(figure, Path(folder) / f"{name}.{image_format}", dpi)
            for name, figure in figures.items()
        ]
        numbers = Path(folder) / "explanation.json"
        write_text(numbers, json.dumps(self.to_dict(threshold=threshold), ensure_ascii=False))
        return [*files, numbers]


def explain(
    network: Network,
    criterion: Criterion,
    images: ImageBatch,
    classes: Sequence[str],
    *,
    picture: Image.Image | None = None,
    target: Target | None = None,
    name: str = "",
) -> Explanation:
    """Run a detector on one image and keep what it did.

    ``Detector.explain`` is the short form. The outputs are the same bits as without explaining.

    Args:
        network: any detector.
        criterion: of its training.
        images: one image without padding, as a batch on the network's device.
        classes: name of every class, by class index.
        picture: the image as people see it.
        target: its annotated objects.
        name: of the detector, for titles.
    """
    assert len(images.pixels) == 1, f"explain takes one image, not {len(images.pixels)}"
    assert not images.padding.any(), "explain takes an image without padding"
    height, width = images.pixels.shape[-2:]
    size = (height, width) if picture is None else (picture.height, picture.width)
    if target is not None:
        target = Target(*(part.to(images.pixels.device) for part in target))
    restored = None if target is None else restore(network, images, target)
    recording = record(network, images)
    return Explanation(recording, criterion, tuple(classes), size, picture, target, name, restored)


def _require(value: int, count: int, what: str, several: str) -> None:
    if not 0 <= value < count:
        raise UserError(f"there is no {what} {value}: this detector has {count} {several}, from 0")


def _call(calls: tuple[Call, ...], layer: int, where: str) -> Call:
    if not -len(calls) <= layer < len(calls):
        raise UserError(
            f"there is no {where} layer {layer}: this detector has {len(calls)}, counted from 0"
        )
    return calls[layer]


def _plain(value: Any) -> Any:
    """Numbers rounded, tuples as lists, named tuples as dictionaries."""
    if isinstance(value, float):
        return round(value, DIGITS)
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
