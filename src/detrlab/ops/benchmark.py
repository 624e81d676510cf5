"""Every backend of deformable attention on this machine: verified, then timed in turn."""

from __future__ import annotations

import functools
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from detrlab.ops import cpu, cuda, deformable, reference, testing
from detrlab.structures import LevelShapes, References

Attend = testing.Attend
EXTENSION = "torch-ms-deform-attn"
"""A compiled extension that, where it is installed, is timed on the CPU for comparison."""


@dataclass(frozen=True)
class Size:
    """How much there is to do in one call.

    Attributes:
        name: of the row.
        shapes: (height, width) of each level.
        queries: Q; None has one for every cell, around it, as in an encoder.
        batch: images.
    """

    name: str
    shapes: LevelShapes
    queries: int | None
    batch: int = 1


def sizes_for(height: int, width: int, *, queries: int = 300, batch: int = 1) -> list[Size]:
    """The encoder's and the decoder's calls for an image of this size; strides 8, 16, 32, 64."""
    shapes = tuple(
        (math.ceil(height / stride), math.ceil(width / stride)) for stride in (8, 16, 32, 64)
    )
    return [Size("encoder", shapes, None, batch), Size("decoder", shapes, queries, batch)]


@dataclass
class Row:
    """One backend at one size.

    Attributes:
        size: name of the size.
        form: ``attend``, from offsets and logits, as the models call it; or ``sample``, from
            locations and weights, as other libraries' operators are called.
        backend: its name.
        problem: why it was not timed; None if it was.
        forward: milliseconds of each call without gradients.
        both: milliseconds of each forward and backward pass.
    """

    size: str
    form: str
    backend: str
    problem: str | None = None
    forward: list[float] = field(default_factory=list)
    both: list[float] = field(default_factory=list)

    def to_dict(self, baseline: Row | None = None) -> dict[str, Any]:
        """Plain values: medians, quartiles and, given the reference's row, the speed-up."""
        row: dict[str, Any] = {"size": self.size, "form": self.form, "backend": self.backend}
        if self.problem is not None:
            return {**row, "problem": self.problem}
        for name, times in (("forward_ms", self.forward), ("forward_backward_ms", self.both)):
            low, middle, high = quartiles(times)
            row[name] = {"median": middle, "quartiles": [low, high], "least": min(times)}
        if baseline is not None and baseline.both:
            row["speedup"] = speedup(self.both, baseline.both)
        return row


