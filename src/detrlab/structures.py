"""The records that travel between rooms.

Each type has one box format, so that no transform ever changes it silently:

* ``Sample``: xyxy in pixels of the image as it is now.
* ``Target`` and ``Predictions``: cxcywh as fractions of the *unpadded* image.
* ``detections.Detections``: xyxy in pixels of the original image.

Axes: B images, Q queries, K classes, N objects, D width, L levels, S tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    import torch

LevelShapes = tuple[tuple[int, int], ...]
"""(height, width) of each feature level, as plain ints."""


class ImageBatch(NamedTuple):
    """Images padded at the bottom and right to one size.

    Attributes:
        pixels: (B, 3, H, W) float, normalised, 0 where padded.
        padding: (B, H, W) bool, True where padded.
    """

    pixels: Tensor
    padding: Tensor


class Sample(NamedTuple):
    """One annotated image, as readers give it and transforms change it.

    Attributes:
        image: (3, H, W) uint8, RGB.
        boxes: (N, 4) float32, xyxy in pixels of ``image``.
        labels: (N,) int64 class indices, 0..K-1.
        image_id: the data set's own id of the image.
        original_size: (height, width) of the image on disk.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    image_id: int | str
    original_size: tuple[int, int]


class Target(NamedTuple):
    """What one image should yield; also right for an image without objects (N = 0).

    Attributes:
        labels: (N,) int64 class indices, 0..K-1.
        boxes: (N, 4) float32, cxcywh as fractions of the unpadded image.
    """

    labels: Tensor
    boxes: Tensor


class Share(NamedTuple):
    """Which images of an optimiser step a batch holds, of all processes and micro-batches.

    Attributes:
        places: of each image of the batch in the step.
        fullest: objects of the image that has the most, over the whole step.
    """

    places: tuple[int, ...]
    fullest: int


class Memory(NamedTuple):
    """Feature maps flattened to tokens, level after level, rows first.

    Attributes:
        tokens: (B, S, D).
        position: (B, S, D), sine embedding plus the level's, if there is one.
        padding: (B, S) bool, True where padded.
        level_shapes: (height, width) of each level; their products sum to S.
        valid_ratios: (B, L, 2), the unpadded share of each level's width and height.
    """

    tokens: Tensor
    position: Tensor
    padding: Tensor
    level_shapes: LevelShapes
    valid_ratios: Tensor


class References(NamedTuple):
    """Where each query looks: a point, or a box, as fractions of the unpadded image.

    Attributes:
        centers: (B, Q, 2), x and y.
        sizes: (B, Q, 2), width and height; None when the reference is a point.
    """

    centers: Tensor
    sizes: Tensor | None = None


class Pairs(NamedTuple):
    """Which query should predict which object, over a whole batch.

    Attributes:
        queries: (P,) int64 indices into the batch's queries, image after image (``b * Q + q``).
        objects: (P,) int64 indices into the batch's objects, image after image.
    """

    queries: Tensor
    objects: Tensor

    def to(self, device: torch.device) -> Pairs:
        """The same on another device."""
        return Pairs(*(each.to(device, non_blocking=True) for each in self))


class Denoising(NamedTuple):
    """The leading queries of a batch that are made from noisy ground truth (DN-DETR, DINO).

    Attributes:
        num_queries: D, how many an image has; the other queries follow them.
        pairs: the object each was made from, as indices into the (B, D) denoising queries.
            A query without a pair should predict no object.
        groups: how often each object is repeated; their losses are divided by it.
    """

    num_queries: int
    pairs: Pairs
    groups: int


class Queries(NamedTuple):
    """Object queries on their way through the decoder.

    Attributes:
        content: (B, Q, D), what the decoder layers transform.
        position: (B, Q, D), added to the content wherever attention compares.
        references: where the queries look; None when they have no place (DETR).
        blocked: (Q, Q) bool, True where the row's query must not attend to the column's;
            None when all queries see one another.
        denoising: the leading denoising queries; None without them.
        cells: (B, Q) int64, the memory's cell that each query (denoising queries left out) comes
            from; None for learned queries.
    """

    content: Tensor
    position: Tensor
    references: References | None
    blocked: Tensor | None = None
    denoising: Denoising | None = None
    cells: Tensor | None = None


