"""Compile and test kernels; a failure is reported, not raised."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from detrlab.ops.testing import in_own_thread

Kernels = TypeVar("Kernels")
_log = logging.getLogger("detrlab")
_lock = threading.Lock()


class Compiled(NamedTuple, Generic[Kernels]):
    """Kernels that passed their test, or the reason why they cannot be used.

    Attributes:
        kernels: None if there is a problem.
        problem: the reason, in one line; None if there is none.
    """

    kernels: Kernels | None
    problem: str | None


def compile_and_test(
    build: Callable[[], Kernels], test: Callable[[Kernels], str | None]
) -> Compiled[Kernels]:
    """Build kernels and test them.

    Args:
        build: may raise any exception: Numba can be missing, broken or incompatible.
        test: kernels -> None, or what is wrong with their results.
    """

    def attempt() -> Compiled[Kernels]:
        kernels = build()
        found = test(kernels)
        return Compiled(None, f"self-test failed: {found}") if found else Compiled(kernels, None)

    with _lock:
        try:
            return in_own_thread(attempt)
        except Exception as error:  # the plain form is used instead
            return Compiled(None, f"{type(error).__name__}: {error}".splitlines()[0])


def compile_on_disk(compile_kernel: Callable[..., Any], *arguments: Any) -> Any:
    """Compile a kernel with a cache on disk or, if that fails, without.

    Of processes that start together one compiles, and the others find what it compiled.
    """
    try:
        from filelock import FileLock
        from numba.core.registry import cpu_target

        cpu_target.target_context.refresh()  # the slow part of loading, which needs no lock
        with FileLock(_lock_file(), timeout=_PATIENCE):
            return compile_kernel(*arguments, cache=True)
    except Exception as error:  # a folder that cannot be written, a broken file
        _log.debug("compiled again without the cache on disk: %s", error)
        return compile_kernel(*arguments, cache=False)


_PATIENCE = 120.0
"""Seconds to wait for another process; compiling takes a few, and a process can be stopped."""


def _lock_file() -> Path:
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir(), f"detrlab-kernels-{user}.lock")
