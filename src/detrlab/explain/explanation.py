"""What a detector did with one image, ready to be asked, drawn and saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from REMOVED import Weights  # TODO
from torch import Tensor

from detrlab.errors import UserError
from detrlab.explain.attention import as_maps, attention_row, cell_at, query_attention_row
from detrlab.explain.capture import MemoryAttention, Recording, record
from detrlab.explain.missed import Verdict, explain_objects
from detrlab.explain.references import Paths, Proposals, paths, proposals
from detrlab.explain.sampling import Samples, samples
from detrlab.models.attention import DeformableAttention
from detrlab.models.network import Network
from detrlab.scoring import Scoring
from detrlab.structures import ImageBatch, Target

if TYPE_CHECKING:
    from PIL import Image

    from detrlab.api import Detector, Picture


class Row(NamedTuple):
    """One row of dense attention over the memory.

    Attributes:
        weights: (M, S), each head's sum to 1; padded cells have 0.
        maps: the same as (M, height, width) of each level, without the padding.
    """

    weights: Tensor
    maps: tuple[Tensor, ...]


Look = Row | Samples
"""Where one query looks: everywhere, with weights; or at sampled points, with weights."""


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
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Explanation:
    """What a detector did with one image.

    Layers are counted from 0; negative numbers count from the last, as in a list.

    Attributes:
        recording: what was caught of the forward pass.
        scoring: how the class logits are read.
        classes: name of every class, by class index.
        index: of the image in the recorded batch.
        size: (height, width) of the picture people see, in pixels.
        picture: that picture, if it was kept.
        target: its annotated objects, if there are any to compare with.
        weights: of the matching cost.
        name: of the detector, for titles.
    """

    recording: Recording
    scoring: Scoring
    classes: tuple[str, ...]
    index: int
    size: tuple[int, int]
    picture: Image.Image | None = field(default=None, repr=False)
    target: Target | None = None
    weights: Weights | None = None
    name: str = ""

    @property
    def num_queries(self) -> int:
        """Q."""
        return self.recording.output.final.boxes.shape[1]

    @property
    def deformable(self) -> bool:
        """Whether attention over the memory samples points, instead of weighing every cell."""
        return isinstance(self.recording.decoder[-1].attention, DeformableAttention)

    @cached_property
    def paths(self) -> Paths:
        """Boxes, scores and references of every query, layer by layer."""
        return paths(self.recording, self.scoring, self.index)

    @cached_property
    def proposals(self) -> Proposals | None:
        """Where the queries come from in a two-stage detector."""
        return proposals(self.recording, self.index)

    def detections(self, limit: int = 100) -> list[Found]:
        """What the detector answers, best first."""
        final = self.recording.output.final
        here = slice(self.index, self.index + 1)
        decoded = self.scoring.decode(final.logits[here].float(), limit)
        rows = zip(*(part[0].tolist() for part in decoded), strict=True)
        return [
            Found(query, label, score, tuple(final.boxes[self.index, query].tolist()))
            for score, label, query in rows
        ]

    def look(self, query: int, layer: int = -1) -> Look:
        """Where an object query looks in one decoder layer's cross-attention.

        Raises:
            UserError: there is no such query or layer.
        """
        _within(query, self.num_queries, "query", "queries")
        calls = self.recording.decoder
        return _look(calls[_layer(layer, len(calls), "decoder")], self.index, query)

    def look_from(self, point: tuple[float, float], layer: int = -1, level: int = 0) -> Look:
        """Where the memory's cell at a point looks in one encoder layer's self-attention.

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
        memory = self.recording.memory
        _within(level, len(memory.level_shapes), "level", "levels")
        calls = self.recording.encoder
        call = calls[_layer(layer, len(calls), "encoder")]
        return _look(call, self.index, cell_at(memory, self.index, point, level))

    def look_at_queries(self, query: int, layer: int = -1) -> Tensor:
        """How much an object query takes from each of the queries: (M, Q), rows sum to 1."""
        _within(query, self.num_queries, "query", "queries")
        calls = self.recording.among_queries
        call = calls[_layer(layer, len(calls), "decoder")]
        return query_attention_row(call, self.index, query)

    def verdicts(self, threshold: float = 0.3) -> list[Verdict]:
        """What became of every annotated object, and why.

        Raises:
            UserError: there are no annotations to compare with.
        """
        if self.target is None:
            raise UserError(
                "this explanation has no annotated objects to judge by: explain the image with "
                "its targets"
            )
        return explain_objects(
            self.recording.output,
            self.index,
            self.target,
            self.scoring,
            self.weights,
            threshold,
        )

    def to_dict(self, **options: Any) -> dict[str, Any]:
        """Plain values for JSON; see ``explain.records.as_dict``."""
        from detrlab.explain.records import as_dict

        return as_dict(self, **options)

    def save(self, folder: str | Path, **options: Any) -> list[Path]:
        """Write pictures and ``explanation.json``; see ``explain.pictures.save``."""
        from detrlab.explain.pictures import save

        return save(self, folder, **options)


