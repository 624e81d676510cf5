"""Which backend is asked for: by a ``with`` block, by the environment, or ``auto``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from detrlab.errors import UserError, did_you_mean

NAMES = ("auto", "reference", "cpu", "cuda")
"""``auto`` takes the fastest that works; ``reference`` is plain PyTorch."""

VARIABLE = "DETRLAB_OPS"

_chosen: ContextVar[str | None] = ContextVar("detrlab_ops", default=None)


def wish() -> str:
    """The name asked for.

    Raises:
        UserError: the environment variable holds none of ``NAMES``.
    """
    chosen = _chosen.get()
    return chosen if chosen is not None else known(os.environ.get(VARIABLE, "auto"), VARIABLE)


def known(name: str, where: str) -> str:
    """The name, if it is one of ``NAMES``.

    Raises:
        UserError: it is not; the closest match is named.
    """
    if name not in NAMES:
        raise UserError(f"{where}: unknown ops backend {name!r}{did_you_mean(name, NAMES)}")
    return name


@contextmanager
def chosen(name: str) -> Iterator[None]:
    """Ask for a backend inside a ``with`` block, in this thread only."""
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)
