"""Deformable attention: chooses the backend that computes it.

``auto`` takes the fastest backend that works for the given tensors. A name chooses one backend:
with ``use`` for a block of code, or with the environment variable ``DETRLAB_OPS`` for a process.
Every backend is compared with ``reference`` before its first use. What a backend cannot compute
(another device, tracing for export) the reference computes.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType

import torch
from torch import Tensor

from detrlab.errors import UserError, did_you_mean
from detrlab.ops import cpu, cuda, reference
from detrlab.structures import LevelShapes, References

NAMES = ("auto", "reference", "cpu", "cuda")
"""``auto`` takes the fastest backend that works; ``reference`` is plain PyTorch."""

VARIABLE = "DETRLAB_OPS"

_BACKENDS = {"reference": reference, "cpu": cpu, "cuda": cuda}
_chosen: ContextVar[str | None] = ContextVar("detrlab_ops", default=None)
_log = logging.getLogger("detrlab")


def attend(
    values: Tensor,
    level_shapes: LevelShapes,
    valid_ratios: Tensor,
    references: References,
    offsets: Tensor,
    scores: Tensor,
) -> Tensor:
    """``reference.attend`` by the chosen backend."""
    module = _pick(values, offsets.shape[3] * offsets.shape[4])
    output: Tensor = module.attend(values, level_shapes, valid_ratios, references, offsets, scores)
    return output


def sample(values: Tensor, level_shapes: LevelShapes, locations: Tensor, weights: Tensor) -> Tensor:
    """``reference.sample`` by the chosen backend."""
    module = _pick(values, locations.shape[3] * locations.shape[4])
    output: Tensor = module.sample(values, level_shapes, locations, weights)
    return output


@contextmanager
def use(name: str) -> Iterator[None]:
    """Use one backend inside a ``with`` block, in this thread only.

    Args:
        name: one of ``NAMES``.

    Raises:
        UserError: the name is unknown, or that backend does not work here; the message says why.
    """
    _check(name, "use()")
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def backend(device: torch.device | str = "cpu") -> str:
    """The name of the backend for float32 tensors on ``device``."""
    return _backend_for(torch.device(device), torch.float32, 32, 16)


def problem(name: str, device: torch.device | str | None = None) -> str | None:
    """Why a backend does not work here; None if it works and has passed its test.

    Args:
        name: ``"reference"``, ``"cpu"`` or ``"cuda"``.
        device: the GPU to test; None takes the current one.
    """
    if name == "cpu":
        return cpu.problem()
    if name == "cuda":
        if not torch.cuda.is_available():
            return "no CUDA device"
        return cuda.problem(torch.device(device or "cuda"))
    return None


def _check(name: str, where: str) -> None:
    if name not in NAMES:
        raise UserError(f"{where}: unknown ops backend {name!r}{did_you_mean(name, NAMES)}")
    found = problem(name)
    if found is not None:
        raise UserError(f"{where}: ops backend {name!r} does not work here: {found}")


@functools.cache
def _check_variable(name: str) -> None:
    _check(name, VARIABLE)


def _pick(values: Tensor, count: int) -> ModuleType:
    """The module of the backend for this call; ``count`` is L * P."""
    if torch.jit.is_tracing() or torch.compiler.is_exporting():
        # An exported graph may contain no custom operator. PyTorch 2.7 takes what it compiles
        # for an export too: slower, with the same results.
        return reference
    return _BACKENDS[_backend_for(values.device, values.dtype, values.shape[3], count)]


def _backend_for(device: torch.device, dtype: torch.dtype, width: int, count: int) -> str:
    """The chosen backend where it works for such tensors, else the reference."""
    name = _chosen.get()
    if name is None:
        name = os.environ.get(VARIABLE, "auto")
        _check_variable(name)
    if name not in ("auto", device.type):
        return "reference"
    if device.type == "cpu":
        computing = torch.float64 if dtype == torch.float64 else torch.float32
        found = cpu.problem(computing, width, count)
    elif device.type == "cuda":
        found = cuda.problem(device)
    else:
        return "reference"
    if found is None:
        return device.type
    _warn_once(device.type, found)
    return "reference"


# What ``torch.compiler.assume_constant_result`` does, which imports the whole compiler.
_backend_for._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _warn_once(name: str, found: str) -> None:
    _log.warning(
        "deformable attention uses the slower plain PyTorch form: backend %r does not work (%s)",
        name,
        found,
    )
