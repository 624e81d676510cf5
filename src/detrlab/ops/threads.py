"""Run one native function in several threads: in torch's OpenMP threads, where that is possible.

A second thread pool would compete with torch's threads, which may still spin on their cores for
milliseconds after a matrix product. On Linux they belong to the OpenMP runtime of the process,
and every compiled OpenMP program depends on its entry point ``GOMP_parallel``. On other systems,
and in a forked process (where the threads do not exist), a Python thread pool is used.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

_NATIVE = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_MAIN_PROCESS = os.getpid()


def run(function: int, argument: int, threads: int) -> None:
    """Call a native function in ``threads`` threads at once, each with the same argument.

    Python's global lock is released meanwhile. The function must take its share of the work by
    itself, and finish all of it with any number of threads.

    Args:
        function: address of a ``void (*)(void *)``.
        argument: the address to call it with.
        threads: how many; 1 runs in this thread.
    """
    parallel = _openmp() if os.getpid() == _MAIN_PROCESS else None
    if threads == 1:
        _NATIVE(function)(argument)
    elif parallel is not None:
        parallel(function, argument, threads, 0)
    else:
        native = _NATIVE(function)
        pool = _pool(os.getpid(), threads - 1)
        others = [pool.submit(native, argument) for _ in range(threads - 1)]
        native(argument)
        _wait(others)


def _wait(others: list[Future[None]]) -> None:
    """Wait for all, also after Ctrl-C: they still write to memory that the caller frees."""
    interrupt: KeyboardInterrupt | None = None
    while any(not other.done() for other in others):
        try:
            wait(others)
        except KeyboardInterrupt as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt


@functools.cache
def _openmp() -> Callable[..., Any] | None:
    """The OpenMP runtime's entry point; None where it is not found."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        function = ctypes.CDLL(None).GOMP_parallel
    except (OSError, AttributeError):
        return None
    function.restype = None
    function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    return function


@functools.cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:  # noqa: ARG001
    """One pool for each process, because a forked process has none of its parent's threads."""
    return ThreadPoolExecutor(threads, thread_name_prefix="detrlab-ops")
