"""Images of any kind that the Python API accepts, and what finds objects in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor

from detrlab.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from detrlab.detections import Detections, Threshold

    Picture = str | Path | Image.Image | np.ndarray | Tensor


class Finder:
    """What finds objects in pictures."""

    classes: tuple[str, ...]
    """The name of each class, by class index."""

    @overload
    def predict(
        self,
        images: Picture,
        *,
        threshold: Threshold = ...,
        limit: int = ...,
        keep_image: bool = ...,
    ) -> Detections: ...
    @overload
    def predict(
        self,
        images: list[Picture] | tuple[Picture, ...],
        *,
        threshold: Threshold = ...,
        limit: int = ...,
        keep_image: bool = ...,
    ) -> list[Detections]: ...
    def predict(
        self,
        images: Picture | list[Picture] | tuple[Picture, ...],
        *,
        threshold: Threshold = "auto",
        limit: int = 100,
        keep_image: bool = True,
    ) -> Detections | list[Detections]:
        """Find the objects in one image, or in each of several.

        Images are never padded to one size, because that would change the result.

        Args:
            images: a path, a PIL image, a (H, W, 3) uint8 array or a (3, H, W) uint8 tensor,
                RGB; or a sequence of these.
            threshold: leave out detections that score less. ``"auto"`` is the checkpoint's own
                threshold, 0.3 where it has none. None returns all detections; ``plot`` and
                ``save`` then draw those above the checkpoint's own threshold.
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
        threshold: Threshold = "auto",
        limit: int = 100,
        keep_image: bool = True,
    ) -> Iterator[Detections]:
        """As ``predict``, one image after the other, so that a folder of any size fits."""
        raise NotImplementedError


def as_pixels(image: Picture) -> Tensor:
    """Any image that the API accepts -> (3, H, W) uint8, RGB.

    Args:
        image: a path, a PIL image, a (H, W, 3) uint8 array or a (3, H, W) uint8 tensor, RGB.

    Raises:
        UserError: the file cannot be read, or the array has another shape or type.
    """
    import numpy as np
    from PIL import Image as Pillow

    if isinstance(image, (str, Path)):
        return read_picture(Path(image))
    if isinstance(image, Pillow.Image):
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()
    if isinstance(image, np.ndarray) and image.ndim == 3:
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    elif isinstance(image, Tensor):
        pixels = image.cpu().contiguous()
    else:
        raise UserError(
            f"an image cannot be a {type(image).__name__}: give a path, a PIL image, "
            "a (H, W, 3) uint8 array or a (3, H, W) uint8 tensor"
        )
    if (
        pixels.shape[0] != 3
        or pixels.dim() != 3
        or pixels.dtype != torch.uint8
        or 0 in pixels.shape
    ):
        raise UserError(
            f"an image of shape {tuple(image.shape)} and type {image.dtype}: an array should be "
            "(H, W, 3) uint8, a tensor (3, H, W) uint8, both RGB"
        )
    return pixels


def read_picture(path: Path) -> Tensor:
    """An image file -> (3, H, W) uint8, RGB, rotated as its EXIF orientation says.

    Raises:
        UserError: the file cannot be opened or decoded.
    """
    from detrlab.data.images import decode

    try:
        stream = path.open("rb")
    except OSError as error:
        raise UserError(f"{path} cannot be opened: {error.strerror}") from None
    with stream:
        return decode(stream, str(path))


def as_picture(pixels: Tensor) -> Image.Image:
    """(3, H, W) uint8, RGB -> a PIL image."""
    from PIL import Image

    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
