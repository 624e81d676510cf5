"""How fast this machine multiplies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

SIDE = 2048


def matrix_product() -> tuple[Callable[[], Any], float]:
    """A call that multiplies two large float32 matrices, and its multiply-adds."""
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    return lambda: a @ b, float(SIDE**3)
