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
        case = _case(size, batch, device)
        for backend, function, problem in _backends(device):
            problems[backend] = problem
            if problem is None:
                forward, both = _passes(function, case)
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


def _passes(attend: testing.Attend, case: testing.Case) -> tuple[Callable[[], Any], ...]:
    """One backend's forward pass without gradients, and its forward and backward pass."""
    learned = [each.detach().requires_grad_() for each in (case.values, case.offsets, case.scores)]

    def forward() -> Tensor:
        return attend(learned[0], case.shapes, case.valid_ratios, case.references, *learned[1:])

    def both() -> None:
        torch.autograd.grad(forward(), learned, case.output_grad)

    return torch.no_grad()(forward), both


def _case(size: Size, batch: int, device: torch.device) -> testing.Case:
    """Inputs of 8 heads with 4 points within 5 cells of the reference."""
    queries = size.queries or sum(rows * columns for rows, columns in size.shapes)
    case = testing.small_case(size.shapes, batch=batch, queries=queries, heads=8, device=device)
    if size.queries:
        return case
    centers = [
        torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w).flip(-1)
        for h, w in size.shapes
    ]
    every = torch.cat(centers).expand(batch, -1, -1).contiguous()
    return case._replace(references=References(every.to(device)))


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
