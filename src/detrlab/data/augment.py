"""What training does to an image: ``mild``, DEIM's ``dense``, and which one the settings name.

``mild`` and ``dense`` first decide what part of the image is shown, which may be larger than the
image, and then resize its pixels once, straight to the trained size. Pixels stay uint8.

All random draws come from the generator that is passed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from detrlab.config import DataConfig, Phase
from detrlab.data.mixing import copy_blend, mixup, mosaic
from detrlab.data.transforms import (
    Augmentation,
    DetrAugmentation,
    ZoomAugmentation,
    crop,
    evaluation_resize,
    evaluation_size,
    flip,
    resize,
)
from detrlab.structures import Sample

Partner = Callable[[np.random.Generator], Sample]
"""Another image of the data set, drawn from the generator."""

GREY = (124, 116, 104)
"""ImageNet's mean colour."""
BLACK = (0, 0, 0)

_LUMA = np.array([0.299, 0.587, 0.114])
_YIQ = np.array([_LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
"""RGB to luminance and two axes of colour, around which a rotation changes the hue."""

_LEAST_IOU = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
_TRIALS = 40


def train_augmentation(
    config: DataConfig,
    *,
    phase: Phase = "whole",
    side: int | None = None,
    partner: Partner | None = None,
) -> Augmentation:
    """The augmentation that ``config.augmentation`` names, as an epoch of this phase uses it.

    Args:
        config: of the data.
        phase: of the epoch.
        side: of this batch's square images; None takes ``config.image_size``.
        partner: gives other images; ``dense`` needs it.
    """
    kind, size, bound = config.augmentation, config.image_size, config.max_size
    if kind == "none":
        return lambda sample, _draws: evaluation_resize(sample, config, side)
    if phase == "plain":
        return lambda sample, draws: _plain(sample, draws, config, side)
    if kind == "mild":
        return MildAugmentation(config, side)
    if kind == "dense":
        assert partner is not None, "dense mixes images"
        return DenseAugmentation(config, side or size, phase == "whole", partner)
    augment: Augmentation
    if kind == "detr":
        augment = DetrAugmentation(size, bound)
    elif kind == "light":  # for small detectors and short trainings
        augment = ZoomAugmentation(
            size, bound, crops=0.5, crop_from=0.7, shrinks_to=0.8, colour=0.2
        )
    else:  # "strong", against overfitting in many epochs
        augment = ZoomAugmentation(
            size, bound, crops=0.7, crop_from=0.4, shrinks_to=0.6, colour=0.4
        )
    if config.resize == "short_side":
        return augment
    return lambda sample, draws: evaluation_resize(augment(sample, draws), config, side)


def _plain(
    sample: Sample, draws: np.random.Generator, config: DataConfig, side: int | None
) -> Sample:
    if draws.random() < 0.5:
        sample = flip(sample)
    sample = evaluation_resize(sample, config, side)
    return drop_small(sample, config.min_size) if config.augmentation in NEW else sample


NEW = ("mild", "dense")
"""Augmentations that drop boxes below ``min_size``; the others keep each box with an area."""


def drop_small(sample: Sample, min_size: float) -> Sample:
    """Without the boxes that have a side below so many pixels."""
    keep = ((sample.boxes[:, 2:] - sample.boxes[:, :2]) >= min_size).all(dim=1)
    return sample._replace(boxes=sample.boxes[keep], labels=sample.labels[keep])


# --- what is shown -------------------------------------------------------------------------


class Window(NamedTuple):
    """The part of an image that is shown, in its pixels; it may reach beyond the image."""

    left: int
    top: int
    width: int
    height: int


def zoom_out(window: Window, largest: float, draws: np.random.Generator) -> Window:
    """A window up to ``largest`` times as wide and high, with the given one anywhere inside.

    Source: torchvision, ``RandomZoomOut``.
    """
    factor, x, y = draws.uniform(1, largest), draws.random(), draws.random()
    width, height = int(window.width * factor), int(window.height * factor)
    left, top = int((width - window.width) * x), int((height - window.height) * y)
    return Window(window.left - left, window.top - top, width, height)


def iou_crop(window: Window, boxes: np.ndarray, draws: np.random.Generator) -> Window:
    """A part of the window that overlaps a box by an IoU drawn from a list, as in SSD.

    Each side keeps 0.3 to 1 of its length, and sides differ by at most a factor of 2.

    Args:
        window: what is shown.
        boxes: (N, 4) xyxy in pixels of the image; without any, nothing is cropped.
        draws: the generator.

    Source: arXiv 1512.02325, section 2.2; torchvision, ``RandomIoUCrop``.
    """
    if not len(boxes):
        return window
    origin, full = np.array(window[:2]), np.array(window[2:])
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    while True:
        least = _LEAST_IOU[int(draws.integers(len(_LEAST_IOU)))]
        if least >= 1:
            return window
        sides = (full * draws.uniform(0.3, 1, size=(_TRIALS, 2))).astype(np.int64).clip(min=1)
        low = origin + ((full - sides) * draws.random((_TRIALS, 2))).astype(np.int64)
        high = low + sides
        inside = ((centers > low[:, None]) & (centers < high[:, None])).all(axis=2)  # (T, N)
        both = np.minimum(boxes[:, 2:], high[:, None]) - np.maximum(boxes[:, :2], low[:, None])
        shared = both.clip(min=0).prod(axis=2)
        iou = shared / (areas + sides.prod(axis=1)[:, None] - shared)
        ratio = sides[:, 0] / sides[:, 1]
        good = inside.any(axis=1) & (ratio >= 0.5) & (ratio <= 2)
        good &= np.where(inside, iou, 0).max(axis=1) >= least
        if good.any():
            first = int(good.argmax())
            return Window(*low[first].tolist(), *sides[first].tolist())


def show(
    sample: Sample,
    window: Window,
    height: int,
    width: int,
    fill: tuple[int, int, int] = BLACK,
    recoloured: Callable[[Tensor], Tensor] = lambda pixels: pixels,
) -> Sample:
    """The window at this size; boxes whose center it does not show are dropped.

    Args:
        sample: the image.
        window: must show a part of the image.
        height: of the result.
        width: of the result.
        fill: colour of what lies beyond the image.
        recoloured: changes the colours of the image, not of the fill.
    """
    full_height, full_width = sample.image.shape[-2:]
    left, top = max(window.left, 0), max(window.top, 0)
    right = min(window.left + window.width, full_width)
    bottom = min(window.top + window.height, full_height)
    assert min(right - left, bottom - top) > 0, (window, sample.image.shape)
    centers = (sample.boxes[:, :2] + sample.boxes[:, 2:]) / 2
    shown = (centers > torch.tensor([left, top])) & (centers < torch.tensor([right, bottom]))
    keep = shown.all(dim=1)
    sample = sample._replace(boxes=sample.boxes[keep], labels=sample.labels[keep])
    part = crop(sample, top, left, bottom - top, right - left)
    x0, x1 = _placed(left - window.left, right - window.left, width / window.width, width)
    y0, y1 = _placed(top - window.top, bottom - window.top, height / window.height, height)
    part = resize(part, y1 - y0, x1 - x0)
    pixels = recoloured(part.image)
    if pixels.shape[-2:] != (height, width):
        canvas = torch.tensor(fill, dtype=torch.uint8)[:, None, None].repeat(1, height, width)
        canvas[:, y0:y1, x0:x1] = pixels
        pixels = canvas
    return part._replace(image=pixels, boxes=part.boxes + torch.tensor([x0, y0, x0, y0]))


def _placed(start: int, end: int, scale: float, length: int) -> tuple[int, int]:
    """Where an interval of the window comes to lie in whole pixels, at least one."""
    low = min(round(start * scale), length - 1)
    return low, max(round(end * scale), low + 1)


# --- colours -------------------------------------------------------------------------------


def recolour(
    image: Tensor,
    *,
    brightness: float = 1.0,
    contrast: float = 1.0,
    saturation: float = 1.0,
    hue: float = 0.0,
    order: Sequence[int] = (0, 1, 2),
) -> Tensor:
    """(3, H, W) uint8 with other colours, in one linear map.

    The order of the first four does not matter, because saturation and hue keep the luminance,
    to whose mean the contrast refers. In numpy, whose results do not hang on the number of
    threads.

    Args:
        image: the image.
        brightness: factor of all values.
        contrast: factor of the distance to the mean luminance.
        saturation: factor of the distance to each pixel's own luminance.
        hue: turn around the circle of colours, in turns.
        order: of the channels in the result.
    """
    angle = 2 * math.pi * hue
    c, s = saturation * math.cos(angle), saturation * math.sin(angle)
    turn = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    matrix = brightness * contrast * (np.linalg.inv(_YIQ) @ turn @ _YIQ)[list(order)]
    values = image.numpy()
    means = values.reshape(3, -1).sum(axis=1, dtype=np.int64) / values[0].size
    shift = float((1 - contrast) * brightness * (_LUMA @ means)) + 0.5  # truncated below
    planes = values.astype(np.float32)
    result = np.empty_like(values)
    for channel, weights in enumerate(matrix.astype(np.float32)):
        mixed = planes[0] * weights[0]
        mixed += planes[1] * weights[1]
        mixed += planes[2] * weights[2]
        mixed += np.float32(shift)
        result[channel] = mixed.clip(0, 255, out=mixed)
    return torch.from_numpy(result)


def photometric(image: Tensor, draws: np.random.Generator) -> Tensor:
    """Each of brightness, contrast, saturation, hue and order of the channels in half the images.

    Differs from the reference: hue is turned in YIQ instead of HSV, and values are cut off once
    at the end, which is one pass over the pixels instead of five.

    Source: torchvision, ``RandomPhotometricDistort``.
    """
    ranges = {"brightness": 0.125, "contrast": 0.5, "saturation": 0.5, "hue": 0.05}
    middle = {"hue": 0.0}
    drawn = {
        name: middle.get(name, 1.0) + draws.uniform(-width, width)
        for name, width in ranges.items()
        if draws.random() < 0.5
    }
    order = draws.permutation(3).tolist() if draws.random() < 0.5 else (0, 1, 2)
    if not drawn and order == (0, 1, 2):
        return image
    return recolour(image, order=order, **drawn)


# --- mild ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class MildAugmentation:
    """Zoom out, crop around objects, flip, colours: for small data sets.

    Half of the images are shown up to 1.5 times smaller on grey, half are cropped, half flipped,
    and half get another brightness, contrast and saturation.

    Attributes:
        config: of the data.
        side: of square images; None takes ``config.image_size``.
    """

    config: DataConfig
    side: int | None = None

    def __call__(self, sample: Sample, draws: np.random.Generator) -> Sample:
        """Apply one draw."""
        height, width = sample.image.shape[-2:]
        window = Window(0, 0, width, height)
        if draws.random() < 0.5:
            window = zoom_out(window, 1.5, draws)
        if draws.random() < 0.5:
            window = iou_crop(window, sample.boxes.numpy(), draws)
        size = evaluation_size(window.height, window.width, self.config, self.side)
        mirrored = draws.random() < 0.5
        if draws.random() < 0.5:
            brightness, contrast, saturation = draws.uniform(0.7, 1.3, size=3).tolist()
            colours = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
            shown = show(sample, window, *size, GREY, lambda pixels: recolour(pixels, **colours))
        else:
            shown = show(sample, window, *size, GREY)
        return drop_small(flip(shown) if mirrored else shown, self.config.min_size)


# --- dense ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class DenseAugmentation:
    """DEIM's dense one-to-one augmentation: more objects in an image, so more matched queries.

    An image becomes a mosaic of four, or is zoomed out and cropped; then colours and a flip.
    Two such images may be averaged (mixup), or get objects of one another (copy-blend).

    Differs from the reference: partners come from the data set by the sample's own draws, not
    from a cache or the batch, because those hang on the process and on what came before.

    Attributes:
        config: of the data.
        side: of the result.
        mixes: whether there are mosaic and mixup.
        partner: gives other images.

    Source: arXiv 2412.04234, section 3.2; DEIM, engine/data/transforms, engine/data/dataloader.py.
    """

    config: DataConfig
    side: int
    mixes: bool
    partner: Partner

    def __call__(self, sample: Sample, draws: np.random.Generator) -> Sample:
        """Apply one draw."""
        result = self._single(sample, draws)
        if self.mixes and draws.random() < self.config.mixup:
            return mixup(result, self._single(self.partner(draws), draws), draws)
        if draws.random() < self.config.copy_blend:
            return copy_blend(result, self._single(self.partner(draws), draws), draws)
        return result

    def _single(self, sample: Sample, draws: np.random.Generator) -> Sample:
        """A mosaic, or one image."""
        if self.mixes and draws.random() < self.config.mosaic:
            four = [sample, *(self.partner(draws) for _ in range(3))]
            result = mosaic(four, self.side, draws)
            result = result._replace(image=photometric(result.image, draws))
        else:
            height, width = sample.image.shape[-2:]
            window = Window(0, 0, width, height)
            if draws.random() < 0.5:
                window = zoom_out(window, 4, draws)
            if draws.random() < 0.8:
                window = iou_crop(window, sample.boxes.numpy(), draws)
            result = show(
                sample, window, self.side, self.side, BLACK, lambda each: photometric(each, draws)
            )
        if draws.random() < 0.5:
            result = flip(result)
        return drop_small(result, self.config.min_size)
