"""The public inference API: ``Detector``, ``build`` and ``load``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from detrlab.config import DataConfig, ModelConfig, TrainConfig
from detrlab.detections import DEFAULT_THRESHOLD, Detections
from detrlab.errors import UserError
from detrlab.images import as_picture, as_pixels
from detrlab.models.network import Network
from detrlab.models.prepare import prepare
from detrlab.presets import build_network, model_config
from detrlab.structures import ImageBatch

if TYPE_CHECKING:
    from detrlab.explain import Explanation
    from detrlab.images import Picture
    from detrlab.structures import Target


class Detector:
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

    @overload
    def predict(
        self,
        images: Picture,
        *,
        threshold: float | None = ...,
        limit: int = ...,
        keep_image: bool = ...,
    ) -> Detections: ...
    @overload
    def predict(
        self,
        images: list[Picture] | tuple[Picture, ...],
        *,
        threshold: float | None = ...,
        limit: int = ...,
        keep_image: bool = ...,
    ) -> list[Detections]: ...
    def predict(
        self,
        images: Picture | list[Picture] | tuple[Picture, ...],
        *,
        threshold: float | None = None,
        limit: int = 100,
        keep_image: bool = True,
    ) -> Detections | list[Detections]:
        """Find the objects in one image, or in each of several.

        Images are processed one by one: padding them to one size would change the result.

        Args:
            images: a path, a PIL image, a (H, W, 3) uint8 array or a (3, H, W) uint8 tensor,
                RGB; or a sequence of these.
            threshold: leave out detections that score less. None returns all of them;
                ``plot`` and ``save`` then draw those above the checkpoint's own threshold.
            limit: at most so many detections an image.
            keep_image: keep the picture in the result, for ``Detections.plot``.

        Returns:
            ``Detections`` for one image, a list of them for a sequence.

        Raises:
            UserError: an image cannot be read, or is not of a known kind.
        """
        found = self.predict_each(
            images if isinstance(images, (list, tuple)) else [images],
            threshold=threshold,
            limit=limit,
            keep_image=keep_image,
        )
        return list(found) if isinstance(images, (list, tuple)) else next(found)

    def predict_each(
        self,
        images: Iterable[Picture],
        *,
        threshold: float | None = None,
        limit: int = 100,
        keep_image: bool = True,
    ) -> Iterator[Detections]:
        """As ``predict``, one image after the other, so that a folder of any size fits."""
        for image in images:
            pixels = as_pixels(image)
            found = self._predict_one(pixels, limit, keep_image)
            yield found if threshold is None else found.above(threshold)

    def prepare(self, pixels: Tensor) -> ImageBatch:
        """A (3, H, W) uint8 picture as the network wants it: a batch of one, unpadded."""
        from detrlab.data import eval_transform

        prepared = eval_transform(self.preprocessing)(pixels)[None].to(self.device)
        padding = torch.zeros_like(prepared[:, 0], dtype=torch.bool)
        return ImageBatch(prepared, padding)

    @torch.inference_mode()
    def _predict_one(self, pixels: Tensor, limit: int, keep_image: bool) -> Detections:
        from detrlab.evaluation.postprocess import decode, detections

        size = (pixels.shape[1], pixels.shape[2])
        was_training = self.network.training
        self.network.eval()
        try:
            final = self.network(self.prepare(pixels)).final
        finally:
            self.network.train(was_training)
        decoded = decode(final, self.scoring, [size], limit)
        found = detections(decoded, 0, self.classes, self.category_ids, size)
        return replace(
            found,
            image=as_picture(pixels) if keep_image else None,
            threshold=DEFAULT_THRESHOLD if self.threshold is None else self.threshold,
        )

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
            transformers checkpoint, ``hf:`` and a repository, the name of a preset, or
            ``"shapes"``: a small two-stage detector that comes with detrlab, for generated
            pictures.
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
