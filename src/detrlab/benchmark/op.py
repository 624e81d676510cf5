"""Every backend of deformable attention on this machine: verified, then timed in turn."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
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


@dataclass
class Row:
    """One backend at one size.

    Attributes:
        size: name of the size.
        form: ``attend``, from offsets and logits, as the models call it; or ``sample``, from
            locations and weights, as other libraries' operators are called.
        backend: its name.
        problem: why it was not timed; None if it was.
        forward: of the calls without gradients.
        both: of the forward and backward passes.
    """

    size: str
    form: str
    backend: str
    problem: str | None = None
    forward: Times = field(default_factory=Times)
    both: Times = field(default_factory=Times)

    def to_dict(self, baseline: Row) -> dict[str, Any]:
        """Medians, quartiles and the speed-up over the reference's row."""
        row: dict[str, Any] = {"size": self.size, "form": self.form, "backend": self.backend}
        if self.problem is not None:
            return {**row, "problem": self.problem}
        for name, times in (("forward_ms", self.forward), ("forward_backward_ms", self.both)):
            low, middle, high = (1e3 * times.percentile(percent) for percent in (25, 50, 75))
            row[name] = {
                "median": middle,
                "quartiles": [low, high],
                "least": 1e3 * min(times.wall),
            }
        return {**row, "speedup": ratio(baseline.both.wall, self.both.wall)["median"]}


def compare_backends(
    height: int = 800,
    width: int = 1066,
    *,
    device: torch.device | str = "cpu",
    rounds: int = 7,
    batch: int = 1,
    forms: Sequence[str] = ("attend", "sample"),
) -> list[Row]:
    """Verify every backend against the reference, then time all of them in turn.

    Args:
        height: of the image that the feature levels belong to.
        width: of the image.
        device: where to measure.
        rounds: of timing, after one that does not count.
        batch: images.
        forms: which of ``attend`` and ``sample`` to measure.

    Returns:
        A row for every size, form and backend; a backend with a problem is not timed.
    """
    device = torch.device(device)
    rows = []
    sizes = sizes_for(height, width)
    for (name, size), form in itertools.product(sizes.items(), forms):
        calls: dict[tuple[str, str], Callable[[], Any]] = {}
        group = []
        for backend, function, problem in _backends(form, device):
            group.append(Row(name, form, backend, problem))
            if problem is None:
                inputs = _inputs(size, batch, device)
                forward, both = _passes(form, function, size.shapes, inputs)
                calls |= {(backend, "forward"): forward, (backend, "both"): both}
        times = in_turn(calls, rounds)
        for row in group:
            if row.problem is None:
                row.forward = times[row.backend, "forward"]
                row.both = times[row.backend, "both"]
        rows += group
    return rows


def _backends(
    form: str, device: torch.device
) -> Iterator[tuple[str, Callable[..., Tensor], str | None]]:
    """(name, function, problem) of everything that can compute on the device."""
    yield "reference", getattr(reference, form), None
    module = {"cpu": cpu, "cuda": cuda}.get(device.type)
    if module is not None:
        found = deformable.problem(device.type, device) or _verify(module.attend, device)
        yield device.type, getattr(module, form), found
    operator = cuda.ms_deform_attn() if device.type == "cpu" else None
    if operator is not None:
        sample = functools.partial(cuda.sample_with, operator)
        attend = functools.partial(reference.attend_by, sample)
        yield EXTENSION, attend if form == "attend" else sample, _verify(attend, device)


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
    form: str, function: Callable[..., Tensor], shapes: LevelShapes, inputs: Inputs
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """One backend's forward pass without gradients, and its forward and backward pass."""
    values, ratios, references, offsets, scores = inputs
    between: tuple[Any, ...] = (shapes, ratios, references)
    learned: tuple[Tensor, ...] = (values, offsets, scores)
    if form == "sample":
        between = (shapes,)
        learned = (
            values,
            *reference.locations_and_weights(
                shapes, ratios, references, offsets, scores, values.dtype
            ),
        )
    first, *others = [each.detach().requires_grad_() for each in learned]
    output_grad = values.new_ones(*offsets.shape[:2], values.shape[2] * values.shape[3])

    def forward() -> Tensor:
        return function(first, *between, *others)

    def both() -> None:
        torch.autograd.grad(forward(), [first, *others], output_grad)

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


def records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """All rows as plain values, with their speed-ups over the reference."""
    baselines = {(row.size, row.form): row for row in rows if row.backend == "reference"}
    return [row.to_dict(baselines[row.size, row.form]) for row in rows]


def table(rows: Sequence[Row]) -> list[str]:
    """The rows as lines of text."""
    head = f"{'size':8} {'form':7} {'backend':22} {'forward':>12} {'fwd + bwd':>12}  speed-up"
    lines = [head, "-" * len(head)]
    for row in records(rows):
        name = f"{row['size']:8} {row['form']:7} {row['backend']:22}"
        if "problem" in row:
            lines.append(f"{name} not used: {row['problem']}")
            continue
        forward, both = row["forward_ms"]["median"], row["forward_backward_ms"]["median"]
        lines.append(f"{name} {forward:9.2f} ms {both:9.2f} ms {row['speedup']:8.1f}x")
    return lines
