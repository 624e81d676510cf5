"""The public inference API: ``Detector``, ``build`` and ``load``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from detrlab.config import DataConfig, ModelConfig, TrainConfig
from detrlab.detections import DEFAULT_THRESHOLD, Detections, Threshold
from detrlab.errors import UserError
from detrlab.images import Finder, as_picture, as_pixels
from detrlab.models.network import Network
from detrlab.models.prepare import prepare
from detrlab.ops.allocation import keep_freed_memory
from detrlab.predicting.ahead import ahead
from detrlab.predicting.tiles import Tiled
from detrlab.presets import build_network, model_config
from detrlab.structures import ImageBatch

if TYPE_CHECKING:
    from detrlab.explain import Explanation
    from detrlab.images import Picture
    from detrlab.structures import Target


class _Prepared(NamedTuple):
    """An image, ready for the network; the picture only where it is kept."""

    pixels: Tensor
    size: tuple[int, int]
    picture: Tensor | None


class Detector(Finder):
    """A network with its classes and preprocessing, ready for inference.

    Args:
        network: the network; it stays on its device.
        config: its architecture.
        classes: the name of each class, by class index.
        category_ids: the data set's id of each class, by class index; 0..K-1 if not given.
        preprocessing: image size and normalisation the network was trained with.
        threshold: the suggested score threshold, if one was measured.
    """

    def __init__(
        self,
        network: Network,
        config: ModelConfig,
        classes: Sequence[str],
        category_ids: Sequence[int] | None = None,
        preprocessing: DataConfig | None = None,
        threshold: float | None = None,
    ) -> None:
        if len(classes) != config.num_classes:
            raise UserError(
                f"{len(classes)} class names for a detector of {config.num_classes} classes: "
                "give one name for each"
            )
        keep_freed_memory()
        self.network = network
        self.config = config
        self.scoring = config.scoring
        self.classes = tuple(classes)
        self.category_ids = tuple(range(len(classes)) if category_ids is None else category_ids)
        self.preprocessing = preprocessing or DataConfig()
        self.threshold = threshold

    def __repr__(self) -> str:
        size = f"{self.preprocessing.image_size} px"
        known = f"{len(self.classes)} classes"
        return f"Detector({self.config.preset}, {known}, {size}, on {self.device})"

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def to(self, device: str | torch.device) -> Detector:
        """Move the network; returns the detector itself."""
        self.network.to(device)
        return self

    def at_size(self, image_size: int) -> Detector:
        """The same network, shown its images at another size.

        Small objects are often found better at a larger size than the network was trained with
        (Touvron et al. 2019, arXiv 1906.06423; measured in docs/recipe.md).

        Args:
            image_size: the short side in pixels, or the side of square images; the bound of the
                long side keeps its proportion.

        Raises:
            UserError: the size is below 32.
        """
        return Detector(
            self.network,
            self.config,
            self.classes,
            self.category_ids,
            self.preprocessing.resized(image_size),
            self.threshold,
        )

    def predict_each(
        self,
        images: Iterable[Picture],
        *,
        threshold: Threshold = "auto",
        limit: int = 100,
        keep_image: bool = True,
        batch_size: int | None = None,
    ) -> Iterator[Detections]:
        """As ``predict``, one image after the other, so that a folder of any size fits.

        Images are read and resized in threads while the network computes.

        Args:
            images: as in ``predict``.
            threshold: as in ``predict``.
            limit: as in ``predict``.
            keep_image: as in ``predict``.
            batch_size: at most so many images, of one size once they are resized, pass through
                the network together; by default 16 on a GPU and 1 on a CPU, where more were not
                faster.

        Raises:
            UserError: an image cannot be read, or is not of a known kind.
        """
        from detrlab.data import eval_transform

        transform = eval_transform(self.preprocessing)

        def read(image: Picture) -> _Prepared:
            pixels = as_pixels(image)
            size = (pixels.shape[1], pixels.shape[2])
            return _Prepared(transform(pixels), size, pixels if keep_image else None)

        size = batch_size or (16 if self.device.type == "cuda" else 1)
        for batch in _of_one_shape(ahead(read, images), size):
            for found in self._predict_batch(batch, limit):
                yield found.chosen(threshold)

    def tiled(self, side: int | None = None, overlap: float = 0.2) -> Tiled:
        """This detector, looking at overlapping tiles: for small objects in large pictures.

        Args:
            side: of a tile, in pixels of the picture; by default the detector's image size.
            overlap: share of a tile that its neighbour sees too.

        Raises:
            UserError: the tiles are too small, or overlap too much.
        """
        return Tiled(self, side or self.preprocessing.image_size, overlap)

    def prepare(self, pixels: Tensor) -> ImageBatch:
        """A (3, H, W) uint8 picture as the network wants it: a batch of one, unpadded."""
        from detrlab.data import eval_transform

        return self._batch(eval_transform(self.preprocessing)(pixels)[None])

    def _batch(self, pixels: Tensor) -> ImageBatch:
        pixels = pixels.to(self.device)
        return ImageBatch(pixels, torch.zeros_like(pixels[:, 0], dtype=torch.bool))

    @torch.inference_mode()
    def _predict_batch(self, batch: list[_Prepared], limit: int) -> list[Detections]:
        from detrlab.evaluation.postprocess import decode, detections

        sizes = [each.size for each in batch]
        was_training = self.network.training
        if was_training:  # walking through all modules takes milliseconds
            self.network.eval()
        try:
            final = self.network(self._batch(torch.stack([each.pixels for each in batch]))).final
        finally:
            if was_training:
                self.network.train()
        decoded = decode(final, self.scoring, sizes, limit)
        decoded = type(decoded)(*(part.cpu() for part in decoded))
        return [
            replace(
                detections(decoded, i, self.classes, self.category_ids, each.size),
                image=None if each.picture is None else as_picture(each.picture),
                threshold=DEFAULT_THRESHOLD if self.threshold is None else self.threshold,
            )
            for i, each in enumerate(batch)
        ]

    def explain(self, image: Picture, target: Target | None = None) -> Explanation:
        """Show where the detector attends in one image, and how its boxes change by layer.

        Args:
            image: as in ``predict``.
            target: what should have been found; then it also says why an object was missed.
        """
        from detrlab.explain import explain

        pixels = as_pixels(image)
        return explain(
            self.network,
            self.config.criterion(TrainConfig()),
            self.prepare(pixels),
            self.classes,
            picture=as_picture(pixels),
            target=target,
            name=self.config.preset,
        )

    def save(self, path: str | Path) -> Path:
        """Write the detector to one file, whole or not at all; ``detrlab.load`` reads it."""
        from detrlab.checkpoints import native

        return native.save(
            path,
            self.network,
            self.config,
            self.classes,
            self.category_ids,
            self.preprocessing,
            threshold=self.threshold,
        )


def _of_one_shape(images: Iterable[_Prepared], size: int) -> Iterator[list[_Prepared]]:
    """Consecutive images of one shape, at most ``size`` together."""
    batch: list[_Prepared] = []
    for image in images:
        if batch and image.pixels.shape != batch[0].pixels.shape:
            yield batch
            batch = []
        batch.append(image)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def build(preset: str, classes: Sequence[str], *, seed: int = 0, **changes: Any) -> Detector:
    """An untrained detector with the originals' initial values.

    Args:
        preset: such as ``"deformable-detr-two-stage"``; see ``detrlab models``.
        classes: the name of each class.
        seed: of the initial values.
        **changes: settings that should differ from the preset's.

    Raises:
        UserError: unknown preset or field, or an impossible architecture.
    """
    if isinstance(classes, str) or not classes:
        raise UserError(f"classes should be a list of names, not {classes!r}")
    config = model_config(preset, num_classes=len(classes), **changes)
    return Detector(build_network(config, seed=seed), config, classes)


def load(
    source: str | Path,
    weights: str | None = None,
    *,
    backbone: str | None = None,
    device: str | torch.device = "cpu",
) -> Detector:
    """Load a trained detector; no weight is initialised at random.

    Args:
        source: a file that ``Detector.save`` or ``detrlab train`` wrote, an official or
            transformers checkpoint, ``hf:`` and a repository, or the name of a preset;
            ``"deimv2-femto"`` comes with detrlab.
        weights: for a preset: ``"coco"`` (the default), a file or folder, or ``"hf:..."``.
        backbone: timm's name of the backbone, where it is not the preset's own.
        device: where to put the network.

    Raises:
        UserError: there is no such preset or file, or the weights are damaged or of another
            detector, or cannot be downloaded.
    """
    from detrlab.checkpoints.weights import load_detector

    loaded = load_detector(source, weights, backbone=backbone).checkpoint
    detector = Detector(
        prepare(loaded.build()),
        loaded.config,
        loaded.classes,
        loaded.category_ids,
        loaded.preprocessing,
        loaded.threshold,
    )
    detector.network.eval()
    return detector.to(device)
