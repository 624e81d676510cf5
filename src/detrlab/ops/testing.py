"""The test before a backend's first use: a small case, compared with the plain form."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from detrlab.structures import LevelShapes, References

Result = TypeVar("Result")
Attend = Callable[[Tensor, LevelShapes, Tensor, References, Tensor, Tensor], Tensor]

_NAMES = ("output", "gradient of values", "gradient of offsets", "gradient of scores")


class Case(NamedTuple):
    """Arguments of ``attend`` and a gradient for its output."""

    values: Tensor
    shapes: LevelShapes
    valid_ratios: Tensor
    references: References
    offsets: Tensor
    scores: Tensor
    output_grad: Tensor


def small_case(
    shapes: LevelShapes = ((8, 16), (4, 4), (1, 2)),
    *,
    batch: int = 2,
    queries: int = 11,
    heads: int = 2,
    width: int = 32,
    points: int = 4,
    boxes: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Case:
    """Random points inside, on cell borders, across the edges and outside.

    All numbers are multiples of 1/256. With sides that are powers of two every location is exact
    in any order of computation, so that all backends see a point on the same side of a border,
    where the gradient jumps. (With boxes the number of points must be a power of two too.)
    """
    draw = torch.Generator().manual_seed(seed)

    def uniform(*size: int, low: float, high: float) -> Tensor:
        numbers = torch.rand(*size, generator=draw, dtype=torch.float64, device="cpu")
        return ((numbers * (high - low) + low) * 256).round().div(256).to(device, dtype)

    levels = len(shapes)
    cells = sum(rows * columns for rows, columns in shapes)
    values = uniform(batch, cells, heads, width, low=-1, high=1)
    values[-1, cells // 2 :: 3] = 0  # padded cells
    return Case(
        values=values,
        shapes=shapes,
        valid_ratios=uniform(batch, levels, 2, low=0.5, high=1),
        references=References(
            uniform(batch, queries, 2, low=0, high=1),
            uniform(batch, queries, 2, low=0.05, high=1) if boxes else None,
        ),
        offsets=uniform(batch, queries, heads, levels, points, 2, low=-5, high=5),
        scores=uniform(batch, queries, heads, levels * points, low=-3, high=3),
        output_grad=uniform(batch, queries, heads * width, low=-1, high=1),
    )


def results(attend: Attend, case: Case) -> tuple[Tensor, ...]:
    """Output and gradients of values, offsets and scores, by autograd."""
    inputs = [
        part.detach().clone().requires_grad_() for part in (case.values, case.offsets, case.scores)
    ]
    with torch.enable_grad():
        output = attend(
            inputs[0], case.shapes, case.valid_ratios, case.references, inputs[1], inputs[2]
        )
        # A sum, because autograd imports much more to check a gradient that it is given.
        total = (output * case.output_grad).sum()
        return output.detach(), *torch.autograd.grad(total, inputs)


def difference(actual: Sequence[Tensor], wanted: Sequence[Tensor]) -> str | None:
    """None if two ``results`` agree within rounding, else what differs."""
    for name, a, b in zip(_NAMES, actual, wanted, strict=True):
        bound = 1e-10 if b.dtype == torch.float64 else 1e-4
        scale = b.abs().max().clamp(min=1e-3)
        error = ((a - b).abs().max() / scale).item()
        if not error < bound:  # NaN differs, too
            return f"the {name} differs from the plain form by {error:.1e} of its size"
    return None


def in_own_thread(function: Callable[[], Result]) -> Result:
    """The function's result, computed in a new thread, without tracing, autocast or inference mode.

    These modes belong to a thread, and a backend's first use may be inside them.
    """
    outcome: list[Result] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            outcome.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return outcome[0]
