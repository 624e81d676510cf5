"""The line of requests before the one thread that runs the detector, and how it refuses."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True)
class Limits:
    """What the service accepts.

    Attributes:
        max_bytes: of an upload.
        max_pixels: of a picture; checked before it is decoded.
        seconds: from a request's arrival to its answer.
        waiting: requests that may wait while one is worked on.
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    seconds: float = 30.0
    waiting: int = 8


class Refusal(Exception):  # noqa: N818 - an answer, not an error of the service
    """A request that is refused: the HTTP status and one sentence that says why."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Line:
    """One worker thread and a bounded number of requests before it.

    A request takes its place before its body is read, so the memory that uploads can take is
    bounded too. A detection that takes too long cannot be stopped: its client is told, and its
    place stays taken until it ends.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="detector")
        self._lock = threading.Lock()
        self.inside = 0
        """Requests that wait or are worked on."""

    async def run(
        self, read: Callable[[], Awaitable[bytes]], work: Callable[[bytes], Result]
    ) -> Result:
        """Read a request's body, then do the work in the worker thread.

        Raises:
            Refusal: the line is full, or the time is over.
        """
        self._enter()
        future: Future[Result] | None = None
        try:
            async with asyncio.timeout(self.limits.seconds):
                body = await read()
                future = self._worker.submit(work, body)
                return await asyncio.wrap_future(future)
        except TimeoutError:
            seconds = f"{self.limits.seconds:g} seconds"
            if future is None:
                raise Refusal(408, f"the upload took longer than {seconds}") from None
            raise Refusal(503, f"the answer took longer than {seconds}: try again later") from None
        finally:
            if future is None:
                self._leave()
            else:
                future.add_done_callback(lambda _: self._leave())

    def _enter(self) -> None:
        with self._lock:
            if self.inside > self.limits.waiting:
                raise Refusal(429, f"{self.inside} requests are in the line: try again later")
            self.inside += 1

    def _leave(self) -> None:
        with self._lock:
            self.inside -= 1

    def close(self) -> None:
        """End the worker thread; requests that wait are dropped."""
        self._worker.shutdown(wait=False, cancel_futures=True)
