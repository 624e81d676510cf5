"""Samples made from several images: mosaic, mixup, copy-blend.

Boxes are xyxy in pixels; pixels stay uint8. All random draws come from the generator that is
passed in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from detrlab.data.transforms import resize_pixels, resize_short_side
from detrlab.structures import Sample


def mosaic(samples: Sequence[Sample], side: int, draws: np.random.Generator) -> Sample:
    """Four images in a square, rotated, moved and scaled; it keeps the first one's identity.

    Boxes are those around the rotated boxes, cut off at the edges.

    Differs from the reference: a tile's long side is at most twice its short one.

    Source: DEIM, engine/data/transforms/mosaic.py.
    """
    from PIL import Image

    tiles = [resize_short_side(each, max(1, side // 2), max(1, side // 2) * 2) for each in samples]
    height = max(tile.image.shape[1] for tile in tiles)
    width = max(tile.image.shape[2] for tile in tiles)
    canvas = np.zeros((2 * height, 2 * width, 3), np.uint8)
    boxes = []
    for index, tile in enumerate(tiles):
        top, left = index // 2 * height, index % 2 * width
        h, w = tile.image.shape[1:]
        canvas[top : top + h, left : left + w] = tile.image.permute(1, 2, 0).numpy()
        boxes.append(tile.boxes.numpy() + np.array([left, top, left, top], np.float32))
    full = np.array([2 * width, 2 * height])
    angle = math.radians(draws.uniform(-10, 10))
    shift, scale = full * draws.uniform(-0.1, 0.1, size=2), draws.uniform(0.5, 1.5)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    back = turn.T / scale  # from the result to the canvas
    offset = full / 2 - back @ (full / 2 + shift)
    moved = Image.fromarray(canvas).transform(
        (int(full[0]), int(full[1])),
        Image.Transform.AFFINE,
        (*back[0].tolist(), float(offset[0]), *back[1].tolist(), float(offset[1])),
    )
    pixels = torch.from_numpy(np.array(moved)).permute(2, 0, 1)
    # The corners of each box: (N, 4, 2).
    corners = np.concatenate(boxes)[:, [[0, 1], [2, 1], [2, 3], [0, 3]]].astype(np.float64)
    corners = (corners - full / 2) @ (scale * turn).T + full / 2 + shift
    corners = (corners * (side / full)).clip(0, side)
    around = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    return samples[0]._replace(
        image=resize_pixels(pixels, side, side).contiguous(),
        boxes=torch.from_numpy(around.astype(np.float32)),
        labels=torch.cat([tile.labels for tile in tiles]),
    )


def blend(one: np.ndarray, other: np.ndarray, part: float) -> np.ndarray:
    """The sum of ``part`` of one uint8 image and the rest of another, in steps of 1/256."""
    weight = np.uint16(round(256 * part))
    mixed = one.astype(np.uint16) * weight
    mixed += other.astype(np.uint16) * (np.uint16(256) - weight)
    mixed += np.uint16(128)
    return (mixed >> np.uint16(8)).astype(np.uint8)


def mixup(sample: Sample, other: Sample, draws: np.random.Generator) -> Sample:
    """The average of two images of one size, with the objects of both.

    Source: DEIM, engine/data/dataloader.py, ``apply_mixup``.
    """
    pixels = blend(sample.image.numpy(), other.image.numpy(), draws.uniform(0.45, 0.55))
    return sample._replace(
        image=torch.from_numpy(pixels),
        boxes=torch.cat([sample.boxes, other.boxes]),
        labels=torch.cat([sample.labels, other.labels]),
    )


def copy_blend(sample: Sample, other: Sample, draws: np.random.Generator) -> Sample:
    """Up to three objects of another image, half transparent, with a margin, at random places.

    Source: DEIM, engine/data/dataloader.py, ``apply_mixup``.
    """
    height, width = sample.image.shape[-2:]
    corners = other.boxes.round().to(torch.int64).clamp(min=0)
    sides = corners[:, 2:] - corners[:, :2]
    large = ((sides.prod(dim=1) >= 100) & (sides > 0).all(dim=1)).nonzero()[:, 0].numpy()
    chosen = draws.permutation(large)[:3].tolist()
    if not chosen:
        return sample
    pixels, source = sample.image.numpy().copy(), other.image.numpy()
    part = draws.uniform(0.45, 0.55)
    placed = []
    for left, top, right, bottom in corners[chosen].tolist():
        x = int(draws.integers(width - (right - left), endpoint=True))
        y = int(draws.integers(height - (bottom - top), endpoint=True))
        placed.append([x, y, x + right - left, y + bottom - top])
        margin = draws.uniform(0.1, 0.25)
        # No further than the edges of both images.
        wide, high = int((right - left) * margin), int((bottom - top) * margin)
        before_x, before_y = min(wide, left, x), min(high, top, y)
        after_x = min(wide, width - right, width - placed[-1][2])
        after_y = min(high, height - bottom, height - placed[-1][3])
        to = np.s_[
            :, y - before_y : placed[-1][3] + after_y, x - before_x : placed[-1][2] + after_x
        ]
        patch = source[:, top - before_y : bottom + after_y, left - before_x : right + after_x]
        pixels[to] = blend(pixels[to], patch, part)
    return sample._replace(
        image=torch.from_numpy(pixels),
        boxes=torch.cat([sample.boxes, torch.tensor(placed, dtype=torch.float32)]),
        labels=torch.cat([sample.labels, other.labels[chosen]]),
    )
