"""Image transforms: resizing, DETR's augmentation, one that zooms, and evaluation.

Boxes are xyxy in pixels of the current image; only ``to_target`` turns them into fractions.
All random draws come from the generator that is passed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from detrlab.boxes import xyxy_to_cxcywh
from detrlab.config import DataConfig
from detrlab.structures import Sample, Target

Augmentation = Callable[[Sample, np.random.Generator], Sample]
"""What training does to a sample, with the generator it draws from."""


def resized_size(
    height: int, width: int, short_side: int, max_size: int | None = None
) -> tuple[int, int]:
    """(height, width) after resizing to a short side, the long one bounded by ``max_size``.

    The originals' rule: the long side is truncated, and is computed from the rounded short
    one, so that it may pass the bound by a pixel.

    Source: facebookresearch/detr, datasets/transforms.py, ``get_size_with_aspect_ratio``.
    """
    low, high = min(height, width), max(height, width)
    if max_size is not None and high / low * short_side > max_size:
        short_side = max(1, round(max_size * low / high))
    if low == short_side:
        return height, width
    if width < height:
        return int(short_side * height / width), short_side
    return short_side, int(short_side * width / height)


def resize_pixels(image: Tensor, height: int, width: int) -> Tensor:
    """(3, h, w) uint8 -> (3, height, width) uint8, bilinear and antialiased.

    Within one grey level of Pillow's resize, which the originals use, and faster.
    """
    if image.shape[-2:] == (height, width):
        return image
    resized: Tensor = F.interpolate(
        image[None], size=(height, width), mode="bilinear", antialias=True, align_corners=False
    )
    return resized[0]


def resize_as_pillow(image: Tensor, height: int, width: int) -> Tensor:
    """As ``resize_pixels``, equal to Pillow's to the bit.

    For squares: scores of the small real-time detectors move by up to 0.02 with a grey level.
    """
    from PIL import Image

    if image.shape[-2:] == (height, width):
        return image
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    resized = np.array(picture.resize((width, height), Image.Resampling.BILINEAR))
    return torch.from_numpy(resized).permute(2, 0, 1)


def resize(
    sample: Sample,
    height: int,
    width: int,
    pixels: Callable[[Tensor, int, int], Tensor] = resize_pixels,
) -> Sample:
    """The sample at another size; boxes are scaled by the actual ratio of each axis.

    Args:
        sample: to resize.
        height: in pixels.
        width: in pixels.
        pixels: resizes the image.
    """
    old_height, old_width = sample.image.shape[-2:]
    ratios = torch.tensor([width / old_width, height / old_height] * 2)
    return sample._replace(image=pixels(sample.image, height, width), boxes=sample.boxes * ratios)


def resize_short_side(sample: Sample, short_side: int, max_size: int | None = None) -> Sample:
    """The sample with this short side, its long one bounded by ``max_size``."""
    height, width = sample.image.shape[-2:]
    return resize(sample, *resized_size(height, width, short_side, max_size))


def flip(sample: Sample) -> Sample:
    """The mirror image, left for right."""
    width = sample.image.shape[-1]
    x0, y0, x1, y1 = sample.boxes.unbind(-1)
    boxes = torch.stack([width - x1, y0, width - x0, y1], dim=-1)
    return sample._replace(image=sample.image.flip(-1), boxes=boxes)


def crop(sample: Sample, top: int, left: int, height: int, width: int) -> Sample:
    """A part of the sample; boxes are clamped to it and those left without area are dropped."""
    shift = torch.tensor([left, top, left, top], dtype=torch.float32)
    bound = torch.tensor([width, height, width, height], dtype=torch.float32)
    boxes = torch.minimum((sample.boxes - shift).clamp(min=0), bound)
    keep = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    return sample._replace(
        image=sample.image[:, top : top + height, left : left + width],
        boxes=boxes[keep],
        labels=sample.labels[keep],
    )


def _random_crop(
    sample: Sample, low: tuple[int, int], high: tuple[int, int], draws: np.random.Generator
) -> Sample:
    """A crop of uniform size between (height, width) bounds, both included, anywhere."""
    full_height, full_width = sample.image.shape[-2:]
    width = _between(draws, min(low[1], full_width), min(high[1], full_width))
    height = _between(draws, min(low[0], full_height), min(high[0], full_height))
    top = _between(draws, 0, full_height - height)
    left = _between(draws, 0, full_width - width)
    return crop(sample, top, left, height, width)


def _between(draws: np.random.Generator, low: int, high: int) -> int:
    return int(draws.integers(low, high, endpoint=True))


def _choice(draws: np.random.Generator, values: tuple[int, ...]) -> int:
    return values[int(draws.integers(len(values)))]


@dataclass(frozen=True)
class DetrAugmentation:
    """DETR's augmentation: flip, then either resize, or resize, crop and resize again.

    The originals' sizes belong to a short side of 800; another image size scales them all.

    Source: facebookresearch/detr, datasets/coco.py, ``make_coco_transforms``.
    """

    image_size: int
    max_size: int

    def scaled(self, *lengths: int) -> tuple[int, ...]:
        """The originals' lengths at this image size."""
        return tuple(max(1, round(length * self.image_size / 800)) for length in lengths)

    @property
    def short_sides(self) -> tuple[int, ...]:
        """Each result has one of these as its short side."""
        return self.scaled(*range(480, 801, 32))

    def __call__(self, sample: Sample, draws: np.random.Generator) -> Sample:
        """Apply one draw."""
        if draws.random() < 0.5:
            sample = flip(sample)
        if draws.random() >= 0.5:
            sample = resize_short_side(sample, _choice(draws, self.scaled(400, 500, 600)))
            low, high = self.scaled(384, 600)
            sample = _random_crop(sample, (low, low), (high, high), draws)
        return resize_short_side(sample, _choice(draws, self.short_sides), self.max_size)


