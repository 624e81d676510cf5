"""Deformable attention on a GPU: by an installed extension, else by detrlab's Triton kernels.

Known extensions are ``torch-ms-deform-attn`` and ``deformops``, two packages of Deformable DETR's
CUDA operator. The first that is installed is compared with the plain form before it is used.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from detrlab.ops import reference, testing
from detrlab.structures import LevelShapes, References

Operator = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""An extension: (values, shapes, first cells, locations, weights) -> (B, Q, M * D)."""


class Found(NamedTuple):
    """A tested implementation of ``reference.sample`` for a GPU, and its name."""

    name: str
    sample: reference.Sample


def attend(
    values: Tensor,
    level_shapes: LevelShapes,
    valid_ratios: Tensor,
    references: References,
    offsets: Tensor,
    scores: Tensor,
) -> Tensor:
    """``reference.attend`` with the GPU's implementation of ``sample``."""
    return reference.attend_by(
        _sampler(values.device), values, level_shapes, valid_ratios, references, offsets, scores
    )


def sample(values: Tensor, level_shapes: LevelShapes, locations: Tensor, weights: Tensor) -> Tensor:
    """``reference.sample`` by the GPU's implementation."""
    return _sampler(values.device)(values, level_shapes, locations, weights)


def _sampler(device: torch.device) -> reference.Sample:
    found = _found(device)
    assert isinstance(found, Found), "call only where problem() is None"
    return found.sample


def sample_with(
    operator: Operator,
    values: Tensor,
    level_shapes: LevelShapes,
    locations: Tensor,
    weights: Tensor,
) -> Tensor:
    """``reference.sample`` by any operator."""
    dtype = reference.computing_dtype(values)
    shapes = torch.tensor(level_shapes).to(values.device, non_blocking=True)
    cells = shapes.prod(1)
    with torch.autocast(values.device.type, enabled=False):
        output = operator(
            values.to(dtype).contiguous(),
            shapes,
            cells.cumsum(0) - cells,
            locations.to(dtype).contiguous(),
            weights.to(dtype).contiguous(),
        )
    return output.to(values.dtype)


def problem(device: torch.device) -> str | None:
    """Why only the plain form works on this GPU; None if an implementation works."""
    found = _found(device)
    return None if isinstance(found, Found) else found


def implementation(device: torch.device) -> str | None:
    """The name of the implementation for this GPU; None if only the plain form works."""
    found = _found(device)
    return found.name if isinstance(found, Found) else None


def ms_deform_attn() -> Operator | None:
    """The operator of ``torch-ms-deform-attn``, which also runs on a CPU; None if not installed."""
    try:
        module = importlib.import_module("torch_ms_deform_attn")
    except (ImportError, OSError):
        return None
    operator: Operator = module.ms_deform_attn
    return operator


def _deformops() -> Operator | None:
    try:
        module = importlib.import_module("deformops")
    except (ImportError, OSError):
        return None

    def operator(
        values: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor
    ) -> Tensor:
        output: Tensor = module.deform2d_multiscale(values, shapes, starts, locations, weights, 64)
        return output.flatten(2)

    return operator


def _triton() -> reference.Sample | None:
    try:
        from detrlab.ops import triton_kernels
    except ImportError:
        return None
    return triton_kernels.sample


def _extension(find: Callable[[], Operator | None]) -> reference.Sample | None:
    operator = find()
    return None if operator is None else functools.partial(sample_with, operator)


_KNOWN: tuple[tuple[str, Callable[[], reference.Sample | None]], ...] = (
    ("torch-ms-deform-attn", functools.partial(_extension, ms_deform_attn)),
    ("deformops", functools.partial(_extension, _deformops)),
    ("triton", _triton),
)


@functools.cache
def _found(device: torch.device) -> Found | str:
    """The first implementation that passes its test on ``device``, or why none does."""
    problems = []
    for name, find in _KNOWN:
        sampler = find()
        if sampler is None:
            problems.append(f"{name} is not installed")
            continue
        difference = testing.in_own_thread(functools.partial(_difference, sampler, device))
        if difference is None:
            return Found(name, sampler)
        problems.append(f"{name}: {difference}")
    return "; ".join(problems)


def _difference(sampler: reference.Sample, device: torch.device) -> str | None:
    """None, or how the results on a small case differ from the plain form's."""
    case = testing.small_case(device=device)
    try:
        actual = testing.results(functools.partial(reference.attend_by, sampler), case)
    except Exception as error:  # the plain form is used instead
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return testing.difference(actual, testing.results(reference.attend, case))
