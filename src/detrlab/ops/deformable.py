"""The one seam for deformable attention: picks a backend and says which.

``auto`` takes the fastest backend that works for the tensors at hand. A name insists on one: set
it for a block of code with ``use``, or for a process with the environment variable
``DETRLAB_OPS``. Every backend is compared with ``reference`` before its first use, and what it
cannot do (another device, tracing for export) the reference does.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor

from detrlab.errors import UserError
from detrlab.ops import choice, cpu, cuda, reference
from detrlab.structures import LevelShapes, References

_BACKENDS = {"reference": reference, "cpu": cpu, "cuda": cuda}
_log = logging.getLogger("detrlab")


def attend(
    values: Tensor,
    level_shapes: LevelShapes,
    valid_ratios: Tensor,
    references: References,
    offsets: Tensor,
    scores: Tensor,
) -> Tensor:
    """``reference.attend`` by the chosen backend; the form that the models call."""
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
    with choice.chosen(name):
        yield


def backend(device: torch.device | str = "cpu") -> str:
    """The name of the backend that serves float32 tensors on ``device``."""
    return _served_by(_wish(), torch.device(device), torch.float32, 32, 16)


def problem(name: str, device: torch.device | str | None = None) -> str | None:
    """Why a backend does not work here, or None if it does (and has passed its test).

    Args:
        name: ``"reference"``, ``"cpu"`` or ``"cuda"``.
        device: the GPU to test; the current one if None.
    """
    if name == "cpu":
        return cpu.problem()
    if name == "cuda":
        if not torch.cuda.is_available():
            return "no CUDA device"
        return cuda.problem(torch.device(device or "cuda"))
    return None


def _check(name: str, where: str) -> None:
    found = problem(choice.known(name, where))
    if found is not None:
        raise UserError(f"{where}: ops backend {name!r} does not work here: {found}")


@functools.cache
def _check_variable(name: str) -> None:
    _check(name, choice.VARIABLE)


def _wish() -> str:
    """The backend asked for, checked once if the environment asks for it."""
    name = choice.wish()
    _check_variable(name)
    return name


def _pick(values: Tensor, count: int) -> ModuleType:
    """The module that computes this call; ``count`` is L * P."""
    if torch.jit.is_tracing() or torch.compiler.is_exporting():
        return reference  # an exported graph may hold no operator of ours
    name = _served(values.device, values.dtype, values.shape[3], count)
    return _BACKENDS[name]


@torch.compiler.assume_constant_result
def _served(device: torch.device, dtype: torch.dtype, width: int, count: int) -> str:
    return _served_by(_wish(), device, dtype, width, count)


def _served_by(wish: str, device: torch.device, dtype: torch.dtype, width: int, count: int) -> str:
    """The backend for such tensors: the wish where it applies, else the reference."""
    if wish == "reference" or wish not in ("auto", device.type):
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


@functools.cache
def _warn_once(name: str, found: str) -> None:
    _log.warning(
        "deformable attention runs in its plain form, which is slower: backend %r "
        "cannot be used (%s)",
        name,
        found,
    )