@dataclass(frozen=True)
class ZoomAugmentation:
    """Flip, crop and scale, colour: for data sets of a few hundred images.

    A crop is enlarged to the size of a whole image, which magnifies small objects. Half of the
    images are flipped, and half get another brightness, contrast and saturation.

    Attributes:
        image_size: short side in evaluation.
        max_size: bound of the long side in evaluation.
        crops: share of the images that are cropped.
        crop_from: smallest part of each side that a crop keeps.
        shrinks_to: smallest size, as a part of evaluation's.
        colour: largest relative change of brightness, contrast and saturation.
    """

    image_size: int
    max_size: int
    crops: float
    crop_from: float
    shrinks_to: float
    colour: float

    def __call__(self, sample: Sample, draws: np.random.Generator) -> Sample:
        """Apply one draw."""
        if draws.random() < 0.5:
            sample = flip(sample)
        if draws.random() < self.crops:
            height, width = sample.image.shape[-2:]
            low = (_at_least(self.crop_from, height), _at_least(self.crop_from, width))
            sample = _random_crop(sample, low, (height, width), draws)
        smallest = max(1, round(self.shrinks_to * self.image_size))
        side = _between(draws, smallest, self.image_size)
        bound = max(1, round(self.max_size * side / self.image_size))
        sample = resize_short_side(sample, side, bound)
        if draws.random() < 0.5:
            factors = draws.uniform(1 - self.colour, 1 + self.colour, size=3).tolist()
            sample = sample._replace(image=jitter(sample.image, *factors))
        return sample


def _at_least(part: float, length: int) -> int:
    """The part of a length, rounded up; rounding errors of the product do not add a pixel."""
    return math.ceil(round(part * length, 6))


def jitter(image: Tensor, brightness: float, contrast: float, saturation: float) -> Tensor:
    """(3, H, W) uint8 with its brightness, contrast and saturation multiplied."""
    pixels = image.float().mul_(brightness)
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    grey = (pixels * weights).sum(0, keepdim=True)
    pixels.sub_(grey).mul_(saturation).add_(grey)
    # An integer sum: a float sum would depend on the number of threads.
    middle = int(grey.to(torch.int64).sum()) / grey.numel()
    pixels.sub_(middle).mul_(contrast).add_(middle)
    return pixels.clamp_(0, 255).round_().byte()


def evaluation_resize(sample: Sample, config: DataConfig, side: int | None = None) -> Sample:
    """The sample at the size at which a detector is evaluated; ``side`` as below."""
    height, width = sample.image.shape[-2:]
    return resize(sample, *evaluation_size(height, width, config, side), _resizer(config))


def _resizer(config: DataConfig) -> Callable[[Tensor, int, int], Tensor]:
    return resize_as_pillow if config.resize == "square" else resize_pixels


def evaluation_size(
    height: int, width: int, config: DataConfig, side: int | None = None
) -> tuple[int, int]:
    """(height, width) that an image of this size is evaluated at.

    Args:
        height: in pixels.
        width: in pixels.
        config: says how images are resized.
        side: of square images, if not ``config.image_size``; only training batches differ.
    """
    if config.resize == "square":
        return (side or config.image_size,) * 2
    return resized_size(height, width, config.image_size, config.max_size)


def normalize(image: Tensor, config: DataConfig, out: Tensor | None = None) -> Tensor:
    """(3, H, W) uint8 -> float32: to [0, 1], minus the mean, by the standard deviation.

    Written to ``out`` if it is given, without another array of floats on the way.
    """
    mean = torch.tensor(config.mean)[:, None, None]
    std = torch.tensor(config.std)[:, None, None]
    pixels = torch.empty(image.shape) if out is None else out
    return pixels.copy_(image).div_(255).sub_(mean).div_(std)


def eval_transform(config: DataConfig) -> Callable[[Tensor], Tensor]:
    """The preprocessing of one image: resize, then normalise.

    Returns:
        a function from (3, h, w) uint8 RGB to (3, H, W) float32.
    """

    def transform(image: Tensor) -> Tensor:
        height, width = evaluation_size(image.shape[-2], image.shape[-1], config)
        return normalize(_resizer(config)(image, height, width), config)

    return transform


def to_target(sample: Sample) -> Target:
    """Boxes as fractions of the sample's own image, without padding."""
    height, width = sample.image.shape[-2:]
    scale = torch.tensor([width, height, width, height], dtype=torch.float32)
    return Target(labels=sample.labels, boxes=xyxy_to_cxcywh(sample.boxes / scale))
