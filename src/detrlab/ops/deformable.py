"""The one seam for deformable attention: picks a backend and says which.

``auto`` takes the fastest backend that works for the tensors at hand; a name insists on one.
Set it for a block of code with ``use``, or for a whole process with the environment variable
``DETRLAB_OPS``. A backend is compared with ``reference`` before its first use, and whatever it
cannot do (another device, tracing for export) the reference does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from detrlab.errors import UserError, did_you_mean
from detrlab.ops import reference
from detrlab.structures import LevelShapes, References

NAMES = ("auto", "reference")
"""What ``use`` and ``DETRLAB_OPS`` accept."""

_chosen: ContextVar[str | None] = ContextVar("detrlab_ops", default=None)


@contextmanager
def use(name: str) -> Iterator[None]:
    """Use one backend inside a ``with`` block, in this thread only.

    Args:
        name: one of ``NAMES``.

    Raises:
        UserError: unknown name; the closest match is named.
    """
    token = _chosen.set(_known(name, "use()"))
    try:
        yield
    finally:
        _chosen.reset(token)


def _known(name: str, where: str) -> str:
    if name not in NAMES:
        raise UserError(f"{where}: unknown ops backend {name!r}{did_you_mean(name, NAMES)}")
    return name


def backend(device: torch.device | str = "cpu") -> str:
    """The name of the backend that serves tensors on ``device``."""
    name = _chosen.get() or _known(os.environ.get("DETRLAB_OPS", "auto"), "DETRLAB_OPS")
    return "reference" if name == "auto" else name


def attend(
    values: Tensor,
    level_shapes: LevelShapes,
    valid_ratios: Tensor,
    references: References,
    offsets: Tensor,
    scores: Tensor,
) -> Tensor:
    """``reference.attend`` by the chosen backend; the form that the models call."""
    return reference.attend(values, level_shapes, valid_ratios, references, offsets, scores)


def sample(values: Tensor, level_shapes: LevelShapes, locations: Tensor, weights: Tensor) -> Tensor:
    """``reference.sample`` by the chosen backend."""
    return reference.sample(values, level_shapes, locations, weights)
