"""Timing calls in turn, so that other load on the machine affects all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch


@dataclass
class Times:
    """The seconds of repeated calls."""

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    """Of all threads together; other load on the machine hardly affects it."""

    def percentile(self, percent: float) -> float:
        """Of the wall seconds, interpolated."""
        return float(np.percentile(self.wall, percent))

    def add(self, call: Callable[[], Any]) -> None:
        """Time one call."""
        _wait()
        wall, processor = time.perf_counter(), time.process_time()
        call()
        _wait()
        self.wall.append(time.perf_counter() - wall)
        self.processor.append(time.process_time() - processor)

    def to_dict(self) -> dict[str, Any]:
        """Milliseconds."""
        return {
            "calls": len(self.wall),
            **{f"p{percent}_ms": 1e3 * self.percentile(percent) for percent in (10, 50, 90, 99)},
            "least_ms": 1e3 * min(self.wall),
            "processor_ms": 1e3 * statistics.median(self.processor),
        }


def in_turn(calls: Mapping[Any, Callable[[], Any]], rounds: int) -> dict[Any, Times]:
    """Call everything once in each round, after one round that does not count."""
    for call in calls.values():
        call()
    times = {name: Times() for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].add(call)
    return times


def ratio(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """How much faster, over the pairs of each round: median and quartiles."""
    ratios = np.divide(slow, fast)
    low, middle, high = np.percentile(ratios, (25, 50, 75)).tolist()
    return {"median": middle, "low": low, "high": high}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