class Predictions(NamedTuple):
    """One set of predictions.

    Attributes:
        logits: (B, Q, K) or, with a no-object class, (B, Q, K + 1).
        boxes: (B, Q, 4), cxcywh as fractions of the unpadded image.
        details: other tensors (B, Q, ...) of this set by name, for losses that need more than
            logits and boxes (such as a distribution over box edges).
    """

    logits: Tensor
    boxes: Tensor
    details: Mapping[str, Tensor] = {}

    def part(self, start: int | None, stop: int | None) -> Predictions:
        """The predictions of queries ``start`` to ``stop``."""
        return Predictions(
            self.logits[:, start:stop],
            self.boxes[:, start:stop],
            {name: value[:, start:stop] for name, value in self.details.items()},
        )


class SupervisedSet(NamedTuple):
    """Predictions that are trained, and how.

    Attributes:
        name: in logs; the last decoder layer's set is called ``FINAL``.
        predictions: the set itself.
        pairs: which query should predict which object; None lets the criterion match them.
        class_agnostic: every object counts as class 0: the set only tells objects from
            background (the first stage of two-stage Deformable DETR).
        repeats: how often each object occurs in ``pairs``; losses are divided by it.
        weight: multiplies all losses of the set.
        auxiliary: an earlier layer's set, left out when auxiliary losses are switched off.
    """

    name: str
    predictions: Predictions
    pairs: Pairs | None = None
    class_agnostic: bool = False
    repeats: int = 1
    weight: float = 1.0
    auxiliary: bool = False


FINAL = "final"
"""Name of the supervised set of the last decoder layer."""


class ModelOutput(NamedTuple):
    """What a detector predicts for a batch.

    Attributes:
        layers: predictions of each decoder layer, without denoising queries; the last one is
            the detector's answer.
        sets: everything the criterion trains: the layers and, where targets were given to the
            forward pass, what else the variant supervises (proposals, denoising queries).
        cells: (B, Q), see ``Queries.cells``.
    """

    layers: tuple[Predictions, ...]
    sets: tuple[SupervisedSet, ...]
    cells: Tensor | None = None

    @property
    def final(self) -> Predictions:
        """The last decoder layer's predictions."""
        return self.layers[-1]

    @property
    def proposals(self) -> Predictions | None:
        """Predictions of the first stage over all S tokens; None without targets or without one."""
        return next((each.predictions for each in self.sets if each.name == PROPOSALS), None)


PROPOSALS = "proposal"
"""Name of the supervised set of a first stage."""


def supervise(
    layers: Sequence[Predictions], queries: Queries, others: Sequence[SupervisedSet] = ()
) -> ModelOutput:
    """Turn the predictions of all decoder layers into a model's output.

    Args:
        layers: predictions of every layer, denoising queries included.
        queries: as they entered the decoder.
        others: further sets that the queries' source supervises.
    """
    names = [*(f"layer{index}" for index in range(len(layers) - 1)), FINAL]
    denoising = queries.denoising
    own, given = tuple(layers), tuple[SupervisedSet, ...]()
    if denoising is not None:
        own = tuple(each.part(denoising.num_queries, None) for each in layers)
        given = tuple(
            SupervisedSet(
                f"denoising_{name}",
                each.part(None, denoising.num_queries),
                denoising.pairs,
                repeats=denoising.groups,
                auxiliary=name != FINAL,
            )
            for name, each in zip(names, layers, strict=True)
        )
    sets = [
        SupervisedSet(name, each, auxiliary=name != FINAL)
        for name, each in zip(names, own, strict=True)
    ]
    return ModelOutput(own, (*sets, *others, *given), queries.cells)
