"""Ctrl-C and SIGTERM: the first asks to save and leave, the second leaves at once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

ECHO = 2.0
"""Seconds in which a launcher may pass on to its processes what they have heard already."""


@dataclass
class StopRequest:
    """Whether somebody asked to stop.

    Attributes:
        name: of the signal; empty while nobody did.
    """

    name: str = ""

    def __bool__(self) -> bool:
        return bool(self.name)


@contextmanager
def listening(echo: float = 0.0) -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request; what was set before handles a second.

    Outside the main thread, where signals never arrive, nobody can ask.

    Args:
        echo: seconds in which more signals count as the first one. A terminal or a batch system
            signals the launcher and all its processes, and the launcher signals these again.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    asked = 0.0

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        nonlocal asked
        if not request:
            request.name = signal.Signals(number).name
            asked = time.monotonic()
            if not echo:
                restore()
        elif time.monotonic() - asked > echo:
            restore()
            signal.raise_signal(number)

    for number in before:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        restore()
