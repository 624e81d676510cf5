"""Peak memory, each measured in a process of its own."""

from __future__ import annotations

import multiprocessing
import resource
import sys
from typing import Any

import torch

from detrlab.benchmark import subjects
from detrlab.config import ModelConfig


def peak_memory(
    library: str, config: ModelConfig, size: tuple[int, int], batch: int, *, learn: bool
) -> dict[str, float]:
    """MB that a process holds at most: in all, and above what it held before the work.

    Args:
        library: ``detrlab`` or ``transformers``.
        config: the architecture.
        size: (height, width) of the pictures.
        batch: how many.
        learn: a training step instead of inference.
    """
    context = multiprocessing.get_context("spawn")
    answers: Any = context.SimpleQueue()
    arguments = (library, config, size, batch, learn, torch.get_num_threads(), answers)
    child = context.Process(target=_measure, args=arguments)
    child.start()
    child.join()
    if child.exitcode != 0:
        raise RuntimeError(f"the measurement ended with {child.exitcode}: too little memory?")
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
    make(config, (64, 64), 1).learn()
    subject = make(config, size, batch)
    before = _resident_peak()
    for _ in range(2):
        subject.learn() if learn else subject.infer()
    answers.put((_resident_peak(), before))


def _resident_peak() -> float:
    """The most this process has held so far, in MB."""
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held / 1e6 if sys.platform == "darwin" else held / 1e3
