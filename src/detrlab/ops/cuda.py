"""Deformable attention on a GPU by a compiled extension, if one is installed.

Known are ``torch-ms-deform-attn`` and ``deformops``, two packagings of Deformable DETR's own CUDA
operator. Whichever is found is compared with the plain form on the GPU before it is used.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from detrlab.ops import reference, testing
from detrlab.structures import LevelShapes, References

Operator = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(values, shapes, first cells, locations, weights) -> (B, Q, M * D)."""


def attend(
    values: Tensor,
    level_shapes: LevelShapes,
    valid_ratios: Tensor,
    references: References,
    offsets: Tensor,
    scores: Tensor,
) -> Tensor:
    """``reference.attend`` with the extension in place of ``grid_sample``."""
    operator = extension(values.device)
    assert operator is not None, "call attend() only where problem() is None"
    return attend_with(operator, values, level_shapes, valid_ratios, references, offsets, scores)


def sample(values: Tensor, level_shapes: LevelShapes, locations: Tensor, weights: Tensor) -> Tensor:
    """``reference.sample`` by the extension."""
    operator = extension(values.device)
    assert operator is not None, "call sample() only where problem() is None"
    return sample_with(operator, values, level_shapes, locations, weights)


def attend_with(
    operator: Operator,
    values: Tensor,
    level_shapes: LevelShapes,
    valid_ratios: Tensor,
    references: References,
    offsets: Tensor,
    scores: Tensor,
) -> Tensor:
    """``reference.attend`` with any operator in place of ``grid_sample``."""
    locations, weights = reference.locations_and_weights(
        level_shapes, valid_ratios, references, offsets, scores, reference.computing_dtype(values)
    )
    return sample_with(operator, values, level_shapes, locations, weights)


def sample_with(
    operator: Operator,
    values: Tensor,
    level_shapes: LevelShapes,
    locations: Tensor,
    weights: Tensor,
) -> Tensor:
    """``reference.sample`` by any operator."""
    dtype = reference.computing_dtype(values)
    shapes = torch.tensor(level_shapes, dtype=torch.int64, device=values.device)
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
    """Why no extension serves this GPU, or None if one does."""
    found = _found(device)
    return found if isinstance(found, str) else None


def extension(device: torch.device) -> Operator | None:
    """The tested operator for this GPU, or None."""
    found = _found(device)
    return None if isinstance(found, str) else found


def ms_deform_attn() -> Operator | None:
    """The operator of ``torch-ms-deform-attn``, which also runs on a CPU; None if not there."""
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


@functools.cache
def _found(device: torch.device) -> Operator | str:
    """The first extension that passes its test on ``device``, or why none does."""
    problems = []
    for name, find in (("torch-ms-deform-attn", ms_deform_attn), ("deformops", _deformops)):
        operator = find()
        if operator is None:
            problems.append(f"{name} is not installed")
            continue
        difference = testing.in_own_thread(functools.partial(_difference, operator, device))
        if difference is None:
            return operator
        problems.append(f"{name}: {difference}")
    return "; ".join(problems)


def _difference(operator: Operator, device: torch.device) -> str | None:
    """None, or how the operator's results on a small case differ from the plain form's."""
    case = testing.small_case(device=device)
    try:
        actual = testing.results(functools.partial(attend_with, operator), case)
    except Exception as error:  # whatever fails, the plain form serves
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return testing.difference(actual, testing.results(reference.attend, case))
