"""Dropout with fewer random numbers than PyTorch draws on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_LEVELS = 1 << 16


def dropout(values: Tensor, p: float) -> Tensor:
    """Each element zeroed with probability ``p``, the others divided by ``1 - p``.

    On a CPU, PyTorch draws one random number for each element, which takes 4 to 7 % of the
    training step of a detector. Here one 64-bit number decides about four elements, and ``p`` is
    rounded to a multiple of 2**-16.

    Args:
        values: of any shape.
        p: 0 <= p < 1; 0 returns ``values`` itself.
    """
    if p == 0:
        return values
    if values.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(values, p)
    count = values.numel()
    numbers = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    dropped = round(p * _LEVELS)
    keep = numbers.view(torch.int16)[:count].view(values.shape) >= dropped - _LEVELS // 2
    return (values * keep).mul_(_LEVELS / (_LEVELS - dropped))
