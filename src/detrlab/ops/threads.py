"""Run one native function in several threads: in torch's own, where they can be reached.

A second pool beside torch's costs more than it looks: after a matrix product torch's threads
spin for milliseconds, waiting for more work, on the very cores that the second pool needs. On
Linux torch's threads belong to the OpenMP runtime in the process, whose entry point
``GOMP_parallel`` is as stable as compiled programs are. Elsewhere, and in a process forked from
one that used them (where they no longer exist), a thread pool of Python's serves.
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
_BORN = os.getpid()


def run(function: int, argument: int, threads: int) -> None:
    """Call a native function in ``threads`` threads at once, each with the same argument.

    Python's lock is released meanwhile. The function must draw its share of the work itself,
    and must finish all of it however few threads come.

    Args:
        function: address of a ``void (*)(void *)``.
        argument: the address to call it with.
        threads: how many; 1 runs in this thread.
    """
    parallel = _openmp() if os.getpid() == _BORN else None
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
    """Wait for all, even through Ctrl-C: they still write to memory that the caller frees."""
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
    """The OpenMP runtime's entry point, or None where there is none to be found."""
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
    """A pool that lives as long as the process; a forked process gets its own."""
    return ThreadPoolExecutor(threads, thread_name_prefix="detrlab-ops")