def quartiles(numbers: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(numbers) == 1:
        return numbers[0], numbers[0], numbers[0]
    low, middle, high = statistics.quantiles(numbers, n=4, method="inclusive")
    return low, middle, high


def speedup(times: Sequence[float], baseline: Sequence[float]) -> float:
    """The median over rounds of how much faster; pairs were taken one right after the other."""
    return statistics.median(b / a for a, b in zip(times, baseline, strict=True))


def compare_backends(
    height: int = 800,
    width: int = 1066,
    *,
    device: torch.device | str = "cpu",
    rounds: int = 7,
    batch: int = 1,
    forms: Sequence[str] = ("attend", "sample"),
) -> list[Row]:
    """Verify every backend against the reference, then time all in turn, round after round.

    Taking turns means that a busy machine slows all alike, so ratios are steadier than times.

    Args:
        height: of the image whose feature levels are meant.
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
    for size in sizes_for(height, width, batch=batch):
        for form in forms:
            contestants = list(_contestants(form, device))
            group = [Row(size.name, form, name, found) for name, _, found in contestants]
            calls = [
                (row, _Call(form, function, size, device))
                for row, (_, function, found) in zip(group, contestants, strict=True)
                if found is None
            ]
            _time_in_turn(calls, rounds)
            rows += group
    return rows


def _contestants(
    form: str, device: torch.device
) -> Iterator[tuple[str, Callable[..., Tensor], str | None]]:
    """(name, function, problem) of all that could serve on the device."""
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


def _verify(attend: Attend, device: torch.device) -> str | None:
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


class _Call:
    """One backend's forward and backward pass at one size."""

    def __init__(
        self, form: str, function: Callable[..., Tensor], size: Size, device: torch.device
    ) -> None:
        values, ratios, boxes, offsets, scores = _inputs(size, device)
        self.output_grad = torch.ones(size.batch, offsets.shape[1], 256, device=device)
        if form == "attend":
            learned = (values, offsets, scores)
            self.compute: Callable[..., Tensor] = lambda v, o, s: function(
                v, size.shapes, ratios, boxes, o, s
            )
        else:
            located = reference.locations_and_weights(
                size.shapes, ratios, boxes, offsets, scores, values.dtype
            )
            learned = (values, *located)
            self.compute = lambda v, o, s: function(v, size.shapes, o, s)
        self.inputs = [each.detach().requires_grad_() for each in learned]

    def forward(self) -> None:
        """Without gradients."""
        with torch.no_grad():
            self.compute(*self.inputs)

    def both(self) -> None:
        """Output, and gradients of everything that is learned."""
        output = self.compute(*self.inputs)
        torch.autograd.grad(output, self.inputs, self.output_grad)


def _inputs(size: Size, device: torch.device) -> tuple[Tensor, Tensor, References, Tensor, Tensor]:
    """Values, valid ratios, references, offsets and logits: 8 heads of 32 channels, 4 points.

    Points lie in a ring of 1 to 4 cells around the reference, as training begins, each query's
    moved by about a cell.
    """
    draw = torch.Generator().manual_seed(0)
    heads, width, points, levels = 8, 32, 4, len(size.shapes)
    cells = sum(rows * columns for rows, columns in size.shapes)
    queries = size.queries or cells
    if size.queries is None:
        centers = _cell_centers(size.shapes).expand(size.batch, -1, -1)
    else:
        centers = torch.rand(size.batch, queries, 2, generator=draw)
    angles = torch.arange(heads) * (2 * math.pi / heads)
    ring = torch.stack([angles.cos(), angles.sin()], -1)[:, None, None]  # (M, 1, 1, 2)
    steps = torch.arange(1.0, points + 1)[:, None]  # (P, 1)
    shape = (size.batch, queries, heads, levels, points, 2)
    offsets = ring * steps + torch.randn(shape, generator=draw)
    return (
        torch.randn(size.batch, cells, heads, width, generator=draw).to(device),
        torch.ones(size.batch, levels, 2, device=device),
        References(centers.contiguous().to(device)),
        offsets.to(device),
        torch.randn(size.batch, queries, heads, levels * points, generator=draw).to(device),
    )


def _cell_centers(shapes: LevelShapes) -> Tensor:
    centers = []
    for rows, columns in shapes:
        y, x = torch.meshgrid(
            (torch.arange(rows) + 0.5) / rows,
            (torch.arange(columns) + 0.5) / columns,
            indexing="ij",
        )
        centers.append(torch.stack([x, y], -1).view(-1, 2))
    return torch.cat(centers)


def _time_in_turn(calls: Sequence[tuple[Row, _Call]], rounds: int) -> None:
    for number in range(rounds + 1):
        for row, call in calls:
            forward, both = _milliseconds(call.forward), _milliseconds(call.both)
            if number:  # the first round warms up
                row.forward.append(forward)
                row.both.append(both)


def _milliseconds(call: Callable[[], None]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


def to_dict(rows: Sequence[Row]) -> dict[str, Any]:
    """All rows with their speed-ups over the reference, and where they were measured."""
    baselines = {(row.size, row.form): row for row in rows if row.backend == "reference"}
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rows": [row.to_dict(baselines[row.size, row.form]) for row in rows],
    }


def load() -> float | None:
    """How many programs want to run on this machine; None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def table(rows: Sequence[Row]) -> list[str]:
    """The rows as lines of text."""
    head = f"{'size':8} {'form':7} {'backend':22} {'forward':>12} {'fwd + bwd':>12}  speed-up"
    lines = [head, "-" * len(head)]
    for row in to_dict(rows)["rows"]:
        name = f"{row['size']:8} {row['form']:7} {row['backend']:22}"
        if "problem" in row:
            lines.append(f"{name} not used: {row['problem']}")
            continue
        forward, both = row["forward_ms"]["median"], row["forward_backward_ms"]["median"]
        lines.append(f"{name} {forward:9.2f} ms {both:9.2f} ms {row['speedup']:8.1f}x")
    return lines
