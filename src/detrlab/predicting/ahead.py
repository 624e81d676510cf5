"""Reading ahead and writing behind in threads, in order and with bounded memory."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

WORKERS = max(1, min(8, (os.cpu_count() or 2) // 2))
"""Threads: decoding and resizing release the interpreter's lock; half of the cores compute."""


def ahead(
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    workers: int = WORKERS,
    depth: int = WORKERS + 3,
) -> Iterator[R]:
    """``function`` of each item, in order, computed by threads while the caller works.

    Args:
        function: called in threads; what it raises is raised here, in its place.
        items: read by the caller's thread.
        workers: number of threads.
        depth: at most so many results wait.
    """
    waiting: deque[Any] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def in_thread(
    items: Iterable[T], *, depth: int = 8, newest: bool = False
) -> Generator[T, None, None]:
    """The items, read by a thread of their own while the caller works.

    Args:
        items: read ahead; what reading raises is raised here, in its place.
        depth: at most so many items wait.
        newest: for a camera: where the caller is slower, older items are left out.
    """
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(1 if newest else depth)
    stopped = threading.Event()

    def put(kind: str, value: Any) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                ready.put((kind, value), block=not newest, timeout=0.1)
                return
            if newest:
                with suppress(queue.Empty):
                    ready.get_nowait()

    def read() -> None:
        try:
            for item in items:
                put("item", item)
                if stopped.is_set():
                    return
        except BaseException as error:
            put("error", error)
        else:
            put("end", None)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        stopped.set()
        thread.join(timeout=5)
