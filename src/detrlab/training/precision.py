"""The number format that training multiplies in: ``auto``, and what a processor is too slow for."""

from __future__ import annotations

import os
import time

import torch
import torch.nn.functional as F

from detrlab.errors import UserError

VARIABLE = "DETRLAB_BFLOAT16"
"""``insist`` trains in bfloat16 however slow it is."""

_PAYS = 1.2
"""Times as fast as float32 that ``auto`` wants from bfloat16 on a CPU."""


def settled(asked: str, device: torch.device) -> str:
    """The precision of a run that asks for one, on this machine.

    Args:
        asked: a precision, or ``auto``: bfloat16 on a GPU that has it and on a CPU that is
            measured to be faster with it, otherwise float32.
        device: to train on.

    Raises:
        UserError: bfloat16 is slower than float32 here, and nobody insists on it.
    """
    if asked == "auto":
        return "bfloat16" if _pays(device) else "float32"
    if asked == "bfloat16" and device.type == "cpu" and os.environ.get(VARIABLE) != "insist":
        gain = bfloat16_gain()
        if gain < 1:
            raise UserError(
                f"precision bfloat16: measured {1 / gain:.3g} times slower than float32 on this "
                f"processor: use --precision auto or float32, or insist with {VARIABLE}=insist"
            )
    return asked


def _pays(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bfloat16_gain() >= _PAYS


def bfloat16_gain() -> float:
    """How many times as fast as float32 bfloat16 is on the CPU: a product and a convolution."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(256, 256, dtype=dtype)
        maps = torch.ones(1, 64, 28, 28, dtype=dtype).to(memory_format=torch.channels_last)
        kernel = torch.ones(64, 64, 3, 3, dtype=dtype)
        taken = []
        for _ in range(3):  # the first makes ready
            start = time.perf_counter()
            _ = F.conv2d(maps, kernel, padding=1), matrix @ matrix
            taken.append(time.perf_counter() - start)
        seconds[dtype] = min(taken)
    return seconds[torch.float32] / seconds[torch.bfloat16]
