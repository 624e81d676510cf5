"""Reading an image of any kind that the Python API accepts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from detrlab.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    Picture = str | Path | Image.Image | np.ndarray | Tensor


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
