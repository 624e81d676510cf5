"""Every backend of deformable attention on this machine: verified, then timed in turn."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detrlab.benchmark.timing import Times, in_turn, ratio
from detrlab.ops import cpu, cuda, deformable, reference, testing
from detrlab.structures import LevelShapes, References

EXTENSION = "torch-ms-deform-attn"
"""A compiled extension that, where it is installed, is timed on the CPU for comparison."""


class Size(NamedTuple):
    """The sizes of one call: (height, width) of each level, and queries.

    ``queries`` is None where there is one for every cell, as in an encoder.
    """

    shapes: LevelShapes
    queries: int | None


def sizes_for(height: int, width: int) -> dict[str, Size]:
    """The encoder's and the decoder's calls for an image of this size; strides 8, 16, 32, 64."""
    shapes = tuple(
        (math.ceil(height / stride), math.ceil(width / stride)) for stride in (8, 16, 32, 64)
    )
    return {"encoder": Size(shapes, None), "decoder": Size(shapes, 300)}


def compare_backends(
    height: int = 800,
    width: int = 1066,
    *,
    device: torch.device | str = "cpu",
    rounds: int = 7,
    batch: int = 1,
) -> list[dict[str, Any]]:
    """Verify every backend against the reference, then time all of them in turn.

    Args:
        height: of the image that the feature levels belong to.
        width: of the image.
        device: where to measure.
        rounds: of timing, after one that does not count.
        batch: images.

    Returns:
        A row for every size and backend: medians, quartiles and the speed-up over the reference,
        or the problem with the backend. The form is ``attend``: from offsets and logits, as the
        models call it.
    """
    device = torch.device(device)
    rows = []
    for name, size in sizes_for(height, width).items():
        calls: dict[tuple[str, str], Callable[[], Any]] = {}
        problems = {}
        for backend, function, problem in _backends(device):
            problems[backend] = problem
            if problem is None:
                inputs = _inputs(size, batch, device)
                forward, both = _passes(function, size.shapes, inputs)
                calls |= {(backend, "forward"): forward, (backend, "both"): both}
        times = in_turn(calls, rounds)
        for backend, problem in problems.items():
            row: dict[str, Any] = {"size": name, "form": "attend", "backend": backend}
            rows.append(row)
            if problem is not None:
                row["problem"] = problem
                continue
            both_times = times[backend, "both"]
            row["forward_ms"] = _milliseconds(times[backend, "forward"])
            row["forward_backward_ms"] = _milliseconds(both_times)
            row["speedup"] = ratio(times["reference", "both"].wall, both_times.wall)["median"]
    return rows


def _milliseconds(times: Times) -> dict[str, Any]:
    low, middle, high = (1e3 * times.percentile(percent) for percent in (25, 50, 75))
    return {"median": middle, "quartiles": [low, high], "least": 1e3 * min(times.wall)}


def _backends(device: torch.device) -> Iterator[tuple[str, testing.Attend, str | None]]:
    """(name, function, problem) of everything that can compute on the device."""
    yield "reference", reference.attend, None
    module = {"cpu": cpu, "cuda": cuda}.get(device.type)
    if module is not None:
        found = deformable.problem(device.type, device) or _verify(module.attend, device)
        yield device.type, module.attend, found
    operator = cuda.ms_deform_attn() if device.type == "cpu" else None
    if operator is not None:
        sample = functools.partial(cuda.sample_with, operator)
        attend = functools.partial(reference.attend_by, sample)
        yield EXTENSION, attend, _verify(attend, device)


def _verify(attend: testing.Attend, device: torch.device) -> str | None:
    """None, or how results around points and around boxes differ from the reference's."""
    for boxes in (False, True):
        case = testing.small_case(boxes=boxes, queries=50, device=device)
        wanted = testing.results(reference.attend, case)
        try:
            found = testing.difference(testing.results(attend, case), wanted)
        except Exception as error:  # whatever it is, this backend does not work
            found = f"{type(error).__name__}: {error}".splitlines()[0]
        if found is not None:
            return found
    return None


Inputs = tuple[Tensor, Tensor, References, Tensor, Tensor]


def _passes(
    attend: testing.Attend, shapes: LevelShapes, inputs: Inputs
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """One backend's forward pass without gradients, and its forward and backward pass."""
    values, ratios, references, offsets, scores = inputs
    learned = [each.detach().requires_grad_() for each in (values, offsets, scores)]
    output_grad = values.new_ones(*offsets.shape[:2], values.shape[2] * values.shape[3])

    def forward() -> Tensor:
        return attend(learned[0], shapes, ratios, references, *learned[1:])

    def both() -> None:
        torch.autograd.grad(forward(), learned, output_grad)

    return torch.no_grad()(forward), both


def _inputs(size: Size, batch: int, device: torch.device) -> Inputs:
    """Values, valid ratios, references, offsets and logits: 8 heads of 32 channels, 4 points.

    Points lie in a ring of 1 to 4 cells around the reference, as when training starts, each
    query's moved by about a cell.
    """
    draw = torch.Generator().manual_seed(0)
    heads, width, points, levels = 8, 32, 4, len(size.shapes)
    cells = sum(rows * columns for rows, columns in size.shapes)
    if size.queries is None:
        centers = torch.cat([_centers(*shape) for shape in size.shapes])
        centers = centers.expand(batch, -1, -1).contiguous()
    else:
        centers = torch.rand(batch, size.queries, 2, generator=draw)
    angles = torch.arange(heads) * (2 * math.pi / heads)
    ring = torch.stack([angles.cos(), angles.sin()], -1)[:, None, None]  # (M, 1, 1, 2)
    steps = torch.arange(1.0, points + 1)[:, None]  # (P, 1)
    shape = (batch, centers.shape[1], heads, levels, points, 2)
    offsets = ring * steps + torch.randn(shape, generator=draw)
    return (
        torch.randn(batch, cells, heads, width, generator=draw).to(device),
        torch.ones(batch, levels, 2, device=device),
        References(centers.to(device)),
        offsets.to(device),
        torch.randn(*shape[:3], levels * points, generator=draw).to(device),
    )


def _centers(rows: int, columns: int) -> Tensor:
    """(rows * columns, 2) x and y of the cells' centres, as fractions."""
    y, x = (torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns
    return torch.cartesian_prod(y, x).flip(-1)


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The rows as lines of text."""
    head = f"{'size':8} {'backend':22} {'forward':>12} {'fwd + bwd':>12}  speed-up"
    lines = [head, "-" * len(head)]
    for row in rows:
        name = f"{row['size']:8} {row['backend']:22}"
        if "problem" in row:
            lines.append(f"{name} not used: {row['problem']}")
            continue
        forward, both = row["forward_ms"]["median"], row["forward_backward_ms"]["median"]
        lines.append(f"{name} {forward:9.2f} ms {both:9.2f} ms {row['speedup']:8.1f}x")
    return lines
