"""Timing things in turn, so that a busy machine slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Times:
    """The seconds of repeated calls.

    Attributes:
        wall: on the clock, what a user waits.
        processor: of all threads together; hardly moved by what else the machine does.
    """

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def percentile(self, percent: float) -> float:
        """Of the wall seconds, interpolated."""
        ordered = sorted(self.wall)
        place = (len(ordered) - 1) * percent / 100
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (place - low)

    def to_dict(self) -> dict[str, Any]:
        """Milliseconds."""
        return {
            "calls": len(self.wall),
            **{f"p{percent}_ms": 1e3 * self.percentile(percent) for percent in (10, 50, 90, 99)},
            "least_ms": 1e3 * min(self.wall),
            "processor_ms": 1e3 * statistics.median(self.processor),
        }


def in_turn(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, Times]:
    """Call everything once a round, after one round that does not count."""
    times = {name: Times() for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            wall, processor = _seconds(call)
            if number:
                times[name].wall.append(wall)
                times[name].processor.append(processor)
    return times


def ratio(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """How much faster, over the rounds' pairs: median and quartiles."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    if len(ratios) == 1:
        return {"median": ratios[0], "low": ratios[0], "high": ratios[0]}
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high}


def _seconds(call: Callable[[], Any]) -> tuple[float, float]:
    _wait()
    wall, processor = time.perf_counter(), time.process_time()
    call()
    _wait()
    return time.perf_counter() - wall, time.process_time() - processor


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
