"""Ctrl-C and SIGTERM: the first requests a stop after saving, the second stops at once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

REPEATS = 2.0
"""Seconds within which a launcher may forward a signal that its processes have already received."""


@dataclass
class StopRequest:
    """Whether a stop was requested.

    Attributes:
        name: of the signal; empty while there was none.
    """

    name: str = ""

    def __bool__(self) -> bool:
        return bool(self.name)


@contextmanager
def stop_requests(repeats: float = 0.0) -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request; a second goes to the previous handler.

    Does nothing outside the main thread, where Python delivers no signals.

    Args:
        repeats: seconds within which further signals count as the first one. A terminal or a batch
            system signals the launcher and all its processes, and the launcher forwards it again.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    received = 0.0

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        nonlocal received
        if not request:
            request.name = signal.Signals(number).name
            received = time.monotonic()
            if not repeats:
                restore()
        elif time.monotonic() - received > repeats:
            restore()
            signal.raise_signal(number)

    for number in before:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        restore()
