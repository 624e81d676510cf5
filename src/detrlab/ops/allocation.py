"""Memory of the process: freed memory is kept, and what a step will need is asked for first."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import sys
from contextlib import suppress

KEPT = 1 << 30
"""Bytes of freed memory that a process keeps at most."""

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_THRESHOLD = 32 << 20
_CHOICES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


@functools.cache
def keep_freed_memory() -> None:
    """Let glibc keep freed memory instead of giving it back to the system after each tensor.

    For inference: the system clears every page that it hands out, and a quarter of the packaged
    detector's time went into that. A training step would gain 5 to 7 percent, and take a fifth more
    memory. What the environment says about memory wins; other systems are left as they are.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _CHOICES):
        return
    with suppress(OSError, AttributeError):  # a C library without it
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
        mallopt(_TRIM_THRESHOLD, KEPT)


def require(size: int) -> None:
    """Ask the system for so many bytes and give them back.

    For long steps of many small allocations: Python before 3.14 may wait for ever, or lose the
    error, when memory ends in one of them (CPython's issue 132508). So they are refused before.

    Raises:
        OSError: it does not give them, because of a limit or its own policy.
    """
    private = {} if sys.platform == "win32" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
    mmap.mmap(-1, size, **private).close()
