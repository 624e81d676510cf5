"""Dropout with fewer random numbers than PyTorch draws on a CPU."""

from __future__ import annotations

from typing import Any

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
    keep, factor = drawn(values.shape, p)
    return (values * keep).mul_(factor)


def relu_dropout(values: Tensor, p: float) -> Tensor:
    """``dropout(relu(values), p)``, which keeps one tensor for the backward pass instead of three.

    Args:
        values: of any shape; in a training step (B, ...).
        p: 0 <= p < 1.
    """
    if p == 0 or values.device.type != "cpu" or torch.compiler.is_compiling():
        return dropout(torch.relu(values), p)
    return _ReluDropout.apply(values, *drawn(values.shape, p))


class _ReluDropout(torch.autograd.Function):
    """What is above zero afterwards was above zero before, and kept: so only that is saved."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, keep: Tensor, factor: float) -> Tensor:
        """``keep`` is bool of the same shape, ``factor`` what kept elements are multiplied by."""
        found = values.relu().mul_(keep).mul_(factor)
        ctx.save_for_backward(found)
        ctx.factor = factor
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """The gradient of the values."""
        (found,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(gradient, found, 0).mul_(ctx.factor), None, None


def drawn(shape: torch.Size, p: float) -> tuple[Tensor, float]:
    """Which elements of a tensor on the CPU are kept, (...) bool, and what they are multiplied by.

    Args:
        shape: of the tensor; in a training step (B, ...).
        p: 0 < p < 1.
    """
    images = 1 if current_share() is None else shape[0]
    count = shape.numel() // images
    numbers = torch.empty(images, (count + 3) // 4, dtype=torch.int64)
    for row, generator in zip(numbers, image_generators(images), strict=True):
        row.random_(-(2**63), None, generator=generator)
    dropped = round(p * _LEVELS)
    keep = numbers.view(torch.int16)[:, :count].reshape(shape) >= dropped - _LEVELS // 2
    return keep, _LEVELS / (_LEVELS - dropped)
