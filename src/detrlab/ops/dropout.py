"""Dropout with fewer random numbers than PyTorch draws on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from detrlab.ops.shares import current_share, image_generators

_LEVELS = 1 << 16


def dropout(values: Tensor, p: float) -> Tensor:
    """Each element zeroed with probability ``p``, the others divided by ``1 - p``.

    On a CPU, PyTorch draws one random number for each element, which takes 4 to 7 % of the
    training step of a detector. Here one 64-bit number decides about four elements, and ``p`` is
    rounded to a multiple of 2**-16. In a training step what is drawn for an image does not depend
    on the split into micro-batches and processes; on other devices it does.

    Args:
        values: of any shape; in a training step (B, ...).
        p: 0 <= p < 1; 0 returns ``values`` itself.
    """
    if p == 0:
        return values
    if values.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(values, p)
    images = 1 if current_share() is None else len(values)
    count = values.numel() // images
    numbers = torch.empty(images, (count + 3) // 4, dtype=torch.int64)
    for row, generator in zip(numbers, image_generators(images), strict=True):
        row.random_(-(2**63), None, generator=generator)
    dropped = round(p * _LEVELS)
    keep = numbers.view(torch.int16)[:, :count].reshape(values.shape) >= dropped - _LEVELS // 2
    return (values * keep).mul_(_LEVELS / (_LEVELS - dropped))