def explain(
    network: Network,
    scoring: Scoring,
    images: ImageBatch,
    *,
    classes: Sequence[str],
    index: int = 0,
    size: tuple[int, int] | None = None,
    picture: Image.Image | None = None,
    target: Target | None = None,
    weights: Weights | None = None,
    name: str = "",
) -> Explanation:
    """Run a detector on a batch and keep what it did with one of the images.

    Args:
        network: any detector of the family; the same bits come out as without explaining.
        scoring: how its logits are read.
        images: a batch on the network's device.
        classes: name of every class, by class index.
        index: of the image in the batch.
        size: (height, width) of the picture people see; the unpadded input's if not given.
        picture: that picture.
        target: the image's annotated objects.
        weights: of the matching cost; the originals' if not given.
        name: of the detector, for titles.
    """
    if size is None:
        valid = ~images.padding[index]
        size = int(valid[:, 0].sum()), int(valid[0].sum())
    if target is not None:
        target = Target(*(part.to(images.pixels.device) for part in target))
    return Explanation(
        recording=record(network, images),
        scoring=scoring,
        classes=tuple(classes),
        index=index,
        size=size,
        picture=picture,
        target=target,
        weights=weights,
        name=name,
    )


def explain_image(
    detector: Detector,
    image: Picture,
    targets: Target | None = None,
    *,
    weights: Weights | None = None,
) -> Explanation:
    """What a detector does with one picture.

    Args:
        detector: what ``detrlab.load`` returns.
        image: a path, a PIL image, or a uint8 array or tensor, as ``Detector.predict`` takes it.
        targets: the picture's annotated objects, to ask why one was missed.
        weights: of the matching cost; the originals' if not given.

    Raises:
        UserError: the picture cannot be read.
    """
    from PIL import Image as Pillow

    from detrlab.api import as_pixels

    pixels = as_pixels(image)
    return explain(
        detector.network,
        detector.scoring,
        detector.prepare(pixels),
        classes=detector.classes,
        size=(pixels.shape[1], pixels.shape[2]),
        picture=Pillow.fromarray(pixels.permute(1, 2, 0).numpy()),
        target=targets,
        weights=weights,
        name=detector.config.preset,
    )


@torch.no_grad()
def _look(call: MemoryAttention, image: int, query: int) -> Look:
    if isinstance(call.attention, DeformableAttention):
        return samples(call, image, [query])
    row = attention_row(call, image, query)
    return Row(row, tuple(as_maps(row, call.memory, image)))


def _within(value: int, count: int, what: str, several: str) -> None:
    if not 0 <= value < count:
        raise UserError(f"there is no {what} {value}: this detector has {count} {several}, from 0")


def _layer(layer: int, count: int, where: str) -> int:
    if not -count <= layer < count:
        raise UserError(
            f"there is no {where} layer {layer}: this detector has {count}, counted from 0"
        )
    return layer
