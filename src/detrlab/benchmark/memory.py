"""Peak memory, each measured in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import re
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from detrlab.benchmark import subjects
from detrlab.config import ModelConfig
from detrlab.errors import UserError

_WARM_UP = (256, 256)
"""Small, but with more cells than a two-stage detector has queries: transformers' needs that."""


def peak_memory(
    library: str, config: ModelConfig, size: tuple[int, int], batch: int, *, learn: bool
) -> dict[str, float]:
    """MB that a process holds at most: in all, and above what it held before the detector.

    The second number has the weights in it and, with ``learn``, gradients and optimiser state,
    but not Python and its libraries.

    Args:
        library: ``detrlab`` or ``transformers``.
        config: the architecture.
        size: (height, width) of the pictures.
        batch: how many.
        learn: a training step instead of inference.

    Raises:
        UserError: the process did not live to tell.
    """
    context = multiprocessing.get_context("spawn")
    answers: Any = context.SimpleQueue()
    arguments = (library, config, size, batch, learn, torch.get_num_threads(), answers)
    child = context.Process(target=_measure, args=arguments)
    child.start()
    child.join()
    if child.exitcode != 0:
        raise UserError(
            f"the process that measured peak memory ended with {child.exitcode} (too little "
            "memory?): try smaller pictures, or --no-memory"
        )
    peak, before = answers.get()
    return {"peak_mb": peak, "above_start_mb": peak - before}


def _measure(
    library: str,
    config: ModelConfig,
    size: tuple[int, int],
    batch: int,
    learn: bool,
    threads: int,
    answers: Any,
) -> None:
    torch.set_num_threads(threads)
    make = subjects.ours if library == "detrlab" else subjects.theirs
    # Compilers, and libraries that load on first use, are no part of the work.
    make(config, _WARM_UP, 1).learn()
    before = _start_over()
    subject = make(config, size, batch)
    for _ in range(2):
        subject.learn() if learn else subject.infer()
    answers.put((_peak(), before))


def _start_over() -> float:
    """Forget the most this process has held so far; what it holds now, in MB."""
    gc.collect()
    if not sys.platform.startswith("linux"):
        return _peak()  # it cannot be forgotten: the work counts from the warm-up's peak
    with suppress(OSError, AttributeError):  # a C library without it
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def _peak() -> float:
    """The most this process has held since it started over, in MB."""
    if sys.platform.startswith("linux"):
        return _status("VmHWM")
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held / 1e6 if sys.platform == "darwin" else held / 1e3


def _status(name: str) -> float:
    """A line of what Linux says about this process, in MB."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    (kilobytes,) = re.findall(rf"^{name}:\s*(\d+) kB$", text, re.MULTILINE)
    return int(kilobytes) * 1024 / 1e6
