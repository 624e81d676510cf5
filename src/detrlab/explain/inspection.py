"""What a detector did with one image: the recording, and questions that it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from detrlab.errors import UserError
from detrlab.explain.capture import Call, Recording
from detrlab.explain.looks import Look, cell_at, look
from detrlab.explain.missed import Verdict, explain_objects
from detrlab.explain.paths import Paths, Proposals, paths, proposals
from detrlab.losses.criterion import Criterion
from detrlab.models.attention import DeformableAttention
from detrlab.scoring import Scoring
from detrlab.structures import Target

if TYPE_CHECKING:
    from PIL import Image

    from detrlab.explain.denoising import Restored


class Found(NamedTuple):
    """One detection.

    Attributes:
        query: it comes from.
        label: class index.
        score: in [0, 1].
        box: cxcywh fractions of the unpadded image.
    """

    query: int
    label: int
    score: float
    box: tuple[float, ...]


@dataclass(frozen=True)
class Inspection:
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
        restored: what denoising queries made of the annotated objects, if there are any.
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
    def num_queries(self) -> int:
        """Q."""
        return self.recording.layers[-1].boxes.shape[1]

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
        """Where an object query looks in the cross-attention of one decoder layer.

        Raises:
            UserError: there is no such query or layer.
        """
        _require(query, self.num_queries, "query", "queries")
        return look(_call(self.recording.decoder, layer, "decoder"), query)

    def look_from(self, point: tuple[float, float], layer: int = -1, level: int = 0) -> Look:
        """Where the memory's cell at a point looks in one encoder layer.

        Args:
            point: (x, y) as fractions of the image.
            layer: of the encoder.
            level: of the cell, the finest first.

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
        """What became of every annotated object, and why.

        Raises:
            UserError: the annotated objects are not known.
        """
        if self.target is None:
            raise UserError("no annotated objects to compare with: explain the image with target=")
        return explain_objects(
            self.recording.layers, self.target, self.scoring, self.criterion.matcher, threshold
        )


def _require(value: int, count: int, what: str, several: str) -> None:
    if not 0 <= value < count:
        raise UserError(f"there is no {what} {value}: this detector has {count} {several}, from 0")


def _call(calls: tuple[Call, ...], layer: int, where: str) -> Call:
    if not -len(calls) <= layer < len(calls):
        raise UserError(
            f"there is no {where} layer {layer}: this detector has {len(calls)}, counted from 0"
        )
    return calls[layer]
