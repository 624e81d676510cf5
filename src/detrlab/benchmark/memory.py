"""Peak memory, measured in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import re
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import torch

from detrlab.benchmark import subjects
from detrlab.config import ModelConfig
from detrlab.errors import UserError

Make = Callable[[ModelConfig, tuple[int, int], int], subjects.Subject]
"""Builds a subject for images of one size and number; in a process of its own, so it is pickled."""

_WARM_UP = (256, 256)
"""Small, but with more cells than a two-stage detector has queries: transformers' needs that."""


def peak_memory(
    make: Make, config: ModelConfig, size: tuple[int, int], batch: int, *, learn: bool
) -> dict[str, float]:
    """Peak memory of a process in MB: in all, and above what it used before the detector.

    The second number includes the weights and, with ``learn`` (a training step instead of
    inference), gradients and optimiser state, but not Python and its libraries.

    Raises:
        UserError: the process failed.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        threads = torch.get_num_threads()
        try:
            job = pool.submit(_measure, make, config, size, batch, learn, threads)
            peak, before = job.result()
        except Exception as error:  # the process may also have been killed
            raise UserError(
                f"peak memory could not be measured ({error}): try smaller images, or --no-memory"
            ) from None
    return {"peak_mb": peak, "above_start_mb": peak - before}


def _measure(
    make: Make, config: ModelConfig, size: tuple[int, int], batch: int, learn: bool, threads: int
) -> tuple[float, float]:
    torch.set_num_threads(threads)
    # Compilers, and libraries that load on first use, do not count.
    make(config, _WARM_UP, 1).learn()
    above = peak_of(lambda: make(config, size, batch), learn=learn)
    peak = _peak()
    return peak, peak - above


def peak_of(make: Callable[[], subjects.Subject], *, learn: bool) -> float:
    """Peak memory of this process in MB, above what it uses now, while a subject is made and run.

    Args:
        make: builds the detector and its images.
        learn: two training steps instead of two inferences.
    """
    before = _reset()
    subject = make()
    for _ in range(2):
        subject.learn() if learn else subject.infer()
    return _peak() - before


def _reset() -> float:
    """Reset the peak memory; returns what this process uses now, in MB."""
    gc.collect()
    if not sys.platform.startswith("linux"):
        return _peak()  # it cannot be reset: only what exceeds the warm-up's peak counts
    with suppress(OSError, AttributeError):  # a C library without it
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def _peak() -> float:
    """Peak memory since the reset, in MB."""
    if sys.platform.startswith("linux"):
        return _status("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


def _status(name: str) -> float:
    """A number of ``/proc/self/status``, in MB."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    (kilobytes,) = re.findall(rf"^{name}:\s*(\d+) kB$", text, re.MULTILINE)
    return int(kilobytes) * 1024 / 1e6
